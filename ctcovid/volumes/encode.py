"""Slices to chunks of volumes.h5, in worker processes: decode, summarise, resize, compress."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from isal import isal_zlib

from ctcovid.base.errors import InputError
from ctcovid.base.faults import MachineFaultError
from ctcovid.scans.absent import EMPTY, MACHINE_FAULT, MISSING, READ_AGAIN, fault_of, why_absent
from ctcovid.scans.kind import in_colour
from ctcovid.scans.quality import Unusable
from ctcovid.scans.read import ScanFormat, picture_header, read_slices, scan_format, square
from ctcovid.scans.scale import GREY, NOT_HOUNSFIELD, Scale, Values, scan_scale
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
        done = 0
        again = False
        while done < len(piece.slices):
            try:
                for number, decoded in enumerate(read_slices(piece, scale, window)):
                    if number >= done:
                        done += 1
                        yield summarise(decoded.pixels, decoded), decoded.pixels
                break
            except (InputError, OSError, MemoryError) as error:
                why = unusable(piece.slices[0], error, named=piece.stack is None)
                # A library does not say whether the file or the machine was at fault, so what it calls damaged is read twice.
                if again or why.code in READ_AGAIN or error.__cause__ is None:
                    # In a file that holds all slices, those after the damage are unreadable too.
                    yield from [why] * (len(piece.slices) - done)
                    break
                again = True


def _encoded(pixels: np.ndarray, size: int, summary: SliceSummary) -> Chunk:
    fitted = square(pixels, size)
    # The summary already has the checksum of a slice that is not resized.
    return Chunk(chunk_bytes(fitted), summary.crc32 if fitted is pixels else isal_zlib.crc32(fitted), summary)


def unusable(path: Path, error: InputError | OSError | MemoryError, named: bool = True) -> Unusable:
    """Why a slice cannot be read. Unless `named`, without the name of its file, which for DICOM may be that of a patient."""
    if fault := fault_of(path, error):
        return Unusable(MACHINE_FAULT, fault.told(path if named else "one of its files"))
    if why := why_absent(path, error):
        return Unusable(MISSING, f"{path if named else 'the file'}: {why}.")
    message = str(error) if named else str(error).replace(f"{path}: ", "").replace(str(path), "the file")
    if path.stat().st_size == 0:
        return Unusable(EMPTY, message)
    if NOT_HOUNSFIELD in message:
        return Unusable("not-hounsfield", message)
    return Unusable("truncated" if "truncated" in message else "unreadable", message)


@dataclass(frozen=True)
class Probed:
    """What the headers of a scan say: the size of most slices, the scale of their values, and whether they are in colour.

    The size is 0×0 if no header can be read. `fault` says how the machine failed, if it did: then the rest is uncertain.
    """

    form: ScanFormat
    colour: bool
    fault: str = ""


def probe_scan(scan: Scan) -> Probed:
    """Read the headers of all slices. Decoding finds what is wrong with single ones."""
    unknown = ScanFormat(0, 0, GREY)
    if scan.stack is not None:
        try:
            return Probed(scan_format(scan), False)
        except (InputError, OSError, MemoryError) as error:
            fault = fault_of(scan.folder, error) if scan.slices else None
            return Probed(unknown, False, fault.told(scan.folder) if fault else "")
    sizes: list[tuple[int, int]] = []
    faults: list[str] = []

    def values() -> Iterator[Values | None]:
        for path in scan.slices:
            try:
                header = picture_header(path)
                sizes.append((header.height, header.width))
                yield header.values
            except (InputError, OSError, MemoryError) as error:
                if fault := fault_of(path, error):
                    faults.append(fault.told(path))
                    return

    scale = scan_scale(values())
    if faults or not sizes:
        return Probed(unknown, False, "".join(faults))
    height, width = max(dict.fromkeys(sizes), key=sizes.count)
    form = ScanFormat(height, width, scale)
    try:
        return Probed(form, in_colour(scan.slices[len(scan.slices) // 2]))
    except MachineFaultError as error:
        return Probed(form, False, str(error))
