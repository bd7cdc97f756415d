"""Findings: what is unusual or wrong with a scan, and what was done about it."""

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
    """One thing that is unusual or wrong with a scan, and what was done about it.

    Attributes
    ----------
    code : short and stable, such as "gap"
    severity : INFO, WARNING or ERROR
    message : one sentence or clause without the scan's name
    action : KEPT, REPAIRED, SLICE_DROPPED or SCAN_DROPPED
    slices : positions in the scan, counted from 0; empty if it concerns the whole scan, or files of unknown position
    """

    code: str
    severity: str
    message: str
    action: str = KEPT
    slices: tuple[int, ...] = ()


class Checked(Protocol):
    """What has findings: a scan."""

    @property
    def id(self) -> str: ...

    @property
    def patient(self) -> str: ...

    @property
    def label(self) -> str: ...

    @property
    def findings(self) -> tuple[Finding, ...]: ...


def warn_of(scans: Sequence[Checked], console: Console) -> None:
    """Print findings on stderr, warnings as such. Errors are reported by whatever refuses the scan."""
    for severity, tell in ((INFO, console.say), (WARNING, console.warn)):
        lines = [f"{_name(scan)}: {one.message}{_done(one)}" for scan in scans for one in scan.findings if one.severity == severity]
        if lines:
            tell(f"{len(lines):,} notes on scans:\n{listing(lines)}" if len(lines) > 1 else f"Scan {lines[0]}.")


def _name(scan: Checked) -> str:
    """Class, patient and scan, as far as they are known, as in CC-CCII's folders."""
    return "/".join(name for name in (scan.label, scan.patient, scan.id) if name)


def _done(finding: Finding) -> str:
    return "" if finding.severity == INFO else f" ({finding.action})"
