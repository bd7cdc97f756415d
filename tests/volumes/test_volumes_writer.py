"""A volumes.h5 in the making: never half written under its name, and continued where it was left."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from ctcovid.base.errors import InputError
from ctcovid.volumes import writer as module
from ctcovid.volumes.layout import FileInfo
from ctcovid.volumes.reader import VolumesFile
from ctcovid.volumes.writer import VolumesWriter

CLASSES = ["NCP", "CP", "Normal"]


def content(path: Path) -> dict[str, Any]:
    """All that any HDF5 tool sees in the file."""
    with h5py.File(path, "r") as file:
        found: dict[str, Any] = {}
        file.visititems(lambda name, item: found.update({name: item[...].tolist()}) if isinstance(item, h5py.Dataset) else None)
        return found | {f"@{name}": np.asarray(value).tolist() for name, value in file.attrs.items()}


@pytest.fixture
def undisturbed(known_scans: list, write_volumes: Callable[..., None], tmp_path: Path) -> dict[str, Any]:
    write_volumes(tmp_path / "undisturbed" / "volumes.h5", known_scans)
    return content(tmp_path / "undisturbed" / "volumes.h5")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out" / "volumes.h5"


def leave(path: Path, scans: list, count: int, settings: dict[str, object] | None = None) -> Path:
    """The partial file of a run that ended after `count` scans."""
    with pytest.raises(ZeroDivisionError), VolumesWriter(path, FileInfo(2, 32, CLASSES, "NCP", settings or {"depth": 2})) as writer:
        for scan in scans[:count]:
            writer.add(scan.row, scan.chunks)
        raise ZeroDivisionError
    assert not path.exists()
    return path.with_name("volumes.h5.partial")


def test_pixels_are_those_that_were_added(known_scans: list, undisturbed: dict[str, Any]) -> None:
    assert np.array_equal(undisturbed["slices"], np.concatenate([scan.pixels for scan in known_scans]))
    volumes = [scan.pixels[first : first + 2] for scan in known_scans for first in range(0, len(scan.pixels) - 1, 2)]
    assert np.array_equal(undisturbed["volumes"], np.stack(volumes))


def test_nothing_but_the_finished_file_stays(volumes_file: Path) -> None:
    assert sorted(item.name for item in volumes_file.parent.iterdir()) == ["scans", "volumes.h5"]


def test_unfinished_file_has_another_name_and_says_that_it_is_not_complete(known_scans: list, path: Path) -> None:
    partial = leave(path, known_scans, 2)
    assert [item.name for item in path.parent.iterdir()] == ["volumes.h5.partial"]
    with h5py.File(partial, "r") as file:
        assert not file.attrs["complete"]
        assert file["scans/source"].asstr()[...].tolist() == [scan.row.source for scan in known_scans[:2]]


@pytest.mark.parametrize("count", range(7))
def test_run_left_after_any_scan_continues_to_the_same_file(
    count: int, known_scans: list, undisturbed: dict[str, Any], path: Path, write_volumes: Callable[..., None]
) -> None:
    leave(path, known_scans, count)
    with VolumesWriter(path, FileInfo(2, 32, CLASSES, "NCP", {"depth": 2})) as writer:
        assert [row.source for row in writer.rows] == [scan.row.source for scan in known_scans[:count]]
    write_volumes(path, known_scans)
    assert content(path) == undisturbed


def test_run_may_be_left_again_and_again(
    known_scans: list, undisturbed: dict[str, Any], path: Path, write_volumes: Callable[..., None]
) -> None:
    for count in range(len(known_scans)):
        with pytest.raises(ZeroDivisionError), VolumesWriter(path, FileInfo(2, 32, CLASSES, "NCP", {"depth": 2})) as writer:
            assert len(writer.rows) == count
            writer.add(known_scans[count].row, known_scans[count].chunks)
            raise ZeroDivisionError
    write_volumes(path, known_scans)
    assert content(path) == undisturbed


def test_scan_whose_pixels_were_written_without_its_row_is_written_again(
    known_scans: list, undisturbed: dict[str, Any], path: Path, write_volumes: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(rows: object) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), VolumesWriter(path, FileInfo(2, 32, CLASSES, "NCP", {"depth": 2})) as writer:
        writer.add(known_scans[0].row, known_scans[0].chunks)
        with monkeypatch.context() as patch:
            patch.setattr(module, "columns", fail)
            writer.add(known_scans[1].row, known_scans[1].chunks)
    with h5py.File(path.with_name("volumes.h5.partial"), "r") as file:
        assert len(file["slices"]) == known_scans[0].row.slice_count + known_scans[1].row.slice_count
        assert len(file["scans/source"]) == 1
    write_volumes(path, known_scans)
    assert content(path) == undisturbed


@pytest.mark.parametrize("column", ["id", "crc32"])
def test_row_that_not_all_columns_have_is_written_again(
    column: str, known_scans: list, undisturbed: dict[str, Any], path: Path, write_volumes: Callable[..., None]
) -> None:
    with h5py.File(leave(path, known_scans, 3), "r+") as file:
        file["scans"][column].resize(2, axis=0)
    write_volumes(path, known_scans)
    assert content(path) == undisturbed


def test_pixel_that_changed_in_the_partial_file_is_not_believed(
    known_scans: list, undisturbed: dict[str, Any], path: Path, write_volumes: Callable[..., None]
) -> None:
    """A whole chunk with a right fletcher32, but other pixels: only the scan's own checksum tells."""
    with h5py.File(leave(path, known_scans, 4), "r+") as file:
        file["slices"][5, 0, 0] ^= 1
    write_volumes(path, known_scans)
    assert content(path) == undisturbed


