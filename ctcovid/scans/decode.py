"""NIfTI, NRRD and MetaImage, read by SimpleITK, and all that is in Hounsfield units brought to grey."""

from __future__ import annotations

import contextlib
import gzip
import math
import os
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ctcovid.base.errors import InputError
from ctcovid.scans.findings import KEPT, WARNING, Finding
from ctcovid.scans.geometry import LPS_TO_RAS, MOST_OBLIQUE, OBLIQUE, normalise, of_pixels
from ctcovid.scans.nan_mask import nifti_holes
from ctcovid.scans.pixels import dicom_frames
from ctcovid.scans.quiet import silenced
from ctcovid.scans.scan import MOST_BYTES, MOST_PIXELS_PER_SIDE, Scan, Stack
from ctcovid.scans.window import Window

# Also the order in which a name is taken apart: .nii.gz before .gz.
VOLUME_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")
# What a header says of its axes, where it says anything.
AXES_IN_HEADER = rb"(?mi)^(space directions:|TransformMatrix\s*=|Rotation\s*=|Orientation\s*=)"
HEADER_BYTES = 1 << 16
# The formats of which ITK reads a part without reading all, and how much of them at a time, in 32-bit floats.
READ_IN_SLABS = (".nii", ".nii.gz")
SLAB_BYTES = 256 << 20
# Brings 0 to 255 to themselves.
AS_IT_IS = Window(127.5, 255)
# In Hounsfield units. There is no chest without air, at −1000, and lungs, below −500.
NO_AIR = -200
NOT_HOUNSFIELD = "are not Hounsfield units"
# Deflate makes nothing smaller than by this factor.
MOST_DEFLATED = 1040


def ending(name: str) -> str:
    """The ending of a volume file's name, in lower case; empty where it is none."""
    return next((known for known in VOLUME_ENDINGS if name.lower().endswith(known)), "")


def volume_scan(place: Scan, path: Path) -> Scan:
    """`place` with the slices of a volume file, by its header alone; without slices, and with the reason, where it cannot be used."""
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
        return place.refused("unreadable", str(error))
    except RuntimeError:
        return place.refused("unreadable", "damaged, or not what its name says")
    except OSError as error:
        return place.refused("unreadable", error.strerror or "not readable")
    findings: list[Finding] = []
    stack = Stack("volume", (slices, rows, columns), turn, (), geometry, assumed=not _says_axes(path, kind, reader))
    if max(stack.slice_size) > MOST_PIXELS_PER_SIDE:
        height, width = stack.slice_size
        return place.refused("unreadable", f"slices of {width}×{height}; at most {MOST_PIXELS_PER_SIDE} on a side are read")
    if angle > MOST_OBLIQUE:
        return place.refused("unreadable", f"its axes stand {angle:.0f}° from the patient's; resample it to axial slices")
    if angle > OBLIQUE:
        findings.append(Finding("oblique", WARNING, f"slices stand {angle:.0f}° from the patient's axes and are used as they are", KEPT))
    if stack.assumed:
        text = "it does not say how it lies in the patient; its axes are taken for left, back and head"
        findings.append(Finding("orientation-unknown", WARNING, text, KEPT))
    findings += of_pixels(geometry)
    count = (slices, rows, columns)[turn.axes[0]]
    return _with(place, path, count, stack, findings)


def decode_slice(path: Path, stack: Stack, window: Window) -> np.ndarray:
    """One DICOM file of one slice as uint8 (H, W), turned.

    Raises InputError where it cannot be decoded.
    """
    (values,) = dicom_frames(path, stack.shape)
    return np.ascontiguousarray(stack.turn(window.grey(values)[None])[0])


def decode_volume(path: Path, stack: Stack, window: Window, holes: set[int] | None = None) -> Iterator[np.ndarray]:
    """The slices of a file that holds all of them, as uint8 (H, W), turned and from head to feet.

    `holes` is given the numbers of the slices in which values are no numbers; these are black.

    Raises InputError where it cannot be decoded, or is neither in Hounsfield units nor in grey.
    """
    if stack.frames:
        for values in dicom_frames(path, stack.shape, stack.frames):
            yield np.ascontiguousarray(stack.turn(window.grey(values)[None])[0])
        return
    with _damage_named(path):
        read = _greys(path, stack, window)
        if read.lowest >= 0 and read.highest <= 255:
            read = _greys(path, stack, AS_IT_IS)
    if read.lowest > read.highest:
        raise InputError(f"{path}: none of its values is a number. Export the scan again.")
    if read.lowest > NO_AIR and not (read.lowest >= 0 and read.highest <= 255):
        raise InputError(
            f"{path}: values from {read.lowest:g} to {read.highest:g} {NOT_HOUNSFIELD}, for there is no air among them, nor greys from 0 "
            "to 255. Export the scan in Hounsfield units, which often are these less 1024, or as greys of 8 bits."
        )
    if holes is not None:
        along = read.holes[stack.turn.axes[0]]
        holes.update(np.flatnonzero(along[::-1] if stack.turn.flips[0] else along).tolist())
    yield from (np.ascontiguousarray(frame) for frame in stack.turn(read.greys))


def stored_values(path: Path, stack: Stack) -> np.ndarray:
    """The values of a volume file as they are, of any type, (slices, rows, columns), turned and from head to feet.

    Raises InputError where it cannot be decoded.
    """
    _require_sound(path)
    with _damage_named(path):
        values = _slab(path, 0, stack.shape[0])
    return stack.turn(values)


@dataclass(frozen=True)
class _Read:
    """A volume file as uint8 of the file's shape, the bounds of its values, and along each axis where some are no numbers.

    Where none is a number, `lowest` is above `highest`.
    """

    greys: np.ndarray
    lowest: float
    highest: float
    holes: tuple[np.ndarray, np.ndarray, np.ndarray]


