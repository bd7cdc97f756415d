"""ctcovid train: volumes.h5 to a run directory that is a registered model."""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from ctcovid.base.console import Console
from ctcovid.base.errors import UsageError, counted
from ctcovid.base.files import RUN_CARD, claim_file, occupied
from ctcovid.base.runcard import RunCard
from ctcovid.base.signals import StopRequest
from ctcovid.commands.train_record import Record
from ctcovid.distributed.ranks import Ranks, together
from ctcovid.distributed.sync_batchnorm import synchronise
from ctcovid.kernels import native
from ctcovid.models import registry, store
from ctcovid.models.device import deterministic_convolutions, device_kind, device_name, keep_freed_layers
from ctcovid.models.network import Network
from ctcovid.options.recipe import RecipeOptions
from ctcovid.options.train import Options
from ctcovid.reports.tables import Cell, Table
from ctcovid.training import scalars
from ctcovid.training.checkpoint import Progress, Saving, restore
from ctcovid.training.ema import Ema
from ctcovid.training.finalize import close
from ctcovid.training.freeze import freeze
from ctcovid.training.history import EpochRow
from ctcovid.training.initial_weights import begin_with, require_weights
from ctcovid.training.loop import fit
from ctcovid.training.memory import fitted, is_want_of_memory, too_large
from ctcovid.training.parts import parts_to_learn_from
from ctcovid.training.recipe import Recipe
from ctcovid.training.resume import (
    began_with,
    changed_device,
    changed_ranks,
    clear,
    clear_unfinished,
    find_checkpoint,
    is_finished,
    require_same,
)
from ctcovid.training.step import Stepper
from ctcovid.volumes.batches import VolumeSet
from ctcovid.volumes.limits import naming_limits
from ctcovid.volumes.reader import VolumesFile
from ctcovid.volumes.resident import resident

# What makes two runs the same training; a resumed run takes these from its checkpoint and refuses others.
IDENTITY = (
    *("arch", "depth", "batch", "learning_rate", "sync_batchnorm", "seed", "precision"),
    *("augment", "class_balance", "label_smoothing", "weight_decay", "schedule", "warmup", "ema", "clip_gradient", "freeze"),
)


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
    """Check, build or restore the network, train it, and register what came of it; together with the processes started beside this."""
    with together(console, options.device, "The same line with --resume goes on from the last checkpoint.") as ranks:
        options.require_sense()
        # On a CPU the same run gives the same bits anyway; on a GPU this is as near as its kernels come.
        with deterministic_convolutions():
            return _run(options, console, ranks)


