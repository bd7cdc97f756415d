"""Write volumes.h5, format 1: beside its final name, scan by scan, renamed when complete. A killed run resumes."""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
from isal import isal_zlib

from ctcovid import __version__
from ctcovid.base.errors import InputError
from ctcovid.base.files import behind_links
from ctcovid.volumes.chunk import CHUNK_OPTIONS
from ctcovid.volumes.encode import Chunk
from ctcovid.volumes.layout import FORMAT, FORMAT_VERSION, LEFT_OUT, NUMBER_COLUMNS, TEXT_COLUMNS, ScanRow, columns, read_rows
from ctcovid.volumes.reader import VolumesFile


class VolumesWriter:
    """A volumes.h5 in the making, at ``PATH.partial``.

    Parameters
    ----------
    path : the final name
    depth, size : slices per volume, pixels per side
    classes, positive : class names in order, and the one that precision and recall are about
    settings : what the content depends on. A partial file with the same settings is continued, any other is begun anew
    base : a complete file whose scans come first, as they are
    """

    def __init__(
        self,
        path: Path,
        depth: int,
        size: int,
        classes: list[str],
        positive: str,
        settings: dict[str, Any],
        base: VolumesFile | None = None,
    ) -> None:
        path = behind_links(path)
        self.path, self.base = path, base
        self.partial, self.leftover = (path.with_name(path.name + ending) for ending in (".partial", ".partial.old"))
        self.depth, self.size, self.classes, self.positive = depth, size, classes, positive
        self.settings = json.dumps(settings, sort_keys=True, ensure_ascii=False)
        self.rows: list[ScanRow] = []
        # Of each row the checksums of its slices, for a row may change when all scans are known. Those of the base do not.
        self.crcs: list[list[int] | None] = []

    def __enter__(self) -> VolumesWriter:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._require_alone()
            rows, crcs = self._keep_best_leftover()
            self._begin()
            if rows:
                self._copy(self.leftover, rows, crcs)
            if self.base and (missing := self.base.rows[len(self.rows) :]):
                self._copy(self.base.path, missing, [None] * len(missing))
            self.leftover.unlink(missing_ok=True)
        except OSError as error:
            raise InputError(f"{self.partial} cannot be written: {error}. Choose another place with --output.") from error
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.file.close()

    def _require_alone(self) -> None:
        if self.partial.is_file():
            try:
                h5py.File(self.partial, "r+").close()
            except BlockingIOError as error:
                raise InputError(f"Another ctcovid prepare is writing {self.partial}. Wait for it, or name another --output.") from error
            except (OSError, RuntimeError):
                # What a kill has left need not open; then nothing of it is used.
                return

    def _keep_best_leftover(self) -> tuple[list[ScanRow], list[list[int]]]:
        """Move what a killed run has left out of the way, and say which of its scans are sound, with the checksums of their slices.

        HDF5 may be killed between any two writes, and going on in a file that is not consistent would spread what is wrong. So its
        sound scans are copied into a new file. A run killed while it copies leaves two files; the one with more goes on.
        """
        found = {path: self._sound_rows(path) for path in (self.partial, self.leftover)}
        if len(found[self.partial][0]) > len(found[self.leftover][0]):
            self.partial.replace(self.leftover)
            return found[self.partial]
        return found[self.leftover]

    def _sound_rows(self, path: Path) -> tuple[list[ScanRow], list[list[int]]]:
        """The first scans of an unfinished file about the same content, as many as their checksums confirm."""
        rows: list[ScanRow] = []
        sound: list[list[int]] = []
        with contextlib.suppress(OSError, KeyError, ValueError, RuntimeError), h5py.File(path, "r", locking=False) as file:
            if file.attrs["settings"] == self.settings:
                for row in read_rows(file):
                    crcs = [isal_zlib.crc32(file["slices"][index]) for index in range(row.first_slice, _end([row]))]
                    if row.first_slice != _end(rows) or row.crc32 != _checksum(row, crcs):
                        break
                    rows.append(row)
                    sound.append(crcs)
        return rows, sound

    def _begin(self) -> None:
        self.partial.unlink(missing_ok=True)
        self.file = h5py.File(self.partial, "w")
        side = self.size
        self.slices = self.file.create_dataset(
            "slices", (0, side, side), np.uint8, maxshape=(None, side, side), chunks=(1, side, side), **CHUNK_OPTIONS
        )
        group = self.file.create_group("scans")
        kinds = {name: h5py.string_dtype() if name in TEXT_COLUMNS else np.int64 for name in (*TEXT_COLUMNS, *NUMBER_COLUMNS)}
        self.table = {name: group.create_dataset(name, (0,), kind, maxshape=(None,), chunks=(1024,)) for name, kind in kinds.items()}
        self.file.attrs.update(format=FORMAT, format_version=FORMAT_VERSION, settings=self.settings, complete=False)
        self.file.flush()

    def _copy(self, path: Path, rows: list[ScanRow], crcs: Sequence[list[int] | None]) -> None:
        """Take over scans of another file, compressed as they are: of each the slices that its row speaks of."""
        with h5py.File(path, "r", locking=False) as file:
            old = file["slices"].id
            moved: list[ScanRow] = []
            for row in rows:
                moved.append(replace(row, first_slice=_end(moved or self.rows)))
                self.slices.resize(_end(moved), axis=0)
                for index in range(row.slice_count):
                    data = old.read_direct_chunk((row.first_slice + index, 0, 0))[1]
                    self.slices.id.write_direct_chunk((moved[-1].first_slice + index, 0, 0), data)
            self._append(moved, crcs)
        self.file.flush()

    def add(self, row: ScanRow, chunks: Iterable[Chunk]) -> None:
        """Append a scan. `first_slice` and `crc32` of `row` are the writer's to fill in; of a scan that is left out there are no slices."""
        row = replace(row, first_slice=_end(self.rows))
        self.slices.resize(_end([row]), axis=0)
        crcs = []
        for position, chunk in enumerate(chunks, start=row.first_slice):
            self.slices.id.write_direct_chunk((position, 0, 0), chunk.data)
            crcs.append(chunk.crc32)
        # The pixels are on their way to the disk before the row that speaks of them.
        self.file.flush()
        self._append([row], [crcs])
        self.file.flush()

    def _append(self, rows: Sequence[ScanRow], crcs: Sequence[list[int] | None]) -> None:
        """Add rows to the table; of each the checksums of its slices, or None where it has its own already."""
        first = len(self.rows)
        self.rows += [
            row if of_slices is None else replace(row, crc32=_checksum(row, of_slices)) for row, of_slices in zip(rows, crcs, strict=True)
        ]
        self.crcs += crcs
        for name, values in columns(self.rows[first:]).items():
            # By HDF5's own calls: h5py's selections would take three times as long for a row.
            column = self.table[name]
            column.id.set_extent((len(self.rows),))
            place = column.id.get_space()
            place.select_hyperslab((first,), (len(values),))
            column.id.write(h5py.h5s.create_simple((len(values),)), place, np.array(values, column.dtype))

    def finish(self, chosen: list[ScanRow] | None = None) -> None:
        """Keep the rows that were chosen, add the virtual ``/volumes`` and the attributes, mark the file complete and give it its name.

        Parameters
        ----------
        chosen : in the order of `rows`, some of them, with their part filled in; `first_slice` and `slice_count` may be narrowed to a
            stretch of a scan. All rows as they are where it is None
        """
        left_out = [*(self.base.left_out if self.base else []), *(row for row in self.rows if not row.slice_count)]
        if chosen is not None:
            self._keep(chosen)
        for name, values in columns(left_out).items() if left_out else ():
            kind = h5py.string_dtype() if name in TEXT_COLUMNS else np.int64
            self.file.create_dataset(f"{LEFT_OUT}/{name}", data=values, dtype=kind)
        self._add_volumes()
        kinds = {row.image_kind for row in self.rows}
        self.file.attrs.update(
            depth=self.depth,
            size=self.size,
            positive=self.positive,
            image_kind=kinds.pop() if len(kinds) == 1 else "mixed",
            created_by=f"ctcovid {__version__}",
        )
        self.file.attrs.create("classes", self.classes, dtype=h5py.string_dtype())
        self.file.flush()
        self.file.attrs["complete"] = True
        self.file.close()
        with self.partial.open("rb") as written:
            os.fsync(written.fileno())
        self.partial.replace(self.path)
        self.leftover.unlink(missing_ok=True)

    def _keep(self, chosen: list[ScanRow]) -> None:
        """Put the chosen rows in the place of all. Where slices go with the others, what stays is copied into a new file."""
        crcs_of = dict(zip((row.source for row in self.rows), zip(self.rows, self.crcs, strict=True), strict=True))
        crcs = []
        for row in chosen:
            whole, of_slices = crcs_of[row.source]
            skipped = row.first_slice - whole.first_slice
            crcs.append(of_slices and of_slices[skipped : skipped + row.slice_count])
        everything = sum(row.slice_count for row in chosen) == _end(self.rows)
        self.rows, self.crcs = [], []
        if not everything:
            # A run killed from here on finds the whole file there, with more scans than the new one.
            self.file.close()
            self.partial.replace(self.leftover)
            self._begin()
            self._copy(self.leftover, chosen, crcs)
            return
        for column in self.table.values():
            column.resize(0, axis=0)
        self._append(chosen, crcs)

    def _add_volumes(self) -> None:
        counts = [row.volume_count(self.depth) for row in self.rows]
        side, total = self.size, sum(counts)
        layout = h5py.VirtualLayout((total, self.depth, side, side), np.uint8)
        source = h5py.VirtualSource(".", "slices", shape=self.slices.shape, dtype=np.uint8)
        volume = 0
        for row, count in zip(self.rows, counts, strict=True):
            if count:
                layout[volume : volume + count] = source[row.first_slice : row.first_slice + count * self.depth]
            volume += count
        self.file.create_virtual_dataset("volumes", layout)
        self.file.create_dataset("volume_scan", data=np.repeat(np.arange(len(self.rows)), counts).astype(np.int64))


def _end(rows: list[ScanRow]) -> int:
    return rows[-1].first_slice + rows[-1].slice_count if rows else 0


def _checksum(row: ScanRow, slice_crcs: Iterable[int]) -> int:
    """CRC-32 of what the row says and of the CRC-32 of each of its slices, in order."""
    crc = zlib.crc32(repr(replace(row, crc32=0)).encode())
    for slice_crc in slice_crcs:
        crc = zlib.crc32(slice_crc.to_bytes(4, "little"), crc)
    return crc