def _greys(path: Path, stack: Stack, window: Window) -> _Read:
    """All of a volume file; in slabs, to spare memory."""
    _require_sound(path)
    greys = np.empty(stack.shape, np.uint8)
    lowest, highest = np.inf, -np.inf
    slices, rows, columns = stack.shape
    holes = np.zeros(slices, bool), np.zeros(rows, bool), np.zeros(columns, bool)
    in_slabs = ending(path.name) in READ_IN_SLABS
    hidden: Iterator[np.ndarray] = nifti_holes(path, stack.shape) if in_slabs else iter(())
    thickness = max(1, SLAB_BYTES // (4 * rows * columns)) if in_slabs else slices
    for first in range(0, slices, thickness):
        last = min(first + thickness, slices)
        values = _slab(path, first, last)
        if values.shape != (last - first, rows, columns):
            raise InputError(f"{path}: other values than its header declares. Copy it again or remove the scan.")
        for place, frame in enumerate(values, start=first):
            if frame.dtype.kind == "f":
                unknown = ~np.isfinite(frame) | next(hidden, False)
                frame = np.where(unknown, np.nan, frame)
                holes[0][place] = unknown.any()
                holes[1][:] |= unknown.any(axis=1)
                holes[2][:] |= unknown.any(axis=0)
            # Of what is no number, `fmin` and `fmax` take the other.
            lowest = float(np.fmin(lowest, np.fmin.reduce(frame, axis=None)))
            highest = float(np.fmax(highest, np.fmax.reduce(frame, axis=None)))
            greys[place] = window.grey(frame)
    return _Read(greys, lowest, highest, holes)


@contextlib.contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Raises InputError in place of what reading a damaged file ends in."""
    try:
        yield
    except (RuntimeError, OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        if not path.exists():
            raise InputError(f"{path} has gone since the folder was listed. Run the command again.") from error
        raise InputError(f"{path}: damaged, its values cannot be decoded. Copy it again or remove the scan.") from error


def _slab(path: Path, first: int, last: int) -> np.ndarray:
    """Slices of a volume file, as it has them."""
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
    """Raises InputError where a compressed MetaImage is damaged, which ITK does not notice."""
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
        raise InputError(f"{path}: damaged, its values cannot be decoded. Copy it again or remove the scan.")


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
        raise ValueError("colours or vectors in place of grey values")
    if not 2 <= len(size) <= 4 or (len(size) == 4 and size[3] != 1):
        raise ValueError(f"{'×'.join(map(str, size))} values; a scan has three axes")


def _require_whole(path: Path, kind: str, reader: Any) -> None:
    """Raises ValueError where the values that the header declares are too many, or cannot all be there."""
    values = math.prod(reader.GetSize())
    stored = values * _bytes_per_value(reader)
    # Of what is read in slabs, only greys are held.
    if (values if kind in READ_IN_SLABS else stored) > MOST_BYTES:
        raise ValueError(f"it declares {stored / 1e9:.1f} GB of values; a scan has fewer")
    if kind in READ_IN_SLABS:
        stored += int(float(_entry(reader, "vox_offset") or 0))
    size = path.stat().st_size
    if kind != ".mhd" and stored > size * MOST_DEFLATED:
        raise ValueError("cut short, or its header is damaged")
    if (kind == ".nii" and size < stored) or (kind == ".nii.gz" and _unpacked(path, stored) < stored):
        raise ValueError("cut short")


def _bytes_per_value(reader: Any) -> int:
    """Of a value in the file; a rescaled one is larger in memory."""
    import SimpleITK

    said = re.search(r"(\d+)-bit", SimpleITK.GetPixelIDValueAsString(reader.GetPixelID()))
    return int(_entry(reader, "bitpix") or (said[1] if said else 64)) // 8


def _entry(reader: Any, name: str) -> str:
    return str(reader.GetMetaData(name)).strip() if reader.HasMetaDataKey(name) else ""


def _unpacked(path: Path, enough: int) -> int:
    """Bytes that a gzip file holds, at least whether there are `enough`: ITK fills up with zeros what is missing."""
    with path.open("rb") as file:
        file.seek(-4, os.SEEK_END)
        said = int.from_bytes(file.read(4), "little")
    if enough <= said <= enough + HEADER_BYTES:
        return said
    # Several streams in one file, or no whole one: only reading tells.
    total = 0
    try:
        with gzip.open(path, "rb") as file:
            while total < enough and (piece := file.read(1 << 20)):
                total += len(piece)
    except (OSError, EOFError, zlib.error):
        return 0
    return total


def _require_own_data(path: Path) -> None:
    """A MetaImage or NRRD header may name another file, which must lie beside it and be a plain file."""
    with path.open("rb") as file:
        head = file.read(HEADER_BYTES)
    for named in re.findall(rb"(?mi)^(?:ElementDataFile\s*=|data ?file:)[ \t]*([^\r\n]*)", head[:HEADER_BYTES]):
        name = os.fsdecode(named.strip())
        if name.upper() == "LOCAL":
            return
        if Path(name).name != name or not (path.parent / name).is_file():
            raise ValueError(f"its values lie in {name[:100]}, which is no file beside it")


def _says_axes(path: Path, kind: str, reader: Any) -> bool:
    if kind.startswith(".nii"):
        return any(_entry(reader, name) not in ("", "0") for name in ("qform_code", "sform_code"))
    with path.open("rb") as file:
        return re.search(AXES_IN_HEADER, file.read(HEADER_BYTES)) is not None


def _with(place: Scan, path: Path, count: int, stack: Stack, findings: list[Finding]) -> Scan:
    return replace(place, slices=(path,) * count, stack=stack, findings=tuple(findings))
