"""Complete and segmented CT, on real scans."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from kind_rates import OTHER_WINDOWS, windowed
from PIL import Image

from ctcovid.scans.kind import COMPLETE, SEGMENTED, image_kind, in_colour, is_masked
from ctcovid.scans.window import Window

REAL = [
    ("ccccii/NCP/16/1164", False),
    ("ccccii/NCP/920/2462", False),
    ("ccccii/CP/1068/3107", False),
    ("ccccii/Normal/2316/771", False),
    ("ccccii-segmented/NCP/96/1328", True),
    ("ccccii-segmented/Normal/1995/500", True),
]


@pytest.mark.parametrize("size", [512, 128, 64])
@pytest.mark.parametrize(("scan", "masked"), REAL, ids=[scan for scan, _ in REAL])
def test_real_slices_are_told_apart_from_end_to_end_of_the_chest(scan: str, masked: bool, size: int, sample_data: Path) -> None:
    wrong = []
    for path in sorted((sample_data / scan).iterdir())[::12]:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("L").resize((size, size), Image.Resampling.BILINEAR))
        if is_masked(pixels) != masked:
            wrong.append(path.name)
    assert wrong == []


def test_scan_is_segmented_where_more_than_half_of_its_slices_are_masked() -> None:
    assert [image_kind(masked, 10) for masked in (0, 5, 6, 10)] == [COMPLETE, COMPLETE, SEGMENTED, SEGMENTED]
    assert (image_kind(0, 1), image_kind(1, 1)) == ("complete", "segmented")


def test_complete_slice_in_a_wide_black_frame_is_still_complete(sample_data: Path) -> None:
    """Black alone does not make a masked slice: the white of the chest wall is missing there too."""
    with Image.open(sample_data / "ccccii/NCP/16/1164/0070.png") as image:
        framed = np.pad(np.asarray(image), 124)
    assert np.mean(framed == 0) > 0.5
    assert not is_masked(framed)


@pytest.mark.parametrize("window", [*OTHER_WINDOWS, Window(-400, 1200), Window(-600, 800)], ids=str)
def test_complete_slices_are_complete_in_any_window_and_zoomed_out(window: Window, sample_data: Path) -> None:
    volume, _ = windowed(sample_data, window, ("nifti/chest-cap001-128.nii.gz",))["nifti/chest-cap001-128.nii.gz"]
    for pixels in volume[::3]:
        assert not is_masked(pixels) and not is_masked(np.pad(pixels, 40)) and not is_masked(np.pad(pixels, 90))


TINTS = {"sepia": [1, 0.89, 0.69], "clipped sepia": [1.35, 1.2, 0.94], "blue film": [0.8, 0.9, 1.1]}


def written(folder: Path, channels: np.ndarray, ending: str) -> Path:
    path = folder / f"picture.{ending}"
    Image.fromarray(np.clip(np.rint(channels), 0, 255).astype(np.uint8)).save(path)
    return path


@pytest.fixture
def slice_of_a_chest(sample_data: Path) -> np.ndarray:
    with Image.open(sample_data / "ccccii/NCP/16/1164/0070.png") as image:
        return np.asarray(image.convert("L")).astype(float)


@pytest.mark.parametrize("ending", ["png", "jpg"])
@pytest.mark.parametrize("tint", TINTS)
def test_picture_of_one_tint_is_not_in_colour(tint: str, ending: str, slice_of_a_chest: np.ndarray, tmp_path: Path) -> None:
    assert not in_colour(written(tmp_path, slice_of_a_chest[:, :, None] * TINTS[tint], ending))


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_overlays_and_colour_maps_are_in_colour(ending: str, slice_of_a_chest: np.ndarray, tmp_path: Path) -> None:
    grey = np.repeat(slice_of_a_chest[:, :, None], 3, 2)
    fused = grey.copy()
    fused[200:320, 150:260] = 0.5 * fused[200:320, 150:260] + [127, 60, 0]
    rainbow = np.stack([255 - np.abs(slice_of_a_chest - peak) * 2 for peak in (230, 130, 40)], -1)
    assert in_colour(written(tmp_path, fused, ending)) and in_colour(written(tmp_path, rainbow, ending))
    assert not in_colour(written(tmp_path, grey, ending))
