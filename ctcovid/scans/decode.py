"""Read NIfTI, NRRD and MetaImage with SimpleITK, and map whatever is in Hounsfield units to grey."""

from __future__ import annotations

import contextlib
import gzip
import math
import os
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ctcovid.base.errors import InputError
from ctcovid.scans.decoded import Decoded, from_hounsfield
from ctcovid.scans.findings import KEPT, WARNING, Finding
from ctcovid.scans.geometry import LPS_TO_RAS, MOST_OBLIQUE, OBLIQUE, normalise, pixel_findings
from ctcovid.scans.nan_mask import nan_masks
from ctcovid.scans.pixels import dicom_frames
from ctcovid.scans.quiet import silenced
from ctcovid.scans.scale import BINS, hounsfield_problem
from ctcovid.scans.scan import MOST_BYTES, MOST_PIXELS_PER_SIDE, Scan, Stack
from ctcovid.scans.window import Window

# In the order in which endings are tried: .nii.gz before .nii.
VOLUME_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")
# Header entries that give the direction of the axes.
AXES_IN_HEADER = rb"(?mi)^(space directions:|TransformMatrix\s*=|Rotation\s*=|Orientation\s*=)"
HEADER_BYTES = 1 << 16
# Formats of which ITK can read some slices without the rest, and the bytes to read at a time, as 32-bit floats.
READ_IN_SLABS = (".nii", ".nii.gz")
SLAB_BYTES = 256 << 20
# Maps 0 to 255 to themselves.
AS_IT_IS = Window(127.5, 255)
# The brightest of a volume of grey values is at least so bright; those of another scale, as 0 to 1 or to 100, are not.
LEAST_BRIGHT = 128
# The highest compression factor of deflate.
MOST_DEFLATED = 1040


def ending(name: str) -> str:
    """The ending of a volume file's name, in lower case; empty if the file is not a volume."""
    return next((known for known in VOLUME_ENDINGS if name.lower().endswith(known)), "")


def volume_scan(scan: Scan, path: Path) -> Scan:
    """`scan` with the slices of a volume file, from its header alone; without slices, and with the reason, if it cannot be used."""
    try:
        reader = _header(path)
        size, spacing = reader.GetSize(), reader.GetSpacing()
        _require_grey_3d(reader)
        kind = ending(path.name)
        _require_whole(path, kind, reader)
        columns, rows, slices = (*size, 1)[:3]
        affine = np.eye(4)
        dimension = len(size)
        directions = np.array(reader.GetDirection()).reshape(dimension, dimension)
        known = min(dimension, 3)
        affine[:known, :known] = directions[:known, :known] * np.array(spacing[:known])
        affine[:known, 3] = reader.GetOrigin()[:known]
        turn, geometry, angle = normalise(LPS_TO_RAS @ affine, (slices, rows, columns))
    except ValueError as error:
        return scan.refused("unreadable", str(error))
    except RuntimeError:
        return scan.refused("unreadable", "damaged, or not the format that its name says")
    except OSError as error:
        return scan.refused("unreadable", error.strerror or "not readable")
    findings: list[Finding] = []
    stack = Stack("volume", (slices, rows, columns), turn, (), geometry, assumed=not _says_axes(path, kind, reader))
    if max(stack.slice_size) > MOST_PIXELS_PER_SIDE:
        height, width = stack.slice_size
        return scan.refused("unreadable", f"slices of {width}×{height}; the limit is {MOST_PIXELS_PER_SIDE} per side")
    if angle > MOST_OBLIQUE:
        return scan.refused("unreadable", f"its axes are {angle:.0f}° off the patient's; resample it to axial slices")
    if angle > OBLIQUE:
        findings.append(Finding("oblique", WARNING, f"slices are {angle:.0f}° off the patient's axes; used unchanged", KEPT))
    if stack.assumed:
        text = "the header gives no orientation; its axes are taken to point left, back and to the head"
        findings.append(Finding("orientation-unknown", WARNING, text, KEPT))
    findings += pixel_findings(geometry)
    count = (slices, rows, columns)[turn.axes[0]]
    return replace(scan, slices=(path,) * count, stack=stack, findings=tuple(findings))


def decode_slice(path: Path, stack: Stack, window: Window) -> Decoded:
    """A DICOM file of one slice, in the normal orientation.

    Raises InputError if it cannot be decoded.
    """
    (values,) = dicom_frames(path, stack.shape)
    return from_hounsfield(stack.turn(values[None])[0], window)


def decode_frames(slices: Sequence[Path], stack: Stack, window: Window) -> Iterator[Decoded]:
    """Slices of DICOM files with several, of which a stack's `frames` are their numbers, in the normal orientation.

    Raises InputError if one cannot be decoded.
    """
    for path, numbered in groupby(zip(slices, stack.frames, strict=True), key=lambda one: one[0]):
        for values in dicom_frames(path, stack.shape, [number for _, number in numbered]):
            yield from_hounsfield(stack.turn(values[None])[0], window)


