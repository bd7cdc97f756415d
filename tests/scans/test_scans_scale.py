"""Stored numbers become grey by a scale that the whole scan shows, or the scan is refused: never another grey."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from whole import read_scan, read_slice

from ctcovid.scans.decoded import Decoded, from_hounsfield
from ctcovid.scans.discover import find_scans
from ctcovid.scans.padding import at_edge, corner_values, padding_of
from ctcovid.scans.pixels import dicom_frames
from ctcovid.scans.quality import Verdict, check
from ctcovid.scans.read import probe, read_picture, read_slices
from ctcovid.scans.scale import GREY, WIDE, Scale, hounsfield_counts, hounsfield_problem, other_scales, picture_scale
from ctcovid.scans.slice_summary import summarise
from ctcovid.scans.window import LUNG, Window

WINDOWS = {"lung": LUNG, "lung, narrower": Window(-500, 1200), "mediastinum": Window(40, 400)}
SERIES = "dicom/jpeg-lossless-series"
_y, _x = np.mgrid[:512, :512]
# Outside of what the scanner shows.
CIRCLE = (_x - 256) ** 2 + (_y - 256) ** 2 > 256**2


@pytest.fixture(scope="module")
def hounsfield(sample_data: Path) -> np.ndarray:
    """Every sixth slice of a real series, int32 (10, 512, 512)."""
    (scan,) = find_scans([sample_data / SERIES])
    assert scan.stack is not None
    return np.stack([next(dicom_frames(path, scan.stack.shape)) for path in scan.slices[::6]]).astype(np.int32)


def counted(values: np.ndarray) -> np.ndarray:
    return np.bincount(values.ravel(), minlength=WIDE)


def windowed(values: np.ndarray, window: Window, bits: int) -> np.ndarray:
    share = (values - (window.level - window.width / 2)) / window.width
    found: np.ndarray = np.rint(np.clip(share, 0, 1) * ((1 << bits) - 1)).astype(np.int64)
    return found


@pytest.mark.parametrize("slices", [slice(None), slice(0, 4), slice(6, 10)])
@pytest.mark.parametrize("bits", [10, 12, 14, 16])
@pytest.mark.parametrize("window", WINDOWS)
def test_a_whole_range_of_grey_is_told_from_a_few_slices(window: str, bits: int, slices: slice, hounsfield: np.ndarray) -> None:
    assert picture_scale(counted(windowed(hounsfield[slices], WINDOWS[window], bits))) == Scale(bits)


STRANGE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "plus 1000, cut off": lambda hu: np.clip(hu + 1000, 0, 4095),
    "plus 1024": lambda hu: np.clip(hu + 1024, 0, WIDE - 1),
    "plus 1024, with metal": lambda hu: np.where(np.arange(hu.size).reshape(hu.shape) % 500 == 0, 4095, np.clip(hu + 1024, 0, 4095)),
    "plus 2048": lambda hu: np.clip(hu + 2048, 0, WIDE - 1),
    "plus 8192": lambda hu: hu + 8192,
    "plus 31744": lambda hu: hu + 31744,
    "in the upper 12 bits of 16": lambda hu: np.clip(hu + 1024, 0, 4095) * 16,
    "from its lowest to its highest": lambda hu: (hu - hu.min()) * (WIDE - 1) // np.ptp(hu),
    "grey up to 1000": lambda hu: windowed(hu, LUNG, 16) * 1000 // (WIDE - 1),
}


@pytest.mark.parametrize("slices", [slice(None), slice(0, 4), slice(6, 10)])
@pytest.mark.parametrize("kind", STRANGE)
def test_pictures_of_another_scale_are_refused(kind: str, slices: slice, hounsfield: np.ndarray) -> None:
    assert "are not Hounsfield units" in picture_scale(counted(STRANGE[kind](hounsfield[slices]))).problem


CIRCLED: dict[str, tuple[Callable[[np.ndarray], np.ndarray], int]] = {
    "plus 1024, white corners": (lambda hu: np.clip(hu + 1024, 0, 4095), 4095),
    "plus 1024, whiter corners": (lambda hu: np.clip(hu + 1024, 0, 4095), 65535),
    "plus 2048, dark corners": (lambda hu: np.clip(hu + 2048, 0, 8191), 48),
    "plus 8192, white corners": (lambda hu: hu + 8192, 65535),
    "in upper bits, white corners": (lambda hu: np.clip(hu + 1000, 0, 4095) * 16, 65535),
}


@pytest.mark.parametrize("kind", CIRCLED)
def test_corners_of_one_value_do_not_pass_another_scale_for_grey(kind: str, hounsfield: np.ndarray, tmp_path: Path) -> None:
    stored, corner = CIRCLED[kind]
    for number, values in enumerate(hounsfield[3:7]):
        Image.fromarray(np.where(CIRCLE, corner, stored(values)).astype(np.uint16)).save(tmp_path / f"{number}.png")
    assert "are not Hounsfield units" in probe(sorted(tmp_path.iterdir())).scale.problem


@pytest.mark.parametrize("corner", [-2000, -3024])
@pytest.mark.parametrize("stored", [lambda hu: hu + 32768, lambda hu: hu & 0xFFFF])
def test_corners_of_one_value_hide_no_known_scale(
    corner: int, stored: Callable[[np.ndarray], np.ndarray], hounsfield: np.ndarray, tmp_path: Path
) -> None:
    for number, values in enumerate(hounsfield[3:7]):
        Image.fromarray(stored(np.where(CIRCLE, corner, values)).astype(np.uint16)).save(tmp_path / f"{number}.png")
    found = read_scan(find_scans([tmp_path])[0], 512)
    assert np.array_equal(found[:, ~CIRCLE], LUNG.grey(hounsfield[3:7])[:, ~CIRCLE]) and not found[:, CIRCLE].any()


@pytest.mark.parametrize("slices", [slice(None), slice(0, 4), slice(6, 10)])
@pytest.mark.parametrize("stored", [lambda hu: hu + 32768, lambda hu: hu & 0xFFFF])
def test_deeplesion_and_int16_as_it_is_are_hounsfield_units(
    stored: Callable[[np.ndarray], np.ndarray], slices: slice, hounsfield: np.ndarray
) -> None:
    values = stored(hounsfield[slices])
    scale = picture_scale(counted(values))
    assert not scale.problem and np.array_equal(scale.hounsfield(values), hounsfield[slices])


def test_pictures_of_deeplesion_give_the_greys_of_the_series(hounsfield: np.ndarray, tmp_path: Path) -> None:

    for number, values in enumerate(hounsfield):
        Image.fromarray((values + 32768).astype(np.uint16)).save(tmp_path / f"{number}.png")
    assert np.array_equal(read_scan(find_scans([tmp_path])[0], 512), LUNG.grey(hounsfield))


def test_values_of_8_bits_are_grey_whatever_they_are(hounsfield: np.ndarray) -> None:
    assert picture_scale(counted(LUNG.grey(hounsfield).astype(np.int64))) == GREY


OTHERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "plus 1024": lambda hu: hu + 1024,
    "less 1024 twice": lambda hu: hu - 1024,
    "doubled": lambda hu: hu * 2,
    "halved": lambda hu: hu / 2,
    "0 to 1": lambda hu: np.clip((hu + 1350) / 1500, 0, 1),
    "-1 to 1": lambda hu: np.clip((hu + 1000) / 1400, 0, 1) * 2 - 1,
    "0 to 100": lambda hu: np.clip((hu + 1350) / 15, 0, 100),
    "0 to 255": lambda hu: np.clip((hu + 1350) / 1500, 0, 1) * 255,
    "mean 0 and deviation 1": lambda hu: (hu - hu.mean()) / hu.std(),
    "cut off at a soft-tissue window": lambda hu: np.clip(hu, -160, 240),
    "without tissue": lambda hu: np.minimum(hu, -400),
}


@pytest.mark.parametrize("slices", [slice(None), slice(0, 4), slice(6, 10)])
@pytest.mark.parametrize("kind", OTHERS)
def test_values_that_are_not_hounsfield_units_are_told_by_their_distribution(kind: str, slices: slice, hounsfield: np.ndarray) -> None:
    of = np.sum([hounsfield_counts(one) for one in OTHERS[kind](hounsfield[slices])], axis=0)
    assert "are not Hounsfield units" in hounsfield_problem(of)
    assert hounsfield_problem(np.sum([hounsfield_counts(one) for one in hounsfield[slices]], axis=0)) == ""


def decoded(values: np.ndarray) -> list[Decoded]:
    """The slices of a scan, with the padding that all of them show."""
    padding = padding_of([corner_values(one) for one in values])
    return [from_hounsfield(one, LUNG, padding) for one in values]


def verdict(slices: list[Decoded]) -> Verdict:
    return check([f"{number}" for number in range(len(slices))], [summarise(one.pixels, one) for one in slices], ordered=True)


@pytest.mark.parametrize("vessels", [True, False])
@pytest.mark.parametrize("outside", [-1000, -1024, -2000, -3024, -32768, 0])
def test_lungs_alone_in_hounsfield_units_are_segmented(outside: int, vessels: bool, hounsfield: np.ndarray) -> None:
    slices = decoded(lungs_alone(hounsfield[1:9], outside, vessels))
    found = verdict(slices)
    assert found.kind == "segmented" and found.kept == tuple(range(8))
    assert "segmented" in {finding.code for finding in found.findings} <= {"segmented", "padding", "repeated-slices"}
    assert all(one.pixels[0, 0] <= LUNG.grey(np.array(-1000)) for one in slices)


@pytest.mark.parametrize("outside", [-1000, -2000])
def test_lungs_alone_in_pictures_of_deeplesion_are_segmented(outside: int, hounsfield: np.ndarray, tmp_path: Path) -> None:
    lungs = lungs_alone(hounsfield[2:8], outside, False)
    for number, values in enumerate(lungs):
        Image.fromarray((values + 32768).astype(np.uint16)).save(tmp_path / f"{number}.png")
    scale = probe(sorted(tmp_path.iterdir())).scale
    slices = [read_picture(path, scale) for path in sorted(tmp_path.iterdir())]
    assert np.array_equal([one.pixels for one in slices], LUNG.grey(lungs))
    assert verdict(slices).kind == "segmented" and len(verdict(slices).kept) == 6


def test_negative_in_a_volume_of_grey_is_refused(hounsfield: np.ndarray) -> None:
    slices = [Decoded(255 - LUNG.grey(one)) for one in hounsfield]
    assert "negative" in verdict(slices).findings[0].message and not verdict(slices).kept


def lungs_alone(hounsfield: np.ndarray, outside: int, vessels: bool) -> np.ndarray:
    """Lungs, with or without the vessels in them, on a background of one value."""
    found = np.full_like(hounsfield, outside)
    for of_slice, one in zip(found, hounsfield, strict=True):
        lung = ndimage.binary_opening((one < -400) & ~at_edge(one < -500), iterations=2)
        inside = ndimage.binary_closing(lung, iterations=6) if vessels else lung
        of_slice[inside] = one[inside]
    return found


@pytest.mark.parametrize("outside", [0, 500, 3071, 62512])
def test_bright_corners_of_one_value_become_black(outside: int, hounsfield: np.ndarray) -> None:
    for one, values in zip(decoded(np.where(CIRCLE, outside, hounsfield[3:6])), hounsfield[3:6], strict=True):
        assert one.padded and (one.pixels[CIRCLE] == 0).all()
        assert np.array_equal(one.pixels[~CIRCLE], LUNG.grey(values)[~CIRCLE])


@pytest.mark.parametrize("order", [1, 3])
@pytest.mark.parametrize("outside", [-2000, -3024, -32768, 0, 3071])
def test_interpolated_padding_leaves_a_sound_scan(outside: int, order: int, hounsfield: np.ndarray) -> None:
    zoomed = [ndimage.zoom(np.where(CIRCLE, outside, one).astype(float), 0.8, order=order) for one in hounsfield[2:8]]
    slices = decoded(np.array(zoomed))
    assert not verdict(slices).findings or {finding.code for finding in verdict(slices).findings} == {"padding"}
    y, x = np.mgrid[:410, :410] - 204.5
    for one, values in zip(slices, hounsfield[2:8], strict=True):
        assert not one.pixels[x**2 + y**2 > 209**2].any()
        sound = LUNG.grey(ndimage.zoom(values.astype(float), 0.8, order=order))
        inside = x**2 + y**2 < 198**2
        assert np.abs(one.pixels.astype(int) - sound)[inside].max() <= 1


def test_noisy_padding_is_black(hounsfield: np.ndarray) -> None:
    noise = np.random.default_rng(0).normal(0, 4, hounsfield[3:6].shape)
    for outside in (-2000, 3071):
        slices = decoded(np.where(CIRCLE, outside + noise, hounsfield[3:6]))
        assert not any(one.pixels[CIRCLE].any() for one in slices)
        assert {finding.code for finding in verdict(slices).findings} <= {"padding"}


def test_one_slice_without_padding_does_not_hide_that_of_the_others(hounsfield: np.ndarray) -> None:
    values = np.where(CIRCLE, 1000, hounsfield)
    # An arm reaches a corner.
    values[4, :40, :40] = 40
    assert not any(one.pixels[CIRCLE & (_y > 40)].any() for one in decoded(values))


def test_no_real_scan_has_undeclared_padding(hounsfield: np.ndarray) -> None:
    assert padding_of([corner_values(one) for one in hounsfield]) is None
    # Nor where slices are cut out of the body.
    assert padding_of([corner_values(one[150:350, 100:400]) for one in hounsfield]) is None


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("name", "bits"), [("s.png", 8), ("s.png", 16), ("s.jpg", 8), ("s.tif", 8), ("s.tif", 16)])
def test_pictures_are_turned_as_their_orientation_says(name: str, bits: int, orientation: int, tmp_path: Path) -> None:

    y, x = np.mgrid[:40, :24]
    upright = np.where((y < 20) & (x < 12), 0, 255).astype(np.uint8)
    upright[24:28, 8:16] = 128
    # EXIF says how a picture has to be turned: it is stored the other way round.
    stored = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: np.transpose}
    stored |= {6: np.rot90, 7: lambda a: np.rot90(a, 2).T, 8: lambda a: np.rot90(a, 3)}
    pixels = np.ascontiguousarray(stored[orientation](upright))
    image = Image.fromarray(pixels.astype(np.uint16) * 257 if bits == 16 else pixels)
    exif = Image.Exif()
    exif[0x112] = orientation
    image.save(tmp_path / name, **({"tiffinfo": {0x112: orientation}} if name == "s.tif" else {"exif": exif}))
    form = probe([tmp_path / name])
    assert (form.height, form.width) == (40, 24)
    assert np.abs(read_slice(tmp_path / name, form.scale).astype(int) - upright).max() <= (60 if name == "s.jpg" else 0)


def test_white_is_zero_is_honoured_at_16_bits(hounsfield: np.ndarray, tmp_path: Path) -> None:

    for number, values in enumerate(hounsfield[:4]):
        path = tmp_path / f"{number}.tif"
        Image.fromarray((WIDE - 1 - windowed(values, LUNG, 16)).astype(np.uint16)).save(path)
        content = bytearray(path.read_bytes())
        entry = content.index(b"\x06\x01\x03\x00\x01\x00\x00\x00")
        content[entry + 8] = 0
        path.write_bytes(content)
    found = read_scan(find_scans([tmp_path])[0], 512).astype(int)
    assert np.abs(found - LUNG.grey(hounsfield[:4])).max() <= 1


@pytest.mark.parametrize("highest", [1, 60, 100])
def test_pictures_that_do_not_reach_from_dark_to_bright_are_refused(highest: int, hounsfield: np.ndarray) -> None:
    for slices in (hounsfield, hounsfield[4:5]):
        narrow = [(LUNG.grey(one) * (highest / 255)).astype(np.uint8) for one in slices]
        verdict = check([f"{number}.png" for number in range(len(narrow))], [summarise(one) for one in narrow])
        assert [finding.code for finding in verdict.findings] == ["not-hounsfield"] and not verdict.kept


@pytest.mark.parametrize("scan", ["ccccii-segmented/NCP/96/1328", "ccccii-segmented/Normal/1995/500"])
def test_each_segmented_slice_alone_is_bright_enough(scan: str, sample_data: Path) -> None:
    (found,) = find_scans([sample_data / scan])
    for path in found.slices[::8]:
        assert check([path.name], [summarise(read_slice(path))]).kept == (0,)


def test_slices_of_another_scale_than_the_rest_are_dropped_or_the_scan_is(hounsfield: np.ndarray) -> None:
    slices = [from_hounsfield(one, LUNG) for one in hounsfield]
    shifted = [from_hounsfield(one + 1024, LUNG) for one in hounsfield]
    for strange, action in (((), ""), ((4,), "slice dropped"), ((2, 5, 8), "scan dropped")):
        of_scan = [shifted[number] if number in strange else one for number, one in enumerate(slices)]
        found = check([f"{number}" for number in range(10)], [summarise(one.pixels, one) for one in of_scan], ordered=True).findings
        said = [(one.action, one.slices) for one in found if one.code == "not-hounsfield"]
        assert said == ([(action, strange)] if action else [])


def test_no_real_slice_alone_is_taken_for_another_scale(sample_data: Path) -> None:
    for name in (SERIES, "dicom/two-series-study"):
        (scan,) = find_scans([sample_data / name])
        assert not other_scales(np.array([one.hounsfield for one in read_slices(scan)])).any()


def test_values_without_bound_are_white_and_end_nothing() -> None:
    one = from_hounsfield(np.array([[np.inf, -np.inf], [np.nan, 0.0]]), LUNG)
    assert one.pixels.tolist() == [[255, 0], [0, 230]] or one.has_nan
