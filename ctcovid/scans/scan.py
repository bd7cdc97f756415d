"""A scan: its slices in order, and how they are read."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path

from ctcovid.base.errors import InputError
from ctcovid.base.files import printable
from ctcovid.base.runcard import sha256, sha256_of
from ctcovid.scans.findings import ERROR, SCAN_DROPPED, Finding
from ctcovid.scans.geometry import Geometry, Turn

# More in one file, or in one picture, counts as damage: it would not fit into memory with what is made of it.
MOST_BYTES = 640 << 20
MOST_PIXELS_PER_SIDE = 8192
# What to do about an unusable scan, in general and by the code of the finding.
REMEDY = "Repair it or remove the scan."
REMEDIES = {
    "not-dicom": "Rename or remove files that are not DICOM.",
    "no-such-series": "Name another --series, or none.",
    "machine-fault": "The scan itself may be sound: it is read again by the next run.",
    "missing-file": "Then run the same command again.",
    "empty-file": "Copy it again.",
}


@dataclass(frozen=True)
class Stack:
    """How slices are stored in files that are not pictures.

    Attributes
    ----------
    reader : "dicom" for files of one slice or several, "volume" for one file of NIfTI, NRRD or MetaImage, "pages" for one TIFF
    shape : slices, rows and columns of a file; of DICOM files with several slices, the first gives their number
    turn : from the file to the normal orientation
    frames : for DICOM files with several slices, the number of each slice in its file
    geometry : of the turned stack; None if the file has none
    assumed : whether the orientation is assumed, because the file does not give it
    beside : the file with the values, if the scan's own file is only a header
    """

    reader: str
    shape: tuple[int, int, int]
    turn: Turn = field(default_factory=Turn)
    frames: tuple[int, ...] = ()
    geometry: Geometry | None = None
    assumed: bool = False
    beside: Path | None = None

    @property
    def slice_size(self) -> tuple[int, int]:
        """Height and width of a slice, turned."""
        _, height, width = (self.shape[axis] for axis in self.turn.axes)
        return height, width


@dataclass(frozen=True)
class Scan:
    """One CT scan.

    Attributes
    ----------
    id, patient, label : names; `label` and `patient` are empty for a scan found by `find_scans`
    folder : that holds the scan; for a scan in one file, that file
    slices : files of the slices, head to feet: by position if the files give it, else in the natural order of their names, which in
        CC-CCII is head to feet. A file that holds all slices is repeated for each. Empty if the scan cannot be used
    source : path below the data set
    findings : what is unusual or wrong; they say why there are no slices
    unread : see `quality.can_lose`, of slices whose files cannot be read
    """

    id: str
    patient: str
    label: str
    folder: Path
    slices: tuple[Path, ...]
    source: str
    stack: Stack | None = None
    findings: tuple[Finding, ...] = ()
    unread: tuple[int, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """A name for each slice: the file name of a picture, else a number, as names of DICOM files may be those of patients."""
        if self.stack is None:
            return tuple(printable(path.name) for path in self.slices)
        return tuple(f"{number:04d}" for number in range(len(self.slices)))

    @property
    def geometry(self) -> Geometry | None:
        """Position of the slices in the patient; None if the files do not give it, as pictures. See `positioned`."""
        return self.stack.geometry if self.stack else None

    @property
    def positioned(self) -> bool:
        """Whether the files give the positions of the slices in the patient, so that their order is trusted."""
        return self.geometry is not None and not (self.stack and self.stack.assumed)

    def pieces(self, count: int) -> list[Scan]:
        """The scan in pieces of `count` slices that can be read separately; a file that holds several slices is not divided."""
        if self.stack and self.stack.reader != "dicom":
            return [self]
        if self.stack and self.stack.frames:
            starts = [0, *(one for one in range(1, len(self.slices)) if self.slices[one] != self.slices[one - 1]), len(self.slices)]
            return [self._piece(first, last, self.stack) for first, last in pairwise(starts)]
        return [replace(self, slices=self.slices[first : first + count], findings=()) for first in range(0, len(self.slices), count)]

    def _piece(self, first: int, last: int, stack: Stack) -> Scan:
        return replace(self, slices=self.slices[first:last], stack=replace(stack, frames=stack.frames[first:last]), findings=())

    def refused(self, code: str, message: str) -> Scan:
        """The scan without slices and with an error that says why, in place of earlier findings."""
        return replace(self, slices=(), findings=(Finding(code, ERROR, message, SCAN_DROPPED),))

    def sha256(self) -> str | None:
        """SHA-256 of the file that holds it, or of its own slices, since a folder may hold many studies; None if it has neither."""
        if self.stack and self.stack.beside:
            return sha256_of((self.folder, self.stack.beside))
        if self.folder.is_file():
            return sha256(self.folder)
        # Slices that are absent or forbidden were not read either.
        return sha256_of(path for path in self.slices if os.access(path, os.R_OK)) if self.slices else None

    @property
    def refusal(self) -> str:
        """Why a scan has no slices, and what to do about it."""
        errors = [finding for finding in self.findings if finding.severity == ERROR]
        remedy = REMEDIES.get(errors[0].code, REMEDY) if errors else REMEDY
        return f"{self.folder}: {'; '.join(error.message for error in errors) or 'no slices'}. {remedy}"

    def require_slices(self) -> None:
        """Raises InputError, with the reason, if the scan cannot be used."""
        if not self.slices:
            raise InputError(self.refusal)
