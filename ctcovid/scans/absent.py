"""Files that are not there although a folder lists them, and files that the machine fails to read: neither is damage."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path

from ctcovid.base.faults import Fault, is_absent, machine_fault, second_look
from ctcovid.scans.findings import SCAN_DROPPED, Finding

MACHINE_FAULT, MISSING, EMPTY = "machine-fault", "missing-file", "empty-file"
# A scan that is dropped for one of these reasons is read again by the next run.
READ_AGAIN = frozenset({MACHINE_FAULT, MISSING, EMPTY})
# What git-annex and Git LFS leave in place of a file that was not fetched.
STAND_INS = (b"/annex/objects/", b"version https://git-lfs.github.com/spec/")


def read_again(findings: Iterable[Finding]) -> bool:
    """Whether a scan with these findings was dropped for a reason that may be gone when it is read again."""
    return any(finding.code in READ_AGAIN and finding.action == SCAN_DROPPED for finding in findings)


def why_absent(path: Path, error: BaseException | None = None) -> str:
    """Why a file is not there, or may not be read, and what to do, in a clause without its name; empty if it is there.

    error : what reading it raised
    """
    try:
        with path.open("rb") as file:
            if file.read(max(map(len, STAND_INS))).startswith(STAND_INS):
                return "replaced by a placeholder of git-annex or Git LFS; fetch it, as with datalad get or git lfs pull"
        if error is not None and is_absent(error):
            return "not there when it was read; run the same command again"
    except OSError as failure:
        return _reason(path, failure) if is_absent(failure) else ""
    return ""


def fault_of(path: Path, error: BaseException) -> Fault | None:
    """The fault of the machine that made reading a file fail with `error`; None if there is none.

    A library does not always say what failed, so the file is read once more.
    """
    if (fault := machine_fault(error)) or is_absent(error):
        return fault
    again = second_look(path)
    return machine_fault(again) if again else None


def _reason(path: Path, error: OSError) -> str:
    if error.errno in (errno.EACCES, errno.EPERM):
        return "without permission to read; fix its permissions"
    if error.errno == errno.ELOOP:
        return "linked to itself; fix the link"
    if error.errno == errno.ENAMETOOLONG:
        return "named too long; shorten the name"
    if os.path.islink(path):  # noqa: PTH114
        return "linked to a file that is not there; fetch it, as with datalad get"
    return "removed since the folder was listed; run the same command again"
