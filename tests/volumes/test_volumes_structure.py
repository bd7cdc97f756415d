"""A volumes file that is not as format 1 says is refused when it is opened, by the name of what is wrong, and no other file is read."""

from __future__ import annotations

import os
import re
import signal
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from pydantic import TypeAdapter

from ctcovid.base.declared import table
from ctcovid.base.errors import InputError
from ctcovid.options.manual import pages
from ctcovid.volumes import structure
from ctcovid.volumes.chunk import fletcher32
from ctcovid.volumes.layout import FileInfo, ScanRow
from ctcovid.volumes.reader import VolumesFile

SECRET = "SECRET-7714"
Change = Callable[[h5py.File, Path], None]
SLICES = {"chunks": (1, 32, 32), "compression": "gzip", "compression_opts": 1, "fletcher32": True}


def replaced(name: str, **made: Any) -> Change:
    """The dataset `name` anew, with what h5py makes of `made`; its values unless others are given."""

    def change(file: h5py.File, other: Path) -> None:
        values, kind = file[name][:], file[name].dtype
        del file[name]
        file.create_dataset(name, **({"data": values.astype(made.get("dtype", kind)) if "shape" not in made else None} | made))

    return change


def external(name: str) -> Change:
    def change(file: h5py.File, other: Path) -> None:
        shape = file[name].shape
        del file[name]
        file.create_dataset(name, shape, np.uint8 if name == "slices" else "S10", external=[(str(other), 0, 10 * int(np.prod(shape)))])

    return change


def linked(name: str, link: Callable[[Path], Any]) -> Change:
    def change(file: h5py.File, other: Path) -> None:
        file.move(name, "elsewhere")
        file[name] = link(other)

    return change


def viewed(name: str, source: str) -> Change:
    def change(file: h5py.File, other: Path) -> None:
        shape, kind = file[name].shape, file[name].dtype
        del file[name]
        layout = h5py.VirtualLayout(shape, kind)
        layout[...] = h5py.VirtualSource(source.format(other=other), "slices", shape)
        file.create_virtual_dataset(name, layout)

    return change


def cell(name: str, value: object, row: int = 3) -> Change:
    return lambda file, other: file[f"scans/{name}"].__setitem__(row, value)


def attribute(name: str, value: object) -> Change:
    return lambda file, other: file.attrs.__setitem__(name, value)


def longer(name: str, rows: int) -> Change:
    return lambda file, other: file[name].resize(rows, axis=0)


def stored(stream: bytes, masked: int = 0) -> Change:
    chunk = stream if masked else stream + fletcher32(stream).to_bytes(4, "little")
    return lambda file, other: file["slices"].id.write_direct_chunk((4, 0, 0), chunk, masked)


def text_of(length: int, heap: int | None = None) -> Change:
    """Another length, or another place in the file, of the first text of a column."""

    def change(file: h5py.File, other: Path) -> None:
        column = file["scans/id"].id
        table = np.frombuffer(column.read_direct_chunk((0,))[1], structure.TEXT).copy()
        table[0]["length"] = length
        table[0]["heap"] = table[0]["heap"] if heap is None else heap
        column.write_direct_chunk((0,), table.tobytes())

    return change


