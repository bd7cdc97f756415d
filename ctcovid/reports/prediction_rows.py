"""What predict says of scans and of their volumes, as rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ctcovid.base.files import printable, resolved
from ctcovid.inference.classify import Refused, ScanPrediction
from ctcovid.inference.flags import sentence
from ctcovid.reports.rows import BETWEEN, Row
from ctcovid.reports.tables import Cell, CsvText
from ctcovid.scans.scan import Scan

REFUSED = "refused"


def scan_columns(classes: Sequence[str], models: int) -> list[str]:
    """Names of the fields of a scan's row."""
    spread = ["spread"] if models > 1 else []
    return ["scan", "patient", "predicted", *(f"p_{name}" for name in classes), *spread, *("n_volumes", "n_slices", "agreement"), *_WORDS]


def volume_columns(classes: Sequence[str]) -> list[str]:
    """Names of the fields of a volume's row."""
    return ["scan", "patient", "model", "volume", "first_slice", "last_slice", "predicted", *(f"p_{name}" for name in classes)]


_WORDS = ("flags", "notes", "source")


def scan_row(checked: ScanPrediction | Refused, classes: Sequence[str], models: int) -> Row:
    """One row for a scan; without class and probabilities where it was refused."""
    values: list[Any]
    if isinstance(checked, Refused):
        values = [checked.scan.id, checked.scan.patient, None, *[None] * len(classes), *[None] * (models > 1)]
        values += [
            0,
            len(checked.scan.slices),
            None,
            list(dict.fromkeys((REFUSED, *checked.codes))),
            printable(checked.reason),
            source_of(checked.scan),
        ]
    else:
        values = [checked.scan.id, checked.scan.patient, classes[checked.predicted], *checked.probabilities.tolist()]
        values += [checked.spread] * (models > 1)
        values += [len(checked.volumes), checked.slices, checked.agreement]
        values += [[flag.code for flag in checked.flags], printable(" ".join(map(sentence, checked.flags))), source_of(checked.scan)]
    return dict(zip(scan_columns(classes, models), values, strict=True))


def source_of(scan: Scan) -> str:
    """Where a scan was read from, whole, since its name depends on what it was found under."""
    return printable(str(resolved(scan.folder)))


def typed_row(row: Row) -> Row:
    """A scan's row as it was before a CSV made text of it; others stay as they are."""
    found = dict(row)
    for name, value in row.items():
        if name in ("n_volumes", "n_slices"):
            found[name] = int(value)
        elif name in ("spread", "agreement") or name.startswith("p_"):
            found[name] = None if value is None else float(value)
        elif name == "flags" and not isinstance(value, list):
            found[name] = value.split(BETWEEN) if value else []
        elif name in ("patient", "notes"):
            found[name] = value or ""
    return found


def volume_rows(checked: ScanPrediction | Refused, classes: Sequence[str]) -> list[Row]:
    """A row for each volume of each model."""
    if isinstance(checked, Refused):
        return []
    rows = []
    for one in checked.volumes:
        values = [checked.scan.id, checked.scan.patient, one.model, one.number, one.first_slice, one.last_slice]
        values += [classes[int(one.probabilities.argmax())], *one.probabilities.tolist()]
        rows.append(dict(zip(volume_columns(classes), values, strict=True)))
    return rows


def prediction_table(rows: Sequence[Row], columns: Sequence[str]) -> CsvText:
    """The rows for a terminal or a pipe."""
    cells: list[list[Cell]] = [
        [BETWEEN.join(value) if isinstance(value := row[name], list) else "" if value is None else value for name in columns]
        for row in rows
    ]
    return CsvText(columns, cells, text_columns=3)
