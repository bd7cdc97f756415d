"""Headers of DICOM files: which study and series a slice belongs to, its position, and whether it is a slice of CT."""

from __future__ import annotations

import logging
import os
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ctcovid.base.faults import machine_fault
from ctcovid.scans import frames
from ctcovid.scans.codes import known_modality, known_number
from ctcovid.scans.frames import Frame
from ctcovid.scans.scan import MOST_BYTES, MOST_PIXELS_PER_SIDE

TAGS = (
    "SOPClassUID SOPInstanceUID Modality StudyInstanceUID SeriesInstanceUID PatientID InstanceNumber GantryDetectorTilt "
    "Rows Columns NumberOfFrames SamplesPerPixel PhotometricInterpretation BitsAllocated PixelRepresentation "
    f"ConcatenationUID InConcatenationNumber InConcatenationTotalNumber {frames.TAGS}"
)
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
NATIVE_SYNTAXES = frozenset({"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"})
DEFLATED_SYNTAX = "1.2.840.10008.1.2.1.99"
# A compressed picture ends with this item, and little follows it.
DELIMITER = b"\xfe\xff\xdd\xe0\0\0\0\0"
TAIL = 1 << 20
MOST_DEFLATED = 1 << 20
MAGIC = b"DICM"
NOT_DICOM = "not DICOM"


@dataclass(frozen=True)
class Header:
    """The elements of a DICOM header that are used.

    `details` describes each of its `frames` pictures, or all at once; see `frame`. `part` is the number of a file of a concatenation,
    and of how many files that consists, 0 if unknown.
    """

    path: Path
    study: str
    series: str
    number: str
    description: str
    patient: str
    instance: str
    order: tuple[int, int]
    modality: str
    sop_class: str
    rows: int
    columns: int
    frames: int
    samples: int
    monochrome: bool
    tilt: float
    signed: bool
    enhanced: bool
    concatenation: str
    part: tuple[int, int]
    details: tuple[Frame, ...]

    def frame(self, number: int) -> Frame:
        """What the file says of one of its pictures."""
        return self.details[number] if len(self.details) > 1 else self.details[0]


def is_dicom(path: Path) -> bool:
    """Whether the file is DICOM, whatever its name: by its magic bytes, or because it begins with elements, as files without them do."""
    try:
        with path.open("rb") as file:
            head = file.read(1024)
    except OSError as error:
        # Until it can be read.
        return machine_fault(error) is not None
    return _begins_as_dicom(head)


def _begins_as_dicom(head: bytes) -> bool:
    """`is_dicom` by the first bytes; some files lack the 128 before the magic ones."""
    return MAGIC in (head[128:132], head[:4]) or _begins_with_elements(head)


def _begins_with_elements(head: bytes) -> bool:
    """Whether two elements follow each other, of group 2 or 8, in ascending order: without the magic bytes, one could be chance."""
    for order in ("<", ">"):
        at, last = 0, (0, 0)
        for _ in range(2):
            if len(head) < at + 8:
                return False
            tag = struct.unpack_from(f"{order}2H", head, at)
            if tag <= last or tag[0] not in (2, 8):
                break
            kind = head[at + 4 : at + 6]
            if kind in (b"OB", b"OW", b"SQ", b"UN", b"UT"):
                at += 12 + int.from_bytes(head[at + 8 : at + 12], "little" if order == "<" else "big")
            elif kind.isalpha() and kind.isupper():
                at += 8 + struct.unpack_from(f"{order}H", head, at + 6)[0]
            else:
                at += 8 + struct.unpack_from(f"{order}I", head, at + 4)[0]
            last = tag
        else:
            return True
    return False


class DamagedError(ValueError):
    """Why a file cannot be used, in a few words without a name or a value from the file; with its `header` if that can be read."""

    def __init__(self, reason: str, header: Header | None = None) -> None:
        super().__init__(reason)
        self.header = header


def read_header(path: Path) -> Header:
    """The header of a file; no pixel is read.

    Raises DamagedError if it is damaged, cut short, or declares more than it can hold.
    """
    try:
        size = path.stat().st_size
        if size == 0:
            raise DamagedError("empty")
        dataset, end = open_dataset(path, TAGS)
        header = _header(path, dataset)
        if header.rows:
            _require_whole(header, dataset, path.stat().st_size - end)
    except OSError as error:
        raise DamagedError(error.strerror or "not readable") from error
    except DamagedError:
        raise
    except Exception as error:
        # A damaged header can raise nearly any exception, whose text may quote the header.
        raise DamagedError("damaged") from error
    return header


class _Bounded:
    """A file from `first` on that is never asked for more than it holds: a damaged length would reserve gigabytes."""

    def __init__(self, file: BinaryIO, size: int, first: int) -> None:
        self.file, self.size, self.first, self.close = file, size, first, file.close

    def tell(self) -> int:
        return self.file.tell() - self.first

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        return self.file.seek(place + (self.first if whence == os.SEEK_SET else 0), whence) - self.first

    def read(self, count: int = -1) -> bytes:
        left = max(self.size - self.file.tell(), 0)
        return self.file.read(left if count < 0 or count > left else count)


