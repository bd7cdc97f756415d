"""The training loop."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from ctcovid.base.console import duration
from ctcovid.base.errors import CtcovidError, ModelRefusedError
from ctcovid.base.signals import STOPPING, StopAwaitedError
from ctcovid.distributed.session import Session
from ctcovid.models.network import Network
from ctcovid.training.balance import class_weights
from ctcovid.training.checkpoint import Saving
from ctcovid.training.data import TrainingData
from ctcovid.training.ema import averaged
from ctcovid.training.freeze import learn
from ctcovid.training.history import EpochRow
from ctcovid.training.step import Stepper
from ctcovid.training.tracker import StepTracker
from ctcovid.volumes.batches import in_order
from ctcovid.volumes.limits import Waiting

logger = logging.getLogger(__name__)


def fit(stepper: Stepper, data: TrainingData, session: Session, saving: Saving, epoch_done: Callable[[EpochRow, str], None]) -> bool:
    """Train from the stepper's progress to the recipe's last epoch (Li et al. 2021, Sec. 2.3), and update the progress.

    What is validated are the moving averages of the weights, if there are any. `epoch_done` is called after each epoch, with the progress
    at its end, and with the speed of all processes and the time left in words.

    Returns False if a signal came first, in this process or in another. The progress is then between two steps, or before the validation
    of an epoch. A later call resumes there with the same result.

    Raises CtcovidError if the training diverges, or the validation loss is not finite.
    """
    recipe, progress, pace = stepper.recipe, stepper.state.progress, _Pace()
    over = progress.over(recipe.epochs, recipe.patience)
    while not over:
        began, seen = time.monotonic(), progress.seen
        if not _train_epoch(stepper, data, session, saving):
            return False
        trained = time.monotonic()
        pace.add(progress.seen - seen, trained - began)
        with averaged(stepper.network.module, stepper.state.ema):
            what = f"Validating after epoch {progress.epoch + 1} of {recipe.epochs}"
            scores = validate(stepper.network, data, recipe.batch, session, what)
        if scores is None:
            return False
        logger.info(f"Epoch {progress.epoch + 1}: trained in {trained - began:.2f} s, validated in {time.monotonic() - trained:.2f} s.")
        row = _row(stepper, len(data.train), *scores)
        progress.end_epoch(row)
        over = progress.over(recipe.epochs, recipe.patience)
        epoch_done(row, pace.text(0 if over else len(data.train) * (recipe.epochs - progress.epoch)))
        if session.stops_alone and not over:
            return False
    return True


def _train_epoch(stepper: Stepper, data: TrainingData, session: Session, saving: Saving) -> bool:
    """The rest of an epoch; False if a signal ended it."""
    network, recipe, progress = stepper.network, stepper.recipe, stepper.state.progress
    learn(network.module)
    weights = None
    if recipe.class_balance == "weights":
        weights = torch.tensor(class_weights(data.train.labels, len(network.classes)), dtype=torch.float32, device=network.device)
    entire = recipe.order(len(data.train), progress.epoch, data.train.labels)
    order = entire[progress.step :]
    shares = [stepper.share(batch) for batch in order]
    waiting, what = Waiting(), f"Epoch {progress.epoch + 1} of {recipe.epochs}"
    pin = network.device.type == "cuda"
    with (
        # Readers end with their iterator. An exception's traceback would keep it alive, and the readers waiting for each other at exit.
        contextlib.closing(data.batches(shares, session.workers, pin, session.stop)) as batches,
        session.console.progress(sum(map(len, order)), what, "volumes", tenths=False) as advance,
    ):
        tracker = StepTracker(stepper, data.train, session, saving, advance)
        with session.heeding():
            for batch, indices in zip(waiting.timed(batches), order, strict=True):
                if session.stops_alone:
                    break
                number = tracker.number
                for group in stepper.state.optimiser.param_groups:
                    group["lr"] = recipe.rate(progress.epoch, number, len(entire))
                torch.manual_seed(recipe.step_seed(progress.epoch, number, stepper.ranks.rank))
                step = stepper.make(batch, indices, session.stop, recipe.step_seed(progress.epoch, number), weights)
                if tracker.add(step):
                    break
        tracker.finish()
    waiting.warn(session.workers, session.console)
    return not (tracker.stopped or session.stops_alone)


def _row(stepper: Stepper, volumes: int, loss: float | None, accuracy: float | None) -> EpochRow:
    """What the epoch gave that was trained on so many volumes and validated with that `loss` and `accuracy`.

    Raises CtcovidError if the validation loss is not finite.
    """
    recipe, progress = stepper.recipe, stepper.state.progress
    if loss is not None and not math.isfinite(loss):
        raise CtcovidError(
            f"The validation loss is {loss} after epoch {progress.epoch + 1}: the training has diverged. Try a lower --learning-rate."
        )
    return EpochRow(
        progress.epoch + 1,
        recipe.rate(progress.epoch, 0, recipe.steps(volumes)),
        progress.loss_sum / progress.seen if progress.seen else math.nan,
        progress.correct / progress.seen if progress.seen else math.nan,
        loss,
        accuracy,
    )


class _Pace:
    """Speed and time left. An epoch that was resumed at its very end has trained on no volume, and shows no speed."""

    def __init__(self) -> None:
        self.began, self.trained, self.speed = time.monotonic(), 0, 0.0

    def add(self, volumes: int, seconds: float) -> None:
        """Count the volumes of an epoch, and the time that training on them took."""
        self.trained, self.speed = self.trained + volumes, volumes / seconds

    def text(self, left: int) -> str:
        """The speed of the last epoch, and the time that so many volumes will take, validation included."""
        said = [f"{self.speed:,.1f} volumes/s"] if self.speed else []
        if self.trained and left:
            said.append(f"about {duration((time.monotonic() - self.began) / self.trained * left)} left")
        return ", ".join(said)


@torch.inference_mode()
def validate(
    network: Network, data: TrainingData, batch: int, session: Session, what: str
) -> tuple[float, float] | tuple[None, None] | None:
    """Mean cross-entropy and accuracy over the validation part, (None, None) if it is empty; None if a signal came in any process.

    Each volume is classified by one of the processes. The loss is NaN in all of them if the network's output is NaN or Inf in one.
    """
    ranks, stop, valid_set = session.ranks, session.stop, data.valid
    loss, correct = 0.0, 0
    entire = in_order(len(valid_set), ranks.at_most(batch, len(valid_set)))
    order = ranks.share(entire)
    with session.console.progress(len(valid_set), what, "volumes", tenths=False) as advance, contextlib.suppress(StopAwaitedError):
        for number, some in enumerate(data.valid_batches(order, session.workers, stop) if order else ()):
            try:
                probabilities = torch.from_numpy(network.probabilities(some.volumes))
            except ModelRefusedError:
                loss = math.nan
                break
            loss += float(F.nll_loss(probabilities.clamp_min(1e-300).log(), some.labels, reduction="sum"))
            correct += int((probabilities.argmax(1) == some.labels).sum())
            # The other processes are about as far.
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
        return None
    return (loss / len(valid_set), right / len(valid_set)) if len(valid_set) else (None, None)
