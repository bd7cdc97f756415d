"""ctcovid train: volumes.h5 to a run directory that is a registered model."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from ctcovid.base import cpus
from ctcovid.base.console import Console
from ctcovid.base.errors import InputError, ModelRefusedError, UsageError
from ctcovid.base.files import RUN_CARD, claim_file
from ctcovid.base.runcard import RunCard, sha256, versions
from ctcovid.base.signals import StopRequest
from ctcovid.models import kernels, registry, store
from ctcovid.models.catalog import DEFAULT, architecture
from ctcovid.models.device import device_name
from ctcovid.models.network import SCALING, Network
from ctcovid.models.pretrained import load_pretrained
from ctcovid.models.weightfile import find_weights
from ctcovid.reports.figures import curve
from ctcovid.reports.tables import Cell, Table
from ctcovid.training import scalars
from ctcovid.training.checkpoint import Progress, restore, save_checkpoint
from ctcovid.training.continuation import BEST, CHECKPOINT, HISTORY, began_with, clear, find_checkpoint, require_same
from ctcovid.training.ema import Ema, averaged
from ctcovid.training.freeze import freeze
from ctcovid.training.history import EpochRow, write_history
from ctcovid.training.loop import fit
from ctcovid.training.recipe import Recipe
from ctcovid.volumes.batches import VolumeSet
from ctcovid.volumes.layout import PARTS
from ctcovid.volumes.reader import VolumesFile

# What makes two runs the same training; a resumed run takes these from its checkpoint and refuses others.
IDENTITY = (
    *("arch", "depth", "batch", "learning_rate", "seed", "precision"),
    *("augment", "balance", "label_smoothing", "weight_decay", "schedule", "warmup", "ema", "clip_gradient", "freeze"),
)


@dataclass(frozen=True)
class Options:
    """What `ctcovid train` was asked for; `sources` says where each value came from. `depth` 0 is that of the volumes file."""

    data: Path = Path("volumes.h5")
    arch: str = DEFAULT
    depth: int = 0
    epochs: int = 20
    batch: int = 32
    micro_batch: int = 0
    learning_rate: float = 1e-3
    pretrained: Path | None = None
    augment: bool = False
    balance: str = "none"
    label_smoothing: float = 0.0
    weight_decay: float = 0.0
    schedule: str = "step"
    warmup: float = 0.0
    ema: float = 0.0
    patience: int = 0
    clip_gradient: float = 0.0
    freeze: str = ""
    tensorboard: bool = False
    name: str = ""
    runs: Path = registry.RUNS
    resume: bool = False
    device: str = "auto"
    precision: str = "auto"
    seed: int = 0
    workers: int = 0
    overwrite: bool = False
    sources: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Summary:
    """The finished run: its folder, the row of the epoch whose weights were kept (None where nothing was trained), and all rows."""

    folder: Path
    kept: EpochRow | None
    history: list[EpochRow]

    def document(self) -> dict[str, Any]:
        return {
            "model": self.folder.name,
            "folder": str(self.folder),
            "kept": None if self.kept is None else asdict(self.kept),
            "history": [asdict(r) for r in self.history],
        }

    def table(self) -> Table:
        if not self.history:
            return Table(("model",), [[self.folder.name]])
        rows: list[list[Cell]] = []
        for row in self.history:
            valid: list[Cell] = ["-" if value is None else value for value in (row.valid_loss, row.valid_accuracy)]
            mark = " (kept)" if row is self.kept else ""
            rows.append([f"{row.epoch}{mark}", f"{row.learning_rate:g}", row.train_loss, row.train_accuracy, *valid])
        names = ("epoch", "learning rate", "train loss", "train accuracy", "valid loss", "valid accuracy")
        return Table(names, rows)


def run(options: Options, console: Console) -> Summary:
    """Check, build or restore the network, train it, and register what came of it."""
    architecture(options.arch)
    recipe = _recipe(options)
    if options.tensorboard:
        scalars.require_tensorboard()
    if options.name in (".", "..") or Path(options.name).name != options.name:
        raise UsageError(f"--name {options.name}: the name of a folder under {options.runs}/ is wanted, not a path.")
    file = VolumesFile(options.data)
    depth = options.depth or file.depth
    folder = options.runs / (options.name or f"{options.arch}-d{depth}-b{options.batch}")
    claim_file(folder / RUN_CARD, overwrite=True)
    checkpoint = find_checkpoint(folder, options.resume, options.overwrite)
    if checkpoint is None:
        _require_weights(options, None)
    train_set, valid_set = _sets(file, depth, console)
    if options.patience and not len(valid_set):
        raise UsageError("--patience waits for a better validation accuracy, and the validation part is empty. Leave it away.")
    registry.require_fit(options.arch, depth, file.size, recipe.fewest(len(train_set), train_set.labels))

    torch.manual_seed(options.seed)
    # On a CPU the same run gives the same bits as it is; on a GPU this is as near as its kernels come.
    torch.backends.cudnn.deterministic = True
    network = registry.place(options.arch, file.classes, options.device, options.precision)
    if options.freeze:
        freeze(network.module, options.freeze)
    optimiser = recipe.optimiser(network.module)
    settings = {name: getattr(options, name) for name in IDENTITY} | {"depth": depth, "data": file.fingerprint}
    settings["precision"] = str(network.precision)
    settings["micro_batch"] = min(options.micro_batch or options.batch, options.batch)
    # A cosine comes down by its last epoch; the paper's steps do not depend on it.
    settings["epochs"] = options.epochs if options.schedule == "cosine" else None
    progress = Progress()
    if checkpoint is None:
        settings["pretrained"] = _pretrained(options.pretrained, folder, network, options.epochs, console)
    # The averages begin with the weights that training begins with.
    ema = Ema(network.module, options.ema) if options.ema else None
    if checkpoint is not None:
        settings["pretrained"] = began_with(options.pretrained, checkpoint["settings"].get("pretrained"))
        require_same(checkpoint["settings"], settings, folder, console)
        progress = restore(checkpoint, network.module, optimiser, ema)
        _require_weights(options, progress)
        if progress.over(options.epochs, options.patience) and (folder / store.CARD).is_file():
            more = "more --epochs" if progress.epoch >= options.epochs else "more --patience"
            console.say(f"{folder} has its {progress.epoch} epochs already; {more} would continue it.")
            return _summary(folder, progress, console)
    if options.epochs:
        _announce(folder, network, file, depth, train_set, valid_set, progress, recipe, console)

    folder.mkdir(parents=True, exist_ok=True)
    if checkpoint is None:
        clear(folder)
    card = RunCard(folder / RUN_CARD, "train", asdict(options), options.sources)
    card.content["device"] = device_name(network.device)
    card.input(options.data, file.fingerprint)
    if settings["pretrained"]:
        card.content["pretrained"] = settings["pretrained"]
        card.input(Path(settings["pretrained"]["path"]), f"sha256:{settings['pretrained']['sha256']}")
    workers = options.workers or min(cpus.allowed(), 8)
    with card.recording(), StopRequest() as stop:
        events = scalars.Scalars(folder, progress.history) if options.tensorboard else None

        def keep(row: EpochRow, pace: str) -> None:
            # In this order, a kill between the two repeats the epoch and loses nothing.
            if progress.best is row:
                with averaged(network.module, ema):
                    store.save_weights(folder / BEST, network.module)
            save_checkpoint(folder / CHECKPOINT, network.module, optimiser, progress, settings, ema)
            _write_curves(folder, progress.history)
            if events is not None:
                events.add(row)
            console.say(f"{_line(row, recipe)}; {pace}")

        try:
            finished = fit(network, optimiser, recipe, train_set, valid_set, progress, workers, stop, console, keep, ema)
        except torch.OutOfMemoryError as error:
            most = options.micro_batch or min(options.batch, len(train_set))
            way_out = f"Add --micro-batch {most // 2}; the batch stays." if most > 1 else "Choose a smaller --depth or --arch."
            raise UsageError(f"Volumes do not fit into the memory of {card.content['device']}, {most} at a time. {way_out}") from error
        if events is not None:
            events.close()
        if not finished:
            save_checkpoint(folder / CHECKPOINT, network.module, optimiser, progress, settings, ema)
            raise stop.error(f"{folder / CHECKPOINT} is written; the same line with --resume continues it.")
        if not progress.history:
            store.save_weights(folder / BEST, network.module)
            save_checkpoint(folder / CHECKPOINT, network.module, optimiser, progress, settings, ema)
        elif progress.epoch < options.epochs:
            console.say(f"No better epoch in {options.patience}: stopped early.")
        _register(folder, network, file, depth, progress, recipe, settings["pretrained"])
        card.output(folder / store.WEIGHTS)
        card.output(folder / store.CARD)
    return _summary(folder, progress, console)


def _recipe(options: Options) -> Recipe:
    """The recipe that was asked for.

    Raises UsageError where its parts do not fit together.
    """
    asked = asdict(options)
    return Recipe(**{field.name: asked[field.name] for field in fields(Recipe) if field.name in asked})


def _require_weights(options: Options, progress: Progress | None) -> None:
    """Raises UsageError where the weights of a run that begins, or of one that had come so far, are not what was asked for."""
    if progress is None and options.pretrained is None and not options.epochs:
        raise UsageError("--epochs 0 trains nothing: it makes a model of the weights that --pretrained names.")
    if progress is None and options.pretrained is None and options.freeze:
        raise UsageError(f"--freeze {options.freeze} would keep random weights. Name better ones with --pretrained.")
    if progress is not None and progress.step and not progress.history and not options.epochs:
        raise UsageError("--epochs 0: the run is in its first epoch. Give more --epochs, or --overwrite in place of --resume.")


def _summary(folder: Path, progress: Progress, console: Console) -> Summary:
    kept = progress.best
    summary = Summary(folder, kept, progress.history)
    console.result(summary.table(), summary.document())
    if kept is None:
        console.say(f"Nothing was trained. Model {folder.name} is in {folder}/; ctcovid evaluate tells how good it is.")
        return summary
    which = "the last epoch: there is no validation part to choose by" if kept.valid_accuracy is None else "the best validation accuracy"
    console.say(f"Kept the weights of epoch {kept.epoch}, {which}. Model {folder.name} is in {folder}/.")
    return summary


def _sets(file: VolumesFile, depth: int, console: Console) -> tuple[VolumeSet, VolumeSet]:
    """The volumes to train and to validate on.

    Raises InputError where there is nothing to learn from.
    """
    train_set, valid_set = VolumeSet(file, "train", depth), VolumeSet(file, "valid", depth)
    present = [label for number, label in enumerate(file.classes) if (train_set.labels == number).any()]
    if not len(train_set):
        raise InputError(
            f"{file.path} has no training volumes of depth {depth}. Assign patients to train with ctcovid prepare --split-file, "
            "or choose a smaller --depth."
        )
    if len(present) < 2:
        raise InputError(
            f"The training part of {file.path} has one class only ({present[0]}); a classifier needs two. "
            "Assign patients of other classes to train with ctcovid prepare --split-file."
        )
    if len(present) < len(file.classes):
        missing = ", ".join(label for label in file.classes if label not in present)
        console.warn(f"the training part has no {missing}: the model will not know that class.")
    if not len(valid_set):
        console.warn("the validation part is empty: the last epoch is kept, and nothing tells whether an earlier one was better.")
    return train_set, valid_set


def _pretrained(given: Path | None, folder: Path, network: Network, epochs: int, console: Console) -> dict[str, Any] | None:
    """Begin with the weights that were `given`, and say which these are and what fitted.

    Raises UsageError where they lie in a folder to be cleared, ModelRefusedError where no epoch trains what they leave.
    """
    if given is None:
        return None
    file = find_weights(given)
    if file.resolve().is_relative_to(folder.resolve()):
        raise UsageError(f"--pretrained {file} lies in {folder}/, which the new run would clear. Give the new run another --name.")
    match = load_pretrained(network.module, file)
    console.say(f"{file}: {match.sentence()}")
    if match.doubt():
        console.warn(match.doubt())
    if not epochs and match.fresh:
        raise ModelRefusedError(f"{file} leaves {match.fresh[0]} at random values: train it, with --epochs above 0.")
    return {"path": str(file.resolve()), "sha256": sha256(file), **match.record()}


def _announce(
    folder: Path,
    network: Network,
    file: VolumesFile,
    depth: int,
    train_set: VolumeSet,
    valid_set: VolumeSet,
    progress: Progress,
    recipe: Recipe,
    console: Console,
) -> None:
    precision = str(network.precision).removeprefix("torch.")
    console.say(
        f"Training {network.architecture.name} on {len(train_set):,} volumes of {depth}×{file.size}×{file.size} "
        f"({len(valid_set):,} to validate), {device_name(network.device)}, {precision}, into {folder}/."
    )
    if network.device.type == "cpu" and kernels.compiled is None:
        console.say("ctcovid was installed without a C++ compiler at hand: training takes longer, with the same result.")
    if progress.epoch or progress.step:
        console.say(f"Resuming after {progress.epoch} epochs and {progress.step} steps of {recipe.epochs} epochs.")


def _line(row: EpochRow, recipe: Recipe) -> str:
    valid = "" if row.valid_loss is None else f", validation loss {row.valid_loss:.4f} accuracy {row.valid_accuracy:.4f}"
    return f"Epoch {row.epoch} of {recipe.epochs}: training loss {row.train_loss:.4f} accuracy {row.train_accuracy:.4f}{valid}"


def _write_curves(folder: Path, history: list[EpochRow]) -> None:
    """metrics.csv, and the paper's Figs. 8 and 9."""
    write_history(folder / HISTORY, history)
    epochs = [row.epoch for row in history]
    curve(folder / "loss.png", "loss", epochs, [row.train_loss for row in history], [row.valid_loss for row in history])
    curve(
        folder / "accuracy.png",
        "accuracy",
        epochs,
        [row.train_accuracy for row in history],
        [row.valid_accuracy for row in history],
    )


def _register(
    folder: Path, network: Network, file: VolumesFile, depth: int, progress: Progress, recipe: Recipe, pretrained: dict[str, Any] | None
) -> None:
    """Give the best weights the model's name and write model.json last."""
    if (folder / BEST).exists():
        (folder / BEST).replace(folder / store.WEIGHTS)
    store.save_card(
        folder,
        {
            "architecture": network.architecture.name,
            "classes": file.classes,
            "positive": file.positive,
            "depth": depth,
            "size": file.size,
            "scaling": SCALING,
            "data": {"path": str(file.path.resolve()), "fingerprint": file.fingerprint},
            "split": {part: sorted({row.patient for row in file.rows if row.split == part}) for part in PARTS},
            "recipe": asdict(recipe),
            "pretrained": pretrained,
            "precision": str(network.precision).removeprefix("torch."),
            "kept": asdict(progress.best) if progress.best else None,
            "versions": versions(),
        },
    )
