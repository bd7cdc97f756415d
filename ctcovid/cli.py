"""The command line: words, help and exit codes. Each command is one lazy import and one call."""

from __future__ import annotations

import errno
import importlib
import os
import sys
import traceback
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from ctcovid import __version__
from ctcovid.base.choices import (
    BalanceChoice,
    ImagesChoice,
    Interval,
    Join,
    Level,
    MethodChoice,
    Part,
    PrecisionChoice,
    ProblemChoice,
    ScheduleChoice,
)
from ctcovid.base.console import Console
from ctcovid.base.errors import EXIT_INTERRUPTED, EXIT_PARTIAL, EXIT_UNEXPECTED, CtcovidError, StoppedError, ToldError
from ctcovid.base.launch import place, require_alone
from ctcovid.base.settings import name_environment, slips, sources
from ctcovid.base.signals import raise_when_stopped
from ctcovid.models.catalog import DEFAULT
from ctcovid.words import (
    MOST_SLICES,
    Beyond,
    Config,
    Data,
    Device,
    Json,
    Listed,
    MicroBatch,
    Model,
    Models,
    Overwrite,
    Precision,
    Pretrained,
    Quiet,
    Rows,
    Runs,
    Scans,
    Seed,
    Series,
    Share,
    Verbose,
    Workers,
    architectures,
    models_of,
)

EPILOG = "Research use only, not a medical device. Settings: option > environment (CTCOVID_…) > --config file > default."

app = typer.Typer(
    name="ctcovid",
    help="Classify chest CT as COVID-19, common pneumonia or normal with 3D convolutional networks (Li, Pei and Guo 2021).",
    epilog=EPILOG,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"ctcovid {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.", is_eager=True, callback=_version)] = False,
) -> None:
    """What every command has in common is said once, by the options above."""


