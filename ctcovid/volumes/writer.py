"""Write volumes.h5, format 1: beside its final name, scan by scan, renamed when complete. A killed run resumes."""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np

from ctcovid import __version__
from ctcovid.base.errors import InputError
from ctcovid.volumes.encode import CHUNK_OPTIONS, Chunk
from ctcovid.volumes.layout import FORMAT, FORMAT_VERSION, NUMBER_COLUMNS, TEXT_COLUMNS, ScanRow, columns, read_rows


class VolumesWriter:
    """A volumes.h5 in the making, at ``PATH.partial``.

    Parameters
    ----------
    path : the final name
    depth, size : slices per volume, pixels per side
    classes, positive : class names in order, and the one that precision and recall are about
    settings : what the content depends on. A partial file with the same settings is continued, any other is begun anew
    """

    def __init__(self, path: Path, depth: int, size: int, classes: list[str], positive: str, settings: dict[str, Any]) -> None:
        self.path, self.partial = path, path.with_name(path.name + ".partial")
        self.depth, self.size, self.classes, self.positive = depth, size, classes, positive
        self.settings = json.dumps(settings, sort_keys=True, ensure_ascii=False)
        self.rows: list[ScanRow] = []

    def __enter__(self) -> VolumesWriter:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if not self._continue():
                self._begin()
        except OSError as error:
            raise InputError(f"{self.partial} cannot be written: {error}. Choose another place with --output.") from error
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.file.close()

    def _begin(self) -> None:
        self.partial.unlink(missing_ok=True)
        self.file = h5py.File(self.partial, "w")
        side = self.size
        self.slices = self.file.create_dataset(
            "slices", (0, side, side), np.uint8, maxshape=(None, side, side), chunks=(1, side, side), **CHUNK_OPTIONS
        )
        table = self.file.create_group("scans")
        for name in (*TEXT_COLUMNS, *NUMBER_COLUMNS):
            kind = h5py.string_dtype() if name in TEXT_COLUMNS else np.int64
            table.create_dataset(name, (0,), kind, maxshape=(None,), chunks=(1024,))
        self.file.attrs.update(format=FORMAT, format_version=FORMAT_VERSION, settings=self.settings, complete=False)
        self.file.flush()

    def _continue(self) -> bool:
        """Open a partial file left by a killed run, if it is sound and about the same content."""
        if not self.partial.is_file():
            return False
        # What a kill leaves can be wrong in any place, so nothing is believed that its checksums do not confirm.
        with contextlib.suppress(OSError, KeyError, ValueError, RuntimeError):
            self.file = h5py.File(self.partial, "r+")
            try:
                if self.file.attrs["settings"] == self.settings:
                    self.slices = self.file["slices"]
                    self.rows = self._sound_rows()
                    self._truncate()
                    return True
            except BaseException:
                self.file.close()
                self.rows = []
                raise
            self.file.close()
        return False

    def _sound_rows(self) -> list[ScanRow]:
        rows: list[ScanRow] = []
        for row in read_rows(self.file):
            crc = 0
            for position in range(row.first_slice, row.first_slice + row.slice_count):
                crc = _extend(crc, zlib.crc32(self.slices[position].tobytes()))
            if row.first_slice != _end(rows) or crc != row.crc32:
                raise ValueError(f"scan {row.source} was not written whole")
            rows.append(row)
        return rows

    def _truncate(self) -> None:
        self.slices.resize(_end(self.rows), axis=0)
        for name in (*TEXT_COLUMNS, *NUMBER_COLUMNS):
            self.file["scans"][name].resize(len(self.rows), axis=0)
        self.file.flush()

    def add(self, row: ScanRow, chunks: Iterable[Chunk]) -> None:
        """Append a scan. `first_slice` and `crc32` of `row` are the writer's to fill in."""
        first = _end(self.rows)
        self.slices.resize(first + row.slice_count, axis=0)
        crc = 0
        for position, chunk in enumerate(chunks, start=first):
            self.slices.id.write_direct_chunk((position, 0, 0), chunk.data)
            crc = _extend(crc, chunk.crc32)
        # The pixels are on their way to the disk before the row that speaks of them.
        self.file.flush()
        self.rows.append(ScanRow(**{**vars(row), "first_slice": first, "crc32": crc}))
        for name, (value,) in columns(self.rows[-1:]).items():
            dataset = self.file["scans"][name]
            dataset.resize(len(self.rows), axis=0)
            dataset[-1] = value
        self.file.flush()

    def finish(self) -> None:
        """Add the virtual ``/volumes`` and the attributes, mark the file complete and give it its name."""
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

    def _add_volumes(self) -> None:
        for name in ("volumes", "volume_scan"):
            if name in self.file:
                del self.file[name]
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


def _extend(crc: int, slice_crc: int) -> int:
    """The scan's checksum, from those of its slices in order."""
    return zlib.crc32(slice_crc.to_bytes(4, "little"), crc)
