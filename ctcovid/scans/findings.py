"""What is found to be odd or wrong with a scan, in one shape for whoever finds it."""

from __future__ import annotations

from dataclasses import dataclass

INFO, WARNING, ERROR = "info", "warning", "error"
KEPT, REPAIRED, SLICE_DROPPED, SCAN_DROPPED = "kept", "repaired", "slice dropped", "scan dropped"


@dataclass(frozen=True)
class Finding:
    """One thing that is odd or wrong with a scan, and what was done about it.

    `code` is short and stable, such as "gap"; `severity` is INFO, WARNING or ERROR; `message` is one sentence or clause without the
    scan's name; `action` is KEPT, REPAIRED, SLICE_DROPPED or SCAN_DROPPED; `slices` are positions in the scan, counted from 0, or
    names of files where a position says nothing.
    """

    code: str
    severity: str
    message: str
    action: str = KEPT
    slices: tuple[int, ...] | str = ()
