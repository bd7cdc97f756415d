"""Options of ctcovid train."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ctcovid.base.errors import UsageError
from ctcovid.models.architectures import DEFAULT, architecture
from ctcovid.options import shared
from ctcovid.options.recipe import RecipeOptions


def volumes_or_auto(value: Any) -> int | str:
    """A number of volumes, or "auto".

    Raises typer.BadParameter for anything else.
    """
    if value == "auto":
        return "auto"
    if not str(value).isdigit() or int(value) < 1:
        raise typer.BadParameter(f"{value} is neither a number of volumes nor auto.")
    return int(value)


@dataclass(frozen=True)
class Options(RecipeOptions, shared.Options):
    """Train a network with the paper's recipe."""

    arch: Annotated[str, shared.architecture_option("Architecture; ctcovid models lists them.")] = DEFAULT
    data: Annotated[Path, typer.Option(help="Volumes file that ctcovid prepare made.")] = Path("volumes.h5")
    depth: Annotated[int | None, shared.depth_option("Slices per volume; by default the file's.")] = None
    # Any, because Typer supports no unions: a number, "auto", or None for whole batches.
    micro_batch: Annotated[
        Any,
        typer.Option(
            parser=volumes_or_auto,
            metavar="N|auto",
            help="Volumes in memory at a time if a batch does not fit; auto finds how many do.",
        ),
    ] = None
    sync_batchnorm: Annotated[bool, typer.Option(help="Batch norm over the volumes of all processes together.")] = False
    pretrained: Annotated[
        Path | None,
        typer.Option(help="Initial weights: a file of 3D-ResNets-PyTorch, MedicalNet or torchvision, or a run."),
    ] = None
    tensorboard: Annotated[bool, typer.Option(help="Also write the curves for TensorBoard.")] = False
    name: Annotated[str, typer.Option(help="Name of the run; by default from architecture, depth and batch size.")] = ""
    runs: shared.Runs = Path("runs")
    resume: Annotated[bool, typer.Option(help="Resume the run if it exists, otherwise start it.")] = False
    checkpoint_every: Annotated[float, typer.Option(min=0, help="Minutes between checkpoints within an epoch; 0 for none.")] = 10
    device: shared.Device = "auto"
    precision: shared.Precision = "auto"
    seed: shared.Seed = 0
    workers: shared.Workers = None
    overwrite: shared.Overwrite = False

    def folder(self, depth: int) -> Path:
        """The folder of the run, for volumes of that depth."""
        return self.runs / (self.name or f"{self.arch}-d{depth}-b{self.batch}")

    def require_sense(self) -> None:
        from ctcovid.volumes.absent import require_volumes

        architecture(self.arch)
        if self.name in (".", "..") or Path(self.name).name != self.name:
            raise UsageError(f"--name {self.name}: give a name without a path; the run becomes a folder in {self.runs}/.")
        self.require_recipe()
        if self.resume and self.overwrite:
            raise UsageError("--resume continues a run and --overwrite discards it. Give one of them.")
        require_volumes(self.data)
        # Imported here, so that a file that is absent is refused before.
        from ctcovid.models.saved_model import require_no_run
        from ctcovid.volumes.reader import VolumesFile

        file = VolumesFile(self.data)
        if not (self.resume or self.overwrite):
            require_no_run(self.folder(self.depth or file.depth))
        shared.require_device(self.device)
