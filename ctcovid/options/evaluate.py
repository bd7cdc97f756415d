"""Options of ctcovid evaluate."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from ctcovid.base import choices
from ctcovid.base.errors import UsageError
from ctcovid.options import shared


@dataclass(frozen=True)
class Options(shared.Options):
    """Score models on the test part, and compare them."""

    models: Annotated[
        list[str],
        typer.Argument(
            help="Runs by name or path, or predictions as CSV; the first is the reference. By default the newest run.",
            autocompletion=shared.complete_model,
        ),
    ] = field(default_factory=list)
    data: Annotated[Path | None, typer.Option(help="Volumes file; by default the one the model was trained with.")] = None
    part: Annotated[choices.Part, typer.Option(help="Part of the data.")] = "test"
    positive: Annotated[str | None, typer.Option(help="Positive class of precision and recall; by default the model's.")] = None
    level: Annotated[choices.Level, typer.Option(help="What is scored: volumes as in the paper, scans, or patients.")] = "volume"
    join: Annotated[choices.Join, typer.Option(help="How volume probabilities are aggregated to scans or patients.")] = "mean"
    bootstrap: Annotated[int, typer.Option(min=1, help="Bootstrap samples.")] = 1000
    resample: Annotated[
        choices.Level, typer.Option(help="What bootstrap samples draw: volumes as in the paper, whole scans, or patients.")
    ] = "volume"
    ci: Annotated[
        choices.Interval, typer.Option(help="Confidence interval: percentiles, normal (mean ± 1.96 s.d., as in the paper), or BCa.")
    ] = "percentile"
    sensitivity: Annotated[
        float | None, typer.Option(min=0.01, max=1, help="Choose a threshold for this sensitivity on the validation part.")
    ] = None
    subgroups: Annotated[Path | None, typer.Option(help="CSV of patients with columns to group by: patient or patient_id, and others.")] = (
        None
    )
    output: Annotated[Path | None, shared.output_option("Folder to write; by default inside the run.")] = None
    pdf: Annotated[bool, typer.Option(help="Also write the figures as PDF.")] = False
    runs: shared.Runs = Path("runs")
    device: shared.Device = "auto"
    precision: shared.Precision = "auto"
    seed: shared.Seed = 0
    workers: shared.Workers = None
    overwrite: shared.Overwrite = False

    def require_sense(self) -> None:
        from ctcovid.models.registry import find

        if self.sensitivity is not None and self.part == "valid":
            raise UsageError("--sensitivity chooses a threshold on the validation part and tests it on another. Evaluate another --part.")
        names: list[str | None] = [name for name in self.models if not is_csv(Path(name))]
        for name in names or ([] if self.models else [None]):
            find(name, self.runs)
            # Predictions in a CSV need no device.
            shared.require_device(self.device)


def is_csv(source: Path) -> bool:
    """Whether the source is a file of predictions, and not a run directory."""
    return source.suffix.lower() == ".csv"
