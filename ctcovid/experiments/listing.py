"""The cells that are asked for, and how far each is."""

from __future__ import annotations

from typing import Any

from ctcovid.experiments.cells import names
from ctcovid.experiments.done import status
from ctcovid.experiments.study import Study
from ctcovid.reports.tables import Cell, Table

COLUMNS = ("number", "cell", "run", "images", "architecture", "depth", "batch", "seed", "status")


def cells_table(study: Study) -> Table:
    """A row for each cell. One that stands in two tables has two names."""
    rows: list[list[Cell]] = []
    for number, cell in enumerate(study.cells, start=1):
        *called, run = names(cell, study.scale.thickest)
        shape: list[Cell] = [cell.arch, cell.depth, cell.batch, study.seed + cell.repeat]
        rows.append([number, ", ".join(called), run, cell.images, *shape, status(study, cell)])
    return Table(COLUMNS, rows, text_columns=5)


def document(table: Table) -> dict[str, Any]:
    """The same as plain data."""
    return {"cells": [dict(zip(table.columns, row, strict=True)) for row in table.rows]}
