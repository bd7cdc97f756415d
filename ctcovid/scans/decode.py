"""Read NIfTI, NRRD, MetaImage and DICOM, and map whatever is in Hounsfield units to grey."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np

from ctcovid.base.errors import InputError
from ctcovid.base.faults import MachineFaultError
from ctcovid.scans.absent import fault_of
from ctcovid.scans.decoded import Decoded, from_hounsfield
from ctcovid.scans.findings import KEPT, WARNING, Finding
from ctcovid.scans.geometry import MOST_OBLIQUE, normalise, pixel_findings, shear_findings
from ctcovid.scans.itk_volume import ITK_ENDINGS, itk_header, itk_values
from ctcovid.scans.nifti import NIFTI_ENDINGS, nifti_header, nifti_slabs
from ctcovid.scans.padding import AIR, Padding, corner_places, corner_values, padding_of, region
from ctcovid.scans.pixels import dicom_frames
from ctcovid.scans.scale import BINS, PADDING, hounsfield_counts
from ctcovid.scans.scan import MOST_PIXELS_PER_SIDE, Scan, Stack
from ctcovid.scans.volume_header import UnreadableError
from ctcovid.scans.window import Window

# In the order in which endings are tried: .nii.gz before .nii.
VOLUME_ENDINGS = (*NIFTI_ENDINGS, *ITK_ENDINGS)
# Maps 0 to 255 to themselves.
AS_IT_IS = Window(127.5, 255)
# The brightest of a volume of grey values is at least so bright; those of another scale, as 0 to 1 or to 100, are not.
LEAST_BRIGHT = 128
# Hounsfield units of a scan range over more than this.
LEAST_RANGE = 256
# Slices of DICOM that are read to tell what is padding in all of them.
SAMPLES = 7


def ending(name: str) -> str:
    """The ending of a volume file's name, in lower case; empty if the file is not a volume."""
    return next((known for known in VOLUME_ENDINGS if name.lower().endswith(known)), "")


def volume_scan(scan: Scan, path: Path) -> Scan:
    """`scan` with the slices of a volume file, from its header alone; without slices, and with the reason, if it cannot be used."""
    try:
        if path.stat().st_size == 0:
            raise UnreadableError("empty")
        header = nifti_header(path) if ending(path.name) in NIFTI_ENDINGS else itk_header(path)
        turn, geometry, angle = normalise(header.affine, header.shape)
    except ValueError as error:
        return scan.refused("unreadable", str(error))
    except OSError as error:
        return scan.refused("unreadable", error.strerror or "not readable")
    stack = Stack("volume", header.shape, turn, (), geometry, header.assumed, header.beside)
    if max(stack.slice_size) > MOST_PIXELS_PER_SIDE:
        height, width = stack.slice_size
        return scan.refused("unreadable", f"slices of {width}×{height}; the limit is {MOST_PIXELS_PER_SIDE} per side")
    if angle > MOST_OBLIQUE:
        return scan.refused("unreadable", f"its axes are {angle:.0f}° off the patient's; resample it to axial slices")
    findings = [*header.findings, *shear_findings(geometry, angle)]
    if stack.assumed:
        text = "the header gives no orientation; its axes are taken to point left, back and to the head"
        findings.append(Finding("orientation-unknown", WARNING, text, KEPT))
    findings += pixel_findings(geometry)
    count = stack.shape[turn.axes[0]]
    return replace(scan, slices=(path,) * count, stack=stack, findings=tuple(findings))


def decode_slice(path: Path, stack: Stack, window: Window, padding: Padding | None = None) -> Decoded:
    """A DICOM file of one slice, in the normal orientation; `padding` is that of its scan.

    Raises InputError if it cannot be decoded.
    """
    (values,) = dicom_frames(path, stack.shape)
    return from_hounsfield(stack.turn(values[None])[0], window, padding)


def decode_frames(slices: Sequence[Path], stack: Stack, window: Window, padding: Padding | None = None) -> Iterator[Decoded]:
    """Slices of DICOM files with several, of which a stack's `frames` are their numbers, in the normal orientation.

    Raises InputError if one cannot be decoded.
    """
    for path, numbered in groupby(zip(slices, stack.frames, strict=True), key=lambda one: one[0]):
        for values in dicom_frames(path, stack.shape, [number for _, number in numbered]):
            yield from_hounsfield(stack.turn(values[None])[0], window, padding)


def sampled_padding(scan: Scan) -> Padding | None:
    """The undeclared padding of a scan of DICOM files, from slices along all of it; those that cannot be decoded are passed over.

    Raises MachineFaultError if the machine fails to read one: other slices might tell another padding.
    """
    assert scan.stack is not None
    corners = []
    for one in dict.fromkeys(np.linspace(0, len(scan.slices) - 1, SAMPLES).round().astype(int).tolist()):
        try:
            (values,) = dicom_frames(scan.slices[one], scan.stack.shape, scan.stack.frames[one : one + 1])
            corners.append(corner_values(values))
        except (InputError, OSError, MemoryError) as error:
            if fault := fault_of(scan.slices[one], error):
                raise MachineFaultError(fault.told("one of its files")) from error
    return padding_of(corners)


