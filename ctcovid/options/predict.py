"""Options of ctcovid predict."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer

from ctcovid.options import shared

# The name of an output that is standard output.
STDOUT = Path("-")


@dataclass(frozen=True)
class Options(shared.Options):
    """Classify scans: one row of probabilities for each."""

    scans: shared.Scans
    model: Annotated[
        list[str], shared.model_option("Trained model, by name or path; by default the newest. Several, or A,B, are averaged.")
    ] = field(default_factory=list)
    series: shared.Series = None
    output: Annotated[
        Path | None, shared.output_option("CSV, JSON or JSON Lines file to write, by its ending; - streams JSON Lines to stdout.")
    ] = None
    volumes: Annotated[Path | None, typer.Option(help="CSV, JSON or JSON Lines file to write a row per volume to.")] = None
    raw: Annotated[bool, typer.Option(help="Softmax as it is, without the temperature that was fitted in training.")] = False
    strict: Annotated[bool, typer.Option(help="End with exit code 4 where a scan is flagged.")] = False
    shard: Annotated[str, typer.Option(help="Only this part of the scans, as 3/16 in a job array.", metavar="K/N")] = ""
    resume: Annotated[bool, typer.Option(help="Add to --output the scans that are not in it yet.")] = False
    runs: shared.Runs = Path("runs")
    device: shared.Device = "auto"
    precision: shared.Precision = "auto"
    workers: shared.Workers = None
    overwrite: shared.Overwrite = False

    @property
    def outputs(self) -> list[Path]:
        """Files to write."""
        return [path for path in (self.output, self.volumes) if path is not None and path != STDOUT]
