"""Pixels of DICOM files in Hounsfield units. GDCM, in SimpleITK, decodes compressed ones frame by frame.

GDCM gets the bare picture instead of the file: damaged files can make it reserve gigabytes, or never end.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ctcovid.base.errors import InputError
from ctcovid.base.temporaries import scratch_file
from ctcovid.scans.absent import raise_if_absent
from ctcovid.scans.codes import known_syntax, unit_in_words
from ctcovid.scans.dicom import DEFLATED_SYNTAX, NATIVE_SYNTAXES, open_dataset
from ctcovid.scans.padding import at_edge
from ctcovid.scans.quiet import silenced
from ctcovid.scans.scale import NOT_HOUNSFIELD, PADDING

TAGS = (
    "Rows Columns NumberOfFrames SamplesPerPixel BitsAllocated BitsStored HighBit PixelRepresentation RescaleSlope RescaleIntercept "
    "PixelPaddingValue PixelPaddingRangeLimit ModalityLUTSequence "
    "PixelData FloatPixelData SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence"
)
BIG_ENDIAN = "1.2.840.10008.1.2.2"
# In Hounsfield units; values above are found in a body.
AIR = -950
JPEG_2000_SIZE, JPEG_LS_FRAME = 0x51, 0xF7
JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}


class _UnsupportedError(Exception):
    """A sound file of a kind that is not read, and the remedy."""


def dicom_frames(path: Path, shape: tuple[int, int, int], frames: Sequence[int] = ()) -> Iterator[np.ndarray]:
    """Frames of a DICOM file in Hounsfield units, int16 or float64 (rows, columns), all or those of `frames`.

    Pixels that the file declares as padding are PADDING.

    Raises InputError if they cannot be decoded, or do not have the `shape` (frames, rows, columns) that the header declared. With
    `frames`, the file need only hold these.
    """
    packed = ""
    try:
        dataset, _ = open_dataset(path, TAGS)
        declared = (int(dataset.get("NumberOfFrames") or 1), int(dataset.Rows), int(dataset.Columns))
        # Files of one scan may hold different numbers of frames.
        enough = declared[0] > max(frames) if frames else declared[0] == shape[0]
        if declared[1:] != shape[1:] or not enough or int(dataset.get("SamplesPerPixel") or 1) != 1:
            raise ValueError("other pixels than before")
        syntax = str(getattr(dataset.file_meta, "TransferSyntaxUID", "")) or "1.2.840.10008.1.2"
        wanted = frames or range(shape[0])
        native = syntax in NATIVE_SYNTAXES or syntax == DEFLATED_SYNTAX
        packed = "" if native else f" (compressed with transfer syntax {known_syntax(syntax)})"
        for number, stored in zip(wanted, (_native if native else _compressed)(dataset, syntax, wanted), strict=True):
            values = _hounsfield(path, dataset, number, stored)
            padding = _padding(dataset, stored, values)
            if padding is not None:
                values[padding] = PADDING
            yield values
    except InputError:
        raise
    except _UnsupportedError as error:
        raise InputError(f"{path}: {error}.") from error
    except Exception as error:
        raise_if_absent(path, error)
        # Damaged pixels can raise nearly any exception.
        raise InputError(f"{path}: damaged: its pixels{packed} cannot be decoded. Copy it again or remove the scan.") from error


def _native(dataset: Any, syntax: str, frames: Sequence[int]) -> Iterator[np.ndarray]:
    bits = int(dataset.BitsAllocated)
    if bits not in (8, 16, 32) or "PixelData" not in dataset:
        kind = f"{bits} bits each" if "PixelData" in dataset else "floating-point numbers"
        raise _UnsupportedError(f"its pixels are {kind}; ctcovid reads integers of 8, 16 and 32 bits. Export the scan with 16")
    order = ">" if syntax == BIG_ENDIAN else "<"
    signed = int(dataset.get("PixelRepresentation") or 0) == 1
    size = int(dataset.Rows) * int(dataset.Columns)
    values = np.frombuffer(dataset.PixelData, f"{order}{'i' if signed else 'u'}{bits // 8}")
    # Bits above and below the stored ones do not belong to the value.
    stored = int(dataset.get("BitsStored") or bits)
    above = bits - 1 - int(dataset.get("HighBit") or stored - 1)
    if stored < bits and not 0 < stored <= bits - above <= bits:
        raise ValueError(f"{stored} bits, the highest of them bit {bits - 1 - above} of {bits}")
    for number in frames:
        frame = values[number * size : (number + 1) * size].reshape(int(dataset.Rows), int(dataset.Columns))
        yield (frame << above) >> (bits - stored) if stored < bits else frame


def _compressed(dataset: Any, syntax: str, frames: Sequence[int]) -> Iterator[np.ndarray]:
    from pydicom.encaps import generate_frames

    size = int(dataset.Rows), int(dataset.Columns)
    total = int(dataset.get("NumberOfFrames") or 1)
    every = list(generate_frames(dataset.PixelData, number_of_frames=total))
    for number in frames:
        said = _declared_size(every[number])
        if said is not None and said != size:
            raise ValueError("the picture has another size than its header says")
        yield _by_gdcm(dataset, syntax, every[number])


def _by_gdcm(dataset: Any, syntax: str, frame: bytes) -> np.ndarray:
    import pydicom
    import SimpleITK
    from pydicom.encaps import encapsulate

    bare = pydicom.Dataset()
    for name in ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"):
        setattr(bare, name, int(dataset.get(name) or 0))
    bare.SamplesPerPixel, bare.PhotometricInterpretation = 1, "MONOCHROME2"
    # Computed radiography: for CT, GDCM would require positions.
    bare.SOPClassUID, bare.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1", "1.2.3"
    bare.file_meta = pydicom.dataset.FileMetaDataset()
    bare.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    bare.PixelData = encapsulate([frame])
    bare["PixelData"].VR = "OB"
    with scratch_file() as path:
        pydicom.dcmwrite(path, bare, enforce_file_format=True)
        with silenced(f"frame of {syntax}"):
            values = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path), imageIO="GDCMImageIO"))
    return values.reshape(int(dataset.Rows), int(dataset.Columns))


def _declared_size(frame: bytes) -> tuple[int, int] | None:
    """Rows and columns that a JPEG or JPEG 2000 stream itself declares; None for other streams."""
    at = 2
    while at + 9 < len(frame) and frame[0] == 0xFF and frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker in JPEG_FRAMES or marker == JPEG_LS_FRAME:
            return int.from_bytes(frame[at + 5 : at + 7], "big"), int.from_bytes(frame[at + 7 : at + 9], "big")
        if marker == JPEG_2000_SIZE:
            right, bottom, left, top = (int.from_bytes(frame[at + skip : at + skip + 4], "big") for skip in (6, 10, 14, 18))
            return bottom - top, right - left
        at += 2 + int.from_bytes(frame[at + 2 : at + 4], "big")
    return None


def _hounsfield(path: Path, dataset: Any, number: int, stored: np.ndarray) -> np.ndarray:
    """The stored values of a frame in Hounsfield units, by its rescale or its table (DICOM PS3.3, C.11.1)."""
    if dataset.get("ModalityLUTSequence"):
        return _looked_up(path, dataset, stored)
    slope, intercept = _rescale(dataset, number)
    if slope == 1 and intercept == round(intercept) and stored.dtype.itemsize <= 2:
        # Values beyond 16 bits are white or black in any window. The lowest of them is PADDING, which these are not.
        return np.clip(stored.astype(np.int32) + round(intercept), PADDING + 1, 32767).astype(np.int16)
    with np.errstate(over="ignore"):
        return np.clip(stored * np.float64(slope) + intercept, PADDING + 1, 32767)


def _looked_up(path: Path, dataset: Any, stored: np.ndarray) -> np.ndarray:
    from pydicom.pixels.processing import apply_modality_lut

    kind = str(dataset.ModalityLUTSequence[0].get("ModalityLUTType") or "")
    if kind != "HU":
        raise InputError(
            f"{path}: its table (Modality LUT) gives values of {unit_in_words(kind.upper())}, which {NOT_HOUNSFIELD}. "
            "Export the scan in Hounsfield units."
        )
    table: np.ndarray = np.asarray(apply_modality_lut(stored, dataset), np.float64)
    return table


def _padding(dataset: Any, stored: np.ndarray, values: np.ndarray) -> np.ndarray | None:
    """Where a frame is padding, as its file declares (DICOM PS3.3, C.7.5.1.1.2); None if it declares none, or nowhere is any."""
    declared = [dataset.get(name) for name in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
    if declared[0] is None:
        return None
    # Both may be written with or without sign, and with bits that do not belong to the value.
    bits = int(dataset.get("BitsStored") or dataset.BitsAllocated)
    signed = int(dataset.get("PixelRepresentation") or 0) == 1
    ends = [_as_stored(int(value), bits, signed) for value in declared if value is not None]
    where = (stored >= min(ends)) & (stored <= max(ends))
    if not where.any():
        return None
    # Values of a body, metal included, can only be padding around it: some files declare 0, which is water.
    return at_edge(where) if values[where].max() > AIR else where


def _as_stored(value: int, bits: int, signed: bool) -> int:
    kept = value & ((1 << bits) - 1)
    return kept - (1 << bits) if signed and kept >> (bits - 1) else kept


def _rescale(dataset: Any, frame: int) -> tuple[float, float]:
    """Slope and intercept of a frame: its own, those shared by all frames, or those of the file."""
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [None])[0]
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or ()
    for group in (per_frame[frame] if frame < len(per_frame) else None, shared):
        if group is not None and group.get("PixelValueTransformationSequence"):
            dataset = group["PixelValueTransformationSequence"][0]
            break
    slope, intercept = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")
    found = float(slope if slope not in (None, "", 0) else 1), float(intercept if intercept not in (None, "") else 0)
    if not np.isfinite(found).all():
        raise ValueError(f"slope {found[0]}, intercept {found[1]}")
    return found