@app.command(epilog="Example: ctcovid prepare ./CC-CCII --depth 4")
def prepare(
    ctx: typer.Context,
    dataset: Annotated[
        Path,
        typer.Argument(help="Folder of CLASS/patient/scan, or CSV of path,label,patient. With --plan a CSV of scans.", show_default=False),
    ],
    depth: Annotated[int, typer.Option(min=1, max=MOST_SLICES, help="Slices per volume.")] = 4,
    size: Annotated[int, typer.Option(min=16, max=4096, help="Pixels per side of a slice.")] = 512,
    output: Annotated[Path, typer.Option("--output", "-o", help="HDF5 file to write.")] = Path("volumes.h5"),
    split: Annotated[str, typer.Option(help="Shares of the patients to train, validate and test with.")] = "60/20/20",
    split_file: Annotated[Path | None, typer.Option(help="CSV with the columns patient,split, in place of --split.")] = None,
    positive: Annotated[
        str | None, typer.Option(help="Class that precision and recall are about; by default the first.", show_default=False)
    ] = None,
    images: Annotated[ImagesChoice, typer.Option(help="Complete CT, segmented CT (black outside the lungs), or both.")] = (
        ImagesChoice.COMPLETE
    ),
    on_problem: Annotated[
        ProblemChoice, typer.Option(help="Repair what can be repaired for certain, drop such scans, or stop at the first.")
    ] = ProblemChoice.REPAIR,
    exclude: Annotated[Path | None, Listed("List of scans to leave out, such as NCP/96/1328.")] = None,
    lesions: Annotated[Path | None, Listed("CSV of the slices with lesions; others of diseased classes are left out.")] = None,
    balance: Annotated[bool, typer.Option("--balance", help="Pick patients so that all classes have as many slices.")] = False,
    same_as: Annotated[Path | None, Listed("Volumes file whose number of slices by class and part is taken.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Only say what is wrong with the scans, in quality.csv.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="Only print the table that would result, from a CSV of scans.")] = False,
    defects: Annotated[Path | None, Listed("With --plan: CSV of segmented and repeated scans.")] = None,
    window: Annotated[str, typer.Option(help="Level and width that Hounsfield units become grey by.", metavar="LEVEL/WIDTH")] = "-600/1500",
    series: Series = None,
    keep_ids: Annotated[bool, typer.Option("--keep-ids", help="Write DICOM's own patient and study ids, not pseudonyms.")] = False,
    seed: Seed = 0,
    workers: Workers = None,
    executor: Annotated[str, typer.Option(help="Who decodes: processes, dask://HOST:8786, dask, mpi.", metavar="ENGINE")] = "processes",
    append: Annotated[bool, typer.Option("--append", help="Add scans that the output lacks; none of its patients moves.")] = False,
    overwrite: Overwrite = False,
    config: Config = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Pack CT slices into an HDF5 file of depth-n volumes."""
    _run(ctx)


@app.command(epilog="Example: ctcovid train --arch r2plus1d18")
def train(
    ctx: typer.Context,
    arch: Annotated[str, typer.Option(help="Architecture; ctcovid models lists them.", autocompletion=architectures)] = DEFAULT,
    data: Data = Path("volumes.h5"),
    depth: Annotated[
        int | None, typer.Option(min=1, max=MOST_SLICES, help="Slices per volume; by default the file's.", show_default=False)
    ] = None,
    epochs: Annotated[int, typer.Option(min=0, help="Passes over the training part; 0 makes a model of --pretrained as it is.")] = 20,
    batch: Annotated[int, typer.Option(min=1, help="Volumes per step.")] = 32,
    micro_batch: MicroBatch = None,
    learning_rate: Annotated[float, typer.Option(min=1e-12, help="Adam's first rate; a tenth of it every 10 epochs.")] = 1e-3,
    sync_batchnorm: Annotated[
        bool, typer.Option("--sync-batchnorm", help="Batch norm over the volumes of all processes, not of each for itself.")
    ] = False,
    pretrained: Pretrained = None,
    augment: Annotated[bool, Beyond("Flip, turn, shift, zoom, brighten and add noise to training volumes at random.", "--augment")] = False,
    balance: Annotated[BalanceChoice, Beyond("Let rare classes count like common ones, in the loss or by draw.")] = BalanceChoice.NONE,
    label_smoothing: Annotated[float, Beyond("Share of the target that is spread over all classes.", min=0, max=0.99)] = 0.0,
    weight_decay: Annotated[float, Beyond("AdamW with this weight decay, in place of Adam.", min=0)] = 0.0,
    schedule: Annotated[ScheduleChoice, Beyond("cosine: the rate falls along a cosine to the last epoch.")] = ScheduleChoice.STEP,
    warmup: Annotated[float, Beyond("Epochs in which the rate rises to its full height.", min=0)] = 0.0,
    ema: Annotated[float, Beyond("Decay of a moving average of the weights, which becomes the model; 0.999.", min=0, max=0.99999)] = 0.0,
    patience: Annotated[int, Beyond("Stop after so many epochs without a better one.", min=0)] = 0,
    clip_gradient: Annotated[float, Beyond("Highest norm of a step's gradient.", min=0)] = 0.0,
    freeze: Annotated[str, Beyond("Keep the weights up to this layer: stem, layer1, … For --pretrained.")] = "",
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write the curves for TensorBoard as well.")] = False,
    name: Annotated[str, typer.Option(help="Name of the run; by default made of architecture, depth and batch.", show_default=False)] = "",
    runs: Runs = Path("runs"),
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run if there is one, else begin it.")] = False,
    checkpoint_every: Annotated[float, typer.Option(min=0, help="Minutes between checkpoints within an epoch; 0 for none.")] = 10,
    device: Device = "auto",
    precision: Precision = PrecisionChoice.AUTO,
    seed: Seed = 0,
    workers: Workers = None,
    overwrite: Overwrite = False,
    config: Config = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train a network with the paper's recipe."""
    _run(ctx)


@app.command(epilog="Example: ctcovid evaluate r3d18-d4-b32 r2plus1d18-d4-b32")
def evaluate(
    ctx: typer.Context,
    models: Annotated[
        list[str] | None,
        typer.Argument(
            help="Runs by name or path, or predictions as CSV; the first is the reference. By default the newest run.",
            autocompletion=models_of,
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Volumes file; by default the one the model was trained with.", show_default=False)
    ] = None,
    part: Annotated[Part, typer.Option(help="Part of the data.")] = Part.TEST,
    positive: Annotated[
        str | None, typer.Option(help="Class that precision and recall are about; by default the model's.", show_default=False)
    ] = None,
    level: Annotated[Level, typer.Option(help="What is scored: each volume as in the paper, each scan, or each patient.")] = Level.VOLUME,
    join: Annotated[Join, typer.Option(help="How the volumes make a scan or patient.")] = Join.MEAN,
    bootstrap: Annotated[int, typer.Option(min=1, help="Bootstrap samples.")] = 1000,
    resample: Annotated[
        Level, typer.Option(help="What is drawn in them: volumes as in the paper, whole scans, or patients.")
    ] = Level.VOLUME,
    ci: Annotated[
        Interval, typer.Option(help="Bootstrap percentiles, mean ± 1.96 s.d. as in the paper's tables, or BCa.")
    ] = Interval.PERCENTILE,
    sensitivity: Annotated[
        float | None,
        typer.Option(min=0.01, max=1, help="Choose a threshold for this sensitivity on the validation part.", show_default=False),
    ] = None,
    subgroups: Annotated[
        Path | None,
        typer.Option(help="CSV with the column patient or patient_id and others to group by, as metadata.csv.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder to write; by default inside the run.", show_default=False)
    ] = None,
    runs: Runs = Path("runs"),
    device: Device = "auto",
    precision: Precision = PrecisionChoice.AUTO,
    seed: Seed = 0,
    workers: Workers = None,
    overwrite: Overwrite = False,
    config: Config = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Score models on the test part, and compare them."""
    _run(ctx)


@app.command(epilog="Example: ctcovid predict scan_dir/ -o predictions.csv")
def predict(
    ctx: typer.Context,
    scans: Scans,
    model: Models = None,
    series: Series = None,
    output: Rows = None,
    volumes: Annotated[Path | None, Listed("CSV, JSON or JSON Lines file to write a row per volume to.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Softmax as it is, without the temperature that was fitted in training.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="End with exit code 4 where a scan is flagged.")] = False,
    shard: Annotated[
        str, typer.Option(help="Only this part of the scans, as 3/16 in a job array.", metavar="K/N", show_default=False)
    ] = "",
    resume: Annotated[bool, typer.Option("--resume", help="Add to --output the scans that are not in it yet.")] = False,
    runs: Runs = Path("runs"),
    device: Device = "auto",
    precision: Precision = PrecisionChoice.AUTO,
    workers: Workers = None,
    overwrite: Overwrite = False,
    config: Config = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Classify scans: one row of probabilities for each."""
    _run(ctx)


@app.command(epilog="Example: ctcovid explain scan_dir/ --layer layer3")
def explain(
    ctx: typer.Context,
    scans: Scans,
    model: Model = None,
    series: Series = None,
    method: Annotated[MethodChoice, typer.Option(help="How the maps are made; all but occlusion look at a layer.")] = MethodChoice.SMOOTH,
    layer: Annotated[str | None, typer.Option(help="Layer to look at; by default the last convolution's.", show_default=False)] = None,
    target: Annotated[str | None, typer.Option(help="Class to explain; by default the one predicted.", show_default=False)] = None,
    samples: Annotated[int, typer.Option(min=1, help="Noisy copies of each volume.")] = 10,
    noise_std: Annotated[float, typer.Option(min=0, help="Standard deviation of the noise, as a share of the grey range.")] = 0.1,
    check: Annotated[bool, typer.Option("--check", help="Measure whether the maps are faithful to the model. Takes minutes.")] = False,
    mask: Annotated[
        Path | None, typer.Option(help="Lesions of the scan, as a folder of PNG or NIfTI, to hold the maps against.", show_default=False)
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write a folder per scan into.")] = Path("explanations"),
    runs: Runs = Path("runs"),
    device: Device = "auto",
    precision: Precision = PrecisionChoice.AUTO,
    seed: Seed = 0,
    workers: Workers = None,
    overwrite: Overwrite = False,
    config: Config = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Show where a network looks, with Smooth Grad-CAM++ or another method."""
    _run(ctx)


@app.command(epilog="Example: ctcovid models --plan r3d18 --depth 4 --size 512")
def models(
    ctx: typer.Context,
    plan: Annotated[
        str, typer.Option(help="Show what each layer of this architecture costs.", autocompletion=architectures, show_default=False)
    ] = "",
    depth: Annotated[int, typer.Option(min=1, max=MOST_SLICES, help="Slices per volume, for --plan.")] = 4,
    size: Annotated[int, typer.Option(min=16, max=4096, help="Pixels per side of a slice, for --plan.")] = 512,
    runs: Runs = Path("runs"),
    config: Config = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """List architectures and trained models."""
    _run(ctx)


@app.command(epilog="Example: ctcovid demo --data-only synthetic --patients 50 --size 256")
def demo(
    ctx: typer.Context,
    folder: Annotated[Path, typer.Argument(help="Folder to make.")] = Path("ctcovid-demo"),
    data_only: Annotated[bool, typer.Option("--data-only", help="Make the synthetic data set, and nothing else.")] = False,
    preset: Annotated[str, typer.Option(help="Size of the demo; auto: by processor and GPU.", metavar="auto|small|full")] = "auto",
    patients: Annotated[int | None, typer.Option(min=1, help="Patients of each class.", show_default="72, or 20")] = None,
    size: Annotated[int | None, typer.Option(min=16, max=4096, help="Pixels per side of a slice.", show_default="96, or 512")] = None,
    slices: Annotated[
        str | None, typer.Option(help="Fewest and most slices of a scan.", show_default="16-18, or as in CC-CCII", metavar="N-M")
    ] = None,
    difficulty: Annotated[
        float | None, typer.Option(min=0, max=1, help="From large, dense lesions to small, faint ones.", show_default="0, or 0.2")
    ] = None,
    repeated: Annotated[float, Share("whose stack lies there twice")] = 0.0,
    shuffled: Annotated[float, Share("whose slices have changed places")] = 0.0,
    reversed: Annotated[float, Share("stored feet first")] = 0.0,  # noqa: A002
    masked: Annotated[float, Share("black outside the lungs")] = 0.0,
    corrupt: Annotated[float, Share("with a damaged file")] = 0.0,
    odd_size: Annotated[float, Share("that are not square")] = 0.0,
    device: Device = "auto",
    seed: Seed = 0,
    workers: Workers = None,
    overwrite: Overwrite = False,
    config: Config = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Take a small synthetic CC-CCII through all five commands."""
    _run(ctx)


def _run(ctx: typer.Context) -> None:
    """Run the command of `ctx` with its parameters, and end with the documented exit code."""
    values = dict(ctx.params)
    console = Console(values.pop("quiet"), values.pop("verbose"), values.pop("json"))
    values.pop("config")
    values = {name: _plain(value) for name, value in values.items()}
    try:
        raise_when_stopped()
        require_alone(str(ctx.info_name), values.get("executor"))
        for sentence in slips(ctx) if place().rank == 0 else ():
            console.warn(sentence)
        # Only now, so that help and completion never wait for torch.
        command = importlib.import_module(f"ctcovid.commands.{ctx.info_name}")
        known = command.Options.__dataclass_fields__
        given: dict[str, Any] = {name: value for name, value in values.items() if value is not None}
        if "sources" in known:
            given["sources"] = sources(ctx)
        summary = command.run(command.Options(**given), console)
    except ToldError as error:
        raise typer.Exit(error.exit_code) from error
    except (CtcovidError, StoppedError) as error:
        print(f"Error: {error}", file=sys.stderr)
        raise typer.Exit(error.exit_code) from error
    except KeyboardInterrupt as error:
        print("Stopped by Ctrl-C.", file=sys.stderr)
        raise typer.Exit(EXIT_INTERRUPTED) from error
    except BrokenPipeError as error:
        # The reader of a pipe, such as head, has gone; Python would complain once more when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(EXIT_UNEXPECTED) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise _unexpected(error, console.verbose) from error
        print(f"Error: no space left on the disk of {error.filename or 'an output'}. Free some and run the line again.", file=sys.stderr)
        raise typer.Exit(EXIT_UNEXPECTED) from error
    except Exception as error:
        raise _unexpected(error, console.verbose) from error
    if getattr(summary, "failed", None):
        raise typer.Exit(EXIT_PARTIAL)


def _unexpected(error: Exception, verbose: bool) -> typer.Exit:
    """Report a fault of our own."""
    if verbose:
        traceback.print_exception(error)
    hint = "" if verbose else " Run the line again with --verbose for the place in the code."
    print(f"Error: unexpected {type(error).__name__}: {error}.{hint}", file=sys.stderr)
    return typer.Exit(EXIT_UNEXPECTED)


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    return tuple(value) if isinstance(value, list) else value


def main() -> None:
    """Entry point of ``ctcovid``."""
    command = typer.main.get_command(app)
    name_environment(command)
    command(prog_name="ctcovid")
