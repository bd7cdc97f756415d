"""All tables and figures of what there is: results.md, and a file for each table and figure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctcovid.base.errors import counted
from ctcovid.base.files import write_text
from ctcovid.experiments.cells import TABLES
from ctcovid.experiments.done import DONE, status
from ctcovid.experiments.figures import draw_figures
from ctcovid.experiments.results import stars_over_seeds, table_results
from ctcovid.experiments.study import Study
from ctcovid.experiments.tables import MISSING, beside_table, full_numbers, paper_table, stars_table
from ctcovid.reports.latex import latex
from ctcovid.reports.tables import Table

RESULTS = "results.md"


@dataclass(frozen=True)
class Report:
    """The tables, those of each number together, and which figures there are; `failed` has a sentence for each cell that failed."""

    folder: Path
    settings: dict[str, Any]
    done: int
    cells: int
    tables: dict[int, list[Table]]
    figures: dict[int, bool]
    failed: list[str]

    def document(self) -> dict[str, Any]:
        tables = {number: [_document(table) for table in tables] for number, tables in self.tables.items()}
        figures = {number: str(self.folder / f"figure-{number}.png") if there else None for number, there in self.figures.items()}
        cells = {"done": self.done, "asked_for": self.cells, "failed": self.failed}
        return {"folder": str(self.folder), "settings": self.settings, "cells": cells, "tables": tables, "figures": figures}

    def terminal(self, width: int) -> Any:
        from rich.console import Group

        return Group(*(table.terminal(width) for tables in self.tables.values() for table in tables), self._figures())

    def text(self) -> str:
        return "\n\n".join([*(table.text() for tables in self.tables.values() for table in tables), self._figures()])

    def _figures(self) -> str:
        return "\n".join(f"Figure {number}: {f'figure-{number}.png' if there else MISSING}" for number, there in self.figures.items())


def make_report(study: Study, failed: list[str]) -> Report:
    """Write the tables as Markdown, CSV and LaTeX, the figures as PNG, and all of it together into results.md."""
    results = {number: table_results(study, number) for number in TABLES}
    tables: dict[int, list[Table]] = {}
    for number, mine in results.items():
        tables[number] = [paper_table(number, mine, study), beside_table(number, mine, study)]
        if stars := stars_over_seeds(mine):
            tables[number].append(stars_table(number, stars, study))
        path = study.out / f"table-{number}"
        write_text(path.with_suffix(".md"), "\n\n".join(table.text() for table in tables[number]) + "\n")
        write_text(path.with_suffix(".tex"), "\n".join(latex(table) for table in tables[number]))
        write_text(path.with_suffix(".csv"), full_numbers(mine))
    done = sum(status(study, cell) == DONE for cell in study.cells)
    report = Report(study.out, study.settings, done, len(study.cells), tables, draw_figures(study, results), failed)
    write_text(study.out / RESULTS, f"{_heading(study, report)}\n\n{report.text()}\n")
    return report


def _heading(study: Study, report: Report) -> str:
    """What was run, and what not to conclude from it."""
    data = f"{study.scans}; segmented CT: {study.segmented or 'none'}"
    if study.synthetic:
        data = f"synthetic CT, {study.patients} patients of each class"
    seeds = f"seed {study.seed}" if study.scale.seeds == 1 else f"{study.scale.seeds} seeds from {study.seed} on"
    lines = [
        "# The experiments of Li, Pei and Guo 2021",
        "",
        f"- Data: {data}",
        f"- Scale: {study.size} pixels, {counted(study.epochs, 'epoch')}, {seeds}",
        f"- Done: {report.done} of {counted(report.cells, 'cell')}",
        *(f"- Failed: {sentence}" for sentence in report.failed),
        "",
        "The paper's values are of CC-CCII with 512 pixels and 20 epochs; compare only what was run in the same way.",
    ]
    if study.synthetic:
        lines.append("The scans here are synthetic: the figures show that the pipeline works, and nothing about patients.")
    return "\n".join(lines)


def _document(table: Table) -> dict[str, Any]:
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    return {"title": table.title, "rows": rows, "notes": list(table.notes)}
