"""What the header of a volume file says, whichever format it has."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ctcovid.scans.absent import EMPTY, MISSING, why_absent
from ctcovid.scans.findings import Finding

# Values are read in pieces of so many bytes, as 64-bit numbers.
SLAB_BYTES = 256 << 20
# The highest compression factor of deflate.
MOST_DEFLATED = 1040
GZIP = b"\x1f\x8b"
# How files begin that are often found under the name of another format.
_KNOWN = {
    GZIP: "gzip",
    b"NRRD": "NRRD",
    b"ObjectType": "MetaImage",
    b"\x89PNG": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"PK\3\4": "ZIP",
    b"\x89HDF": "HDF5",
    b"version https://git-lfs": "a Git LFS pointer, without the values",
    b"<": "a web page or XML",
}


class UnreadableError(ValueError):
    """Why a volume file cannot be read, in words without its path. "Damaged" is said of checksums, truncation and contradiction only."""


class AbsentValuesError(UnreadableError):
    """The file beside a header that holds its values is not there; `code` is that of the finding."""

    def __init__(self, reason: str, code: str = MISSING) -> None:
        super().__init__(reason)
        self.code = code


@dataclass(frozen=True)
class VolumeHeader:
    """The header of a volume file.

    Attributes
    ----------
    shape : slices, rows and columns, in the order of the file
    affine : float64 (4, 4), from (column, row, slice) to millimetres in RAS+
    assumed : whether the orientation is assumed, because the file does not give it
    findings : what is unusual about it
    beside : the file beside it that holds the values, if there is one
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    assumed: bool
    findings: tuple[Finding, ...] = ()
    beside: Path | None = None


def not_a(format_name: str, head: bytes) -> UnreadableError:
    """The error about a file that does not begin as its name says, with what it is instead, if that is known."""
    found = "DICOM" if head[128:132] == b"DICM" else next((name for begin, name in _KNOWN.items() if head.startswith(begin)), "")
    return UnreadableError(f"not {format_name} despite its name{f': it is {found}' if found else ''}")


def values_beside(path: Path, names: list[str], any_case: bool = False) -> Path:
    """The file beside a header that holds the values: the first that has one of the names, perhaps in another case.

    Raises AbsentValuesError if there is none, or nothing in it.
    """
    found = next((one for name in names if _may_hold_values(one := path.parent / name)), None)
    if found is None and any_case:
        wanted = re.compile("|".join(map(re.escape, names)), re.IGNORECASE)
        found = next((one for one in sorted(path.parent.iterdir()) if wanted.fullmatch(one.name) and _may_hold_values(one)), None)
    if found is None:
        raise AbsentValuesError(f"its values are in {names[0][:100]}, which is not a file beside it; copy it, too")
    if why := why_absent(found):
        raise AbsentValuesError(f"its values are in {found.name[:100]}: {why}")
    if not found.stat().st_size:
        raise AbsentValuesError(f"its values are in {found.name[:100]}, which is empty", EMPTY)
    return found


def _may_hold_values(path: Path) -> bool:
    return path.is_symlink() or path.is_file()


def too_much(stored: int) -> UnreadableError:
    return UnreadableError(f"its header declares {stored / 1e9:.1f} GB of values, more than a scan has")