@pytest.mark.parametrize("share", [0, 0.001, 0.01, 0.1, 0.5, 0.9, 0.999])
def test_partial_file_cut_short_is_begun_anew_or_continued_rightly(
    share: float, known_scans: list, undisturbed: dict[str, Any], path: Path, write_volumes: Callable[..., None]
) -> None:
    partial = leave(path, known_scans, 4)
    os.truncate(partial, int(share * partial.stat().st_size))
    write_volumes(path, known_scans)
    assert content(path) == undisturbed


def test_partial_file_of_garbage_is_begun_anew(
    known_scans: list, undisturbed: dict[str, Any], path: Path, write_volumes: Callable[..., None]
) -> None:
    path.parent.mkdir()
    path.with_name("volumes.h5.partial").write_bytes(np.random.default_rng(0).bytes(100_000))
    write_volumes(path, known_scans)
    assert content(path) == undisturbed


def test_foreign_hdf5_under_the_partial_name_is_begun_anew(
    known_scans: list, undisturbed: dict[str, Any], path: Path, write_volumes: Callable[..., None]
) -> None:
    path.parent.mkdir()
    with h5py.File(path.with_name("volumes.h5.partial"), "w") as file:
        file.attrs["settings"] = json.dumps({"depth": 2})
        file["slices"] = np.zeros((4, 32, 32))
    write_volumes(path, known_scans)
    assert content(path) == undisturbed


def test_partial_file_of_other_settings_is_begun_anew(
    known_scans: list, undisturbed: dict[str, Any], path: Path, write_volumes: Callable[..., None]
) -> None:
    leave(path, known_scans, 4, settings={"depth": 2, "seed": 1})
    write_volumes(path, known_scans)
    assert content(path) == undisturbed


@pytest.mark.parametrize("moment", ["_add_volumes", "fsync", "replace"])
def test_run_left_while_finishing_is_finished_by_the_next(
    moment: str,
    known_scans: list,
    undisturbed: dict[str, Any],
    path: Path,
    write_volumes: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*arguments: object) -> None:
        raise ZeroDivisionError

    owner = {"_add_volumes": VolumesWriter, "fsync": os, "replace": Path}[moment]
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(owner, moment, fail)
        write_volumes(path, known_scans)
    assert not path.exists()
    with h5py.File(path.with_name("volumes.h5.partial"), "r") as file:
        # Only what has everything may call itself complete.
        assert not file.attrs["complete"] or moment != "_add_volumes"
    write_volumes(path, known_scans)
    assert content(path) == undisturbed
    assert len(VolumesFile(path).rows) == len(known_scans)


def test_run_killed_at_any_write_is_continued_to_the_same_file(
    known_scans: list, tmp_path: Path, write_volumes: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """HDF5 writes through a file that keeps what lies on the disk after each write: all that a kill can leave."""
    left: list[dict[str, bytes]] = []

    def keep(folder: Path) -> None:
        state = {item.name: item.read_bytes() for item in folder.iterdir()}
        if not left or state != left[-1]:
            left.append(state)

    class Kept(io.FileIO):
        def write(self, data: Any) -> int:
            count = super().write(data)
            keep(tmp_path / "recorded")
            return count

        def truncate(self, size: int | None = None) -> int:
            length = super().truncate(size)
            keep(tmp_path / "recorded")
            return length

    real = h5py.File
    scans = known_scans[:3]
    with monkeypatch.context() as patch:
        patch.setattr(h5py, "File", lambda name, mode="r", **options: real(Kept(name, {"w": "w+", "r+": "r+"}[mode]), mode, **options))
        write_volumes(tmp_path / "recorded" / "volumes.h5", scans)
    write_volumes(tmp_path / "undisturbed.h5", scans)
    undisturbed = content(tmp_path / "undisturbed.h5")
    assert len(left) > 50
    wrong = []
    for number, state in enumerate(left):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name, data in state.items():
            (folder / name).write_bytes(data)
        try:
            write_volumes(folder / "volumes.h5", scans)
        except Exception as error:
            wrong.append(f"after write {number} of {len(left)}: {type(error).__name__}: {error}")
        else:
            if content(folder / "volumes.h5") != undisturbed:
                wrong.append(f"after write {number} of {len(left)}: another content")
    assert wrong == []


def test_old_file_stays_until_the_new_one_is_complete(known_scans: list, volumes_file: Path, write_volumes: Callable[..., None]) -> None:
    before = volumes_file.read_bytes()
    with pytest.raises(ZeroDivisionError), VolumesWriter(volumes_file, FileInfo(4, 32, CLASSES, "NCP", {"depth": 4})) as writer:
        writer.add(known_scans[0].row, known_scans[0].chunks)
        raise ZeroDivisionError
    assert volumes_file.read_bytes() == before
    write_volumes(volumes_file, known_scans, depth=4)
    assert VolumesFile(volumes_file).depth == 4


def test_folder_that_cannot_be_written_to_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(InputError, match=r"cannot be written.*--output"),
        VolumesWriter(tmp_path / "file" / "v.h5", FileInfo(2, 32, CLASSES, "NCP", {})),
    ):
        pytest.fail("it was written")


def test_file_behind_a_link_is_replaced_and_the_link_stays(known_scans: list, path: Path, write_volumes: Callable[..., None]) -> None:
    path.parent.mkdir()
    link = path.parent / "link.h5"
    link.symlink_to("volumes.h5")
    write_volumes(link, known_scans)
    assert link.is_symlink() and not path.is_symlink()
    assert VolumesFile(path).rows and sorted(item.name for item in path.parent.iterdir()) == ["link.h5", "volumes.h5"]
