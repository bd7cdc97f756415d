"""Files that are not there although a folder lists them, and files that the machine fails to read: neither is damage."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ctcovid.base.errors import InputError
from ctcovid.base.faults import Fault, absence, is_absent, machine_fault, second_look
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
        if _is_stand_in(path):
            return "replaced by a placeholder of git-annex or Git LFS; fetch it, as with datalad get or git lfs pull"
    except OSError as failure:
        return absence(path, failure) if is_absent(failure) else ""
    return "not there when it was read; run the same command again" if error is not None and is_absent(error) else ""


def raise_if_absent(path: Path, error: BaseException) -> None:
    """Raises InputError if reading a file raised `error` because it is not there, or may not be read."""
    if why := why_absent(path, error):
        raise InputError(f"{path}: {why}.") from error


def opens(path: Path) -> bool:
    """Whether a file can be opened, and is no placeholder."""
    try:
        return not _is_stand_in(path)
    except OSError:
        return False


def fault_of(path: Path, error: BaseException) -> Fault | None:
    """The fault of the machine that made reading a file fail with `error`; None if there is none.

    A library does not always say what failed, so the file is read once more.
    """
    if (fault := machine_fault(error)) or is_absent(error):
        return fault
    again = second_look(path)
    return machine_fault(again) if again else None


def _is_stand_in(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(max(map(len, STAND_INS))).startswith(STAND_INS)