def _run(options: Options, console: Console, ranks: Ranks) -> Summary:
    """Check what was asked for, and build or restore what is trained, before anything is written."""
    recipe = _recipe(options)
    if options.tensorboard:
        scalars.require_tensorboard()
    if options.batch < ranks.size:
        raise UsageError(f"--batch {options.batch} leaves some of {ranks.size} processes without a volume. Start fewer, or enlarge it.")
    file = VolumesFile(options.data)
    depth = options.depth or file.depth
    folder = options.folder(depth)
    claim_file(folder / RUN_CARD, overwrite=True)
    checkpoint = find_checkpoint(folder, options.resume, options.overwrite)
    if checkpoint is None:
        require_weights(options.epochs, options.pretrained, options.freeze, None)
    train_set, valid_set = parts_to_learn_from(file, depth, console)
    if options.patience and not len(valid_set):
        raise UsageError("--patience waits for a better validation accuracy, and the validation part is empty. Leave it away.")
    synchronised = options.sync_batchnorm and ranks.size > 1
    _require_fit(recipe, options.arch, train_set, ranks, synchronised)
    torch.manual_seed(options.seed)
    network = registry.build(options.arch, file.classes, options.device, options.precision)
    keep_freed_layers(network.device)
    if options.freeze:
        freeze(network.module, options.freeze)
    optimiser = recipe.optimiser(network.module)
    settings = _settings(options, recipe, file, depth, network, ranks)
    progress = Progress()
    if checkpoint is None:
        settings["pretrained"] = begin_with(options.pretrained, folder, network, options.epochs, console)
    # The averages begin with the weights that training begins with.
    ema = Ema(network.module, options.ema) if options.ema else None
    if checkpoint is not None:
        settings["pretrained"] = began_with(options.pretrained, checkpoint["settings"].get("pretrained"))
        require_same(checkpoint["settings"], settings, folder, console)
        progress = restore(checkpoint, network.module, optimiser, ema)
        require_weights(options.epochs, options.pretrained, options.freeze, progress)
    ranks.require_same((progress.epoch, progress.step), f"how far the run in {folder} has come")
    if checkpoint is not None and progress.over(options.epochs, options.patience) and is_finished(folder, progress):
        more = "more --epochs" if progress.epoch >= options.epochs else "more --patience"
        console.say(f"{folder} has its {progress.epoch} epochs already; {more} would continue it.")
        return _summary(folder, progress, console)
    if synchronised:
        synchronise(network.module, ranks.sum)
    if options.epochs:
        _announce(folder, network, train_set, valid_set, progress, recipe, ranks, console)
    if checkpoint is not None:
        before = checkpoint["settings"]
        for change in (changed_ranks(before, ranks.size, options.sync_batchnorm), changed_device(before, settings["device"])):
            if change:
                console.warn(change)
    record = Record(folder, network, optimiser, ema, progress, settings, ranks)
    with contextlib.ExitStack() as held:
        card = _begun(options, file, record, checkpoint is None, held)
        stop = held.enter_context(StopRequest())
        ranks.tell_of(stop)
        workers = options.workers or ranks.readers
        recipe = _train(options, recipe, checkpoint, train_set, valid_set, record, workers, stop, console)
        if ranks.first:
            # A network of its own, as the one that was trained may be synchronised, and its last weights are not the best.
            fresh = registry.build(options.arch, file.classes, options.device, options.precision)
            use, reference = close(record.weights, fresh, train_set, valid_set, workers, stop, console)
            record.register(file, depth, recipe, use, reference)
            card.output(folder / store.WEIGHTS)
            card.output(folder / store.CARD)
    return _summary(folder, progress, console)


def _train(
    options: Options,
    recipe: Recipe,
    checkpoint: dict[str, Any] | None,
    train_set: VolumeSet,
    valid_set: VolumeSet,
    record: Record,
    workers: int,
    stop: StopRequest,
    console: Console,
) -> Recipe:
    """Train to the end, and return the recipe with the micro-batch that was found for it.

    Raises StoppedError, with a checkpoint, where a signal comes before.
    """
    network, progress, ranks, folder = record.network, record.progress, record.ranks, record.folder
    over = progress.over(options.epochs, options.patience)
    synchronised = options.sync_batchnorm and ranks.size > 1
    feed = None if over else resident(train_set, network.device, workers, stop, console, ranks.local_size)
    if options.micro_batch == "auto" and not over:
        recipe = replace(recipe, micro_batch=fitted(recipe, network, train_set.shape, checkpoint, ranks, console))
        most = recipe.of_each(ranks.size)
        record.settings["micro_batch"] = min(recipe.micro_batch or most, most)
        _require_fit(recipe, options.arch, train_set, ranks, synchronised)
    stepper = Stepper(network, record.optimiser, recipe, ranks, synchronised, record.ema)
    events = scalars.Scalars(folder, progress.history) if options.tensorboard and ranks.first else None

    def keep(row: EpochRow, pace: str) -> None:
        record.keep(row)
        if events is not None:
            events.add(row)
        console.say(f"{_line(row, recipe)}; {pace}".removesuffix("; "))

    # A kill may have come between the checkpoint and the history.
    record.draw()
    saving = Saving(options.checkpoint_every if ranks.first else 0, record.save)
    try:
        with naming_limits(workers):
            finished = fit(stepper, train_set, feed, valid_set, progress, workers, stop, console, saving, keep)
    except (RuntimeError, MemoryError) as error:
        if not is_want_of_memory(error):
            raise
        raise too_large(error, recipe, network, train_set.shape, ranks) from error
    if events is not None:
        events.close()
    if not finished:
        record.save()
        raise stop.error(f"{folder / store.CHECKPOINT} is written; the same line with --resume continues it.")
    if not progress.history:
        record.keep_untrained()
    elif progress.epoch < options.epochs:
        console.say(f"No better epoch in {options.patience}: stopped early.")
    return recipe