REFUSED: dict[str, tuple[Change, str]] = {
    "slices in another file": (external("slices"), "/slices is stored in another file"),
    "column in another file": (external("scans/id"), "/scans/id is not of texts"),
    "slices behind an external link": (linked("slices", lambda other: h5py.ExternalLink(str(other), "/")), "/slices is a link"),
    "table behind an external link": (linked("scans", lambda other: h5py.ExternalLink(str(other), "/")), "/scans is a link"),
    "column behind a soft link": (linked("scans/patient", lambda other: h5py.SoftLink("/elsewhere")), "/scans/patient is a link"),
    "link to itself": (linked("slices", lambda other: h5py.SoftLink("/slices")), "/slices is a link"),
    "slices that are a view of themselves": (viewed("slices", "."), "/slices is a view of other data"),
    "slices that are a view of another file": (viewed("slices", "{other}"), "/slices is a view of other data"),
    "volumes of another file": (viewed("volumes", "{other}"), "/volumes is a view of something else"),
    "smaller slices": (replaced("slices", shape=(33, 16, 16), dtype=np.uint8, **SLICES | {"chunks": (1, 16, 16)}), "/slices has chunks of"),
    "slices of 16 bits": (replaced("slices", dtype=np.uint16, **SLICES), "/slices is not of 8-bit whole numbers"),
    "slices in one chunk": (replaced("slices", **SLICES | {"chunks": (8, 32, 32)}), "/slices has chunks of"),
    "another filter": (replaced("slices", **SLICES | {"compression": "lzf", "compression_opts": None}), "/slices has other filters"),
    "no checksum": (replaced("slices", **SLICES | {"fletcher32": False}), "/slices has other filters"),
    "slices that were never written": (replaced("slices", shape=(33, 32, 32), dtype=np.uint8, **SLICES), "slice 0 of 33 is absent"),
    "more slices than chunks": (longer("slices", 10**12), "is absent from /slices"),
    "a group for slices": (linked("slices", lambda other: np.dtype(np.uint8)), "/slices is not a dataset"),
    "a slice without filters": (stored(bytes(1024), masked=3), "slice 4 is stored without a filter"),
    "a slice of two bytes": (stored(b""), "slice 4 cannot have 4 bytes"),
    "a slice of a megabyte": (stored(bytes(1 << 20)), "slice 4 cannot have"),
    "numbers that are not whole": (replaced("scans/first_slice", dtype=float), "/scans/first_slice is not of 64-bit"),
    "a scan of 10^12 slices": (cell("slice_count", 10**12), "the scan before it ends"),
    "the largest number": (cell("slice_count", 2**63 - 1), "slice_count: input should be less"),
    "a scan that begins before the file": (cell("first_slice", -1), "first_slice: input should be greater"),
    "scans over each other": (cell("first_slice", 0), "the scan before it ends"),
    "a scan without slices": (cell("slice_count", 0), "number of slices"),
    "another class": (cell("label", "Other"), "its class, part or number"),
    "two scans of one source": (cell("source", "NCP/16/1000"), "two scans have the same source"),
    "columns of unequal length": (longer("scans/patient", 5), "/scans/patient has 5 rows, not 6"),
    "a column of 10^15 rows": (longer("scans/crc32", 10**15), "/scans/crc32 has 1,024 rows, not 6"),
    "a text of 4 GB": (text_of(2**32 - 1), "/scans/id has texts of more than"),
    "a text outside of the file": (text_of(4, 2**60), "/scans/id has a text that is not in the file"),
    "a text in the superblock": (text_of(4, 0), "/scans/id has a text that is not in the file"),
    "findings that are not a list": (cell("checks", '{"findings": 3}'), "/scans, row 3: checks findings"),
    "a spacing that is NaN": (cell("checks", '{"slice_spacing": NaN}'), "checks slice_spacing"),
    "brackets without end": (cell("checks", "[" * 100_000), "row 3: checks invalid JSON"),
    "a depth of 0": (attribute("depth", 0), "depth: input should be greater"),
    "a size of 10^5": (attribute("size", 10**5), "size: input should be less"),
    "a size that is text": (attribute("size", "32"), "the attribute size is not a whole number"),
    "a size of several numbers": (attribute("size", [32, 32]), "the attribute size is not a whole number"),
    "one class twice": (attribute("classes", ["NCP", "NCP", "CP"]), "classes: two names are the same"),
    "another positive class": (attribute("positive", "Other"), "positive: not one of the classes"),
    "a window without width": (attribute("settings", '{"window": [-600, 0]}'), "settings: window.1"),
    "a window of NaN": (attribute("settings", '{"window": [NaN, 1500]}'), "settings: window.0"),
    "settings that are nested": (attribute("settings", '{"window":' * 100_000), "settings: invalid JSON"),
    "parts that are not texts": (attribute("settings", '{"awaited": {"a": 5}}'), "settings: awaited.a"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_as_the_format_says_is_refused_by_name(name: str, volumes_file: Path, tmp_path: Path) -> None:
    change, said = REFUSED[name]
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        file["slices"] = np.frombuffer(SECRET.encode().ljust(33 * 1024, b"-"), np.uint8).reshape(33, 32, 32)
    with h5py.File(volumes_file, "r+") as file:
        change(file, other)
    with pytest.raises(InputError, match=re.escape(said)) as caught:
        VolumesFile(volumes_file)
    assert str(caught.value).startswith(f"{volumes_file} is damaged") and SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "stream",
    [
        zlib.compress(bytes(1 << 28), 9)[:900],
        zlib.compress(bytes(1025)),
        zlib.compress(bytes(1023)),
        b"not deflated" * 9,
        zlib.compress(bytes(1024)) + b"--",
    ],
    ids=["bomb", "longer", "shorter", "not deflated", "and more"],
)
def test_slice_that_inflates_to_another_size_is_refused_where_it_is_read(stream: bytes, volumes_file: Path) -> None:
    with h5py.File(volumes_file, "r+") as file:
        stored(stream)(file, volumes_file)
    file = VolumesFile(volumes_file)
    assert file.read(3, 1).shape == (1, 32, 32)
    with pytest.raises(InputError, match=r"slices 3 to 4 .* cannot be read"):
        file.read(3, 2)


def test_pipe_in_place_of_a_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "volumes.h5")
    with pytest.raises(InputError, match="is a pipe or a device"):
        VolumesFile(tmp_path / "volumes.h5")


def test_file_that_crashes_its_library_is_refused(volumes_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structure, "root", lambda file: os.kill(os.getpid(), signal.SIGSEGV))
    with pytest.raises(InputError, match=r"is damaged: the library that reads it crashed \(SIGSEGV\)"):
        VolumesFile(volumes_file)


def test_tables_of_the_manual_are_those_of_the_description() -> None:
    page = pages()["files"]
    for heading, declared in (("attribute", FileInfo), ("column of `/scans`", ScanRow)):
        assert table(heading, TypeAdapter(declared).json_schema()) in page
