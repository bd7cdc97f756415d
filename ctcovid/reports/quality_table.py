"""What was found wrong with scans: a row per finding for quality.csv, and a summary by kind of finding."""

from __future__ import annotations

from collections.abc import Iterable

from ctcovid.reports.tables import Cell, Table
from ctcovid.scans.findings import ERROR, INFO, WARNING, Finding
from ctcovid.volumes.layout import ScanRow

COLUMNS = ("scan", "patient", "label", "code", "severity", "message", "action", "slices")


def findings_table(found: Iterable[tuple[ScanRow, Finding]]) -> Table:
    """A row per finding. Slices are counted from 0 as they lie in the folder, as in ``0-30;44``."""
    rows: list[list[Cell]] = []
    for row, item in found:
        rows.append([row.source, row.patient, row.label, item.code, item.severity, item.message, item.action, ranges(item.slices)])
    return Table(COLUMNS, rows, text_columns=len(COLUMNS))


def summary_table(found: Iterable[tuple[ScanRow, Finding]]) -> Table:
    """Scans and slices by finding and what was done about it, the severest first."""
    counts: dict[tuple[str, str, str], list[int]] = {}
    for _, item in found:
        count = counts.setdefault((item.severity, item.code, item.action), [0, 0])
        count[0] += 1
        count[1] += len(item.slices)
    order = sorted(counts, key=lambda key: ((ERROR, WARNING, INFO).index(key[0]), key))
    rows: list[list[Cell]] = [[code, severity, action, *counts[severity, code, action]] for severity, code, action in order]
    return Table(("finding", "severity", "action", "scans", "slices"), rows, text_columns=3)


def ranges(places: Iterable[int]) -> str:
    """``0-30;44`` for places 0 to 30 and 44."""
    runs: list[list[int]] = []
    for place in sorted(places):
        if runs and place == runs[-1][1] + 1:
            runs[-1][1] = place
        else:
            runs.append([place, place])
    return ";".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
