"""Options of ctcovid predict."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from ctcovid.base.errors import UsageError
from ctcovid.base.files import require_named
from ctcovid.options import shared

T = TypeVar("T")
# As an output: standard output.
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
        Path | None, shared.output_option("CSV, JSON or JSON Lines file to write, by its suffix; - streams JSON Lines to stdout.")
    ] = None
    volumes: Annotated[Path | None, typer.Option(help="CSV, JSON or JSON Lines file to write a row per volume to.")] = None
    raw: Annotated[bool, typer.Option(help="Do not calibrate: omit the temperature that was fitted in training.")] = False
    strict: Annotated[bool, typer.Option(help="End with exit code 4 if a scan is flagged.")] = False
    shard: Annotated[str, typer.Option(help="Only this share of the scans, such as 3/16 in a job array.", metavar="K/N")] = ""
    resume: Annotated[bool, typer.Option(help="Add to --output the scans that it lacks.")] = False
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
        """Names of the models as they were given; None for the newest."""
        return [name.strip() for some in self.model for name in some.split(",") if name.strip()] or [None]

    def require_sense(self) -> None:
        from ctcovid.models.registry import find

        if self.resume and self.overwrite:
            raise UsageError("--resume continues an --output and --overwrite replaces it. Give one of them.")
        if self.resume and not (self.output and self.output != STDOUT):
            raise UsageError("--resume continues a file. Name it with --output.")
        if self.volumes == STDOUT:
            raise UsageError("--volumes - is not a file. Name one that ends in .csv, .json or .jsonl.")
        if self.volumes is not None and self.volumes == self.output:
            raise UsageError("--volumes and --output name the same file. Rows of volumes and of scans need a file each.")
        self.own_shard(())
        for path in self.scans:
            require_named(path)
        for name in self.models:
            find(name, self.runs)
        shared.require_device(self.device)

    def own_shard(self, scans: Sequence[T]) -> Sequence[T]:
        """With --shard K/N the K-th of N shares of the scans, otherwise all.

        Raises UsageError if --shard has another form.
        """
        if not self.shard:
            return scans
        found = re.fullmatch(r"(\d+)/(\d+)", self.shard)
        if not found or not 1 <= int(found[1]) <= int(found[2]):
            text = "give a number and a total, such as --shard 3/16; the numbers of 16 shares are 1 to 16"
            raise UsageError(f"--shard {self.shard}: {text}.")
        return scans[int(found[1]) - 1 :: int(found[2])]
