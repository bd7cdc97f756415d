"""DICOM files of a study that cannot be read: which would be slices of a series, and whether this can do without them.

What is said of them names no file, for names of DICOM files may be those of patients.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ctcovid.base.errors import counted
from ctcovid.scans.dicom import NOT_DICOM, DamagedError, Header, read_header
from ctcovid.scans.findings import KEPT, SLICE_DROPPED, WARNING, Finding
from ctcovid.scans.quality import bearable


@dataclass(frozen=True)
class Unread:
    """A file, the reason in a few words, and its header where this could be read."""

    path: Path
    reason: str
    header: Header | None


def read_headers(files: Sequence[Path]) -> tuple[list[Header], list[Unread]]:
    """Headers of what can be read, and what cannot."""
    headers, unread = [], []
    for path in files:
        try:
            headers.append(read_header(path))
        except DamagedError as error:
            unread.append(Unread(path, str(error), error.header))
    return headers, unread


def near(headers: Sequence[Header], unread: Sequence[Unread], studies: set[str]) -> list[Unread]:
    """Files of a study that cannot be read: those that name it, and of those that name none of `studies` the ones in its folders."""
    study, folders = headers[0].study, {header.path.parent for header in headers}
    named = [(one, one.header.study if one.header and one.header.study in studies else "") for one in unread]
    return [one for one, name in named if (name == study if name else one.path.parent in folders)]


def of_series(members: Sequence[Header], unread: Sequence[Unread]) -> tuple[list[Unread], list[Unread]]:
    """Of files that cannot be read those of a series, by its UID, else by their folder, and the others.

    One that is no DICOM at all, such as a report, is none of its slices.
    """
    uid, folders = members[0].series, {header.path.parent for header in members}
    damaged = [one for one in unread if one.reason != NOT_DICOM]
    own = [one for one in damaged if (one.header.series == uid if one.header and one.header.series else one.path.parent in folders)]
    return own, [one for one in unread if one not in own]


def can_do_without(lost: Sequence[Unread], slices: int, positions: np.ndarray, spacing: float) -> bool:
    """Whether a series can, by the rule that holds of pictures.

    Parameters
    ----------
    slices : that could be read
    positions : of these, in mm along the stack; none where they are not known
    spacing : usual distance of two slices in mm
    """
    gaps = np.diff(np.sort(positions))
    # Where the lost ones lay shows in what is left.
    in_a_row = max(round(float(gaps.max()) / spacing) - 1, 1) if len(gaps) and np.isfinite(spacing) else 1
    return bearable(len(lost), min(in_a_row, len(lost)), slices + len(lost))


def of_lost(lost: Sequence[Unread], slices: int) -> list[Finding]:
    """The finding of slices of the series that is used."""
    return [Finding("unreadable-slice", WARNING, told(lost, slices), SLICE_DROPPED)] if lost else []


def of_others(others: Sequence[Unread]) -> list[Finding]:
    """The finding of files beside that series."""
    if not others:
        return []
    text = f"{counted(len(others), 'other file')} of its study cannot be read: {reasons(others)}"
    return [Finding("unreadable-file", WARNING, text, KEPT)]


def told(lost: Sequence[Unread], slices: int) -> str:
    return f"{len(lost):,} of its {slices + len(lost):,} slices cannot be read: {reasons(lost)}"


def reasons(unread: Sequence[Unread]) -> str:
    """By frequency, as ``2 cut short, 1 empty``."""
    counts = Counter(sorted(one.reason for one in unread))
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.most_common())
