"""Read NRRD and MetaImage with SimpleITK."""

from __future__ import annotations

import math
import os
import re
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ctcovid.scans.geometry import LPS_TO_RAS
from ctcovid.scans.quiet import silenced
from ctcovid.scans.scan import MOST_BYTES
from ctcovid.scans.volume_header import MOST_DEFLATED, UnreadableError, VolumeHeader, not_a, too_much, values_beside

ITK_ENDINGS = (".nrrd", ".nhdr", ".mha", ".mhd")
HEADER_BYTES = 1 << 16
# ITK chooses a reader by the ending, and only in lower case.
NRRD, META = "NrrdImageIO", "MetaImageIO"
META_BEGINS = re.compile(rb"\s*(ObjectType|NDims|Comment|ObjectSubType|TransformType|Name|ID)\s*=")
# Header entries that give the direction of the axes.
META_AXES = re.compile(rb"(?mi)^(TransformMatrix|Rotation|Orientation)\s*=")
NRRD_AXES = re.compile(rb"(?mi)^space directions:")
# Only these say where the patient is.
NRRD_SPACE = re.compile(
    rb"(?mi)^space:\s*(right-anterior-superior|left-anterior-superior|left-posterior-superior|RAS|LAS|LPS)(-time|T)?\s*$"
)
NRRD_ENCODING = re.compile(rb"(?mi)^encoding:[ \t]*(\S+)")
NRRD_ENCODINGS = ("raw", "txt", "text", "ascii", "hex", "gz", "gzip")
DATA_FILE = re.compile(rb"(?mi)^(?:ElementDataFile\s*=|data ?file:)[ \t]*([^\r\n]*)")
# Values that may take fewer bytes in the file than in memory: compressed, or written as text.
SHORTER = re.compile(rb"(?mi)^(?:CompressedData\s*=\s*True|(?:BinaryData|Binary)\s*=\s*False|encoding:[ \t]*(?!raw))")


def itk_header(path: Path) -> VolumeHeader:
    """The header of a NRRD or MetaImage file.

    Raises UnreadableError with the reason if it cannot be used, and OSError if the file cannot be read.
    """
    head = _head(path)
    by = _reader_name(head)
    beside = _data_file(path, head)
    reader = _reader(path, by)
    size, dimension = reader.GetSize(), len(reader.GetSize())
    if reader.GetNumberOfComponents() != 1 or "complex" in _value_type(reader):
        raise UnreadableError("it holds colours or vectors, not grey values")
    if not 2 <= dimension <= 4 or math.prod(size[3:]) != 1:
        raise UnreadableError(f"{'×'.join(map(str, size))} values, but a scan has three axes")
    _require_whole(reader, (beside or path).stat().st_size, shorter=SHORTER.search(head) is not None)
    known = min(dimension, 3)
    affine = np.eye(4)
    affine[:known, :known] = np.array(reader.GetDirection()).reshape(dimension, dimension)[:known, :known] * np.array(
        reader.GetSpacing()[:known]
    )
    affine[:known, 3] = reader.GetOrigin()[:known]
    said = META_AXES.search(head) if by == META else NRRD_AXES.search(head) and NRRD_SPACE.search(head)
    columns, rows, slices = (*size, 1)[:3]
    return VolumeHeader((slices, rows, columns), LPS_TO_RAS @ affine, not said, (), beside)


def itk_values(path: Path) -> np.ndarray:
    """The values of a NRRD or MetaImage file, (slices, rows, columns), in the order of the file.

    Raises UnreadableError if they are damaged, and OSError if the file cannot be read.
    """
    import SimpleITK

    head = _head(path)
    by = _reader_name(head)
    if by == META:
        _require_sound(path, head)
    reader = _reader(path, by)
    try:
        with silenced(f"values of {by}"):
            values = SimpleITK.GetArrayFromImage(reader.Execute())
    except RuntimeError as error:
        raise UnreadableError(f"damaged: its values cannot be decoded{_said_by(error)}") from error
    return values.reshape(-1, *values.shape[-2:])


