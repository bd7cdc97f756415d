"""Options and arguments that several commands have, in one wording."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ctcovid.base.choices import PrecisionChoice
from ctcovid.base.settings import micro_batch, read_config
from ctcovid.models.catalog import ARCHITECTURES

# No volume is thicker than the thickest scans.
MOST_SLICES = 1024


def architectures(incomplete: str) -> list[str]:
    return [name for name in ARCHITECTURES if name.startswith(incomplete)]


def models_of(incomplete: str) -> list[str]:
    return sorted(path.parent.name for path in Path("runs").glob("*/model.json") if path.parent.name.startswith(incomplete))


Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]
Precision = Annotated[PrecisionChoice, typer.Option(help="auto takes bfloat16 where the device is faster with it.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of everything that is drawn at random.")]
Workers = Annotated[
    int | None, typer.Option(min=1, help="How many slices are read at a time; by default as many as this job has CPUs.", show_default=False)
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a result that is there already.")]
Config = Annotated[
    Path | None,
    typer.Option(
        help="TOML file of settings, in a table named after the command or above all tables.", is_eager=True, callback=read_config
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No talk: only results, warnings and errors.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Also the place in the code of an unexpected fault.")]
Data = Annotated[Path, typer.Option(help="Volumes file that ctcovid prepare made.")]
Runs = Annotated[Path, typer.Option(help="Folder of the trained models.")]
Model = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", help="Trained model, by name or path; by default the newest.", autocompletion=models_of, show_default=False
    ),
]


def Share(what: str) -> Any:  # noqa: N802
    """An option that gives a share of the scans of a synthetic data set."""
    return typer.Option(min=0, max=1, help=f"Share of the scans {what}.")


def Beyond(what: str, *names: str, **limits: Any) -> Any:  # noqa: N802
    """An option of training that the paper does not have."""
    return typer.Option(*names, help=what, rich_help_panel="Beyond the paper's recipe, all off by default", show_default=False, **limits)


def Listed(what: str) -> Any:  # noqa: N802
    """An option that names a file."""
    return typer.Option(help=what, show_default=False)


Scans = Annotated[list[Path], typer.Argument(help="Folders of slices, trees of them, scan files, or a CSV of paths.", show_default=False)]
Series = Annotated[str | None, typer.Option(help="DICOM series, by UID, number or description, of each study.", show_default=False)]
Models = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        "-m",
        help="Trained model, by name or path; by default the newest. Several, or A,B, are averaged.",
        autocompletion=models_of,
        show_default=False,
    ),
]
Rows = Annotated[
    Path | None,
    typer.Option(
        "--output", "-o", help="CSV, JSON or JSON Lines file to write, by its ending; - streams JSON Lines to stdout.", show_default=False
    ),
]
MicroBatch = Annotated[
    Any,
    typer.Option(
        parser=micro_batch,
        metavar="N|auto",
        help="Volumes in memory at a time, where a batch does not fit; auto tries how many do.",
        show_default=False,
    ),
]
Pretrained = Annotated[
    Path | None,
    typer.Option(help="Weights to begin with: a file of 3D-ResNets-PyTorch, MedicalNet or torchvision, or a run.", show_default=False),
]
