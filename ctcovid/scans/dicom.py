"""Headers of DICOM files: which study and series a slice belongs to, its position, and whether it is a slice of CT."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ctcovid.base.faults import machine_fault
from ctcovid.scans.scan import MOST_BYTES, MOST_PIXELS_PER_SIDE

TAGS = (
    "SOPClassUID SOPInstanceUID Modality ImageType StudyInstanceUID SeriesInstanceUID SeriesNumber SeriesDescription PatientID "
    "AcquisitionNumber InstanceNumber ImagePositionPatient ImageOrientationPatient PixelSpacing SliceThickness GantryDetectorTilt "
    "Rows Columns NumberOfFrames SamplesPerPixel BitsAllocated PixelRepresentation RescaleIntercept SharedFunctionalGroupsSequence "
    "PerFrameFunctionalGroupsSequence"
)
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
NATIVE_SYNTAXES = frozenset({"1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"})
DEFLATED_SYNTAX = "1.2.840.10008.1.2.1.99"
# A compressed picture ends with this item, and little follows it.
DELIMITER = b"\xfe\xff\xdd\xe0\0\0\0\0"
TAIL = 1 << 20
MOST_DEFLATED = 1 << 20
NOT_DICOM = "not DICOM despite its name"


@dataclass(frozen=True)
class Plane:
    """Position of a slice, in LPS millimetres: first pixel, directions of a row and of a column, distances of rows and of columns."""

    position: tuple[float, ...]
    orientation: tuple[float, ...]
    spacing: tuple[float, ...]

    @property
    def normal(self) -> np.ndarray:
        return np.cross(self.orientation[:3], self.orientation[3:])


@dataclass(frozen=True)
class Header:
    """The elements of a DICOM header that are used. `planes` has one for each frame, and is empty if the file gives no positions."""

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
    image_type: tuple[str, ...]
    rows: int
    columns: int
    frames: int
    samples: int
    thickness: float
    tilt: float
    rescaled: bool
    signed: bool
    planes: tuple[Plane, ...]


def is_dicom(path: Path) -> bool:
    """Whether the file has DICOM's magic bytes, whatever its name."""
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError as error:
        # Until it can be read.
        return machine_fault(error) is not None


def begins_as_dicom(path: Path) -> bool:
    """Whether a file may be DICOM: it has the magic bytes, or begins with an element of group 2 or 8, as old files do."""
    try:
        with path.open("rb") as file:
            head = file.read(132)
    except OSError:
        return False
    return head[128:] == b"DICM" or head[:2] in (b"\2\0", b"\10\0", b"\0\10")


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
    """A file that is never asked for more than it holds: a damaged length would reserve gigabytes."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size = file, size
        self.tell, self.seek, self.close = file.tell, file.seek, file.close

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
        file.seek(0)
        bounded: Any = _Bounded(file, size)
        dataset = pydicom.dcmread(bounded, stop_before_pixels="PixelData" not in tags, force=True, specific_tags=tags.split())
        end = file.tell()
    if "Rows" not in dataset and "SOPClassUID" not in dataset:
        raise DamagedError(NOT_DICOM if not len(dataset) and any(head) and not begins_as_dicom(path) else "damaged")
    return dataset, end


def _header(path: Path, dataset: Any) -> Header:
    image_type = dataset.get("ImageType") or ()
    frames = _integer(dataset, "NumberOfFrames", 1) or 1
    return Header(
        path=path,
        study=_text(dataset, "StudyInstanceUID"),
        series=_text(dataset, "SeriesInstanceUID"),
        number=_text(dataset, "SeriesNumber"),
        description=_text(dataset, "SeriesDescription"),
        patient=_text(dataset, "PatientID"),
        instance=_text(dataset, "SOPInstanceUID"),
        order=(_integer(dataset, "AcquisitionNumber"), _integer(dataset, "InstanceNumber")),
        modality=_text(dataset, "Modality"),
        sop_class=_text(dataset, "SOPClassUID"),
        image_type=tuple(str(word).upper() for word in ([image_type] if isinstance(image_type, str) else image_type)),
        rows=_integer(dataset, "Rows"),
        columns=_integer(dataset, "Columns"),
        frames=frames,
        samples=_integer(dataset, "SamplesPerPixel", 1),
        thickness=_number(dataset, "SliceThickness"),
        tilt=_number(dataset, "GantryDetectorTilt"),
        rescaled=dataset.get("RescaleIntercept") is not None or "SharedFunctionalGroupsSequence" in dataset,
        signed=_integer(dataset, "PixelRepresentation") == 1,
        planes=_planes(dataset, frames),
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


def _planes(dataset: Any, frames: int) -> tuple[Plane, ...]:
    """One plane for each frame, or none if any is missing."""
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or ()
    if not per_frame:
        plane = _plane((dataset,), (dataset,), (dataset,))
        return (plane,) if plane and frames == 1 else ()
    if len(per_frame) != frames:
        return ()
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [None])[0]
    planes = []
    for group in per_frame:
        named = [
            [source[name][0] for source in (group, shared) if source is not None and source.get(name)]
            for name in ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")
        ]
        plane = _plane(*named)
        if plane is None:
            return ()
        planes.append(plane)
    return tuple(planes)


def _plane(positions: Sequence[Any], orientations: Sequence[Any], measures: Sequence[Any]) -> Plane | None:
    try:
        plane = Plane(
            _floats(positions[0], "ImagePositionPatient", 3),
            _floats(orientations[0], "ImageOrientationPatient", 6),
            _floats(measures[0], "PixelSpacing", 2),
        )
    except (IndexError, ValueError, TypeError, KeyError, AttributeError):
        return None
    if abs(np.linalg.norm(plane.normal) - 1) > 0.05 or min(plane.spacing) <= 0:
        return None
    return plane


def _floats(dataset: Any, name: str, count: int) -> tuple[float, ...]:
    values = tuple(float(value) for value in dataset[name].value)
    if len(values) != count or not np.isfinite(values).all():
        raise ValueError
    return values


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
