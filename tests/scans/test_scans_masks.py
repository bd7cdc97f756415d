"""Lesion masks lie on the slices they belong to, whatever way they are stored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK
from PIL import Image

from ctcovid.base.errors import InputError
from ctcovid.scans.discover import find_scans
from ctcovid.scans.masks import read_mask
from ctcovid.scans.scan import Scan


def of_slices(count: int, size: int = 16, first: int = 0) -> Scan:
    """A scan of pictures that only has names."""
    return Scan("", "", "", Path("scan"), tuple(Path(f"scan/{number:04d}.png") for number in range(first, first + count)), "")


def mask_of(path: Path, scan: Scan, size: int = 16) -> np.ndarray:
    return read_mask(path, scan, size).inside


@pytest.fixture
def inside() -> np.ndarray:
    """Head to feet, front up, the patient's left on the right: 6 slices of 16 x 16."""
    found = np.zeros((6, 16, 16), bool)
    found[1, 2:5, 9:13] = True
    found[4, 10:14, 1:3] = True
    return found


def test_pictures_are_taken_in_the_order_of_their_numbers(inside: np.ndarray, tmp_path: Path) -> None:
    for number, one in enumerate(inside):
        Image.fromarray(one.astype(np.uint8) * 255).save(tmp_path / f"{number + 6}.png")
    assert np.array_equal(mask_of(tmp_path, of_slices(6), 16), inside)
    larger = mask_of(tmp_path, of_slices(6), 32)
    assert larger.shape == (6, 32, 32) and np.array_equal(larger[:, ::2, ::2], inside)


def test_a_folder_may_hold_any_picture_and_what_is_hidden_is_none(inside: np.ndarray, tmp_path: Path) -> None:
    for number, pixels in enumerate(inside):
        Image.fromarray(pixels.astype(np.uint8) * 255).save(tmp_path / f"{number}.jpg", quality=100)
        (tmp_path / f"._{number}.jpg").write_bytes(b"\0\5\x16\7")
    assert np.array_equal(mask_of(tmp_path, of_slices(6), 16), inside)


@pytest.mark.parametrize("head_first", [True, False])
def test_a_volume_is_turned_whichever_way_it_is_stored(inside: np.ndarray, tmp_path: Path, head_first: bool) -> None:
    image = SimpleITK.GetImageFromArray((inside if head_first else inside[::-1]).astype(np.uint8))
    image.SetSpacing((0.7, 0.7, 5.0))
    image.SetDirection((1, 0, 0, 0, 1, 0, 0, 0, -1 if head_first else 1))
    SimpleITK.WriteImage(image, str(tmp_path / "mask.nii.gz"))
    assert np.array_equal(mask_of(tmp_path / "mask.nii.gz", of_slices(6), 16), inside)


def test_a_mask_of_another_scan_or_none_is_refused_with_the_reason(inside: np.ndarray, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such mask"):
        mask_of(tmp_path / "absent.nii", of_slices(6), 16)
    (tmp_path / "odd.nii").write_text("no volume")
    with pytest.raises(InputError, match="not a readable volume"):
        mask_of(tmp_path / "odd.nii", of_slices(6), 16)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(inside.astype(np.uint8)), str(tmp_path / "mask.nii"))
    with pytest.raises(InputError, match="6 slices, but the scan has 7"):
        mask_of(tmp_path / "mask.nii", of_slices(7), 16)


def test_a_volume_that_lies_elsewhere_than_the_scan_is_refused(inside: np.ndarray, tmp_path: Path) -> None:
    """The same number of slices is not enough: a mask of another grid would be stretched over the scan without a word."""

    def stored(name: str, pixels: np.ndarray, spacing: float, origin: float) -> Path:
        image = SimpleITK.GetImageFromArray(pixels.astype(np.int16))
        image.SetSpacing((spacing, spacing, 5.0))
        image.SetOrigin((origin, 0.0, 0.0))
        SimpleITK.WriteImage(image, str(tmp_path / name))
        return tmp_path / name

    (scan,) = find_scans([stored("scan.nii", inside, 0.7, 0.0)])
    assert mask_of(stored("same.nii", inside, 0.7, 0.3), scan).any()
    others = {"moved.nii": (inside, 0.7, 5.0), "coarse.nii": (inside[:, ::2, ::2], 1.4, 0.0), "spread.nii": (inside, 0.8, 0.0)}
    for name, (pixels, spacing, origin) in others.items():
        with pytest.raises(InputError, match=f"{name}: .* mm away from the scan's 16×16. Resample the mask"):
            mask_of(stored(name, pixels, spacing, origin), scan)
