"""Options of ctcovid explain."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from ctcovid.base import choices
from ctcovid.base.errors import UsageError
from ctcovid.base.files import require_named, require_there
from ctcovid.options import shared


@dataclass(frozen=True)
class Options(shared.Options):
    """Show where a network looks, with Smooth Grad-CAM++ or another method."""

    scans: shared.Scans
    model: Annotated[str | None, shared.model_option("Trained model, by name or path; by default the newest.")] = None
    series: shared.Series = None
    method: Annotated[choices.Method, typer.Option(help="How the maps are made; all but occlusion explain a layer.")] = "smooth-gradcam++"
    layer: Annotated[str | None, typer.Option(help="Layer to explain; by default the last one with feature maps.")] = None
    target: Annotated[str | None, typer.Option(help="Class to explain; by default the one predicted.")] = None
    samples: Annotated[int, typer.Option(min=1, help="Noisy copies of each volume.")] = 10
    noise_std: Annotated[float, typer.Option(min=0, help="Standard deviation of the noise, as a share of the grey range.")] = 0.1
    faithfulness: Annotated[bool, typer.Option(help="Measure whether the maps are faithful to the model. Takes minutes.")] = False
    mask: Annotated[Path | None, typer.Option(help="Lesion mask of the scan to compare the maps with: a volume, or a folder of PNG.")] = (
        None
    )
    output: Annotated[Path, shared.output_option("Folder to write a folder per scan into.")] = Path("explanations")
    resume: Annotated[bool, typer.Option(help="Explain only the scans that --output lacks.")] = False
    runs: shared.Runs = Path("runs")
    device: shared.Device = "auto"
    precision: shared.Precision = "auto"
    seed: shared.Seed = 0
    workers: shared.Workers = None
    overwrite: shared.Overwrite = False

    def require_sense(self) -> None:
        from ctcovid.models.registry import find

        if self.layer and self.method == choices.OCCLUSION:
            raise UsageError("--method occlusion does not use a layer. Omit --layer, or choose another method.")
        if self.resume and self.overwrite:
            raise UsageError("--resume keeps what is in --output and --overwrite replaces it. Give one of them.")
        for path in self.scans:
            require_named(path)
        if self.mask is not None:
            require_there(self.mask, "mask")
        find(self.model, self.runs)
        shared.require_device(self.device)