def _head(path: Path) -> bytes:
    """The text before the values: to an empty line in NRRD, to the name of the file of the values in MetaImage."""
    with path.open("rb") as file:
        head = file.read(HEADER_BYTES)
    if head.startswith(b"NRRD"):
        return re.split(rb"\r?\n\r?\n", head, maxsplit=1)[0] + b"\n"
    last = re.search(rb"(?mi)^ElementDataFile\s*=[^\r\n]*\r?\n?", head)
    return head[: last.end()] if last else head


def _reader_name(head: bytes) -> str:
    if head.startswith(b"NRRD"):
        encoding = NRRD_ENCODING.search(head)
        if encoding and encoding[1].decode("latin-1").lower() not in NRRD_ENCODINGS:
            name = encoding[1].decode("latin-1")[:30]
            raise UnreadableError(f"its values are encoded as {name}, which is not read; save it with gzip or raw")
        return NRRD
    if META_BEGINS.match(head):
        return META
    raise not_a("NRRD or MetaImage", head)


def _reader(path: Path, by: str) -> Any:
    import SimpleITK

    reader = SimpleITK.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO(by)
    try:
        with silenced(f"header of {by}"):
            reader.ReadImageInformation()
    except RuntimeError as error:
        raise UnreadableError(f"its header cannot be read{_said_by(error)}") from error
    return reader


def _said_by(error: RuntimeError) -> str:
    """The reason that NrrdIO gives; ITK gives none for MetaImage."""
    reasons = [line.split(": ", 1)[-1] for line in re.findall(r"(?m)^\[nrrd\] (.*\S)", str(error))]
    return f" ({reasons[-1][:100]})" if reasons else ""


def _value_type(reader: Any) -> str:
    import SimpleITK

    return str(SimpleITK.GetPixelIDValueAsString(reader.GetPixelID()))


def _require_whole(reader: Any, size: int, shorter: bool) -> None:
    """Raises UnreadableError if the header declares too many values, or more than a file of `size` bytes can hold."""
    bits = re.search(r"(\d+)-bit", _value_type(reader))
    stored = math.prod(reader.GetSize()) * (int(bits[1]) if bits else 64) // 8
    if stored > MOST_BYTES:
        raise too_much(stored)
    if stored > size * (MOST_DEFLATED if shorter else 1):
        raise UnreadableError("cut short")


def _data_file(path: Path, head: bytes) -> Path | None:
    """The file beside a header that holds the values; None if they follow the header.

    Raises UnreadableError if it is not a plain file beside it: a header must not make us read other files.
    """
    for named in DATA_FILE.findall(head):
        name = os.fsdecode(named.strip()).removeprefix("./")
        if name.upper() == "LOCAL":
            return None
        if name.upper().startswith("LIST") or "%" in name:
            raise UnreadableError("its values are in several files; save it as one file")
        if Path(name).name != name:
            raise UnreadableError(f"its values are in {name[:100]}, which is not a file beside it")
        return values_beside(path, [name])
    return None


def _require_sound(path: Path, head: bytes) -> None:
    """Raises UnreadableError if a compressed MetaImage is damaged, which ITK does not notice."""
    if not re.search(rb"(?mi)^CompressedData\s*=\s*True", head):
        return
    beside = _data_file(path, head)
    with (beside or path).open("rb") as file:
        file.seek(0 if beside else len(head))
        if not _inflates(file):
            raise UnreadableError("damaged: its compressed values are cut short or do not fit their checksum")


def _inflates(file: BinaryIO) -> bool:
    # Both zlib and gzip streams are in use.
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32)
    try:
        while piece := file.read(1 << 20):
            while piece:
                unpacker.decompress(piece, 1 << 22)
                piece = unpacker.unconsumed_tail
    except zlib.error:
        return False
    return unpacker.eof
