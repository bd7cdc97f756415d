"""ctcovid models: architectures and trained models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctcovid.base.console import Console
from ctcovid.models.architectures import ARCHITECTURES, DEFAULT, architecture
from ctcovid.options.models import Options
from ctcovid.reports.tables import Cell, Table


@dataclass(frozen=True)
class Summary:
    """Architectures and trained runs, as plain data."""

    architectures: list[dict[str, Any]]
    runs: list[dict[str, Any]]

    def document(self) -> dict[str, Any]:
        return {"architectures": self.architectures, "runs": self.runs}

    def terminal(self, width: int) -> Any:
        from rich.console import Group

        return Group(*(table.terminal(width) for table in self._tables()))

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


@dataclass(frozen=True)
class Plan:
    """The cost of each convolution of an architecture, and of all together, in GMAC per volume."""

    options: Options
    layers: list[dict[str, Any]]
    totals: dict[str, float | None]

    def document(self) -> dict[str, Any]:
        options = self.options
        return {
            "architecture": options.cost,
            "depth": options.depth,
            "size": options.size,
            "counted": "convolutions",
            "layers": self.layers,
            "totals": self.totals,
        }

    def table(self) -> Table:
        rows: list[list[Cell]] = [
            [
                layer["layer"],
                "×".join(map(str, layer["shape"])),
                layer["chosen"],
                *(_gmac(layer[name]) for name in self.totals),
                f"{layer['share']:.1%}",
            ]
            for layer in self.layers
        ]
        rows.append(["all", "", "", *map(_gmac, self.totals.values()), f"{1:.1%}"])
        depth, size = self.options.depth, self.options.size
        note = "Only convolutions are counted"
        if "transformer" in architecture(self.options.cost).family:
            note += f"; most of the work of {self.options.cost} is in linear layers and attention"
        return Table(
            ("layer", "output", "chosen", "GMAC plain", "GMAC folded", "GMAC chosen", "share"),
            rows,
            f"{self.options.cost} on one {depth}×{size}×{size} volume",
            text_columns=3,
            notes=[f"{note}."],
        )


def _gmac(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def run(options: Options, console: Console) -> Summary | Plan:
    """List architectures and trained models, or show what an architecture's layers cost."""
    return _plan(options, console) if options.cost else _lists(options, console)


def _plan(options: Options, console: Console) -> Plan:
    from ctcovid.models.costs import plan

    costs = plan(options.cost, options.depth, options.size)
    folded = [layer.folded for layer in costs if layer.folded is not None]
    total = sum(layer.cost for layer in costs)
    layers = [
        {
            "layer": layer.layer,
            "shape": list(layer.shape),
            "gmac_plain": layer.plain,
            "gmac_folded": layer.folded,
            "chosen": layer.way,
            "gmac_chosen": layer.cost,
            "share": layer.cost / total,
        }
        for layer in costs
    ]
    totals = {"gmac_plain": sum(layer.plain for layer in costs), "gmac_folded": sum(folded) if folded else None, "gmac_chosen": total}
    made = Plan(options, layers, totals)
    console.result(made.table(), made.document())
    console.say("Chosen: folded is a 2D convolution over depth and channels; plain is a 3D convolution. The others are 2D convolutions:")
    console.say("slices for kernels of depth 1; columns and band (one dense matrix) for kernels of size 1 in the plane; points for both.")
    return made


def _lists(options: Options, console: Console) -> Summary:
    architectures = [
        {"name": row.name, "family": row.family, "parameters": row.parameters, "source": row.source} for row in ARCHITECTURES.values()
    ]
    summary = Summary(architectures, _trained(options.runs))
    console.result(summary, summary.document())
    if not summary.runs:
        from ctcovid.models.registry import elsewhere

        console.say(f"No trained model in {options.runs}/. {elsewhere()}Train one with `ctcovid train`.")
    return summary


def _trained(runs: Path) -> list[dict[str, Any]]:
    if not any(runs.glob("*/model.json")):
        # Without a run, torch is not needed.
        return []
    from ctcovid.models.registry import describe, finished_runs

    return [{"name": folder.name, "folder": str(folder), **describe(folder)} for folder in finished_runs(runs)]
