"""ctcovid models: architectures, and runs that are trained models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctcovid.base.console import Console
from ctcovid.models.catalog import ARCHITECTURES, DEFAULT
from ctcovid.reports.tables import Cell, Table


@dataclass(frozen=True)
class Options:
    """What `ctcovid models` was asked for."""

    runs: Path = Path("runs")


@dataclass(frozen=True)
class Summary:
    """Architectures and trained runs, as plain data."""

    architectures: list[dict[str, Any]]
    runs: list[dict[str, Any]]

    def document(self) -> dict[str, Any]:
        return {"architectures": self.architectures, "runs": self.runs}

    def terminal(self) -> Any:
        from rich.console import Group

        return Group(*(table.terminal() for table in self._tables()))

    def text(self) -> str:
        return "\n\n".join(table.text() for table in self._tables())

    def _tables(self) -> list[Table]:
        rows: list[list[Cell]] = [
            [row["name"] + (" (default)" if row["name"] == DEFAULT else ""), row["family"], row["source"], row["parameters"]]
            for row in self.architectures
        ]
        tables = [Table(("architecture", "family", "source", "parameters"), rows, "Architectures", text_columns=3)]
        runs: list[list[Cell]] = [
            [
                run["name"],
                run.get("architecture", run.get("error", "")),
                run.get("created", ""),
                run.get("depth", ""),
                run.get("size", ""),
            ]
            for run in self.runs
        ]
        if runs:
            tables.append(Table(("run", "architecture", "created", "depth", "size"), runs, "Trained models", text_columns=3))
        return tables


def run(options: Options, console: Console) -> Summary:
    """List what can be trained and what is trained."""
    architectures = [
        {"name": row.name, "family": row.family, "parameters": row.parameters, "source": row.source} for row in ARCHITECTURES.values()
    ]
    summary = Summary(architectures, _trained(options.runs))
    console.result(summary, summary.document())
    if not summary.runs:
        console.say(f"No trained model under {options.runs}/ yet; ctcovid train makes one.")
    return summary


def _trained(runs: Path) -> list[dict[str, Any]]:
    if not any(runs.glob("*/model.json")):
        # Without a run there is no reason to wait for torch.
        return []
    from ctcovid.models.registry import describe, finished_runs

    return [{"name": folder.name, "folder": str(folder), **describe(folder)} for folder in finished_runs(runs)]
