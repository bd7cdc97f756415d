"""Slices to chunks of volumes.h5, in worker processes: decode, resize, compress."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import h5py

from ctcovid.base.errors import InputError
from ctcovid.scans.kind import looks_masked
from ctcovid.scans.read import ScanFormat, read_slices, scan_format, square
from ctcovid.scans.scan import Scan
from ctcovid.scans.window import Window

# gzip is the one filter that every HDF5 tool has; level 1 costs least for what it saves on CT.
CHUNK_OPTIONS: dict[str, Any] = {"compression": "gzip", "compression_opts": 1, "fletcher32": True}
# Slices per task: large enough that handing over costs nothing, small enough that memory stays small.
BATCH = 8


@dataclass(frozen=True)
class Chunk:
    """One slice as it will lie in the file: compressed bytes, with what the writer wants to know of its pixels."""

    data: bytes
    crc32: int
    masked: bool


def encode_slices(job: tuple[Scan, int, int, Window]) -> list[Chunk] | InputError:
    """Chunks of the slices ``(scan or part of one, bits, size, window)``; the error rather than an exception where one cannot be read."""
    scan, bits, size, window = job
    chunks = []
    try:
        for decoded in read_slices(scan, bits, window):
            pixels = square(decoded, size)
            # HDF5 itself makes the chunk, in memory, so that its bytes are what any HDF5 library expects.
            with h5py.File("chunk", "w", driver="core", backing_store=False) as file:
                dataset = file.create_dataset("slice", data=pixels[None], chunks=(1, size, size), **CHUNK_OPTIONS)
                chunks.append(Chunk(dataset.id.read_direct_chunk((0, 0, 0))[1], zlib.crc32(pixels.tobytes()), looks_masked(pixels)))
    except InputError as error:
        return error
    return chunks


def probe_scan(scan: Scan) -> ScanFormat | InputError:
    """The scan's format; the error rather than an exception where it has none."""
    try:
        return scan_format(scan)
    except InputError as error:
        return error
