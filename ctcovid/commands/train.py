"""ctcovid train: volumes.h5 to a run directory that is a registered model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from ctcovid.base.console import Console
from ctcovid.base.errors import UsageError, counted
from ctcovid.base.files import RUN_CARD, claim_file
from ctcovid.base.locks import OutputLock
from ctcovid.base.runcard import RunCard
from ctcovid.base.signals import StopRequest
from ctcovid.commands.train_summary import Summary, announce, draw_curves, epoch_line, summarise
from ctcovid.distributed.ranks import Ranks, together
from ctcovid.distributed.session import Session
from ctcovid.distributed.sync_batchnorm import synchronise
from ctcovid.models import registry, saved_model
from ctcovid.models.device import deterministic_convolutions, device_name, settle
from ctcovid.options.recipe import RecipeOptions
from ctcovid.options.train import Options
from ctcovid.training import scalars
from ctcovid.training.checkpoint import Saving, TrainingState, restore
from ctcovid.training.data import TrainingData, read_training_data
from ctcovid.training.ema import Ema
from ctcovid.training.finalize import finalize, training_slices
from ctcovid.training.freeze import freeze
from ctcovid.training.history import EpochRow
from ctcovid.training.initial_weights import load_initial_weights, require_weights
from ctcovid.training.loop import fit
from ctcovid.training.memory import automatic_micro_batch, suggesting_micro_batch
from ctcovid.training.recipe import Recipe
from ctcovid.training.resume import changes, find_checkpoint, recorded_pretrained, require_same, run_settings
from ctcovid.training.run_folder import RunFolder, clear, clear_unfinished
from ctcovid.training.step import Stepper
from ctcovid.volumes.limits import naming_limits
from ctcovid.volumes.reader import VolumesFile


@dataclass(frozen=True)
class Plan:
    """What is known of a run before its network is built.

    Attributes
    ----------
    path : its folder
    checkpoint : what it resumes from, None for a new run
    synchronised : whether batch norm uses the volumes of all processes
    """

    path: Path
    checkpoint: dict[str, Any] | None
    data: TrainingData
    recipe: Recipe
    synchronised: bool


def run(options: Options, console: Console) -> Summary:
    """Check, read, build or restore, fit, register, summarise; together with the processes that were started with this one."""
    with (
        together(console, options.device, "The same command with --resume continues from the last checkpoint.") as ranks,
        deterministic_convolutions(),
        contextlib.ExitStack() as locked,
    ):
        session = Session(console, StopRequest(), ranks, options.workers or ranks.readers)
        _check(options, ranks)
        plan = _read(options, session, locked)
        folder = _build_or_restore(options, plan, session)
        progress = folder.state.progress
        if plan.checkpoint is not None and progress.over(options.epochs, options.patience) and folder.is_finished():
            more = "more --epochs" if progress.epoch >= options.epochs else "more --patience"
            console.say(f"{folder.path} already has its {counted(progress.epoch, 'epoch')}. It continues with {more}.")
            return summarise(folder, console)
        if options.epochs:
            announce(folder, plan.data, plan.recipe, console)
        for change in changes(plan.checkpoint["settings"], folder.settings) if plan.checkpoint else ():
            console.warn(change)
        with _recording(options, plan, folder) as card, session.listening():
            recipe = _fit(options, plan, folder, session)
            if ranks.first:
                # A new network, because the trained one may be synchronised, and its last weights are not the best.
                network = registry.build(options.arch, folder.state.network.classes, options.device, options.precision)
                found = finalize(folder.weights, network, plan.data, session)
                seen = training_slices(plan.data.train, session) if folder.state.progress.epoch else None
                folder.register(plan.data, recipe, *found, seen)
                card.output(folder.path / saved_model.WEIGHTS)
                card.output(folder.path / saved_model.CARD)
        return summarise(folder, console)


def _check(options: Options, ranks: Ranks) -> None:
    """Raises UsageError if the options contradict each other or the number of processes."""
    options.require_sense()
    if options.tensorboard:
        scalars.summary_writer()
    if options.batch < ranks.size:
        raise UsageError(
            f"--batch {options.batch} leaves some of {ranks.size} processes without a volume. Start fewer, or use a larger --batch."
        )


def _read(options: Options, session: Session, locked: contextlib.ExitStack) -> Plan:
    """Read the volumes file, and the checkpoint of the run if it has one, in its folder, which is `locked` from then on.

    Raises CtcovidError if they do not suit the options. Nothing is written.
    """
    file = VolumesFile(options.data)
    depth = options.depth or file.depth
    path = options.folder(depth)
    claim_file(path / RUN_CARD, overwrite=True)
    if session.ranks.first:
        locked.enter_context(OutputLock(path, session.console.say))
    checkpoint = find_checkpoint(path, options.resume, options.overwrite)
    if checkpoint is None:
        require_weights(options.epochs, options.pretrained, options.freeze, None)
    data = read_training_data(file, depth, session.console)
    if options.patience and not len(data.valid):
        raise UsageError("--patience waits for a better validation accuracy, and the validation part is empty. Omit it.")
    plan = Plan(path, checkpoint, data, _recipe(options), options.sync_batchnorm and session.ranks.size > 1)
    _require_fit(options.arch, plan, plan.recipe, session.ranks)
    return plan


def _recipe(options: Options) -> Recipe:
    # The micro-batch of "auto" is found by trial later.
    volumes = 0 if options.micro_batch in (None, "auto") else options.micro_batch
    asked = {field.name: getattr(options, field.name) for field in fields(RecipeOptions)}
    return Recipe(**asked, seed=options.seed, micro_batch=volumes)


def _require_fit(arch: str, plan: Plan, recipe: Recipe, ranks: Ranks) -> None:
    """Raises UsageError if the architecture cannot learn from so few or so small volumes."""
    depth, size, _ = plan.data.train.shape
    fewest = recipe.fewest(len(plan.data.train), plan.data.train.labels, ranks.size, plan.synchronised)
    registry.require_fit(arch, depth, size, fewest)


def _build_or_restore(options: Options, plan: Plan, session: Session) -> RunFolder:
    """The network with the weights that the run starts or resumes with, and what goes with them. Nothing is written."""
    ranks, console = session.ranks, session.console
    torch.manual_seed(options.seed)
    network = registry.build(options.arch, plan.data.train.file.classes, options.device, options.precision)
    settle(network.device)
    if options.freeze:
        freeze(network.module, options.freeze)
    optimiser = plan.recipe.optimiser(network.module)
    settings = run_settings(options, plan.recipe, plan.data, network, ranks)
    if plan.checkpoint is None:
        settings["pretrained"] = load_initial_weights(options.pretrained, plan.path, network, options.epochs, console)
    # After the initial weights are loaded, which the averages start with.
    state = TrainingState(network, optimiser, Ema(network.module, options.ema) if options.ema else None)
    if plan.checkpoint is not None:
        settings["pretrained"] = recorded_pretrained(options.pretrained, plan.checkpoint["settings"].get("pretrained"))
        require_same(plan.checkpoint["settings"], settings, plan.path, console)
        state = restore(plan.checkpoint, state, plan.recipe.steps(len(plan.data.train)))
        require_weights(options.epochs, options.pretrained, options.freeze, state.progress)
    ranks.require_same((state.progress.epoch, state.progress.step), f"how far the run in {plan.path} is")
    if plan.synchronised:
        synchronise(network.module, ranks.sum)
    return RunFolder(plan.path, state, settings, ranks)


@contextlib.contextmanager
def _recording(options: Options, plan: Plan, run: RunFolder) -> Iterator[RunCard]:
    """The run card, which the first process writes into the folder, cleared of what an earlier run has left."""
    pretrained = run.settings["pretrained"]
    card = RunCard(run.path / RUN_CARD, "train", asdict(options), options.sources)
    card.content |= {"device": device_name(run.state.network.device), "processes": run.ranks.size}
    if not run.ranks.first:
        yield card
        return
    run.path.mkdir(parents=True, exist_ok=True)
    clear_unfinished(run.path)
    if plan.checkpoint is None:
        clear(run.path)
    card.input(options.data, plan.data.train.file.fingerprint)
    if pretrained:
        card.content["pretrained"] = pretrained
        card.input(Path(pretrained["path"]), f"sha256:{pretrained['sha256']}")
    with card.recording():
        yield card


def _fit(options: Options, plan: Plan, run: RunFolder, session: Session) -> Recipe:
    """Train to the end, and return the recipe with the micro-batch that was used.

    Raises StoppedError, with a checkpoint, if a signal comes before.
    """
    data, recipe, network, progress = plan.data, plan.recipe, run.state.network, run.state.progress
    ranks, console = session.ranks, session.console
    if not progress.over(options.epochs, options.patience):
        data = data.in_memory(network.device, session, options.workers or ranks.cpus)
        if options.micro_batch == "auto":
            volumes = automatic_micro_batch(recipe, network, data.train.shape, plan.checkpoint, session)
            recipe = replace(recipe, micro_batch=volumes)
            run.settings["micro_batch"] = recipe.at_once(ranks.size)
            _require_fit(options.arch, plan, recipe, ranks)
    stepper = Stepper(run.state, recipe, ranks, plan.synchronised)
    events = scalars.Scalars(run.path, progress.history) if options.tensorboard and ranks.first else None

    def epoch_done(row: EpochRow, pace: str) -> None:
        run.keep(row)
        draw_curves(run)
        if events is not None:
            events.add(row)
        console.say(epoch_line(row, recipe, pace))

    # A kill may have come between the checkpoint and the history.
    run.write_history()
    draw_curves(run)
    saving = Saving(options.checkpoint_every if ranks.first else 0, run.save)
    with suggesting_micro_batch(recipe, network, data.train.shape, ranks), naming_limits(session.workers):
        finished = fit(stepper, data, session, saving, epoch_done)
    # Their memory is for what comes next.
    network.graphs.release()
    if events is not None:
        events.close()
    if not finished:
        run.save()
        raise session.stop.error(f"{run.checkpoint} is written. The same command with --resume continues the run.")
    if not progress.history:
        run.keep_untrained()
    elif progress.epoch < options.epochs:
        console.say(f"Stopped early: no better epoch in the last {options.patience}.")
    return recipe
