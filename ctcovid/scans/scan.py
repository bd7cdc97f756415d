"""A scan: its slices in order, and how they are read."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from ctcovid.base.errors import InputError
from ctcovid.base.files import printable
from ctcovid.base.runcard import sha256, sha256_of
from ctcovid.scans.findings import ERROR, SCAN_DROPPED, Finding
from ctcovid.scans.geometry import Geometry, Turn

# More in one file, or in one picture, is taken for damage: it would not fit into memory beside what is made of it.
MOST_BYTES = 640 << 20
MOST_PIXELS_PER_SIDE = 8192
# What to do about a scan of which nothing can be used, in general and by the code of the finding.
MEND = "Mend it or remove the scan."
REMEDIES = {"not-dicom": "Rename or remove what is no DICOM.", "no-such-series": "Name another --series, or none."}


@dataclass(frozen=True)
class Stack:
    """How slices lie in files that are no pictures.

    `reader` is "dicom" for a file per slice, "volume" for all slices in one file of DICOM, NIfTI, NRRD or MetaImage, "pages" for all in
    one TIFF. `shape` is that of a file: slices, rows, columns. `turn` brings it into the normal orientation; of several frames in a
    file, `frames` are the ones used, in order. `geometry` is that of the turned stack, None where the file has none; where the file does
    not say how it lies, it is `assumed`.
    """

    reader: str
    shape: tuple[int, int, int]
    turn: Turn = field(default_factory=Turn)
    frames: tuple[int, ...] = ()
    geometry: Geometry | None = None
    assumed: bool = False

    @property
    def slice_size(self) -> tuple[int, int]:
        """Height and width of a slice, turned."""
        _, height, width = (self.shape[axis] for axis in self.turn.axes)
        return height, width


@dataclass(frozen=True)
class Scan:
    """One CT scan.

    `slices` are the files of its slices, head to feet: by position where the files know it, else in the natural order of their
    names, which in CC-CCII is head to feet. Where one file holds all, it stands there once for each slice. `folder` is where the scan
    lies, for a scan in one file that file. `label` and `patient` are empty for a scan found by `find_scans`. A scan of which nothing
    can be used has no slices, and a finding that says why.
    """

    id: str
    patient: str
    label: str
    folder: Path
    slices: tuple[Path, ...]
    source: str
    stack: Stack | None = None
    findings: tuple[Finding, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """A name for each slice: of a picture the file's, else its number. Names of DICOM files may be those of patients."""
        if self.stack is None:
            return tuple(printable(path.name) for path in self.slices)
        return tuple(f"{number:04d}" for number in range(len(self.slices)))

    @property
    def geometry(self) -> Geometry | None:
        """Where the slices lie in the patient, None where the files do not say, as pictures. See `placed`."""
        return self.stack.geometry if self.stack else None

    @property
    def placed(self) -> bool:
        """Whether the files say how the slices lie in the patient, so that their order is not to be doubted."""
        return self.geometry is not None and not (self.stack and self.stack.assumed)

    def parts(self, count: int) -> list[Scan]:
        """The scan in pieces of `count` slices, each to be read for itself; in one piece where one file holds all."""
        if self.stack and self.stack.reader != "dicom":
            return [self]
        return [replace(self, slices=self.slices[first : first + count], findings=()) for first in range(0, len(self.slices), count)]

    def refused(self, code: str, message: str) -> Scan:
        """The scan without slices and with an error that says why; what was found before is forgotten."""
        return replace(self, slices=(), findings=(Finding(code, ERROR, message, SCAN_DROPPED),))

    def sha256(self) -> str | None:
        """Of the file that holds it, else of its own slices, since a folder may hold many studies; None where it has neither."""
        if self.folder.is_file():
            return sha256(self.folder)
        return sha256_of(self.slices) if self.slices else None

    @property
    def refusal(self) -> str:
        """Of a scan without slices: why, and what to do about it."""
        errors = [finding for finding in self.findings if finding.severity == ERROR]
        remedy = REMEDIES.get(errors[0].code, MEND) if errors else MEND
        return f"{self.folder}: {'; '.join(error.message for error in errors) or 'no slices'}. {remedy}"

    def require_slices(self) -> None:
        """Raises InputError, with the reason, where nothing of the scan can be used."""
        if not self.slices:
            raise InputError(self.refusal)
