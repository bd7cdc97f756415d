"""What a data set holds, like the paper's Tables 1 and 2."""

from __future__ import annotations

from collections.abc import Iterable

from ctcovid.base.choices import PARTS
from ctcovid.reports.tables import Cell, Table
from ctcovid.volumes.layout import ScanRow

COLUMNS = ("class", "split", "patients", "scans", "slices", "volumes")


def dataset_table(rows: Iterable[ScanRow], classes: list[str], depth: int) -> Table:
    """Patients, scans, slices and depth-n volumes by class and split, with totals (Li et al. 2021, Table 1)."""
    rows = list(rows)
    lines: list[list[Cell]] = []
    for label in (*classes, "all"):
        members = [row for row in rows if label in (row.label, "all")]
        for part in (*PARTS, "all"):
            lines.append([label, part, *_counts([row for row in members if part in (row.split, "all")], depth)])
    return Table(COLUMNS, lines, text_columns=2)


def missing_classes(rows: Iterable[ScanRow], classes: list[str], depth: int) -> dict[str, list[str]]:
    """Classes without a single volume, by part."""
    present = {(row.split, row.label) for row in rows if row.volume_count(depth)}
    missing = {part: [label for label in classes if (part, label) not in present] for part in PARTS}
    return {part: labels for part, labels in missing.items() if labels}


def _counts(rows: list[ScanRow], depth: int) -> list[int]:
    patients = len({row.patient for row in rows})
    return [patients, len(rows), sum(row.slice_count for row in rows), sum(row.volume_count(depth) for row in rows)]
