"""Files that are not there: slices that cannot be read, named and counted, in every format and at every level of folders."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK

from ctcovid.scans import read
from ctcovid.scans.absent import STAND_INS
from ctcovid.scans.discover import find_dataset, find_scans
from ctcovid.scans.scan import Scan
from ctcovid.scans.window import LUNG
from ctcovid.volumes.encode import Job, encode_slices, probe_scan
from ctcovid.volumes.layout import ScanRow
from ctcovid.volumes.verdicts import Criteria, check_scan, findings_of, is_read_again

WriteSeries = Callable[..., list[Path]]


def checked(scan: Scan) -> tuple[ScanRow, list[str]]:
    """A scan's row, and the codes of its findings."""
    probed = probe_scan(scan)
    slices = [one for piece in scan.pieces(8) for one in encode_slices(Job(piece, probed.form.scale, 32, LUNG))]
    row, _ = check_scan(scan, probed, slices, Criteria(4, "all", "repair"))
    return row, [finding.code for _, finding in findings_of([row])]


def lose(path: Path, how: str) -> None:
    path.unlink()
    if how == "link":
        path.symlink_to(path.parent / ".git" / "annex" / path.name)
    elif how == "circle":
        path.symlink_to(path.name)
    elif how == "annex":
        path.write_bytes(STAND_INS[0] + b"SHA256E-s1--0123.png\n")
    elif how in ("empty", "zeros", "garbage"):
        path.write_bytes({"empty": b"", "zeros": bytes(4000), "garbage": b"\x8f\x1c" * 2000}[how])
    elif how == "lfs":
        path.write_bytes(STAND_INS[1] + b"v1\noid sha256:0\nsize 1\n")


@pytest.mark.parametrize("how", ["link", "circle", "annex", "lfs"])
def test_picture_that_is_not_there_is_a_slice_that_cannot_be_read(how: str, make_scan: Callable[..., Path], tmp_path: Path) -> None:
    folder = make_scan(tmp_path / "scan", slices=20)
    lose(folder / "0007.png", how)
    (scan,) = find_scans([folder])
    assert len(scan.slices) == 20
    row, codes = checked(scan)
    assert "missing-file" in codes and "0007.png" in row.checks


@pytest.mark.parametrize("lost", [(3, 4, 5), (1, 7, 13)])
def test_scan_without_too_many_of_its_files_is_left_out_for_this_run_only(
    lost: tuple[int, ...], make_scan: Callable[..., Path], tmp_path: Path
) -> None:
    folder = make_scan(tmp_path / "scan", slices=20)
    for number in lost:
        lose(folder / f"{number:04d}.png", "link")
    (scan,) = find_scans([folder])
    row, codes = checked(scan)
    assert "missing-file" in codes and row.slice_count == 0 and is_read_again(row)


@pytest.mark.parametrize("lost", [(18, 19, 20), (0, 1, 2), (9, 10, 11)])
@pytest.mark.parametrize("ending", [".dcm", ""])
def test_absent_dicom_slices_count_also_at_the_ends_of_the_stack(
    lost: tuple[int, ...], ending: str, write_series: WriteSeries, tmp_path: Path
) -> None:
    values = np.random.default_rng(0).normal(-700, 60, (40, 16, 16)).astype(np.int16)
    paths = write_series(tmp_path / "scan", values)[:21]
    for path in sorted((tmp_path / "scan").iterdir()):
        if path not in paths:
            path.unlink()
    named = [path.rename(path.with_name(f"IM{number:04d}{ending}")) for number, path in enumerate(paths)]
    for number in lost:
        lose(named[number], "link")
    (scan,) = find_scans([tmp_path / "scan"])
    assert not scan.slices and scan.findings[0].code == "missing-file"
    assert "3 of its 21 slices" in scan.findings[0].message


def test_absent_dicom_slice_that_can_be_spared_is_a_finding(write_series: WriteSeries, tmp_path: Path) -> None:
    paths = write_series(tmp_path / "scan", np.random.default_rng(0).normal(-700, 60, (20, 16, 16)).astype(np.int16))
    lose(paths[-1], "link")
    (scan,) = find_scans([tmp_path / "scan"])
    assert len(scan.slices) == 19 and "missing-file" in {finding.code for finding in scan.findings}


@pytest.mark.parametrize(
    ("listed", "later", "usable"),
    [((10,), (13, 15), True), ((10,), (11, 12), False), ((3,), (10, 20, 25), False), ((29,), (27, 28), False), ((29,), (27,), True)],
)
def test_slices_without_header_and_without_pixels_count_together(
    listed: tuple[int, ...], later: tuple[int, ...], usable: bool, write_series: WriteSeries, tmp_path: Path
) -> None:
    """Of 30 slices, some are absent when headers are read, others when pixels are."""
    values = np.random.default_rng(0).normal(-700, 60, (30, 16, 16)).astype(np.int16)
    values[:, :8] += 700
    paths = write_series(tmp_path / "scan", values)
    if 29 in listed:
        paths = [path.rename(path.with_name(f"SLICE{number:04d}")) for number, path in enumerate(paths)]
    for number in listed:
        lose(paths[number], "link")
    (scan,) = find_scans([tmp_path / "scan"])
    assert len(scan.slices) == 30 - len(listed)
    for number in later:
        paths[number].unlink()
    row, codes = checked(scan)
    assert codes.count("missing-file") == 2 and (row.slice_count > 0) == usable and is_read_again(row) != usable


