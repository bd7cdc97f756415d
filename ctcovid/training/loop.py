"""The training loop."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Generator, Sequence

import torch
import torch.nn.functional as F

from ctcovid.base.console import Console, duration
from ctcovid.base.errors import CtcovidError, ModelRefusedError
from ctcovid.base.signals import STOPPING, StopRequest
from ctcovid.distributed.ranks import Ranks
from ctcovid.models.network import Network
from ctcovid.training.balance import class_weights
from ctcovid.training.checkpoint import Progress, Saving
from ctcovid.training.ema import averaged
from ctcovid.training.freeze import learn
from ctcovid.training.history import EpochRow
from ctcovid.training.step import Step, Stepper
from ctcovid.volumes.batches import Batch, VolumeSet, in_order
from ctcovid.volumes.limits import Waiting
from ctcovid.volumes.resident import Resident

# Steps in a row without a finite loss and gradient after which there is no hope.
MOST_SKIPPED = 3


def fit(
    stepper: Stepper,
    train_set: VolumeSet,
    feed: Resident | None,
    valid_set: VolumeSet,
    progress: Progress,
    workers: int,
    stop: StopRequest,
    console: Console,
    saving: Saving,
    epoch_done: Callable[[EpochRow, str], None],
) -> bool:
    """Train from where `progress` stands to the recipe's last epoch (Li et al. 2021, Sec. 2.3), moving `progress` along.

    Training volumes come from `feed` where they are in memory, else `workers` read them.
    `epoch_done` is called after each epoch, with `progress` at its end, and with the speed of all processes and the time left in words.
    What is validated are the stepper's averages where it has any. Returns False where `stop` came first, in this process or in another;
    `progress` then stands between two steps, or before the validation of an epoch, from where a later call goes on with the same result.

    Raises CtcovidError where the training diverges, or the loss is not finite in validation.
    """
    recipe, network, ranks = stepper.recipe, stepper.network, stepper.ranks
    over = progress.over(recipe.epochs, recipe.patience)
    began, trained = time.monotonic(), 0
    while not over:
        epoch_began, seen = time.monotonic(), progress.seen
        if not _train_epoch(stepper, train_set, feed, progress, workers, stop, console, saving):
            return False
        now = progress.seen - seen
        trained, speed = trained + now, now / (time.monotonic() - epoch_began)
        with averaged(network.module, stepper.ema):
            what = f"Validating after epoch {progress.epoch + 1} of {recipe.epochs}"
            stopped, loss, accuracy = validate(network, valid_set, recipe.batch, workers, stop, ranks, console, what)
        if stopped:
            return False
        if loss is not None and not math.isfinite(loss):
            raise CtcovidError(
                f"The validation loss is {loss} after epoch {progress.epoch + 1}: the training has diverged. Try a lower --learning-rate."
            )
        row = EpochRow(
            progress.epoch + 1,
            recipe.rate(progress.epoch, 0, recipe.steps(len(train_set))),
            progress.loss_sum / progress.seen if progress.seen else math.nan,
            progress.correct / progress.seen if progress.seen else math.nan,
            loss,
            accuracy,
        )
        progress.history.append(row)
        progress.epoch, progress.step = progress.epoch + 1, 0
        progress.loss_sum, progress.correct, progress.seen = 0.0, 0, 0
        over = progress.over(recipe.epochs, recipe.patience)
        # Of an epoch that was resumed at its end nothing was seen that would tell how fast it goes.
        pace = [f"{speed:,.1f} volumes/s"] if now else []
        if trained and not over:
            left = (time.monotonic() - began) / trained * len(train_set) * (recipe.epochs - progress.epoch)
            pace.append(f"about {duration(left)} left")
        epoch_done(row, ", ".join(pace))
        # Of several processes one may know of the signal already and another not; the next step is where they agree.
        if stop.received and ranks.size == 1 and not over:
            return False
    return True


def _train_epoch(
    stepper: Stepper,
    train_set: VolumeSet,
    feed: Resident | None,
    progress: Progress,
    workers: int,
    stop: StopRequest,
    console: Console,
    saving: Saving,
) -> bool:
    """The rest of an epoch, from `feed` or else from disk; False where it was stopped."""
    network, recipe = stepper.network, stepper.recipe
    learn(network.module)
    weights = None
    if recipe.class_balance == "weights":
        weights = torch.tensor(class_weights(train_set.labels, len(network.classes)), dtype=torch.float32, device=network.device)
    entire = recipe.order(len(train_set), progress.epoch, train_set.labels)
    order = entire[progress.step :]
    shares = [stepper.share(batch) for batch in order]
    made: Step | None = None
    stopped, waiting = False, Waiting()

    with (
        # Readers end with their iterator; an exception's traceback would keep it alive, and them waiting for each other at exit.
        contextlib.closing(_batches(train_set, feed, shares, workers, network.device.type == "cuda")) as batches,
        console.progress(sum(map(len, order)), f"Epoch {progress.epoch + 1} of {recipe.epochs}", "volumes", tenths=False) as advance,
    ):

        def look(step: Step) -> bool:
            """Add the step to `progress`, which so always says what was made; whether to stop."""
            outcome = step.look()
            _count(outcome.loss, outcome.norm, outcome.correct, outcome.skipped, step.indices, progress, train_set, console)
            advance(len(step.indices), progress.note())
            if outcome.stopped is not None and stop.received is None:
                stop.received = outcome.stopped
            return outcome.stopped is not None

        for batch, whole in zip(waiting.timed(batches), order, strict=True):
            if stop.received and stepper.ranks.size == 1:
                stopped = True
                break
            # Counted are the steps that were made, of which the last one may not have been looked at yet.
            number = progress.step + (made is not None)
            for group in stepper.optimiser.param_groups:
                group["lr"] = recipe.rate(progress.epoch, number, len(entire))
            torch.manual_seed(recipe.step_seed(progress.epoch, number, stepper.ranks.rank))
            step = stepper.make(batch, whole, stop, recipe.step_seed(progress.epoch, number), weights)
            # A GPU is still at work on this step while the last one's loss is looked at; so it never waits for the program.
            if made is not None:
                stopped = look(made)
            made = step
            if not stepper.ahead or saving.due() or stopped:
                heard, made = look(made), None
                if saving.due() and not (heard or stopped):
                    saving.save()
                if stopped or (heard and not stepper.ahead):
                    stopped = True
                    break
                # The processes in which no checkpoint is due hear it after the next step, where there is one, and stop after that.
                stopped = heard
        if made is not None:
            stopped = look(made) or stopped
    waiting.warn(workers, console)
    return not (stopped or (stop.received and stepper.ranks.size == 1))


def _batches(
    train_set: VolumeSet, feed: Resident | None, shares: Sequence[list[int]], workers: int, pin: bool
) -> Generator[Batch, None, None]:
    """This process's shares of the batches, some of which may be empty."""
    nothing = torch.zeros(0, dtype=torch.int64)
    empty = Batch(torch.zeros(0, *train_set.shape, dtype=torch.uint8), nothing, nothing)
    some = [share for share in shares if share]
    read = train_set.batches(some, workers, pin) if feed is None else feed.batches(some)
    try:
        for share in shares:
            yield next(read) if share else empty
    finally:
        read.close()


