"""What predict says of scans and of their volumes, as rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ctcovid.base.errors import counted
from ctcovid.base.files import printable, resolved
from ctcovid.inference.classify import Refused, ScanPrediction
from ctcovid.inference.flags import sentence
from ctcovid.reports.rows import BETWEEN, Row
from ctcovid.reports.tables import Cell, CsvText, Table
from ctcovid.scans.scan import Scan

REFUSED = "refused"
# Columns of a terminal from which on rows stay a table, and the letters of a bar for a probability of 1.
WIDE, BAR = 120, 40


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


@dataclass
class PredictionTable(CsvText):
    """Rows of scans: a table on a wide terminal, a block for each scan on a narrow one, CSV off a terminal.

    predictions : the same rows as they are
    classes : in the order of the model
    """

    predictions: Sequence[Row] = ()
    classes: Sequence[str] = ()

    def terminal(self, width: int) -> Any:
        from rich.console import Group

        if width < WIDE:
            return Group(*(self._block(row, width) for row in self.predictions))
        filled = [name for name in self.columns if any(row[name] not in (None, "", []) for row in self.predictions)]
        kept = [name for name in filled if name not in ("notes", "source")]
        cells = [[_cell(row[name]) for name in kept] for row in self.predictions]
        text = sum(name in ("scan", "patient", "predicted") for name in kept)
        return Table(kept, cells, text_columns=text, optional=("spread", "n_slices", "agreement")).terminal(width)

    def _block(self, row: Row, width: int) -> Any:
        """A scan in some lines: its name and class, a bar for each class, the volumes that agree, and flags in words."""
        from rich.console import Group
        from rich.padding import Padding
        from rich.text import Text

        name = Text.assemble((row["scan"], "bold"), f", patient {row['patient']}: " if row["patient"] else ": ")
        if row["predicted"] is None:
            return Group(name.append("refused", "bold red"), Padding(Text(row["notes"]), (0, 0, 1, 2)))
        longest = max(map(len, self.classes))
        size = min(BAR, max(4, width - longest - 12))
        lines = Text()
        for one in self.classes:
            share = float(row[f"p_{one}"])
            bar = ("█" * round(share * size)).ljust(size, "·")
            lines.append(f"{one.ljust(longest)}  {bar} {share:6.1%}\n", style="bold" if one == row["predicted"] else "")
        agreeing = round(row["agreement"] * row["n_volumes"])
        lines.append(f"{agreeing} of {counted(row['n_volumes'], 'volume')} agree, {counted(row['n_slices'], 'slice')}")
        if row["flags"]:
            lines.append(f"\n{', '.join(row['flags'])}: ", style="yellow").append(row["notes"])
        return Group(name.append(row["predicted"], "bold"), Padding(lines, (0, 0, 1, 2)))


def _cell(value: Any) -> Cell:
    return BETWEEN.join(value) if isinstance(value, list) else "" if value is None else value


def prediction_table(rows: Sequence[Row], classes: Sequence[str], models: int) -> PredictionTable:
    """The rows for a terminal or a pipe."""
    columns = scan_columns(classes, models)
    cells = [[_cell(row[name]) for name in columns] for row in rows]
    return PredictionTable(columns, cells, text_columns=3, predictions=rows, classes=classes)
