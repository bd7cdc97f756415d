"""What is found to be odd or wrong with a scan, in one shape for whoever finds it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from ctcovid.base.console import Console
from ctcovid.base.errors import listing

INFO, WARNING, ERROR = "info", "warning", "error"
KEPT, REPAIRED, SLICE_DROPPED, SCAN_DROPPED = "kept", "repaired", "slice dropped", "scan dropped"


@dataclass(frozen=True)
class Finding:
    """One thing that is odd or wrong with a scan, and what was done about it.

    `code` is short and stable, such as "gap"; `severity` is INFO, WARNING or ERROR; `message` is one sentence or clause without the
    scan's name; `action` is KEPT, REPAIRED, SLICE_DROPPED or SCAN_DROPPED; `slices` are positions in the scan, counted from 0; none where
    it is about the whole scan, or about files of which no position is known.
    """

    code: str
    severity: str
    message: str
    action: str = KEPT
    slices: tuple[int, ...] = ()


class Judged(Protocol):
    """What findings are about: a scan."""

    @property
    def id(self) -> str: ...

    @property
    def patient(self) -> str: ...

    @property
    def label(self) -> str: ...

    @property
    def findings(self) -> tuple[Finding, ...]: ...


def warn_of(scans: Sequence[Judged], console: Console) -> None:
    """Say what was found: warnings as such, what merely is to be known as talk. Errors are said by what cannot go on."""
    for severity, tell in ((INFO, console.say), (WARNING, console.warn)):
        lines = [f"{_name(scan)}: {one.message}{_done(one)}" for scan in scans for one in scan.findings if one.severity == severity]
        if lines:
            tell(f"{len(lines):,} notes on scans:\n{listing(lines)}" if len(lines) > 1 else f"Scan {lines[0]}.")


def _name(scan: Judged) -> str:
    """As its folders are called in CC-CCII, as far as it has these names."""
    return "/".join(part for part in (scan.label, scan.patient, scan.id) if part)


def _done(finding: Finding) -> str:
    return "" if finding.severity == INFO else f" ({finding.action})"