def _count(
    loss: float,
    norm: float,
    correct: int,
    skipped: bool,
    indices: Sequence[int],
    progress: Progress,
    train_set: VolumeSet,
    console: Console,
) -> None:
    """Add a step to `progress`.

    Raises CtcovidError after several steps without a finite loss and gradient. The weights are those before them.
    """
    progress.step += 1
    if not skipped:
        progress.skipped_in_a_row = 0
        progress.loss_sum += loss * len(indices)
        progress.correct += correct
        progress.seen += len(indices)
        return
    progress.skipped += 1
    progress.skipped_in_a_row += 1
    what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient's norm is {norm}"
    where = f"epoch {progress.epoch + 1}, step {progress.step}: {what}, with {train_set.named(indices)}"
    if progress.skipped_in_a_row >= MOST_SKIPPED:
        raise CtcovidError(
            f"The training has diverged: {MOST_SKIPPED} steps in a row without a finite loss and gradient, the last in {where}. "
            "Try a lower --learning-rate, or look at these volumes."
        )
    console.warn(f"{where}. The step is skipped, {progress.skipped:,} so far.")


@torch.inference_mode()
def validate(
    network: Network, valid_set: VolumeSet, batch: int, workers: int, stop: StopRequest, ranks: Ranks, console: Console, what: str
) -> tuple[bool, float | None, float | None]:
    """Whether `stop` came in any process, and mean cross-entropy and accuracy over a set, (None, None) where it is empty.

    Each volume is classified by one of the processes. The loss is not a number, in all of them, where the network answers in one with what
    is none.
    """
    loss, correct = 0.0, 0
    entire = in_order(len(valid_set), ranks.at_most(batch, len(valid_set)))
    order = ranks.share(entire)
    with console.progress(len(valid_set), what, "volumes", tenths=False) as advance:
        for number, some in enumerate(valid_set.batches(order, workers) if order else ()):
            try:
                probabilities = torch.from_numpy(network.probabilities(some.volumes))
            except ModelRefusedError:
                loss = math.nan
                break
            loss += float(F.nll_loss(probabilities.clamp_min(1e-300).log(), some.labels, reduction="sum"))
            correct += int((probabilities.argmax(1) == some.labels).sum())
            # The others are about as far.
            advance(sum(map(len, entire[number * ranks.size : (number + 1) * ranks.size])))
            ranks.check()
            if stop.received:
                break
    sums = torch.tensor([loss, correct, *(stop.received == number for number in STOPPING)], dtype=torch.float64)
    ranks.sum(sums)
    loss, right, *signals = sums.tolist()
    stopped = next((number for number, count in zip(STOPPING, signals, strict=True) if count), None)
    if stopped is not None:
        stop.received = stopped
    if not len(valid_set):
        return stopped is not None, None, None
    return stopped is not None, loss / len(valid_set), right / len(valid_set)
