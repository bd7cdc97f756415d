"""Slices to chunks of volumes.h5, in worker processes: decode, look at, resize, compress."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from isal import isal_zlib

from ctcovid.base.errors import InputError
from ctcovid.scans.decode import NOT_HOUNSFIELD
from ctcovid.scans.kind import in_colour
from ctcovid.scans.quality import Unusable
from ctcovid.scans.read import ScanFormat, probe, read_slices, scan_format, square
from ctcovid.scans.scan import Scan
from ctcovid.scans.slice_summary import SliceSummary, look
from ctcovid.scans.window import Window
from ctcovid.volumes.chunk import chunk_bytes

# Slices per task: large enough that handing over costs nothing, small enough that memory stays small.
BATCH = 8


@dataclass(frozen=True)
class Chunk:
    """One slice as it will lie in the file: compressed bytes, the checksum of its pixels, and what its scan is judged by."""

    data: bytes
    crc32: int
    look: SliceSummary


Encoded = Chunk | Unusable


@dataclass(frozen=True)
class Job:
    """A scan, or a part of one, to encode. Of a scan that is to be checked only, `size` is None, and nothing is compressed."""

    scan: Scan
    bits: int
    size: int | None
    window: Window


def encode_slices(job: Job) -> list[Encoded]:
    """A chunk for each slice, or why it cannot be read."""
    chunks: list[Encoded] = []
    for one in summarised(job.scan, job.bits, job.window):
        if isinstance(one, Unusable):
            chunks.append(one)
        else:
            seen, pixels = one
            chunks.append(Chunk(b"", 0, seen) if job.size is None else _encoded(pixels, job.size, seen))
    return chunks


def summarised(scan: Scan, bits: int, window: Window) -> Iterator[tuple[SliceSummary, np.ndarray] | Unusable]:
    """Each slice of a scan, or of a part of one, with its look, uint8 (H, W) as it is; or why it cannot be read."""
    for part in scan.parts(1):
        left = len(part.slices)
        holes: set[int] = set()
        try:
            for number, pixels in enumerate(read_slices(part, bits, window, holes)):
                left -= 1
                yield look(pixels, number in holes), pixels
        except InputError as error:
            # Of a file that holds all slices, what is behind the damage is lost.
            for _ in range(left):
                yield unusable(part.slices[0], error, named=part.stack is None)


def _encoded(pixels: np.ndarray, size: int, seen: SliceSummary) -> Chunk:
    fitted = square(pixels, size)
    # A slice that has the size already is not summed up twice.
    return Chunk(chunk_bytes(fitted), seen.crc32 if fitted is pixels else isal_zlib.crc32(fitted), seen)


def unusable(path: Path, error: InputError, named: bool = True) -> Unusable:
    """What is wrong with a slice that could not be read; `named`, with the name of its file, which of DICOM may be that of a patient."""
    message = str(error) if named else str(error).replace(f"{path}: ", "").replace(str(path), "the file")
    if path.is_file() and path.stat().st_size == 0:
        return Unusable("empty-file", message)
    if NOT_HOUNSFIELD in message:
        return Unusable("not-hounsfield", message)
    return Unusable("truncated" if "truncated" in message else "unreadable", message)


@dataclass(frozen=True)
class Probed:
    """What the headers of a scan say: the size of most slices, the most bits of any, and whether they are in colour.

    The size is 0×0 where no header can be read.
    """

    form: ScanFormat
    colour: bool


def probe_scan(scan: Scan) -> Probed:
    """Read the headers of all slices. What is wrong with single ones is found when they are decoded."""
    forms: list[ScanFormat] = []
    if scan.stack is not None:
        with contextlib.suppress(InputError):
            return Probed(scan_format(scan), False)
        return Probed(ScanFormat(0, 0, 8), False)
    for path in scan.slices:
        with contextlib.suppress(InputError):
            forms.append(probe((path,)))
    if not forms:
        return Probed(ScanFormat(0, 0, 8), False)
    sizes = [(form.height, form.width) for form in forms]
    height, width = max(dict.fromkeys(sizes), key=sizes.count)
    return Probed(ScanFormat(height, width, max(form.bits for form in forms)), in_colour(scan.slices[len(scan.slices) // 2]))
