"""Options of ctcovid paper."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from ctcovid.base import choices
from ctcovid.base.errors import UsageError
from ctcovid.options import shared


@dataclass(frozen=True)
class Options(shared.Options):
    """Repeat the paper's experiments: Tables 4 to 7 and Figs. 4 to 9."""

    action: Annotated[
        choices.PaperAction,
        typer.Argument(help="run what is not done yet, list the cells, print a job array for SLURM (sbatch), or report what there is."),
    ]
    scans: Annotated[
        str,
        typer.Argument(
            help="Complete CT: folder of CLASS/patient/scan, or CSV of path,label,patient. To run one cell: its number or name."
        ),
    ] = ""
    segmented: Annotated[Path | None, typer.Option(help="Segmented CT for Table 4; the same folder if both kinds are mixed.")] = None
    synthetic: Annotated[bool, typer.Option(help="Rehearse on synthetic CT, which is made first.")] = False
    patients: Annotated[int | None, typer.Option(min=1, help="Patients of each class.", show_default="20; with --synthetic")] = None
    cell: Annotated[str, typer.Option(help="Only this cell, by its number or name, as in a job array.")] = ""
    size: Annotated[int, shared.size_option("Pixels per side of a slice.")] = 512
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the training part.")] = 20
    depths: Annotated[str, typer.Option(help="Depths to train; Table 4 takes the last.", metavar='"N …"')] = "2 4 8 16 32 64"
    batches: Annotated[str, typer.Option(help="Batch sizes to train.", metavar='"N …"')] = "8 32 64"
    archs: Annotated[str, typer.Option(help="Architectures to train.", metavar='"NAME …"')] = "r3d18 r2plus1d18 r3d34 r2plus1d34 r3d50"
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each cell, with --seed and the numbers after it.")] = 1
    output: Annotated[Path, shared.output_option("Folder of everything that is made.")] = Path("ctcovid-paper")
    device: shared.Device = "auto"
    precision: shared.Precision = "auto"
    seed: shared.Seed = 0
    workers: shared.Workers = None

    def require_sense(self) -> None:
        if self.action != choices.RUN and self.cell:
            raise UsageError(f"--cell is for ctcovid paper run; {self.action} is about all cells.")
        if self.synthetic and self.segmented is not None:
            raise UsageError("--synthetic makes segmented scans of its own. Omit --segmented.")
        for name in ("depths", "batches"):
            numbers(name, getattr(self, name))
        if self.action == choices.RUN:
            shared.require_device(self.device)


def numbers(name: str, text: str) -> tuple[int, ...]:
    """The numbers in an option's value, separated by blanks or commas.

    Raises UsageError if a word is not a number above 0, or there is none.
    """
    found = text.replace(",", " ").split()
    for word in found or [text]:
        if not (word.isascii() and word.isdigit() and 0 < int(word) <= shared.MOST_SLICES):
            raise UsageError(f"--{name}: '{word}' is not a number from 1 to {shared.MOST_SLICES}. Write them as --{name} \"4 8\".")
    return tuple(map(int, found))
