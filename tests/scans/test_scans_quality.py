"""What is wrong with a scan is found, repaired where that is certain, and never suspected where nothing is."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from defect_rates import DEFECTS, SCANS, compressed, scans, sound, variant, verdict
from kind_rates import CUTS, OTHER_WINDOWS, by_turns, cut_at, cut_to_lungs, resliced, spaced, windowed

from ctcovid.phantom.chest import ScanKey, slices_of_chest
from ctcovid.scans.quality import Unusable, Verdict, check, without_repairs
from ctcovid.scans.slice_summary import SliceSummary, summarise
from ctcovid.scans.window import LUNG, Window

HOUNSFIELD = ("dicom/two-series-study", "nifti/chest-cap001-128.nii.gz")


def summaries(volume: np.ndarray) -> list[SliceSummary | Unusable]:
    return [summarise(pixels) for pixels in volume]


def names(count: int) -> list[str]:
    return [f"{index:04d}.png" for index in range(count)]


def codes(found: Verdict) -> list[str]:
    return [finding.code for finding in found.findings]


def actions(found: Verdict) -> list[tuple[str, str, tuple[int, ...]]]:
    return [(finding.code, finding.action, finding.slices) for finding in found.findings]


@pytest.fixture(scope="module")
def real(sample_data: Path) -> dict[str, np.ndarray]:
    return scans(sample_data)


@pytest.fixture(scope="module")
def chest() -> np.ndarray:
    """A synthetic chest, uint8 (30, 96, 96)."""
    return np.stack([item.pixels for item in slices_of_chest("NCP", 30, 96, ScanKey(3, 1))])


@pytest.mark.parametrize("scan", SCANS)
def test_whole_real_scans_and_parts_of_them_are_not_suspected(scan: str, real: dict[str, np.ndarray]) -> None:
    masked = "segmented" in scan
    parts = [variant(real[scan], np.random.default_rng(seed)) for seed in range(3)]
    for volume in (real[scan], *parts):
        found = verdict(volume)
        assert codes(found) == (["segmented"] if masked else [])
        assert found.kept == tuple(range(len(volume)))
        assert found.kind == ("segmented" if masked else "complete")


@pytest.mark.parametrize("plant", DEFECTS, ids=lambda plant: plant.__name__)
@pytest.mark.parametrize("scan", SCANS[:4])
def test_defects_planted_in_real_complete_scans_are_found_and_repaired(
    plant: Callable[..., tuple[np.ndarray, list[int]]], scan: str, real: dict[str, np.ndarray]
) -> None:
    generator = np.random.default_rng(11)
    stack, order = plant(variant(real[scan], generator), generator)
    found = verdict(stack)
    assert set(codes(found)) & set(DEFECTS[plant])
    assert [order[index] for index in found.kept] == list(range(max(order) + 1))


@pytest.mark.parametrize("plant", [sound, *DEFECTS], ids=lambda plant: plant.__name__)
def test_defects_planted_in_a_synthetic_chest_are_found_and_repaired(
    plant: Callable[..., tuple[np.ndarray, list[int]]], chest: np.ndarray
) -> None:
    stack, order = plant(chest, np.random.default_rng(2))
    found = verdict(stack)
    assert bool(set(codes(found)) & set(DEFECTS.get(plant, ()))) == (plant is not sound)
    assert [order[index] for index in found.kept] == list(range(30))


def test_slices_that_cannot_be_read_are_dropped_where_their_neighbours_remain(chest: np.ndarray) -> None:
    slices = summaries(chest)
    slices[4], slices[11] = Unusable("truncated", "4 is cut short."), Unusable("empty-file", "11 is empty.")
    found = check(names(30), slices)
    assert actions(found) == [("truncated", "slice dropped", (4,)), ("empty-file", "slice dropped", (11,))]
    assert found.kept == tuple(index for index in range(30) if index not in (4, 11))


@pytest.mark.parametrize("bad", [(3, 4, 5), (1, 5, 9, 13), tuple(range(30))], ids=["three in a row", "more than a tenth", "all"])
def test_scan_that_lost_too_many_slices_is_dropped(bad: tuple[int, ...], chest: np.ndarray) -> None:
    slices = [Unusable("unreadable", "No picture.") if index in bad else one for index, one in enumerate(summaries(chest))]
    found = check(names(30), slices)
    assert [(finding.severity, finding.action, finding.slices) for finding in found.findings] == [("error", "scan dropped", bad)]
    assert found.kept == ()


def test_slices_of_another_size_are_dropped_and_half_a_scan_of_them_drops_it(chest: np.ndarray) -> None:
    small = [summarise(pixels[:80, :80]) for pixels in chest]
    found = check(names(30), [small[index] if index in (7, 20) else one for index, one in enumerate(summaries(chest))])
    assert actions(found) == [("mixed-sizes", "slice dropped", (7, 20))]
    found = check(names(30), [*small[:14], *summaries(chest)[14:]])
    assert actions(found) == [("mixed-sizes", "scan dropped", tuple(range(14)))] and found.kept == ()


def test_slices_of_a_single_grey_level_are_dropped(chest: np.ndarray) -> None:
    chest = chest.copy()
    chest[0], chest[13] = 0, 77
    found = verdict(chest)
    assert actions(found) == [("constant", "slice dropped", (0, 13))]
    assert found.kept == tuple(index for index in range(30) if index not in (0, 13))
    assert verdict(np.zeros((9, 96, 96), np.uint8)).kept == ()


def test_gaps_in_the_names_are_counted_and_even_steps_are_none(chest: np.ndarray) -> None:
    numbers = [index + (index > 9) * 3 + (index > 19) for index in range(30)]
    found = check([f"{number:04d}.png" for number in numbers], summaries(chest))
    assert actions(found) == [("numbering-gap", "kept", (9, 19))]
    assert found.findings[0].message.startswith("The names of the slices skip 4 numbers") and "0009.png" in found.findings[0].message
    assert codes(check([f"IM-{2 * index}.png" for index in range(30)], summaries(chest))) == []
    assert codes(check(["a.png"] * 30, summaries(chest))) == []


def test_order_from_positions_is_not_doubted(chest: np.ndarray) -> None:
    assert check(names(30), summaries(chest[::-1]), ordered=True).kept == tuple(range(30))


def test_abdomen_is_not_a_chest(sample_data: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    image = sitk.DICOMOrient(sitk.ReadImage(str(sample_data / "nifti" / "abdomen-not-chest.nii.gz")), "LPS")
    grey = np.clip((sitk.GetArrayFromImage(image) + 1350.0) / 1500 * 255, 0, 255).astype(np.uint8)[::-1]
    for part in (grey, grey[:60], grey[20::3]):
        found = verdict(part)
        assert "not-a-chest" in codes(found) and found.kept == ()


def test_unrelated_pictures_and_photographs_are_not_a_chest() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    pictures = [np.rint(picture.mean(2)).astype(np.uint8) for picture in datasets.load_sample_images().images]
    generator = np.random.default_rng(0)
    for _ in range(5):
        corners = [(generator.integers(2), generator.integers(290), generator.integers(500)) for _ in range(20)]
        stack = np.stack([pictures[which][top : top + 128, left : left + 128] for which, top, left in corners])
        assert "not-a-chest" in codes(verdict(stack))
    noise = generator.integers(0, 256, (20, 96, 96), dtype=np.uint8)
    assert "not-a-chest" in codes(verdict(noise))


def test_who_wants_no_repairs_loses_the_scan_and_keeps_sound_ones(chest: np.ndarray) -> None:
    assert without_repairs(verdict(chest)).kept == tuple(range(30))
    found = without_repairs(verdict(chest[::-1]))
    assert actions(found) == [("feet-first", "scan dropped", ())] and found.kept == ()


def test_few_slices_and_small_pictures_are_left_as_they_are(chest: np.ndarray) -> None:
    """They show too little of a chest to check its anatomy."""
    assert verdict(chest[:5][::-1]) == Verdict((), tuple(range(5)), "complete")
    assert verdict(chest[::-1, :60, :60]) == Verdict((), tuple(range(30)), "complete")


def test_noise_and_compression_make_no_repeats(chest: np.ndarray) -> None:
    """Neighbours that another compression brings nearer to each other are still neighbours."""
    generator = np.random.default_rng(1)
    noisy = np.clip(chest + generator.normal(0, 8, chest.shape), 0, 255).astype(np.uint8)
    assert codes(verdict(noisy)) == []
    assert codes(verdict(np.stack([compressed(pixels, 60) for pixels in chest]))) == []


def test_slices_that_differ_are_no_exact_repeats_whatever_their_checksum(chest: np.ndarray) -> None:
    """CRC-32 stays the same where the bits of its polynomial are flipped."""
    polynomial = np.packbits([int(bit) for bit in f"{0x104C11DB7:b}"], bitorder="little")
    other = chest[10].copy()
    other[40, 40 : 40 + len(polynomial)] ^= polynomial
    assert zlib.crc32(other.tobytes()) == zlib.crc32(chest[10].tobytes()) and (other != chest[10]).any()
    assert summarise(other).digest != summarise(chest[10]).digest


@pytest.mark.parametrize(("copies", "said"), [((9,), "1 slice is stored more than once"), ((9, 20), "2 slices are stored more than once")])
def test_what_is_said_of_one_slice_is_said_of_one(copies: tuple[int, ...], said: str, chest: np.ndarray) -> None:
    order = sorted([*range(30), *copies])
    assert verdict(chest[order]).findings[0].message == f"{said}, equal bit for bit."


@pytest.mark.parametrize("window", OTHER_WINDOWS, ids=str)
def test_what_a_window_does_not_show_is_not_judged(window: Window, sample_data: Path) -> None:
    for volume, _ in windowed(sample_data, window, HOUNSFIELD).values():
        parts = [variant(volume, np.random.default_rng(seed)) for seed in range(2)]
        for part in (volume, volume[::-1], volume[len(volume) // 2 :], *parts):
            assert actions(verdict(part)) == [("unknown-window", "kept", ())]
            assert verdict(part).kept == tuple(range(len(part))) and verdict(part).kind == "complete"


@pytest.mark.parametrize("window", [Window(-400, 1200), Window(-600, 800), Window(-500, 2000)], ids=str)
def test_other_lung_windows_are_judged(window: Window, sample_data: Path) -> None:
    for volume, _ in windowed(sample_data, window, HOUNSFIELD).values():
        assert codes(verdict(volume)) == [] and codes(verdict(volume[::-1])) == ["feet-first"]
        assert codes(verdict(np.pad(volume, ((0, 0), *[(volume.shape[1] // 2,) * 2] * 2)))) == []


@pytest.mark.parametrize("scan", SCANS[:4])
def test_chest_cut_to_its_lungs_is_kept_and_flagged(scan: str, real: dict[str, np.ndarray]) -> None:
    volume = real[scan][::2]
    quarter = volume.shape[1] // 4
    for part in (cut_to_lungs(volume, np.random.default_rng(4)), volume[:, quarter:-quarter, quarter:-quarter]):
        found = verdict(part)
        assert {"cut-off"} <= set(codes(found)) <= {"cut-off", "not-square", "feet-first-doubtful"}
        assert found.kept == tuple(range(len(part)))


@pytest.mark.parametrize("sides", CUTS)
@pytest.mark.parametrize("scan", SCANS[1:4])
def test_chest_cut_at_one_edge_is_kept_and_flagged(scan: str, sides: str, real: dict[str, np.ndarray]) -> None:
    part = cut_at(real[scan][:: len(real[scan]) // 20], sides, 0.2)
    for ordered in (True, False):
        found = verdict(part, ordered)
        assert "cut-off" in codes(found) and found.kept == tuple(range(len(part)))


@pytest.mark.parametrize("window", [LUNG, Window(-600, 1600), *OTHER_WINDOWS[::2]], ids=str)
def test_negatives_are_refused(window: Window, sample_data: Path) -> None:
    (volume, _), *_ = windowed(sample_data, window, HOUNSFIELD[1:]).values()
    found = verdict(255 - volume)
    assert codes(found) == ["not-hounsfield"] and "negative" in found.findings[0].message and not found.kept


def test_positions_tell_whether_a_stack_is_axial(sample_data: Path) -> None:
    (volume, ratio), *_ = windowed(sample_data, LUNG, HOUNSFIELD[1:]).values()
    coronal = resliced(volume, ratio, 1, np.random.default_rng(0))
    assert "not-axial" in codes(verdict(coronal)) and "not-axial" not in codes(verdict(coronal, ordered=True))


def test_parts_of_sagittal_stacks_turned_or_not_are_refused(sample_data: Path) -> None:
    (volume, ratio), *_ = windowed(sample_data, LUNG, HOUNSFIELD[1:]).values()
    part = resliced(volume[:, :, 26:64], ratio, 2, np.random.default_rng(0))
    for one in (part, part.transpose(0, 2, 1)):
        assert "not-axial" in codes(verdict(one))


@pytest.mark.parametrize("window", [LUNG, *OTHER_WINDOWS[:1]], ids=str)
@pytest.mark.parametrize("axis", [1, 2], ids=["coronal", "sagittal"])
def test_stack_that_is_not_axial_is_refused(axis: int, window: Window, sample_data: Path) -> None:
    for volume, ratio in windowed(sample_data, window, HOUNSFIELD).values():
        for seed in range(3):
            found = verdict(resliced(volume, ratio, axis, np.random.default_rng(seed)))
            assert "not-axial" in codes(found) and "shuffled" not in codes(found) and found.kept == ()


@pytest.mark.parametrize("ordered", [True, False], ids=["by position", "pictures"])
def test_two_scans_by_turns_are_refused(ordered: bool, real: dict[str, np.ndarray]) -> None:
    for seed, (one, other) in enumerate(itertools.pairwise(SCANS[:4])):
        found = verdict(by_turns(real[one], real[other], np.random.default_rng(seed)), ordered)
        assert codes(found) == ["inconsistent-stack"] and found.kept == ()


@pytest.mark.parametrize("step", [5, 7])
def test_one_scan_that_was_stored_by_turns_is_put_in_order(step: int, real: dict[str, np.ndarray]) -> None:
    for scan in SCANS[:4]:
        order = [step * index % 24 for index in range(24)]
        found = verdict(real[scan][::2, ::4, ::4][order])
        assert codes(found)[0] == "shuffled" and [order[index] for index in found.kept] == list(range(24))


def test_scan_of_which_some_slices_alternate_with_another_scan_is_flagged(real: dict[str, np.ndarray]) -> None:
    """As two passes that overlap, of which the patient moved between."""
    one = real[SCANS[0]][:, ::4, ::4]
    moved = np.roll(one, (6, 4), (1, 2))
    stack = np.concatenate([one[:60:3], np.stack([moved[60:100:3], one[64:104:3]], 1).reshape(-1, *one.shape[1:]), moved[104::3]])
    found = verdict(stack, ordered=True)
    assert actions(found) == [("inconsistent-stack", "kept", ())] and len(found.kept) == len(stack)


def test_one_slice_of_another_scan_is_flagged(real: dict[str, np.ndarray]) -> None:
    for one, other in itertools.pairwise(SCANS[:4]):
        stack = real[one][::2, ::4, ::4].copy()
        stack[len(stack) // 3] = real[other][40, ::4, ::4]
        assert actions(verdict(stack, ordered=True)) == [("inconsistent-stack", "kept", ())]


@pytest.mark.parametrize("scan", SCANS)
def test_scans_in_order_are_consistent_whatever_their_spacing(scan: str, real: dict[str, np.ndarray]) -> None:
    for seed in range(4):
        found = verdict(spaced(real[scan][:, ::4, ::4], np.random.default_rng(seed)), ordered=True)
        assert codes(found) == (["segmented"] if "segmented" in scan else [])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", [(1, 1), (4, 512), (512, 3), (64, 2000), (96, 96)], ids=str)
def test_slices_of_any_size_and_content_are_checked(size: tuple[int, int]) -> None:
    generator = np.random.default_rng(0)
    dot = np.zeros((8, *size), np.uint8)
    dot[:, -1, -1] = 1 + np.arange(8)
    for stack in (dot, 255 - dot, generator.integers(0, 256, (8, *size), dtype=np.uint8)):
        for count in (1, 5, 8):
            assert verdict(stack[:count]).kind == "complete" and verdict(stack[:count], ordered=True)