@pytest.mark.parametrize("how", ["link", "annex", "circle"])
@pytest.mark.parametrize("name", ["scan.nii.gz", "scan.nrrd", "scan.MHA"])
def test_volume_file_that_is_not_there_is_a_scan_that_cannot_be_read(
    how: str, name: str, make_scan: Callable[..., Path], tmp_path: Path
) -> None:
    make_scan(tmp_path / "other")
    (tmp_path / name).touch()
    lose(tmp_path / name, how)
    absent, other = find_scans([tmp_path])
    if absent.slices:
        absent, other = other, absent
    assert other.slices and not absent.slices and absent.findings[0].code == "missing-file"


@pytest.mark.parametrize(("how", "code"), [("link", "missing-file"), ("lfs", "missing-file"), ("empty", "empty-file")])
@pytest.mark.parametrize("name", ["scan.mhd", "scan.nhdr", "scan.hdr"])
def test_file_of_values_that_is_not_there_leaves_the_scan_out_for_this_run_only(name: str, how: str, code: str, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 255, (20, 32, 32)).astype(np.uint8)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(values), str(tmp_path / name.replace(".hdr", ".img")))
    (beside,) = (path for path in tmp_path.iterdir() if path.name != name)
    lose(beside, how)
    (scan,) = find_scans([tmp_path])
    row, codes = checked(scan)
    assert codes == [code] and is_read_again(row) and beside.name in row.checks


@pytest.mark.parametrize(
    ("how", "code"), [("empty", "empty-file"), ("zeros", "unreadable-slice"), ("garbage", "unreadable-slice"), ("link", "missing-file")]
)
@pytest.mark.parametrize("name", ["IM{:04d}", "1.2.840.{:d}", "8a{:04x}c0-77", "IM{:04d}.dcm"])
@pytest.mark.parametrize("lost", [(0, 1, 2), (19,)])
def test_stub_named_like_a_dicom_slice_is_one(
    how: str, code: str, name: str, lost: tuple[int, ...], write_series: WriteSeries, tmp_path: Path
) -> None:
    paths = write_series(tmp_path / "scan", np.random.default_rng(0).normal(-700, 60, (20, 16, 16)).astype(np.int16))
    paths = [path.rename(path.with_name(name.format(number))) for number, path in enumerate(paths)]
    (tmp_path / "scan" / "README").write_text("Not a slice.")
    for number in lost:
        lose(paths[number], how)
    (scan,) = find_scans([tmp_path / "scan"])
    assert [finding.code for finding in scan.findings if finding.code != "gap"] == [code]
    assert len(scan.slices) == (0 if len(lost) == 3 else 19)


def test_links_without_ending_to_what_is_absent_are_named(make_scan: Callable[..., Path], tmp_path: Path) -> None:
    make_scan(tmp_path / "NCP" / "1" / "1")
    for name in ("NCP/2", "NCP/1/2", "CP"):
        (tmp_path / name).symlink_to(tmp_path / "absent")
    scans, problems = find_dataset(tmp_path)
    assert [scan.source for scan in scans if not scan.slices] == ["NCP/2"]
    assert len(problems) == 2 and all("linked to a file that is not there" in problem for problem in problems)
    assert len([scan for scan in find_scans([tmp_path]) if not scan.slices]) == 3


@pytest.mark.parametrize("code", [errno.ESTALE, errno.EIO, errno.EMFILE])
def test_fault_while_a_slice_is_read_is_not_damage(
    code: int, make_scan: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (scan,) = find_scans([make_scan(tmp_path / "scan", slices=20)])
    opened = read.Image.open

    def failing(path: Path, *more: object) -> object:
        if path.name == "0007.png":
            raise OSError(code, "no luck", str(path))
        return opened(path, *more)

    monkeypatch.setattr(read.Image, "open", failing)
    row, codes = checked(scan)
    assert codes == ["machine-fault"] and row.slice_count == 0 and is_read_again(row)
    assert "damaged" not in row.checks and "0007.png" in row.checks


def test_library_that_fails_once_without_a_reason_is_asked_again(
    make_scan: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "scan"
    folder.mkdir()
    values = np.random.default_rng(0).integers(0, 255, (20, 32, 32)).astype(np.uint8)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(values), str(folder / "scan.nrrd"))
    (scan,) = find_scans([folder])
    calls = []
    actual = SimpleITK.ImageFileReader.Execute

    def failing(self: object, *more: object) -> object:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("ITK ERROR: read failed")
        return actual(self, *more)

    monkeypatch.setattr(SimpleITK.ImageFileReader, "Execute", failing)
    _, codes = checked(scan)
    assert len(calls) > 1 and "unreadable" not in codes
