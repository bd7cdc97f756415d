"""Write volumes.h5, format 1: beside its final name, scan by scan, renamed when complete. A killed run resumes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
from isal import isal_zlib

from ctcovid import __version__
from ctcovid.base.errors import InputError
from ctcovid.base.faults import leave_at_once, raise_machine_fault
from ctcovid.base.files import behind_links
from ctcovid.base.guard import guarded
from ctcovid.volumes.chunk import CHUNK_OPTIONS
from ctcovid.volumes.content import read_partial
from ctcovid.volumes.encode import Chunk
from ctcovid.volumes.layout import (
    AWAITED,
    FORMAT,
    FORMAT_VERSION,
    LEFT_OUT,
    LISTING,
    NUMBER_COLUMNS,
    TEXT_COLUMNS,
    FileInfo,
    FormatError,
    ScanRow,
    awaited_parts,
    columns,
    require_info,
    require_rows,
)
from ctcovid.volumes.reader import VolumesFile
from ctcovid.volumes.slices import Slices
from ctcovid.volumes.structure import ROWS_AT_ONCE

# What a full disk may have failed to take of a file, in bytes.
MOST_LOST = 4 << 30


class VolumesWriter:
    """A volumes.h5 in the making, at ``PATH.partial``. The caller has locked `path` against other processes.

    Parameters
    ----------
    path : the final name
    info : attributes of the file. A partial file with the same settings is resumed, any other is replaced
    base : a complete file whose scans come first, unchanged
    listings : by source, identifies the names and files of a scan; a scan of a partial file is kept only if it has not changed
    """

    def __init__(self, path: Path, info: FileInfo, base: VolumesFile | None = None, listings: dict[str, str] | None = None) -> None:
        path = behind_links(path)
        self.path, self.info, self.base, self.listings = path, info, base, listings or {}
        self.partial, self.leftover = (path.with_name(path.name + ending) for ending in (".partial", ".partial.old"))
        resumable = {name: value for name, value in info.settings.items() if name != "listing"}
        self.settings = _json({**resumable, "base": base.fingerprint if base else None})
        self.rows: list[ScanRow] = []
        # The checksums of the slices of each row, which may change when all scans are known; None for rows of the base.
        self.crcs: list[list[int] | None] = []

    def __enter__(self) -> VolumesWriter:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            rows, crcs = self._keep_best_leftover()
            self._begin()
            if rows:
                self._copy(self.leftover, rows, crcs)
            if self.base and (missing := self.base.rows[len(self.rows) :]):
                self._copy(self.base.path, missing, [None] * len(missing))
            self.leftover.unlink(missing_ok=True)
        except (OSError, RuntimeError) as error:
            raise_machine_fault(error, self.partial)
            raise InputError(f"{self.partial} cannot be written: {error}. Choose another folder with --output.") from error
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.file.close()
        except (OSError, RuntimeError, ValueError):
            # After a failed write, such as to a full disk, closing the file fails, too, and at exit HDF5 would crash.
            leave_at_once()
            if kind is None:
                raise

    @contextlib.contextmanager
    def _faults_named(self) -> Iterator[None]:
        """Raises MachineFaultError in place of what HDF5 raises on a full disk and the like."""
        try:
            yield
        except (OSError, RuntimeError) as error:
            raise_machine_fault(error, self.partial)
            raise

    @property
    def left_out_before(self) -> list[ScanRow]:
        """Scans that the base left out and that are not in this file either, unless they were read again."""
        new = {row.source for row in self.rows} | set(self.listings)
        return [row for row in self.base.left_out if row.source not in new] if self.base else []

    def _keep_best_leftover(self) -> tuple[list[ScanRow], list[list[int]]]:
        """Move the file of a killed run to `leftover`, and return its sound scans with the checksums of their slices.

        HDF5 may be killed between any two writes, and writing on in an inconsistent file would damage more. So its sound scans are
        copied into a new file. A run killed while it copies leaves two files; the one with more sound scans is used.
        """
        found = {path: self._sound_rows(path) for path in (self.partial, self.leftover)}
        if len(found[self.partial][0]) > len(found[self.leftover][0]):
            self.partial.replace(self.leftover)
            return found[self.partial]
        return found[self.leftover]

    def _sound_rows(self, path: Path) -> tuple[list[ScanRow], list[list[int]]]:
        """The first scans of an unfinished file with the same settings, up to the first whose checksum is wrong."""
        rows: list[ScanRow] = []
        sound: list[list[int]] = []
        end = 0
        try:
            listed = guarded(path, partial(read_partial, path, self.settings, self.info.size))
            with h5py.File(path, "r", locking=False) as file:
                slices = Slices(file, self.info.size) if listed else None
                for row, listing in listed:
                    if slices is None or row.first_slice != end or _end([row]) > slices.count:
                        break
                    crcs = [isal_zlib.crc32(slices.read(index, 1)) for index in range(row.first_slice, _end([row]))]
                    if row.crc32 != _checksum(row, crcs):
                        break
                    end = _end([row])
                    if listing == self.listings.get(row.source, ""):
                        rows.append(row)
                        sound.append(crcs)
        except (OSError, KeyError, ValueError, RuntimeError) as error:
            # What the machine fails to read now may be sound.
            raise_machine_fault(error, path)
            if (stored := re.search(r"stored_eof = (\d+)", str(error))) and 0 < int(stored[1]) - path.stat().st_size <= MOST_LOST:
                # A full disk has not taken the end. HDF5 opens a file that is as long as it says, and checksums tell what is sound.
                os.truncate(path, int(stored[1]))
                return self._sound_rows(path)
        return rows, sound

    def _begin(self) -> None:
        self.partial.unlink(missing_ok=True)
        # Not locked by HDF5, for which some network file systems have no locks: base/locks.py does it.
        self.file = h5py.File(self.partial, "w", locking=False)
        side = self.info.size
        self.slices = self.file.create_dataset(
            "slices", (0, side, side), np.uint8, maxshape=(None, side, side), chunks=(1, side, side), **CHUNK_OPTIONS
        )
        group = self.file.create_group("scans")
        kinds = {name: h5py.string_dtype() if name in TEXT_COLUMNS else np.int64 for name in (*TEXT_COLUMNS, *NUMBER_COLUMNS)}
        growing: dict[str, Any] = {"maxshape": (None,), "chunks": (ROWS_AT_ONCE,)}
        self.table = {name: group.create_dataset(name, (0,), kind, **growing) for name, kind in kinds.items()}
        self.file.create_dataset(LISTING, (0,), h5py.string_dtype(), **growing)
        self.file.attrs.update(format=FORMAT, format_version=FORMAT_VERSION, settings=self.settings, complete=False)
        self.file.flush()

    def _copy(self, path: Path, rows: list[ScanRow], crcs: Sequence[list[int] | None]) -> None:
        """Copy scans of another file without recompressing them: the slices of each row."""
        with h5py.File(path, "r", locking=False) as file:
            old = Slices(file, self.info.size)
            moved: list[ScanRow] = []
            for row in rows:
                moved.append(replace(row, first_slice=_end(moved or self.rows)))
                self.slices.resize(_end(moved), axis=0)
                for index in range(row.slice_count):
                    self.slices.id.write_direct_chunk((moved[-1].first_slice + index, 0, 0), old.stored(row.first_slice + index))
            self._append(moved, crcs)
        self.file.flush()

    def add(self, row: ScanRow, chunks: Iterable[Chunk]) -> None:
        """Append a scan. The writer sets `first_slice` and `crc32` of `row`; a scan that is left out has no chunks."""
        row = replace(row, first_slice=_end(self.rows))
        with self._faults_named():
            self.slices.resize(_end([row]), axis=0)
            crcs = []
            for position, chunk in enumerate(chunks, start=row.first_slice):
                self.slices.id.write_direct_chunk((position, 0, 0), chunk.data)
                crcs.append(chunk.crc32)
            # The pixels are flushed before the row that refers to them.
            self.file.flush()
            self._append([row], [crcs])
            self.file.flush()

    def _append(self, rows: Sequence[ScanRow], crcs: Sequence[list[int] | None]) -> None:
        """Add rows to the table, each with the checksums of its slices, or None if it has its own already."""
        first = len(self.rows)
        self.rows += [
            row if of_slices is None else replace(row, crc32=_checksum(row, of_slices)) for row, of_slices in zip(rows, crcs, strict=True)
        ]
        self.crcs += crcs
        listings = self.file[LISTING]
        listings.resize(len(self.rows), axis=0)
        listings[first:] = [self.listings.get(row.source, "") for row in self.rows[first:]]
        for name, values in columns(self.rows[first:]).items():
            # HDF5's own calls: h5py's selections take three times as long for a row.
            column = self.table[name]
            column.id.set_extent((len(self.rows),))
            space = column.id.get_space()
            space.select_hyperslab((first,), (len(values),))
            column.id.write(h5py.h5s.create_simple((len(values),)), space, np.array(values, column.dtype))

    def finish(self, chosen: list[ScanRow] | None = None, awaited: dict[str, str] | None = None) -> None:
        """Keep the chosen rows, add the virtual ``/volumes`` and the attributes, mark the file complete and rename it.

        Parameters
        ----------
        chosen : a subset of `rows`, in their order, with their part set; `first_slice` and `slice_count` may be narrowed to a section
            of a scan. None keeps all rows unchanged
        awaited : part by patient, of patients whose scans could not be read so far
        """
        try:
            require_info(self.info)
            require_rows(self.rows, "scans")
        except FormatError as error:
            raise InputError(f"{self.path} cannot hold these scans: {error}. Prepare them under other names.") from error
        with self._faults_named():
            self._finish(chosen, awaited_parts(self.info.settings) | (awaited or {}))

    def _finish(self, chosen: list[ScanRow] | None, awaited: dict[str, str]) -> None:
        left_out = [*self.left_out_before, *(row for row in self.rows if not row.slice_count)]
        if chosen is not None:
            self._keep(chosen)
        for name, values in columns(left_out).items() if left_out else ():
            kind = h5py.string_dtype() if name in TEXT_COLUMNS else np.int64
            self.file.create_dataset(f"{LEFT_OUT}/{name}", data=values, dtype=kind)
        self._add_volumes()
        kinds = {row.image_kind for row in self.rows}
        self.file.attrs.update(
            depth=self.info.depth,
            size=self.info.size,
            positive=self.info.positive,
            image_kind=kinds.pop() if len(kinds) == 1 else "mixed",
            created_by=f"ctcovid {__version__}",
        )
        del self.file[LISTING]
        awaited = {patient: part for patient, part in awaited.items() if patient not in {row.patient for row in self.rows}}
        settings = {name: value for name, value in self.info.settings.items() if name != AWAITED}
        self.file.attrs["settings"] = _json({**settings, **({AWAITED: awaited} if awaited else {})})
        self.file.attrs.create("classes", self.info.classes, dtype=h5py.string_dtype())
        self.file.flush()
        self.file.attrs["complete"] = True
        self.file.close()
        with self.partial.open("rb") as written:
            os.fsync(written.fileno())
        self.partial.replace(self.path)
        self.leftover.unlink(missing_ok=True)

    def _keep(self, chosen: list[ScanRow]) -> None:
        """Replace all rows by the chosen ones. If slices are dropped with the others, the rest is copied into a new file."""
        crcs_of = dict(zip((row.source for row in self.rows), zip(self.rows, self.crcs, strict=True), strict=True))
        crcs = []
        for row in chosen:
            whole, of_slices = crcs_of[row.source]
            skipped = row.first_slice - whole.first_slice
            crcs.append(of_slices and of_slices[skipped : skipped + row.slice_count])
        in_order = [row.source for row in chosen] == [row.source for row in self.rows if row.slice_count]
        everything = in_order and sum(row.slice_count for row in chosen) == _end(self.rows)
        self.rows, self.crcs = [], []
        if not everything:
            # A run killed from here on resumes from the whole file, which has more scans than the new one.
            self.file.close()
            self.partial.replace(self.leftover)
            self._begin()
            self._copy(self.leftover, chosen, crcs)
            return
        for column in self.table.values():
            column.resize(0, axis=0)
        self.file[LISTING].resize(0, axis=0)
        self._append(chosen, crcs)

    def _add_volumes(self) -> None:
        counts = [row.volume_count(self.info.depth) for row in self.rows]
        side, total = self.info.size, sum(counts)
        layout = h5py.VirtualLayout((total, self.info.depth, side, side), np.uint8)
        source = h5py.VirtualSource(".", "slices", shape=self.slices.shape, dtype=np.uint8)
        volume = 0
        for row, count in zip(self.rows, counts, strict=True):
            if count:
                layout[volume : volume + count] = source[row.first_slice : row.first_slice + count * self.info.depth]
            volume += count
        self.file.create_virtual_dataset("volumes", layout)
        self.file.create_dataset("volume_scan", data=np.repeat(np.arange(len(self.rows)), counts).astype(np.int64))


def _json(settings: dict[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True, ensure_ascii=False)


def _end(rows: list[ScanRow]) -> int:
    return rows[-1].first_slice + rows[-1].slice_count if rows else 0


def _checksum(row: ScanRow, slice_crcs: Iterable[int]) -> int:
    """CRC-32 of the row and of the CRC-32 of each of its slices, in order."""
    crc = zlib.crc32(repr(replace(row, crc32=0)).encode())
    for slice_crc in slice_crcs:
        crc = zlib.crc32(slice_crc.to_bytes(4, "little"), crc)
    return crc