def _begun(options: Options, file: VolumesFile, record: Record, anew: bool, held: contextlib.ExitStack) -> RunCard:
    """The run card; in the first process the folder is there, no other run's, without what an earlier one has left, and held."""
    folder, pretrained = record.folder, record.settings["pretrained"]
    card = RunCard(folder / RUN_CARD, "train", asdict(options), options.sources)
    card.content |= {"device": device_name(record.network.device), "processes": record.ranks.size}
    if record.ranks.first:
        folder.mkdir(parents=True, exist_ok=True)
        if held.enter_context(occupied(folder)):
            clear_unfinished(folder)
        if anew:
            clear(folder)
        card.input(options.data, file.fingerprint)
        if pretrained:
            card.content["pretrained"] = pretrained
            card.input(Path(pretrained["path"]), f"sha256:{pretrained['sha256']}")
        held.enter_context(card.recording())
    return card


def _settings(options: Options, recipe: Recipe, file: VolumesFile, depth: int, network: Network, ranks: Ranks) -> dict[str, Any]:
    """What a run must be resumed with, or what is said where it is not."""
    settings = {name: getattr(options, name) for name in IDENTITY} | {"depth": depth, "data": file.fingerprint, "ranks": ranks.size}
    settings |= {"precision": str(network.precision), "device": device_kind(network.device)}
    most = recipe.of_each(ranks.size)
    settings["micro_batch"] = "auto" if options.micro_batch == "auto" else min(recipe.micro_batch or most, most)
    # A cosine comes down by its last epoch; the paper's steps do not depend on it.
    settings["epochs"] = options.epochs if options.schedule == "cosine" else None
    return settings


def _require_fit(recipe: Recipe, arch: str, train_set: VolumeSet, ranks: Ranks, synchronised: bool) -> None:
    """Raises UsageError where the architecture cannot learn from so few or so small volumes."""
    depth, size, _ = train_set.shape
    registry.require_fit(arch, depth, size, recipe.fewest(len(train_set), train_set.labels, ranks.size, synchronised))


def _recipe(options: Options) -> Recipe:
    """The recipe that was asked for.

    Raises UsageError where its parts do not fit together.
    """
    # What --micro-batch auto comes to is found by trial later.
    volumes = 0 if options.micro_batch in (None, "auto") else options.micro_batch
    asked = {field.name: getattr(options, field.name) for field in fields(RecipeOptions)}
    return Recipe(**asked, seed=options.seed, micro_batch=volumes)


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


def _announce(
    folder: Path,
    network: Network,
    train_set: VolumeSet,
    valid_set: VolumeSet,
    progress: Progress,
    recipe: Recipe,
    ranks: Ranks,
    console: Console,
) -> None:
    precision = str(network.precision).removeprefix("torch.")
    processes = f" in each of {ranks.size} processes" if ranks.size > 1 else ""
    console.say(
        f"Training {network.architecture.name} on {counted(len(train_set), 'volume')} of {'×'.join(map(str, train_set.shape))} "
        f"({len(valid_set):,} to validate), {device_name(network.device)}{processes}, {precision}, into {folder}/."
    )
    if network.device.type == "cpu" and native.compiled is None:
        console.say("ctcovid was installed without a C++ compiler at hand: training takes longer, with the same result.")
    if progress.epoch or progress.step:
        console.say(f"Resuming after {counted(progress.epoch, 'epoch')} and {counted(progress.step, 'step')} of {recipe.epochs} epochs.")


def _line(row: EpochRow, recipe: Recipe) -> str:
    valid = "" if row.valid_loss is None else f", validation loss {row.valid_loss:.4f} accuracy {row.valid_accuracy:.4f}"
    return f"Epoch {row.epoch} of {recipe.epochs}: training loss {row.train_loss:.4f} accuracy {row.train_accuracy:.4f}{valid}"