def decode_volume(path: Path, stack: Stack, window: Window) -> Iterator[Decoded]:
    """The slices of a file that holds all of them, in the normal orientation, head to feet. NaN and Inf are black.

    Raises InputError if it cannot be decoded, or holds neither Hounsfield units nor grey values.
    """
    with _damage_named(path):
        read = _greys(path, stack, window)
        if read.is_grey:
            read = _greys(path, stack, AS_IT_IS)
    if read.lowest > read.highest:
        raise InputError(f"{path}: all its values are NaN or Inf. Export the scan again.")
    along = read.nans[stack.turn.axes[0]]
    has_nan = along[::-1] if stack.turn.flips[0] else along
    if problem := "" if read.is_grey else hounsfield_problem(read.counts):
        raise InputError(f"{path}: {problem}")
    for number, frame in enumerate(stack.turn(read.greys)):
        # The counts are of the whole file: one slice of it carries them.
        counts = None if read.is_grey or number else read.counts
        yield Decoded(np.ascontiguousarray(frame), counts, read.padded, bool(has_nan[number]))


def stored_values(path: Path, stack: Stack) -> np.ndarray:
    """The stored values of a volume file, of any type, (slices, rows, columns), in the normal orientation, head to feet.

    Raises InputError if it cannot be decoded.
    """
    _require_sound(path)
    with _damage_named(path):
        values = _slab(path, 0, stack.shape[0])
    return stack.turn(values)


@dataclass(frozen=True)
class _Read:
    """A volume file in grey.

    Attributes
    ----------
    greys : uint8, of the file's shape
    lowest, highest : of its values; if all are NaN or Inf, `lowest` is above `highest`
    whole : whether all values are integers
    counts : see `scale.hounsfield_counts`
    padded : see `Decoded`
    nans : along each axis, whether values are NaN or Inf
    """

    greys: np.ndarray
    lowest: float
    highest: float
    whole: bool
    counts: np.ndarray
    padded: bool
    nans: tuple[np.ndarray, np.ndarray, np.ndarray]

    @property
    def is_grey(self) -> bool:
        """Whether the values are grey levels from 0 to 255."""
        return self.lowest >= 0 and LEAST_BRIGHT <= self.highest <= 255 and self.whole


