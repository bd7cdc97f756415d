"""Options of ctcovid demo."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ctcovid.base import choices
from ctcovid.options import shared


def _share(what: str) -> Any:
    return typer.Option(min=0, max=1, help=f"Share of the scans {what}.")


@dataclass(frozen=True)
class Options(shared.Options):
    """Take a small synthetic CC-CCII through all five commands."""

    folder: Annotated[Path, typer.Argument(help="Folder to make.")] = Path("ctcovid-demo")
    data_only: Annotated[bool, typer.Option(help="Only make the synthetic data set.")] = False
    preset: Annotated[choices.Preset, typer.Option(help="Size of the demo; auto chooses by CPU and GPU.")] = "auto"
    patients: Annotated[int | None, typer.Option(min=1, help="Patients of each class.", show_default="the preset's, or 20")] = None
    size: Annotated[int | None, shared.size_option("Pixels per side of a slice.", show_default="the preset's, or 512")] = None
    slices: Annotated[
        str | None, typer.Option(help="Fewest and most slices of a scan.", show_default="the preset's, or as in CC-CCII", metavar="N-M")
    ] = None
    difficulty: Annotated[
        float | None, typer.Option(min=0, max=1, help="0: large, dense lesions; 1: small, faint ones.", show_default="0, or 0.2")
    ] = None
    repeated: Annotated[float, _share("that are stored twice")] = 0.0
    shuffled: Annotated[float, _share("with slices in the wrong order")] = 0.0
    reversed: Annotated[float, _share("stored feet first")] = 0.0
    masked: Annotated[float, _share("black outside the lungs")] = 0.0
    corrupt: Annotated[float, _share("with a damaged file")] = 0.0
    odd_size: Annotated[float, _share("that are not square")] = 0.0
    device: shared.Device = "auto"
    seed: shared.Seed = 0
    workers: shared.Workers = None
    overwrite: shared.Overwrite = False
