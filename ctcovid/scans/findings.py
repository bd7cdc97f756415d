"""What is found wrong with a scan, and what was done about it."""

from __future__ import annotations

from dataclasses import dataclass

INFO, WARNING, ERROR = "info", "warning", "error"
KEPT, REPAIRED, SLICE_DROPPED, SCAN_DROPPED = "kept", "repaired", "slice dropped", "scan dropped"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with, or remarkable about, a scan.

    code : short name such as ``feet-first``
    severity : "info", "warning" or "error"
    message : one sentence
    action : "kept", "repaired", "slice dropped" or "scan dropped"
    slices : which slices it is about, counted from 0 as they lie in their folder; none where it is about the whole scan
    """

    code: str
    severity: str
    message: str
    action: str
    slices: tuple[int, ...] = ()