def open_dataset(path: Path, tags: str) -> tuple[Any, int]:
    """The elements of a DICOM file that `tags` names, as a pydicom dataset, and the byte at which reading ended.

    Reading ends before the pixels unless `tags` names them.

    Raises OSError, DamagedError, or any other exception if the file is damaged.
    """
    # Imported here because pictures are read without it.
    import pydicom

    pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    # For the whole process: values are converted when they are first used, and pydicom warns then.
    warnings.filterwarnings("ignore", module="pydicom")
    with path.open("rb") as file:
        size = path.stat().st_size
        # pydicom unpacks it all at once, to as much as a thousand times its size.
        head = file.read(1024)
        if size > MOST_DEFLATED and DEFLATED_SYNTAX.encode() in head:
            raise DamagedError("deflated as a whole and too large to unpack safely")
        first = len(MAGIC) if head.startswith(MAGIC) else 0
        file.seek(first)
        bounded: Any = _Bounded(file, size, first)
        dataset = pydicom.dcmread(bounded, stop_before_pixels="PixelData" not in tags, force=True, specific_tags=tags.split())
        end = file.tell()
    if "Rows" not in dataset and "SOPClassUID" not in dataset:
        raise DamagedError(NOT_DICOM if not len(dataset) and any(head) and not _begins_as_dicom(head) else "damaged")
    dataset.ensure_file_meta()
    if not dataset.file_meta.get("TransferSyntaxUID"):
        # A file without the part that says it: pixels have the byte order that pydicom found in the elements.
        implicit, little = dataset.original_encoding
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(f"1.2.840.10008.1.2{'' if implicit else '.1' if little else '.2'}")
    return dataset, end


def _header(path: Path, dataset: Any) -> Header:
    count = _integer(dataset, "NumberOfFrames", 1) or 1
    details = frames.frames_of(dataset, count)
    return Header(
        path=path,
        study=_text(dataset, "StudyInstanceUID"),
        series=_text(dataset, "SeriesInstanceUID"),
        number=known_number(_text(dataset, "SeriesNumber")),
        description=_text(dataset, "SeriesDescription"),
        patient=_text(dataset, "PatientID"),
        instance=_text(dataset, "SOPInstanceUID"),
        order=(_integer(dataset, "AcquisitionNumber"), _integer(dataset, "InstanceNumber")),
        modality=known_modality(_text(dataset, "Modality")),
        sop_class=_text(dataset, "SOPClassUID"),
        rows=_integer(dataset, "Rows"),
        columns=_integer(dataset, "Columns"),
        frames=count,
        samples=_integer(dataset, "SamplesPerPixel", 1),
        monochrome=_text(dataset, "PhotometricInterpretation").upper() in ("MONOCHROME1", "MONOCHROME2", ""),
        tilt=_number(dataset, "GantryDetectorTilt"),
        signed=_integer(dataset, "PixelRepresentation") == 1,
        enhanced=count > 1 or "PerFrameFunctionalGroupsSequence" in dataset,
        concatenation=_text(dataset, "ConcatenationUID"),
        part=(_integer(dataset, "InConcatenationNumber"), _integer(dataset, "InConcatenationTotalNumber")),
        details=details,
    )


def _require_whole(header: Header, dataset: Any, left: int) -> None:
    """Raises DamagedError if the header declares too many pixels, or more than the `left` bytes after it hold."""
    bits = _integer(dataset, "BitsAllocated", 16)
    declared = header.rows * header.columns * header.frames * header.samples * max(bits, 8) // 8
    if min(header.rows, header.columns, header.frames, header.samples, bits) < 1:
        raise DamagedError("damaged: it declares pictures without pixels", header)
    if declared > MOST_BYTES or max(header.rows, header.columns) > MOST_PIXELS_PER_SIDE:
        much = f"it declares {header.frames:,} pictures of {header.columns}×{header.rows}, {declared / 1e9:.1f} GB"
        raise DamagedError(f"{much}; the limits are {MOST_PIXELS_PER_SIDE} pixels per side and {MOST_BYTES / 1e9:.2f} GB", header)
    syntax = str(getattr(dataset.file_meta, "TransferSyntaxUID", ""))
    if syntax in NATIVE_SYNTAXES or not syntax:
        if left < declared:
            raise DamagedError("cut short", header)
    elif syntax != DEFLATED_SYNTAX:
        with header.path.open("rb") as file:
            file.seek(-min(left, TAIL), os.SEEK_END)
            if DELIMITER not in file.read(TAIL):
                raise DamagedError("cut short", header)


def _text(dataset: Any, name: str) -> str:
    return str(dataset.get(name) or "").strip().strip("\0")


def _integer(dataset: Any, name: str, missing: int = 0) -> int:
    try:
        value = dataset.get(name)
        return missing if value is None else int(value)
    except (TypeError, ValueError):
        return missing


def _number(dataset: Any, name: str) -> float:
    try:
        value = float(dataset.get(name) or 0)
    except (TypeError, ValueError):
        return 0.0
    return value if np.isfinite(value) else 0.0
