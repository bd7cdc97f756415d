"""Open volumes.h5, or refuse it with a sentence that says what to do."""

from __future__ import annotations

import fcntl
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ctcovid.base.errors import InputError
from ctcovid.volumes import reader
from ctcovid.volumes.reader import VolumesFile


def test_file_says_what_was_written(volumes_file: Path, known_scans: list) -> None:
    file = VolumesFile(volumes_file)
    assert (file.depth, file.size, file.classes, file.positive) == (2, 32, ["NCP", "CP", "Normal"], "NCP")
    assert [(row.id, row.patient, row.label, row.split, row.source) for row in file.rows] == [
        (scan.row.id, scan.row.patient, scan.row.label, scan.row.split, scan.row.source) for scan in known_scans
    ]


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 8, 9])
def test_one_file_serves_every_depth(depth: int, volumes_file: Path, known_scans: list) -> None:
    file = VolumesFile(volumes_file)
    for part in ("train", "valid", "test"):
        expected = [
            (scan.row.source, number, scan.pixels[number * depth : (number + 1) * depth])
            for scan in known_scans
            if scan.row.split == part
            for number in range(len(scan.pixels) // depth)
        ]
        volumes = file.volumes(part, depth)
        assert [(volume.scan.source, volume.number) for volume in volumes] == [item[:2] for item in expected]
        for volume, (_, _, pixels) in zip(volumes, expected, strict=True):
            found = file.read(volume.first_slice, depth)
            assert found.dtype == np.uint8 and np.array_equal(found, pixels)


def test_parts_share_no_volume_and_leave_none_out(volumes_file: Path) -> None:
    file = VolumesFile(volumes_file)
    firsts = [volume.first_slice for part in ("train", "valid", "test") for volume in file.volumes(part, 2)]
    with h5py.File(volumes_file, "r") as plain:
        assert len(firsts) == len(set(firsts)) == len(plain["volumes"])


def test_fingerprint_knows_the_pixels_and_the_split_but_not_the_depth(
    known_scans: list, write_volumes: Callable[..., None], tmp_path: Path, volumes_file: Path
) -> None:
    first = VolumesFile(volumes_file).fingerprint
    assert first.startswith("sha256:")
    write_volumes(tmp_path / "deeper.h5", known_scans, depth=4)
    assert VolumesFile(tmp_path / "deeper.h5").fingerprint == first
    write_volumes(tmp_path / "fewer.h5", known_scans[:-1])
    assert VolumesFile(tmp_path / "fewer.h5").fingerprint != first
    scans = [known_scans[0], *known_scans[2:]]
    moved = type(scans[0].row)(**{**vars(scans[0].row), "split": "valid"})
    write_volumes(tmp_path / "as-it-was.h5", scans)
    write_volumes(tmp_path / "moved.h5", [type(scans[0])(moved, scans[0].chunks, scans[0].pixels), *scans[1:]])
    assert VolumesFile(tmp_path / "moved.h5").fingerprint != VolumesFile(tmp_path / "as-it-was.h5").fingerprint


def test_file_that_was_read_can_be_sent_to_a_worker(volumes_file: Path, known_scans: list) -> None:
    file = VolumesFile(volumes_file)
    file.read(0, 2)
    assert np.array_equal(pickle.loads(pickle.dumps(file)).read(0, 3), known_scans[0].pixels[:3])


def test_forked_process_reads_for_itself(volumes_file: Path, known_scans: list) -> None:
    file = VolumesFile(volumes_file)
    file.read(0, 1)
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(file.read(1, 2), known_scans[0].pixels[1:3]) else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert np.array_equal(file.read(0, 3), known_scans[0].pixels)


def test_reading_asks_for_no_lock(volumes_file: Path) -> None:
    """Cluster file systems refuse locks; here another process holds one."""
    with volumes_file.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert VolumesFile(volumes_file).read(0, 1).shape == (1, 32, 32)


# --- refusals


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        VolumesFile(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_absent_file_says_which_command_makes_it(tmp_path: Path) -> None:
    said = refusal(tmp_path / "volumes.h5")
    assert "No such volumes file" in said and "ctcovid prepare" in said and "--data" in said


def test_absent_file_with_a_partial_one_beside_it_says_how_to_finish(tmp_path: Path) -> None:
    (tmp_path / "volumes.h5.partial").touch()
    assert "Run the same ctcovid prepare command again to finish it" in refusal(tmp_path / "volumes.h5")


def test_folder_is_refused(tmp_path: Path) -> None:
    assert "is a folder. Give the HDF5 file" in refusal(tmp_path)


@pytest.mark.parametrize("content", [b"", b"patient,split\n"])
def test_file_that_is_not_hdf5_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "split.csv").write_bytes(content)
    assert "is not an HDF5 file" in refusal(tmp_path / "split.csv")


def test_foreign_hdf5_is_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["volumes"] = np.zeros((2, 2))
    assert "not a volumes file. Make one with ctcovid prepare" in refusal(tmp_path / "other.h5")


def test_unfinished_file_is_refused(volumes_file: Path) -> None:
    with h5py.File(volumes_file, "r+") as file:
        file.attrs["complete"] = False
    assert "is unfinished. Run the same ctcovid prepare command again" in refusal(volumes_file)


def test_newer_format_is_refused_and_names_the_update(volumes_file: Path) -> None:
    with h5py.File(volumes_file, "r+") as file:
        file.attrs["format_version"] = 2
    said = refusal(volumes_file)
    assert "has format 2, made by a newer ctcovid; this one reads 1" in said and "pip install -U" in said


def test_patient_in_two_parts_is_refused_by_name(volumes_file: Path) -> None:
    with h5py.File(volumes_file, "r+") as file:
        assert file["scans/patient"].asstr()[:2].tolist() == ["16", "16"]
        file["scans/split"][1] = "test"
    assert "patients in two parts: 16." in refusal(volumes_file)


def test_file_cut_short_is_refused_as_damaged(volumes_file: Path) -> None:
    os.truncate(volumes_file, volumes_file.stat().st_size - 1000)
    assert "is damaged" in refusal(volumes_file)


@pytest.mark.parametrize("name", ["scans/split", "scans"])
def test_file_without_a_part_of_its_table_is_refused_as_damaged(name: str, volumes_file: Path) -> None:
    with h5py.File(volumes_file, "r+") as file:
        del file[name]
    assert "is damaged" in refusal(volumes_file)


@pytest.mark.parametrize("name", ["classes", "depth", "positive", "size", "format_version"])
def test_file_without_an_attribute_is_refused_as_damaged(name: str, volumes_file: Path) -> None:
    with h5py.File(volumes_file, "r+") as file:
        del file.attrs[name]
    assert "is damaged" in refusal(volumes_file)


@pytest.mark.parametrize("scan", range(6))
def test_flipped_byte_in_a_chunk_names_the_scan(scan: int, volumes_file: Path, known_scans: list) -> None:
    first = sum(len(known.pixels) for known in known_scans[:scan])
    with h5py.File(volumes_file, "r") as plain:
        chunk = plain["slices"].id.get_chunk_info_by_coord((first + 1, 0, 0))
    content = bytearray(volumes_file.read_bytes())
    content[chunk.byte_offset + chunk.size // 2] ^= 0x10
    volumes_file.write_bytes(content)
    file = VolumesFile(volumes_file)
    with pytest.raises(InputError, match=rf"is damaged: .*\(scan {known_scans[scan].row.source}\).*prepare --overwrite"):
        file.read(first, 2)
    # What is whole can still be read.
    assert np.array_equal(file.read(first, 1), known_scans[scan].pixels[:1])


def test_text_that_is_no_text_any_more_is_refused_as_damaged(volumes_file: Path) -> None:
    content = volumes_file.read_bytes()
    assert content.count(b"Normal/5/1005") == 1
    volumes_file.write_bytes(content.replace(b"Normal/5/1005", b"Normal/\xff/1005"))
    assert "is damaged" in refusal(volumes_file)


def test_settings_are_readable_json(volumes_file: Path) -> None:
    with h5py.File(volumes_file, "r") as plain:
        assert json.loads(plain.attrs["settings"]) == {"depth": 2}


def test_a_file_that_is_replaced_while_it_is_read_gives_the_same_slices_or_none(volumes_file: Path, tmp_path: Path) -> None:
    file = VolumesFile(volumes_file)
    slices = file.read(0, 2)
    file = VolumesFile(volumes_file)
    shutil.copy(volumes_file, tmp_path / "same.h5")
    (tmp_path / "same.h5").replace(volumes_file)
    assert (file.read(0, 2) == slices).all()
    file = VolumesFile(volumes_file)
    shutil.copy(volumes_file, tmp_path / "other.h5")
    with h5py.File(tmp_path / "other.h5", "r+") as other:
        other["scans/crc32"][0] += 1
    (tmp_path / "other.h5").replace(volumes_file)
    with pytest.raises(InputError, match="was replaced by another file"):
        file.read(0, 2)


def test_a_file_is_checked_once_while_it_is_the_same(volumes_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Options and command each open it, and the check of a large file takes half a second."""
    checked: list[Path] = []
    guarded = reader.guarded

    def counting(path: Path, *arguments: Any) -> Any:
        checked.append(path)
        return guarded(path, *arguments)

    monkeypatch.setattr(reader, "guarded", counting)
    for _ in range(3):
        VolumesFile(volumes_file)
    assert checked == [volumes_file]
    shutil.copy(volumes_file, volumes_file.with_name("copy"))
    volumes_file.with_name("copy").replace(volumes_file)
    VolumesFile(volumes_file)
    assert checked == [volumes_file] * 2
