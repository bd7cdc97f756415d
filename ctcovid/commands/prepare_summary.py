"""What comes of ctcovid prepare."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctcovid.reports.tables import Table


@dataclass(frozen=True)
class Summary:
    """What was prepared: rows of the table by class and split, the scans that had to be left out, and what was found wrong.

    `output` is None where only a check or a plan was asked for.
    """

    output: Path | None
    table: Table
    failed: list[str]
    quality: Table

    def document(self) -> dict[str, Any]:
        output = {"output": str(self.output)} if self.output else {}
        return {**output, "table": records(self.table), "failed": self.failed, "quality": records(self.quality)}


def records(table: Table) -> list[dict[str, Any]]:
    """Rows as they stand in JSON."""
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]
