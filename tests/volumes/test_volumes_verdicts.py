"""Checks of scans in files that are not pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK

from ctcovid.phantom.chest import ScanKey, slices_of_chest
from ctcovid.scans.discover import find_scans
from ctcovid.scans.findings import Finding
from ctcovid.scans.scale import HOUNSFIELD
from ctcovid.scans.scan import Scan
from ctcovid.scans.window import LUNG
from ctcovid.volumes.encode import Chunk, Job, encode_slices, probe_scan
from ctcovid.volumes.verdicts import Criteria, check_scan, findings_of


def outcome(scan: Scan) -> tuple[list[Finding], list[Chunk]]:
    slices = [one for part in scan.pieces(8) for one in encode_slices(Job(part, HOUNSFIELD, 96, LUNG))]
    row, chunks = check_scan(scan, probe_scan(scan), slices, Criteria(4, "all", "repair"))
    return [finding for _, finding in findings_of([row])], chunks


@pytest.fixture(scope="module")
def lungs() -> np.ndarray:
    """A synthetic chest in Hounsfield units, int16 (30, 96, 96), head first."""
    greys = np.stack([item.pixels for item in slices_of_chest("NCP", 30, 96, ScanKey(3, 1))])
    return np.rint(greys * 1500.0 / 255 - 1350).astype(np.int16)


def with_axes(path: Path, values: np.ndarray) -> Scan:
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(values[::-1]), str(path))
    return find_scans([path])[0]


def without_axes(path: Path, values: np.ndarray) -> Scan:
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(values), str(path))
    lines = [line for line in path.read_text().splitlines(keepends=True) if not line.startswith(("TransformMatrix", "Orient"))]
    path.write_text("".join(lines))
    return find_scans([path])[0]


@pytest.mark.parametrize("head_first", [True, False])
def test_volume_that_does_not_say_how_it_lies_is_checked_by_its_pictures(head_first: bool, lungs: np.ndarray, tmp_path: Path) -> None:
    found, chunks = outcome(without_axes(tmp_path / "scan.mhd", lungs if head_first else lungs[::-1]))
    # Its first slice is taken for that at the feet.
    assert {finding.code for finding in found} == {"orientation-unknown"} | ({"feet-first"} if head_first else set())
    _, expected = outcome(with_axes(tmp_path / "known.nrrd", lungs))
    assert all(np.array_equal(one.summary.thumbnail, other.summary.thumbnail) for one, other in zip(chunks, expected, strict=True))


def test_no_finding_of_a_dicom_scan_names_a_file(write_series: Callable[..., list[Path]], lungs: np.ndarray, tmp_path: Path) -> None:
    paths = write_series(tmp_path / "scan", lungs)
    for number, path in enumerate(paths):
        paths[number] = path.rename(path.with_name(f"DOE_JANE_{number:03}.dcm"))
    cut = paths[3].read_bytes()
    paths[3].write_bytes(cut[:-100])
    (scan,) = find_scans([tmp_path / "scan"])
    # Damage that only decoding finds, and a file that goes.
    header = pydicom.dcmread(paths[20])
    header.BitsAllocated = 24
    header.PixelData = bytes(header.Rows * header.Columns * 3)
    header.save_as(paths[20])
    paths[10].unlink()
    slices = [one for part in scan.pieces(8) for one in encode_slices(Job(part, HOUNSFIELD, 96, LUNG))]
    row, _ = check_scan(scan, probe_scan(scan), slices, Criteria(4, "all", "repair"))
    assert "DOE" not in row.checks and str(tmp_path) not in row.checks
    messages = {finding.message for _, finding in findings_of([row])}
    assert any(message.startswith("slice 0009: the file: removed since the folder was listed") for message in messages)
