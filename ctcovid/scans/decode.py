"""Read NIfTI, NRRD, MetaImage and DICOM, and map whatever is in Hounsfield units to grey."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

import numpy as np

from ctcovid.base.errors import InputError
from ctcovid.scans.absent import raise_if_absent
from ctcovid.scans.decoded import Decoded, from_hounsfield
from ctcovid.scans.findings import KEPT, WARNING, Finding
from ctcovid.scans.geometry import MOST_OBLIQUE, normalise, pixel_findings, shear_findings
from ctcovid.scans.itk_volume import ITK_ENDINGS, itk_header, itk_values
from ctcovid.scans.nifti import NIFTI_ENDINGS, nifti_header, nifti_slabs
from ctcovid.scans.pixels import dicom_frames
from ctcovid.scans.scale import BINS, hounsfield_problem
from ctcovid.scans.scan import MOST_PIXELS_PER_SIDE, Scan, Stack
from ctcovid.scans.volume_header import AbsentValuesError, UnreadableError
from ctcovid.scans.window import Window

# In the order in which endings are tried: .nii.gz before .nii.
VOLUME_ENDINGS = (*NIFTI_ENDINGS, *ITK_ENDINGS)
# Maps 0 to 255 to themselves.
AS_IT_IS = Window(127.5, 255)
# The brightest of a volume of grey values is at least so bright; those of another scale, as 0 to 1 or to 100, are not.
LEAST_BRIGHT = 128


def ending(name: str) -> str:
    """The ending of a volume file's name, in lower case; empty if the file is not a volume."""
    return next((known for known in VOLUME_ENDINGS if name.lower().endswith(known)), "")


def volume_scan(scan: Scan, path: Path) -> Scan:
    """`scan` with the slices of a volume file, from its header alone; without slices, and with the reason, if it cannot be used.

    Raises OSError if the file cannot be read.
    """
    try:
        if path.stat().st_size == 0:
            raise UnreadableError("empty")
        header = nifti_header(path) if ending(path.name) in NIFTI_ENDINGS else itk_header(path)
        turn, geometry, angle = normalise(header.affine, header.shape)
    except AbsentValuesError as error:
        return scan.refused(error.code, str(error))
    except ValueError as error:
        return scan.refused("unreadable", str(error))
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
    """The values of a volume file, (slices, rows, columns), in the normal orientation, head to feet: integers as stored, else float32.

    Raises InputError if it cannot be decoded.
    """
    with _damage_named(path):
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
    """The whole volume file; only its grey values are in memory at once where the format can be read in slabs."""
    greys = np.empty(stack.shape, np.uint8)
    lowest, highest, whole, padded = np.inf, -np.inf, True, False
    counts = np.zeros(BINS, np.int64)
    slices, rows, columns = stack.shape
    nans = np.zeros(slices, bool), np.zeros(rows, bool), np.zeros(columns, bool)
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
        one = from_hounsfield(frame, window)
        greys[index], padded = one.pixels, padded or one.padded
        counts = counts + (0 if one.hounsfield is None else one.hounsfield)
    return _Read(greys, lowest, highest, whole, counts, padded, nans)


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
def _damage_named(path: Path) -> Iterator[None]:
    """Raises InputError in place of what reading a volume file raises."""
    try:
        yield
    except UnreadableError as error:
        raise InputError(f"{path}: {error}. Copy it again or remove the scan.") from error
    except OSError as error:
        raise_if_absent(path, error)
        raise InputError(f"{path} cannot be read: {error.strerror or error}. Run the same command again.") from error
