"""Slices to chunks of volumes.h5, in worker processes: decode, summarise, resize, compress."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from isal import isal_zlib

from ctcovid.base.errors import InputError
from ctcovid.scans.kind import in_colour
from ctcovid.scans.quality import Unusable
from ctcovid.scans.read import ScanFormat, read_header, read_slices, scale_of, scan_format, square
from ctcovid.scans.scale import GREY, NOT_HOUNSFIELD, Scale
from ctcovid.scans.scan import Scan
from ctcovid.scans.slice_summary import SliceSummary, summarise
from ctcovid.scans.window import Window
from ctcovid.volumes.chunk import chunk_bytes

# Slices per task: large enough that passing them costs little, small enough to save memory.
BATCH = 8


@dataclass(frozen=True)
class Chunk:
    """One slice as stored in the file: compressed bytes, the checksum of its pixels, and the summary for the checks of its scan."""

    data: bytes
    crc32: int
    summary: SliceSummary


Encoded = Chunk | Unusable


@dataclass(frozen=True)
class Job:
    """A scan, or a piece of one, to encode. If it is only to be checked, `size` is None, and nothing is compressed."""

    scan: Scan
    scale: Scale
    size: int | None
    window: Window


def encode_slices(job: Job) -> list[Encoded]:
    """A chunk for each slice, or why it cannot be read."""
    chunks: list[Encoded] = []
    for one in summarised_slices(job.scan, job.scale, job.window):
        if isinstance(one, Unusable):
            chunks.append(one)
        else:
            summary, pixels = one
            chunks.append(Chunk(b"", 0, summary) if job.size is None else _encoded(pixels, job.size, summary))
    return chunks


def summarised_slices(scan: Scan, scale: Scale, window: Window) -> Iterator[tuple[SliceSummary, np.ndarray] | Unusable]:
    """Summary and pixels, uint8 (H, W) unchanged, of each slice of a scan or of a piece of one; or why it cannot be read."""
    for piece in scan.pieces(1):
        left = len(piece.slices)
        try:
            for decoded in read_slices(piece, scale, window):
                left -= 1
                yield summarise(decoded.pixels, decoded), decoded.pixels
        except InputError as error:
            # In a file that holds all slices, those after the damage are unreadable too.
            for _ in range(left):
                yield unusable(piece.slices[0], error, named=piece.stack is None)


def _encoded(pixels: np.ndarray, size: int, summary: SliceSummary) -> Chunk:
    fitted = square(pixels, size)
    # The summary already has the checksum of a slice that is not resized.
    return Chunk(chunk_bytes(fitted), summary.crc32 if fitted is pixels else isal_zlib.crc32(fitted), summary)


def unusable(path: Path, error: InputError, named: bool = True) -> Unusable:
    """Why a slice cannot be read. Unless `named`, without the name of its file, which for DICOM may be that of a patient."""
    message = str(error) if named else str(error).replace(f"{path}: ", "").replace(str(path), "the file")
    if path.is_file() and path.stat().st_size == 0:
        return Unusable("empty-file", message)
    if NOT_HOUNSFIELD in message:
        return Unusable("not-hounsfield", message)
    return Unusable("truncated" if "truncated" in message else "unreadable", message)


@dataclass(frozen=True)
class Probed:
    """What the headers of a scan say: the size of most slices, the scale of their values, and whether they are in colour.

    The size is 0×0 if no header can be read.
    """

    form: ScanFormat
    colour: bool


def probe_scan(scan: Scan) -> Probed:
    """Read the headers of all slices. Decoding finds what is wrong with single ones."""
    if scan.stack is not None:
        with contextlib.suppress(InputError):
            return Probed(scan_format(scan), False)
        return Probed(ScanFormat(0, 0, GREY), False)
    sizes: list[tuple[int, int]] = []

    def counts() -> Iterator[np.ndarray | None]:
        for path in scan.slices:
            with contextlib.suppress(InputError):
                header = read_header(path)
                sizes.append((header.height, header.width))
                yield header.counts

    scale = scale_of(counts())
    if not sizes:
        return Probed(ScanFormat(0, 0, GREY), False)
    height, width = max(dict.fromkeys(sizes), key=sizes.count)
    return Probed(ScanFormat(height, width, scale), in_colour(scan.slices[len(scan.slices) // 2]))
