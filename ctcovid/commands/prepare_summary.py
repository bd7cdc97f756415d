"""Results of ctcovid prepare: the summary, quality.csv, and the reports of runs that pack nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctcovid.base.console import Console
from ctcovid.base.errors import counted, listing
from ctcovid.base.files import write_text
from ctcovid.options.prepare import Options
from ctcovid.reports.dataset_table import dataset_table
from ctcovid.reports.quality_table import findings_table, summary_table
from ctcovid.reports.tables import Table
from ctcovid.volumes.layout import ScanRow
from ctcovid.volumes.reader import VolumesFile
from ctcovid.volumes.verdicts import findings_of, reasons_of


@dataclass(frozen=True)
class Summary:
    """What was prepared: the table by class and part, the scans that had to be left out, and the findings.

    `output` is None after a check or a plan.
    """

    output: Path | None
    table: Table
    failed: list[str]
    quality: Table

    def document(self) -> dict[str, Any]:
        output = {"output": str(self.output)} if self.output else {}
        return {**output, "table": records(self.table), "failed": self.failed, "quality": records(self.quality)}


def records(table: Table) -> list[dict[str, Any]]:
    """Rows as they are in JSON."""
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


def failed_scans(rows: list[ScanRow], dataset: Path) -> list[str]:
    """A sentence for each scan that is left out because something is wrong with it."""
    return [reason if str(dataset / source) in reason else f"{dataset / source}: {reason}" for source, reason in reasons_of(rows).items()]


def write_quality(rows: list[ScanRow], path: Path) -> Table:
    """Write all findings; returns their summary."""
    found = findings_of(rows)
    write_text(path, findings_table(found).csv())
    return summary_table(found)


def report_check(rows: list[ScanRow], problems: list[str], options: Options, console: Console) -> Summary:
    """The result of --check."""
    quality = write_quality(rows, options.quality)
    failed = problems + failed_scans(rows, options.dataset)
    if failed:
        console.warn(f"{counted(len(failed), 'scan')} cannot be used:\n{listing(failed)}")
    console.result(quality, {"quality": records(quality), "failed": failed, "file": str(options.quality)})
    console.say(f"Wrote {options.quality}." if quality.rows else f"Nothing is wrong. Wrote {options.quality}, without a row.")
    return Summary(None, summary_table([]), failed, quality)


def report_nothing_new(base: VolumesFile, problems: list[str], console: Console) -> Summary:
    """The result of --append without a new scan that can be read; `problems` are sentences about the others."""
    quality = summary_table(findings_of([*base.rows, *base.left_out]))
    summary = Summary(base.path, dataset_table(base.rows, base.classes, base.depth), problems, quality)
    if problems:
        console.warn(f"{counted(len(problems), 'scan')} cannot be used:\n{listing(problems)}")
    console.result(summary.table, summary.document())
    console.say(f"There is nothing to add. {base.path} is unchanged.")
    return summary
