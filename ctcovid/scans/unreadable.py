"""DICOM files of a study that cannot be read: which would be slices of a series, and whether it is usable without them.

Messages name no files, as names of DICOM files may be those of patients.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ctcovid.base.errors import counted
from ctcovid.scans.absent import EMPTY, MACHINE_FAULT, MISSING, fault_of, why_absent
from ctcovid.scans.contents import natural_key
from ctcovid.scans.dicom import NOT_DICOM, DamagedError, Header, read_header
from ctcovid.scans.findings import KEPT, SLICE_DROPPED, WARNING, Finding
from ctcovid.scans.quality import can_lose

# More slices in one file are damage of its header.
MOST_FRAMES = 4096


@dataclass(frozen=True)
class Unread:
    """A file, the reason in a few words, and its header if that could be read; `code` is one of `absent.READ_AGAIN`, or empty."""

    path: Path
    reason: str
    header: Header | None
    code: str = ""


def read_headers(files: Sequence[Path]) -> tuple[list[Header], list[Unread]]:
    """Headers of readable files, and the unreadable files."""
    headers, unread = [], []
    for path in files:
        try:
            headers.append(read_header(path))
        except DamagedError as error:
            unread.append(_unread(path, error))
    return headers, unread


def _unread(path: Path, error: DamagedError) -> Unread:
    if fault := fault_of(path, error):
        return Unread(path, fault.told("one of its files").rstrip("."), error.header, MACHINE_FAULT)
    if why := why_absent(path, error):
        return Unread(path, why, error.header, MISSING)
    return Unread(path, str(error), error.header, EMPTY if str(error) == "empty" else "")


def code_of(unread: Sequence[Unread], otherwise: str) -> str:
    """The code of the finding about a study that is not used because of these files."""
    codes = {one.code for one in unread}
    return next((code for code in (MACHINE_FAULT, MISSING, EMPTY) if code in codes), otherwise)


def near(headers: Sequence[Header], unread: Sequence[Unread], studies: set[str]) -> list[Unread]:
    """Unreadable files of a study: those that name it, and those in its folders that name none of `studies`."""
    study, folders = headers[0].study, {header.path.parent for header in headers}
    named = [(one, one.header.study if one.header and one.header.study in studies else "") for one in unread]
    return [one for one, name in named if (name == study if name else one.path.parent in folders)]


def of_series(
    members: Sequence[Header], unread: Sequence[Unread], marks: Sequence[tuple[str, frozenset[str]]] = (), lone: bool = False
) -> tuple[list[Unread], list[Unread]]:
    """Unreadable files that belong to a series, by its UID or else by their folder, and the others.

    A file that is not DICOM at all, such as a report, does not belong to it, nor one whose header has none of the values of `marks` that
    the slices used have. If files are `lone`, with a series of their own, only the folder tells.
    """
    uids, folders = {header.series for header in members}, {header.path.parent for header in members}

    def belongs(one: Unread) -> bool:
        if one.reason == NOT_DICOM:
            return False
        if one.header is None or not one.header.series or lone:
            return one.path.parent in folders
        said = one.header.frame(0).marks
        return one.header.series in uids and all(mark not in said or said[mark] in values for mark, values in marks)

    own = [one for one in unread if belongs(one)]
    return own, [one for one in unread if one not in own]


def count_slices(missing: Sequence[Unread]) -> int:
    """Slices that files would hold, one in each of which nothing can be read."""
    return sum(one.header.frames if one.header and 1 <= one.header.frames <= MOST_FRAMES else 1 for one in missing)


def usable_without(missing: Sequence[Unread], files: Sequence[Path], positions: np.ndarray, spacing: float) -> bool:
    """Whether a series is usable without its `missing` slices, by the rule for pictures (`quality.can_lose`).

    Parameters
    ----------
    files : of the readable slices
    positions : of these slices along the stack: in mm, or numbers if `spacing` is infinite
    spacing : usual distance of two slices in mm
    """
    gaps = np.diff(np.sort(positions))
    # The gaps between readable slices show where the missing ones belong.
    in_a_row = max(round(float(gaps.max()) / spacing) - 1, 1) if len(gaps) and np.isfinite(spacing) else 1
    lost = count_slices(missing)
    longest = max(count_slices([one]) for one in missing)
    in_a_row = max(in_a_row, _in_a_row_by_name(missing, files, positions))
    return can_lose(lost, max(min(in_a_row, lost), longest), len(files) + lost)


def _in_a_row_by_name(missing: Sequence[Unread], files: Sequence[Path], positions: np.ndarray) -> int:
    """How many missing slices follow each other in the order of names, as at an end, where no gap shows them; 0 if names give no order."""
    place = dict(zip(files, positions, strict=True))
    names = sorted([*place, *(one.path for one in missing)], key=lambda path: natural_key(path.as_posix()))
    steps = np.diff([place[path] for path in names if path in place])
    if not len(steps) or not ((steps > 0).all() or (steps < 0).all()):
        return 0
    return max(len(run) for run in "".join(" " if path in place else "x" for path in names).split(" "))


def slice_findings(missing: Sequence[Unread], slices: int) -> list[Finding]:
    """The findings about missing slices of the series that is used, by what is wrong with them."""
    by_code: dict[str, list[Unread]] = {}
    for one in missing:
        by_code.setdefault(MISSING if one.code == MISSING else "unreadable-slice", []).append(one)
    return [Finding(code, WARNING, _told(some, slices + count_slices(missing)), SLICE_DROPPED) for code, some in by_code.items()]


def file_findings(others: Sequence[Unread]) -> list[Finding]:
    """The finding about other files of the study."""
    if not others:
        return []
    text = f"{counted(len(others), 'other file')} of its study cannot be read: {reasons(others)}"
    return [Finding("unreadable-file", WARNING, text, KEPT)]


def missing_slices(missing: Sequence[Unread], slices: int) -> str:
    """How many slices of a series are missing, and why; `slices` are there."""
    return _told(missing, slices + count_slices(missing))


def _told(missing: Sequence[Unread], total: int) -> str:
    lost = count_slices(missing)
    files = "" if lost == len(missing) else f" in {counted(len(missing), 'file')}"
    return f"{lost:,} of its {total:,} slices{files} cannot be read: {reasons(missing)}"


def reasons(unread: Sequence[Unread]) -> str:
    """Reasons by the number of files, as ``2 cut short, 1 empty``."""
    counts = Counter(sorted(one.reason for one in unread))
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.most_common())
