"""DICOM files of a study that cannot be read: which would be slices of a series, and whether it is usable without them.

Messages name no files, as names of DICOM files may be those of patients.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ctcovid.base.errors import counted
from ctcovid.scans.absent import EMPTY, MACHINE_FAULT, MISSING, fault_of, why_absent
from ctcovid.scans.contents import natural_key
from ctcovid.scans.dicom import NOT_DICOM, DamagedError, Header, read_header
from ctcovid.scans.findings import KEPT, SLICE_DROPPED, WARNING, Finding
from ctcovid.scans.quality import can_lose


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


def of_series(members: Sequence[Header], unread: Sequence[Unread]) -> tuple[list[Unread], list[Unread]]:
    """Unreadable files that belong to a series, by its UID or else by their folder, and the others.

    A file that is not DICOM at all, such as a report, does not belong to it.
    """
    uid, folders = members[0].series, {header.path.parent for header in members}
    damaged = [one for one in unread if one.reason != NOT_DICOM]
    own = [one for one in damaged if (one.header.series == uid if one.header and one.header.series else one.path.parent in folders)]
    return own, [one for one in unread if one not in own]


def usable_without(
    missing: Sequence[Unread], slices: int, positions: np.ndarray, spacing: float, places: Mapping[Path, float] | None = None
) -> bool:
    """Whether a series is usable without its `missing` slices, by the rule for pictures (`quality.can_lose`).

    Parameters
    ----------
    slices : number of readable slices
    positions : of these, in mm along the stack; empty if unknown
    spacing : usual distance of two slices in mm
    places : by path, the positions or else the numbers of the readable slices
    """
    gaps = np.diff(np.sort(positions))
    # The gaps between readable slices show where the missing ones belong.
    in_a_row = max(round(float(gaps.max()) / spacing) - 1, 1) if len(gaps) and np.isfinite(spacing) else 1
    in_a_row = max(in_a_row, _in_a_row_by_name(missing, places or {}))
    return can_lose(len(missing), min(in_a_row, len(missing)), slices + len(missing))


def _in_a_row_by_name(missing: Sequence[Unread], places: Mapping[Path, float]) -> int:
    """How many missing slices follow each other in the order of names, as at an end, where no gap shows them; 0 if names give no order."""
    names = sorted([*places, *(one.path for one in missing)], key=lambda path: natural_key(path.as_posix()))
    steps = np.diff([places[path] for path in names if path in places])
    if not len(steps) or not ((steps > 0).all() or (steps < 0).all()):
        return 0
    return max(len(run) for run in "".join(" " if path in places else "x" for path in names).split(" "))


def slice_findings(missing: Sequence[Unread], slices: int) -> list[Finding]:
    """The findings about missing slices of the series that is used, by what is wrong with them."""
    by_code: dict[str, list[Unread]] = {}
    for one in missing:
        by_code.setdefault(MISSING if one.code == MISSING else "unreadable-slice", []).append(one)
    return [
        Finding(code, WARNING, f"{len(some):,} of its {slices + len(missing):,} slices cannot be read: {reasons(some)}", SLICE_DROPPED)
        for code, some in by_code.items()
    ]


def file_findings(others: Sequence[Unread]) -> list[Finding]:
    """The finding about other files of the study."""
    if not others:
        return []
    text = f"{counted(len(others), 'other file')} of its study cannot be read: {reasons(others)}"
    return [Finding("unreadable-file", WARNING, text, KEPT)]


def missing_slices(missing: Sequence[Unread], slices: int) -> str:
    """How many slices of a series are missing, and why."""
    return f"{len(missing):,} of its {slices + len(missing):,} slices cannot be read: {reasons(missing)}"


def reasons(unread: Sequence[Unread]) -> str:
    """Reasons by frequency, as ``2 cut short, 1 empty``."""
    counts = Counter(sorted(one.reason for one in unread))
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.most_common())