def decode_volume(path: Path, stack: Stack, window: Window) -> Iterator[Decoded]:
    """The slices of a file that holds all of them, in the normal orientation, head to feet. NaN and Inf are black.

    Raises InputError if it cannot be decoded.
    """
    with _path_named(path):
        read = _greys(path, stack, window)
        # Of values from 0 to 1, all would be those of the corners.
        padding = padding_of([stack.turn(read.corners)]) if not read.is_grey and read.highest - read.lowest > LEAST_RANGE else None
        if read.is_grey:
            read = _greys(path, stack, AS_IT_IS)
        greys, counts = stack.turn(read.greys), read.counts
        padded = np.zeros(len(greys), bool)
        if padding is not None:
            near, bright, counts = _padding(path, stack, padding)
            for number, (one, other) in enumerate(zip(stack.turn(near), stack.turn(bright), strict=True)):
                where = region(one, other)
                if where is not None:
                    greys[number][where], padded[number] = 0, True
    if read.lowest > read.highest:
        raise InputError(f"{path}: all its values are NaN or Inf. Export the scan again.")
    along = read.nans[stack.turn.axes[0]]
    has_nan = along[::-1] if stack.turn.flips[0] else along
    for number, frame in enumerate(greys):
        # The counts are of the whole file: one slice of it carries them.
        of_file = None if read.is_grey or number else counts
        yield Decoded(np.ascontiguousarray(frame), of_file, bool(padded[number]), bool(has_nan[number]))


def stored_values(path: Path, stack: Stack) -> np.ndarray:
    """The values of a volume file, (slices, rows, columns), in the normal orientation, head to feet: integers as stored, else float32.

    Raises InputError if it cannot be decoded.
    """
    with _path_named(path):
        pieces = [values if values.dtype.kind != "f" else values.astype(np.float32) for values in _slabs(path, stack)]
    return stack.turn(np.concatenate(pieces))


@dataclass(frozen=True)
class _Read:
    """A volume file in grey.

    Attributes
    ----------
    greys : uint8, of the file's shape
    lowest, highest : of its values; if all are NaN or Inf, `lowest` is above `highest`
    whole : whether all values are integers
    counts : see `scale.hounsfield_counts`
    corners : of its slices, (slices, rows, columns), in the order of the file
    nans : along each axis, whether values are NaN or Inf
    """

    greys: np.ndarray
    lowest: float
    highest: float
    whole: bool
    counts: np.ndarray
    corners: np.ndarray
    nans: tuple[np.ndarray, np.ndarray, np.ndarray]

    @property
    def is_grey(self) -> bool:
        """Whether the values are grey levels from 0 to 255."""
        return self.lowest >= 0 and LEAST_BRIGHT <= self.highest <= 255 and self.whole


def _greys(path: Path, stack: Stack, window: Window) -> _Read:
    """The whole volume file; only its grey values are in memory at once where the format can be read in slabs."""
    greys = np.empty(stack.shape, np.uint8)
    lowest, highest, whole = np.inf, -np.inf, True
    counts = np.zeros(BINS + 1, np.int64)
    slices, rows, columns = stack.shape
    nans = np.zeros(slices, bool), np.zeros(rows, bool), np.zeros(columns, bool)
    # Corners of slices of the patient, which may lie along any axis of the file.
    places = [np.arange(side) if axis == stack.turn.axes[0] else corner_places(side) for axis, side in enumerate(stack.shape)]
    corners: list[np.ndarray] = []
    frames = (frame for values in _slabs(path, stack) for frame in values)
    for index, frame in enumerate(frames):
        if frame.dtype.kind == "f":
            unknown = ~np.isfinite(frame)
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
        greys[index] = window.grey(frame)
        counts += hounsfield_counts(frame)
        if index in places[0]:
            corners.append(frame[np.ix_(places[1], places[2])])
    return _Read(greys, lowest, highest, whole, counts, np.array(corners), nans)


def _padding(path: Path, stack: Stack, padding: Padding) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where a volume file has values of padding, where it is brighter than air, bool of its shape, and the counts of the other values."""
    near, bright = np.empty((2, *stack.shape), bool)
    counts = np.zeros(BINS + 1, np.int64)
    for index, frame in enumerate(frame for values in _slabs(path, stack) for frame in values):
        near[index], bright[index] = padding.near(frame), frame > AIR
        counts += hounsfield_counts(np.where(near[index], PADDING, frame))
    return near, bright, counts


def _slabs(path: Path, stack: Stack) -> Iterator[np.ndarray]:
    """The values of a volume file in pieces (slices, rows, columns), in the order of the file, all of `stack.shape` together.

    Raises UnreadableError if they are damaged or have another shape, and OSError if the file cannot be read.
    """
    left = stack.shape[0]
    for values in nifti_slabs(path) if ending(path.name) in NIFTI_ENDINGS else iter([itk_values(path)]):
        left -= len(values)
        if left < 0 or values.shape[1:] != stack.shape[1:]:
            raise UnreadableError("its shape differs from its header")
        yield values
    if left:
        raise UnreadableError("its shape differs from its header")


@contextlib.contextmanager
def _path_named(path: Path) -> Iterator[None]:
    """Raises InputError in place of what reading a volume file raises."""
    try:
        yield
    except UnreadableError as error:
        raise InputError(f"{path}: {error}. Copy it again or remove the scan.") from error
    except FileNotFoundError as error:
        raise InputError(f"{path} has been removed since the folder was listed. Run the same command again.") from error
    except OSError as error:
        remedy = "Fix its permissions" if isinstance(error, PermissionError) else "Run the same command again"
        raise InputError(f"{path} cannot be read: {error.strerror or error}. {remedy}.") from error
