"""Lesion masks lie on the slices they belong to, whatever way they are stored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel
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


def written(folder: Path, pictures: list[Image.Image], ending: str = "png", first: int = 0) -> Path:
    folder.mkdir()
    for number, picture in enumerate(pictures, start=first):
        picture.save(folder / f"{number:04d}.{ending}")
    return folder


def coloured(one: np.ndarray, colour: tuple[int, ...], background: tuple[int, ...]) -> Image.Image:
    return Image.fromarray(np.where(one[..., None], np.uint8(colour), np.uint8(background)))


def palette(one: np.ndarray) -> Image.Image:
    """Black is not the first colour."""
    picture = Image.fromarray(1 - one.astype(np.uint8)).convert("P")
    picture.putdata((1 - one.astype(np.uint8)).ravel().tolist())
    picture.putpalette([200, 0, 0, 0, 0, 0] + [255] * 750)
    return picture


@pytest.mark.parametrize(
    "picture",
    [
        lambda one: Image.fromarray(one.astype(np.uint8)),
        lambda one: Image.fromarray(one.astype(np.uint8) * 255),
        lambda one: Image.fromarray(one.astype(np.uint8) * np.uint8(3)),
        lambda one: Image.fromarray(one.astype(np.uint16)),
        lambda one: Image.fromarray(one),
        palette,
        lambda one: coloured(one, (255, 0, 0), (0, 0, 0)),
        lambda one: coloured(one, (0, 0, 1), (0, 0, 0)),
        lambda one: coloured(one, (255, 0, 0, 255), (0, 0, 0, 255)),
        lambda one: coloured(one, (255, 0, 0, 120), (255, 255, 255, 0)),
        lambda one: coloured(one, (0, 0, 0, 255), (0, 0, 0, 0)),
    ],
    ids=["1", "255", "label", "16 bits", "boolean", "palette", "red", "dark blue", "red with opacity", "overlay", "opacity alone"],
)
def test_any_value_but_black_is_a_lesion(picture: Callable[[np.ndarray], Image.Image], inside: np.ndarray, tmp_path: Path) -> None:
    made = written(tmp_path / "mask", [picture(one) for one in inside])
    assert np.array_equal(mask_of(made, of_slices(6)), inside)


def test_pages_of_a_tiff_are_slices_of_the_mask(inside: np.ndarray, tmp_path: Path) -> None:
    (tmp_path / "mask").mkdir()
    for values in (inside.astype(np.uint8), inside.astype(np.float32) * 0.7):
        pages = [Image.fromarray(one) for one in values]
        pages[0].save(tmp_path / "mask" / "a.tif", save_all=True, append_images=pages[1:])
        assert np.array_equal(mask_of(tmp_path / "mask" / "a.tif", of_slices(6)), inside)
        assert np.array_equal(mask_of(tmp_path / "mask", of_slices(6)), inside)


def test_noise_of_a_lossy_picture_is_no_lesion(tmp_path: Path) -> None:
    disc = np.hypot(*(np.indices((64, 64)) - 30)) < 12
    for name, picture in (("grey", Image.fromarray(disc.astype(np.uint8) * 255)), ("red", coloured(disc, (255, 0, 0), (0, 0, 0)))):
        made = written(tmp_path / name, [picture] * 6, "jpg")
        assert (np.asarray(Image.open(made / "0000.jpg"))[~disc] > 0).any()
        mask = read_mask(made, of_slices(6), 64)
        assert (mask.inside != disc).mean() < 0.02 and "values above 127 of 255" in mask.rule


@pytest.mark.parametrize(("kind", "values"), [(np.uint8, (0, 1)), (np.int16, (0, -3)), (np.float32, (0, 2)), (np.float64, (np.nan, 1))])
def test_labels_of_a_volume_are_lesions_whatever_their_type(
    kind: type, values: tuple[float, float], inside: np.ndarray, tmp_path: Path
) -> None:
    nibabel.save(
        nibabel.Nifti1Image(np.where(inside, values[1], values[0]).astype(kind).T, np.diag([-1, -1, -1, 1.0])), tmp_path / "m.nii.gz"
    )
    mask = read_mask(tmp_path / "m.nii.gz", of_slices(6), 16)
    assert np.array_equal(mask.inside, inside)
    assert mask.rule == "all values but 0" and str(mask) == "The mask has lesions on 2 of 6 slices: all values but 0."


def test_soft_edges_are_cut_at_half_of_the_largest_value_and_this_is_said(inside: np.ndarray, tmp_path: Path) -> None:
    soft = np.where(inside, 0.9, 0.0)
    soft[1, 1, 9:13] = 0.4
    nibabel.save(nibabel.Nifti1Image(soft.astype(np.float32).T, np.diag([-1, -1, -1, 1.0])), tmp_path / "soft.nii.gz")
    mask = read_mask(tmp_path / "soft.nii.gz", of_slices(6), 16)
    assert np.array_equal(mask.inside, inside)
    assert "values above 0.45, half of the largest" in mask.rule


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.zeros((6, 16, 16), np.uint8), "no lesion in the mask: all its values are 0"),
        (np.full((6, 16, 16), 255, np.uint8), "100% of the mask would be lesions: all its values are 255"),
        (np.linspace(-1024, 500, 6 * 256, dtype=np.float32).reshape(6, 16, 16), "not a lesion mask: its values go from -1024 to 500"),
    ],
)
def test_a_mask_without_lesions_or_of_nothing_else_is_refused_with_its_values(values: np.ndarray, words: str, tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(values.T, np.diag([-1, -1, -1, 1.0])), tmp_path / "mask.nii")
    with pytest.raises(InputError, match=words):
        mask_of(tmp_path / "mask.nii", of_slices(6))


def test_an_empty_lossy_mask_says_the_threshold_and_the_values(inside: np.ndarray, tmp_path: Path) -> None:
    made = written(tmp_path / "mask", [Image.fromarray(one.astype(np.uint8) * 90) for one in inside], "jpg")
    with pytest.raises(InputError, match=r"its values go from 0 to \d+, and lesions are values above 127 of 255"):
        mask_of(made, of_slices(6))


def test_pictures_of_some_slices_are_matched_by_name_only_if_that_is_certain(inside: np.ndarray, tmp_path: Path) -> None:
    pictures = [Image.fromarray(one.astype(np.uint8)) for one in inside]
    expected = np.where(np.arange(6)[:, None, None] >= 1, inside, False)
    assert np.array_equal(mask_of(written(tmp_path / "some", pictures[1:], first=1), of_slices(6)), expected)
    # More than the scan has, and from the same first name: which slices these are cannot be told.
    assert np.array_equal(mask_of(written(tmp_path / "more", pictures), of_slices(5, first=1)), inside[1:])
    for name, first in (("anew", 0), ("elsewhere", 3)):
        with pytest.raises(InputError, match="5 slices, but the scan has 6"):
            mask_of(written(tmp_path / name, pictures[:5], first=first), of_slices(6))


@pytest.mark.parametrize("first", [-1, 0, 1, 2])
def test_a_volume_with_other_slices_is_placed_by_its_position(first: int, inside: np.ndarray, tmp_path: Path) -> None:
    affine = np.array([[-0.7, 0, 0, 10], [0, -0.7, 0.3, 20], [0, 0, -5.0, 30], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(np.zeros((16, 16, 6), np.int16), affine), tmp_path / "scan.nii")
    (scan,) = find_scans([tmp_path / "scan.nii"])
    whole = np.pad(inside, ((1, 1), (0, 0), (0, 0)))[first + 1 : first + 5]
    moved = affine.copy()
    moved[:3, 3] += first * affine[:3, 2]
    nibabel.save(nibabel.Nifti1Image(whole.astype(np.uint8).T, moved), tmp_path / "mask.nii")
    expected = np.zeros_like(inside)
    expected[max(first, 0) : first + 4] = inside[max(first, 0) : first + 4]
    assert np.array_equal(mask_of(tmp_path / "mask.nii", scan), expected)
    moved[2, 3] += 1.5
    nibabel.save(nibabel.Nifti1Image(whole.astype(np.uint8).T, moved), tmp_path / "between.nii")
    with pytest.raises(InputError, match="4 slices, but the scan has 6"):
        mask_of(tmp_path / "between.nii", scan)


def test_a_lesion_smaller_than_the_cells_of_the_grid_stays(tmp_path: Path) -> None:
    one = np.zeros((96, 128), np.uint8)
    one[50, 77] = 1
    mask = mask_of(written(tmp_path / "mask", [Image.fromarray(one)] * 6), of_slices(6))
    # 16 rows of padding above: row 66 of 128.
    assert np.argwhere(mask[0]).tolist() == [[66 // 8, 77 // 8]]


def test_a_mask_of_another_shape_is_refused_with_both_sizes(inside: np.ndarray, tmp_path: Path) -> None:
    made = written(tmp_path / "mask", [Image.fromarray(one.astype(np.uint8)) for one in inside])
    assert read_mask(made, of_slices(6), 16, (64, 64)).inside.any()
    with pytest.raises(InputError, match="16×16 pixels, but the scan has 96×64"):
        read_mask(made, of_slices(6), 16, (64, 96))


def test_a_volume_is_head_first_as_a_repaired_scan_is_and_not_as_its_files_are(inside: np.ndarray, tmp_path: Path) -> None:
    nibabel.save(nibabel.Nifti1Image(inside.astype(np.uint8).T, np.diag([-1, -1, -1, 1.0])), tmp_path / "mask.nii")
    volume = read_mask(tmp_path / "mask.nii", of_slices(6), 16)
    pictures = read_mask(written(tmp_path / "mask", [Image.fromarray(one) for one in inside[::-1]]), of_slices(6), 16)
    for mask in (volume, pictures):
        assert np.array_equal(mask.of((5, 4, 3, 2, 1, 0)), inside)
    assert np.array_equal(volume.of((0, 1, 3)), inside[[0, 1, 3]])
    with pytest.raises(InputError, match="were reordered"):
        volume.of((0, 2, 1))


def test_a_slice_of_another_size_stays_in_its_place(inside: np.ndarray, tmp_path: Path) -> None:
    """As in a scan, of which such a slice is dropped."""
    pictures = [Image.fromarray(one.astype(np.uint8)) for one in inside]
    pictures[2] = Image.fromarray(np.zeros((8, 11), np.uint8))
    made = written(tmp_path / "mask", pictures)
    assert np.array_equal(read_mask(made, of_slices(6), 16, (16, 16)).inside, inside)


def test_a_folder_without_a_mask_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "mask").mkdir()
    with pytest.raises(InputError, match="no picture in the folder of the mask"):
        mask_of(tmp_path / "mask", of_slices(6))
    for name in ("a.nii", "b.nii"):
        (tmp_path / "mask" / name).write_bytes(b"")
    with pytest.raises(InputError, match="2 volume files in the folder of the mask"):
        mask_of(tmp_path / "mask", of_slices(6))
