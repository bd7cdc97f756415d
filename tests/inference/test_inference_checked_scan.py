"""A scan as a network gets it: repaired as prepare does, or refused with a reason."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ctcovid.inference.checked_scan import CheckedScan, RefusedScanError, read_checked
from ctcovid.phantom.chest import ScanKey, chest
from ctcovid.scans.anatomy import anatomy, without_padding
from ctcovid.scans.discover import find_scans
from ctcovid.scans.slice_summary import summarise
from ctcovid.scans.window import LUNG

SIZE = 96


@pytest.fixture(scope="module")
def greys() -> np.ndarray:
    return chest("NCP", 24, SIZE, ScanKey(seed=3))[0]


def write(folder: Path, greys: np.ndarray) -> Path:
    folder.mkdir()
    for number, pixels in enumerate(greys):
        Image.fromarray(pixels).save(folder / f"{number:04d}.png")
    return folder


def read(folder: Path, fewest: int = 4) -> CheckedScan:
    (scan,) = find_scans([folder])
    with ThreadPoolExecutor(2) as pool:
        return read_checked(scan, SIZE, LUNG, pool, fewest)


def codes(checked: CheckedScan) -> set[str]:
    return {finding.code for finding in checked.findings}


def test_a_sound_scan_is_what_lies_there(tmp_path: Path, greys: np.ndarray) -> None:
    checked = read(write(tmp_path / "scan", greys))
    assert np.array_equal(checked.slices, greys) and checked.kept == tuple(range(24)) and not codes(checked)
    assert np.array_equal(checked.volumes(5), greys[:20].reshape(4, 5, SIZE, SIZE))


def test_feet_first_and_shuffled_scans_are_put_in_order(tmp_path: Path, greys: np.ndarray) -> None:
    turned = read(write(tmp_path / "turned", greys[::-1]))
    assert "feet-first" in codes(turned) and np.array_equal(turned.slices, greys)
    assert turned.names[0] == "0023.png"
    order = [*range(8), *range(16, 24), *range(8, 16)]
    shuffled = read(write(tmp_path / "shuffled", greys[order]))
    assert "shuffled" in codes(shuffled) and np.array_equal(shuffled.slices, greys)


def test_damaged_and_repeated_slices_are_left_out(tmp_path: Path, greys: np.ndarray) -> None:
    folder = write(tmp_path / "scan", greys[[*range(12), 11, *range(12, 24)]])
    (folder / "0005.png").write_bytes(b"")
    checked = read(folder)
    assert {"empty-file", "repeated-slices"} <= codes(checked)
    assert np.array_equal(checked.slices, greys[[number for number in range(24) if number != 5]])


def test_what_is_no_chest_or_too_short_is_refused(tmp_path: Path, greys: np.ndarray) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (8, SIZE, SIZE), dtype=np.uint8)
    with pytest.raises(RefusedScanError, match="Not a CT scan of a chest") as caught:
        read(write(tmp_path / "noise", noise))
    assert caught.value.codes == ("not-a-chest",)
    with pytest.raises(RefusedScanError, match="2 slices, but the model takes volumes of 4") as caught:
        read(write(tmp_path / "two", greys[:2]))
    assert caught.value.codes == ("too-few-slices",)


@pytest.mark.parametrize(("rows", "cut"), [(slice(0, None), False), (slice(32, 64), True), (slice(40, 56), True)])
def test_slices_cut_out_of_a_chest_are_told_from_whole_ones(greys: np.ndarray, rows: slice, cut: bool) -> None:
    """Also where they are wider than high, and so padded with black above."""
    some = np.repeat(np.repeat(greys[:, rows], 2, 1), 2, 2)
    thumbnails = np.stack([summarise(pixels).thumbnail for pixels in some])
    assert anatomy(without_padding(thumbnails, *some.shape[1:]), masked=False).cut == cut


def test_no_real_chest_is_cut_off_and_a_real_one_that_was_cut_is(tmp_path: Path, sample_data: Path) -> None:
    for folder in ("NCP/16", "NCP/920", "Normal"):
        (scan,) = find_scans([sample_data / "ccccii" / folder])
        with ThreadPoolExecutor(2) as pool:
            assert "cut-off" not in codes(read_checked(scan, SIZE, LUNG, pool))
    folder = tmp_path / "cut"
    folder.mkdir()
    for path in (sample_data / "ccccii" / "NCP" / "920" / "2462").iterdir():
        with Image.open(path) as picture:
            width, height = picture.size
            picture.crop((width // 4, height // 4, 3 * width // 4, 3 * height // 4)).save(folder / path.name)
    assert "cut-off" in codes(read(folder))