def _greys(path: Path, stack: Stack, window: Window) -> _Read:
    """The whole volume file, read in slabs to save memory."""
    _require_sound(path)
    greys = np.empty(stack.shape, np.uint8)
    lowest, highest, whole, padded = np.inf, -np.inf, True, False
    counts = np.zeros(BINS, np.int64)
    slices, rows, columns = stack.shape
    nans = np.zeros(slices, bool), np.zeros(rows, bool), np.zeros(columns, bool)
    in_slabs = ending(path.name) in READ_IN_SLABS
    hidden: Iterator[np.ndarray] = nan_masks(path, stack.shape) if in_slabs else iter(())
    thickness = max(1, SLAB_BYTES // (4 * rows * columns)) if in_slabs else slices
    for first in range(0, slices, thickness):
        last = min(first + thickness, slices)
        values = _slab(path, first, last)
        if values.shape != (last - first, rows, columns):
            raise InputError(f"{path}: its shape differs from its header. Copy it again or remove the scan.")
        for index, frame in enumerate(values, start=first):
            if frame.dtype.kind == "f":
                unknown = ~np.isfinite(frame) | next(hidden, False)
                frame = np.where(unknown, np.nan, frame)
                nans[0][index] = unknown.any()
                nans[1][:] |= unknown.any(axis=1)
                nans[2][:] |= unknown.any(axis=0)
            # `fmin` and `fmax` ignore NaN.
            lowest = float(np.fmin(lowest, np.fmin.reduce(frame, axis=None)))
            highest = float(np.fmax(highest, np.fmax.reduce(frame, axis=None)))
            whole = whole and (frame.dtype.kind != "f" or bool((np.isnan(frame) | (frame == np.rint(frame))).all()))
            if window is AS_IT_IS:
                greys[index] = window.grey(frame)
                continue
            one = from_hounsfield(frame, window)
            greys[index], padded = one.pixels, padded or one.padded
            counts = counts + (0 if one.hounsfield is None else one.hounsfield)
    return _Read(greys, lowest, highest, whole, counts, padded, nans)


@contextlib.contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Raises InputError in place of what reading a damaged file raises."""
    try:
        yield
    except (RuntimeError, OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        if not path.exists():
            raise InputError(f"{path} has been removed since the folder was listed. Run the same command again.") from error
        raise InputError(f"{path}: damaged: its values cannot be decoded. Copy it again or remove the scan.") from error


def _slab(path: Path, first: int, last: int) -> np.ndarray:
    """Slices `first` to `last` of a volume file, as stored."""
    import SimpleITK

    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    with silenced(f"values of {path.suffix}"):
        reader.ReadImageInformation()
        size = list(reader.GetSize())
        if len(size) > 2:
            reader.SetExtractIndex([0, 0, first, 0][: len(size)])
            reader.SetExtractSize([*size[:2], last - first, 1][: len(size)])
        values = SimpleITK.GetArrayFromImage(reader.Execute())
    return values.reshape(-1, *values.shape[-2:])


def _require_sound(path: Path) -> None:
    """Raises InputError if a compressed MetaImage is damaged, which ITK does not notice."""
    if ending(path.name) not in (".mha", ".mhd"):
        return
    with path.open("rb") as file:
        head = file.read(HEADER_BYTES)
        if not re.search(rb"(?mi)^CompressedData\s*=\s*True", head):
            return
        named = re.search(rb"(?mi)^ElementDataFile\s*=[ \t]*([^\r\n]*)\r?\n", head)
        if named is None or named[1].strip().upper() == b"LOCAL":
            file.seek(named.end() if named else 0)
            sound = _inflates(file)
        else:
            with (path.parent / os.fsdecode(named[1].strip())).open("rb") as beside:
                sound = _inflates(beside)
    if not sound:
        raise InputError(f"{path}: damaged: its values cannot be decoded. Copy it again or remove the scan.")


def _inflates(file: BinaryIO) -> bool:
    unpacker = zlib.decompressobj()
    try:
        while piece := file.read(1 << 20):
            while piece:
                unpacker.decompress(piece, 1 << 22)
                piece = unpacker.unconsumed_tail
    except zlib.error:
        return False
    return unpacker.eof


def _header(path: Path) -> Any:
    import SimpleITK

    if path.stat().st_size == 0:
        raise ValueError("empty")
    _require_own_data(path)
    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    with silenced(f"header of {path.suffix}"):
        reader.ReadImageInformation()
    return reader


def _require_grey_3d(reader: Any) -> None:
    size = reader.GetSize()
    if reader.GetNumberOfComponents() != 1:
        raise ValueError("it holds colours or vectors, not grey values")
    if not 2 <= len(size) <= 4 or (len(size) == 4 and size[3] != 1):
        raise ValueError(f"{'×'.join(map(str, size))} values, but a scan has three axes")


def _require_whole(path: Path, kind: str, reader: Any) -> None:
    """Raises ValueError if the header declares too many values, or more than the file holds."""
    values = math.prod(reader.GetSize())
    stored = values * _bytes_per_value(reader)
    # Of a file that is read in slabs, only the grey values are in memory.
    if (values if kind in READ_IN_SLABS else stored) > MOST_BYTES:
        raise ValueError(f"its header declares {stored / 1e9:.1f} GB of values, more than a scan has")
    if kind in READ_IN_SLABS:
        stored += int(float(_entry(reader, "vox_offset") or 0))
    size = path.stat().st_size
    if kind != ".mhd" and stored > size * MOST_DEFLATED:
        raise ValueError("cut short, or its header is damaged")
    if (kind == ".nii" and size < stored) or (kind == ".nii.gz" and _unpacked(path, stored) < stored):
        raise ValueError("cut short")


def _bytes_per_value(reader: Any) -> int:
    """Bytes per value in the file; rescaled values take more in memory."""
    import SimpleITK

    said = re.search(r"(\d+)-bit", SimpleITK.GetPixelIDValueAsString(reader.GetPixelID()))
    return int(_entry(reader, "bitpix") or (said[1] if said else 64)) // 8


def _entry(reader: Any, name: str) -> str:
    return str(reader.GetMetaData(name)).strip() if reader.HasMetaDataKey(name) else ""


def _unpacked(path: Path, enough: int) -> int:
    """Bytes that a gzip file unpacks to, counted up to `enough`: ITK fills what is missing with zeros."""
    with path.open("rb") as file:
        file.seek(-4, os.SEEK_END)
        said = int.from_bytes(file.read(4), "little")
    if enough <= said <= enough + HEADER_BYTES:
        return said
    # Several streams in one file, or an incomplete one: only reading it tells.
    total = 0
    try:
        with gzip.open(path, "rb") as file:
            while total < enough and (piece := file.read(1 << 20)):
                total += len(piece)
    except (OSError, EOFError, zlib.error):
        return 0
    return total


def _require_own_data(path: Path) -> None:
    """Raises ValueError if a MetaImage or NRRD header names another file that is not a plain file beside it."""
    with path.open("rb") as file:
        head = file.read(HEADER_BYTES)
    for named in re.findall(rb"(?mi)^(?:ElementDataFile\s*=|data ?file:)[ \t]*([^\r\n]*)", head[:HEADER_BYTES]):
        name = os.fsdecode(named.strip())
        if name.upper() == "LOCAL":
            return
        if Path(name).name != name or not (path.parent / name).is_file():
            raise ValueError(f"its values are in {name[:100]}, which is not a file beside it")


def _says_axes(path: Path, kind: str, reader: Any) -> bool:
    if kind.startswith(".nii"):
        return any(_entry(reader, name) not in ("", "0") for name in ("qform_code", "sform_code"))
    with path.open("rb") as file:
        return re.search(AXES_IN_HEADER, file.read(HEADER_BYTES)) is not None
