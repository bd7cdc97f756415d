"""Options of ctcovid predict."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from ctcovid.base.errors import UsageError
from ctcovid.base.files import require_there
from ctcovid.options import shared

T = TypeVar("T")
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

    @property
    def models(self) -> list[str | None]:
        """Names of the models, each as it was given; None for the newest."""
        return [name.strip() for some in self.model for name in some.split(",") if name.strip()] or [None]

    def require_sense(self) -> None:
        from ctcovid.models.registry import find

        if self.resume and self.overwrite:
            raise UsageError("--resume goes on with an --output, and --overwrite replaces it. Give one of them.")
        if self.resume and not (self.output and self.output != STDOUT):
            raise UsageError("--resume goes on with a file. Name the one to continue with --output.")
        if self.volumes == STDOUT:
            raise UsageError("--volumes - is no file. Name one that ends in .csv, .json or .jsonl.")
        if self.volumes is not None and self.volumes == self.output:
            raise UsageError("--volumes and --output name the same file. Rows of volumes and of scans differ; give two.")
        self.part_of(())
        for path in self.scans:
            require_there(path)
        for name in self.models:
            find(name, self.runs)
        shared.require_device(self.device)

    def part_of(self, scans: Sequence[T]) -> Sequence[T]:
        """The K-th of N parts of the scans, of --shard K/N; all without.

        Raises UsageError where --shard does not say that.
        """
        if not self.shard:
            return scans
        found = re.fullmatch(r"(\d+)/(\d+)", self.shard)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            text = "give the number of the part and how many there are, as in --shard 3/16, from 1/16 to 16/16"
            raise UsageError(f"--shard {self.shard}: {text}.")
        return scans[int(found[1]) - 1 :: int(found[2])]
