"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctcovid.base.console import Console, duration
from ctcovid.base.errors import CtcovidError, ModelRefusedError
from ctcovid.base.signals import StopRequest
from ctcovid.models.network import Network
from ctcovid.training import augment
from ctcovid.training.balance import class_weights
from ctcovid.training.checkpoint import Progress
from ctcovid.training.ema import Ema, averaged
from ctcovid.training.freeze import learn
from ctcovid.training.history import EpochRow
from ctcovid.training.loss import mean_loss
from ctcovid.training.recipe import Recipe
from ctcovid.volumes.batches import Batch, VolumeSet, in_order
from ctcovid.volumes.resident import Resident, resident


def fit(
    network: Network,
    optimiser: torch.optim.Optimizer,
    recipe: Recipe,
    train_set: VolumeSet,
    valid_set: VolumeSet,
    progress: Progress,
    workers: int,
    stop: StopRequest,
    console: Console,
    epoch_done: Callable[[EpochRow, str], None],
    ema: Ema | None = None,
) -> bool:
    """Train from where `progress` stands to the recipe's last epoch (Li et al. 2021, Sec. 2.3), moving `progress` along.

    `epoch_done` is called after each epoch, with `progress` at its end, and with the speed and the time left in words. What is
    validated are the averages of `ema` where there are any. Returns False where `stop` came first; `progress` then stands between two
    steps, or before the validation of an epoch, from where a later call goes on with the same result.

    Raises CtcovidError where the loss is no longer finite, in training or in validation.
    """
    over = progress.over(recipe.epochs, recipe.patience)
    feed = None if over else resident(train_set, network.device, workers, stop, console)
    began, first = time.monotonic(), progress.epoch
    while not over:
        epoch_began, seen = time.monotonic(), progress.seen
        if not _train_epoch(network, optimiser, recipe, train_set, feed, progress, workers, stop, console, ema):
            return False
        speed = (progress.seen - seen) / (time.monotonic() - epoch_began)
        with averaged(network.module, ema):
            what = f"Validating after epoch {progress.epoch + 1} of {recipe.epochs}"
            loss, accuracy = validate(network, valid_set, recipe.batch, workers, stop, console, what)
        if stop.received:
            return False
        if loss is not None:
            _require_finite(loss, f"validation loss is {loss} after epoch {progress.epoch + 1}")
        row = EpochRow(
            progress.epoch + 1,
            recipe.rate(progress.epoch, 0, recipe.steps(len(train_set))),
            progress.loss_sum / progress.seen,
            progress.correct / progress.seen,
            loss,
            accuracy,
        )
        progress.history.append(row)
        progress.epoch, progress.step = progress.epoch + 1, 0
        progress.loss_sum, progress.correct, progress.seen = 0.0, 0, 0
        over = progress.over(recipe.epochs, recipe.patience)
        left = (time.monotonic() - began) / (progress.epoch - first) * (recipe.epochs - progress.epoch)
        epoch_done(row, f"{speed:,.1f} volumes/s" + ("" if over else f", about {duration(left)} left"))
        if stop.received and not over:
            return False
    return True


def _train_epoch(
    network: Network,
    optimiser: torch.optim.Optimizer,
    recipe: Recipe,
    train_set: VolumeSet,
    feed: Resident | None,
    progress: Progress,
    workers: int,
    stop: StopRequest,
    console: Console,
    ema: Ema | None,
) -> bool:
    """The rest of an epoch, from `feed` or else from disk; False where it was stopped."""
    learn(network.module)
    weights = None
    if recipe.balance == "weights":
        weights = torch.tensor(class_weights(train_set.labels, len(network.classes)), dtype=torch.float32, device=network.device)
    whole = recipe.order(len(train_set), progress.epoch, train_set.labels)
    order = whole[progress.step :]
    batches = train_set.batches(order, workers, pin=network.device.type == "cuda") if feed is None else feed.batches(order)
    made: _Step | None = None
    with console.progress(sum(map(len, order)), f"Epoch {progress.epoch + 1} of {recipe.epochs}", "volumes", tenths=False) as advance:
        for batch in batches:
            if stop.received:
                break
            # Counted are the steps that were made, of which the last one may not have been looked at yet.
            number = progress.step + (made is not None)
            for group in optimiser.param_groups:
                group["lr"] = recipe.rate(progress.epoch, number, len(whole))
            seed = recipe.step_seed(progress.epoch, number)
            torch.manual_seed(seed)
            step = _make_step(network, optimiser, recipe, batch, seed, weights)
            if ema is not None:
                ema.update(network.module)
            # A GPU is still at work on this step while the last one's loss is looked at; so it never waits for the program.
            if made is not None:
                advance(made.count(progress), progress.note())
            made = step
        if made is not None:
            advance(made.count(progress), progress.note())
    return not stop.received


@dataclass(frozen=True)
class _Step:
    """What came of a step, still on the device: mean loss, volumes classified rightly, and the number of volumes."""

    loss: Tensor
    correct: Tensor
    volumes: int

    def count(self, progress: Progress) -> int:
        """Add the step to `progress`, which so always says what was made; the number of volumes.

        Raises CtcovidError where the loss is not finite. The weights are then of no use any more; none of them is saved.
        """
        value = self.loss.item()
        _require_finite(value, f"loss is {value} in epoch {progress.epoch + 1}, step {progress.step + 1}")
        progress.step += 1
        progress.loss_sum += value * self.volumes
        progress.correct += int(self.correct)
        progress.seen += self.volumes
        return self.volumes


def _require_finite(loss: float, what: str) -> None:
    if not math.isfinite(loss):
        raise CtcovidError(f"The {what}: the training has diverged. Try a lower --learning-rate.")


def _make_step(
    network: Network, optimiser: torch.optim.Optimizer, recipe: Recipe, batch: Batch, seed: int = 0, weights: Tensor | None = None
) -> _Step:
    """One step of the optimiser. In pieces, the gradient is that of the mean loss over the whole batch.

    `seed` is what augmentation draws from; `weights`, float (classes,), are those of the classes in the loss.
    """
    labels = batch.labels.to(network.device, non_blocking=True)
    pieces = recipe.pieces(len(labels))
    loss, correct = torch.zeros((), device=network.device), torch.zeros((), dtype=torch.int64, device=network.device)
    changes = augment.draw(seed, batch.indices.tolist()) if recipe.augment else []
    optimiser.zero_grad(set_to_none=True)
    with _running_slower(network.module, len(pieces)):
        for volumes, targets in zip(batch.volumes.split(pieces), labels.split(pieces), strict=True):
            scaled = network.scale(volumes)
            if recipe.augment:
                scaled = augment.apply(scaled, changes[: len(targets)])
                del changes[: len(targets)]
            logits = network.forward(scaled)
            part = mean_loss(logits, targets, recipe.label_smoothing, weights) * (len(targets) / len(labels))
            part.backward()
            loss += part.detach()
            correct += (logits.detach().argmax(1) == targets).sum()
    if recipe.clip_gradient:
        nn.utils.clip_grad_norm_(network.module.parameters(), recipe.clip_gradient)
    optimiser.step()
    return _Step(loss, correct, len(labels))


@contextmanager
def _running_slower(module: nn.Module, pieces: int) -> Iterator[None]:
    """Let the running statistics of batch norms move as far in `pieces` passes as they otherwise would in one."""
    norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    before = [norm.momentum for norm in norms]
    if pieces > 1:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = None if momentum is None else 1 - (1 - momentum) ** (1 / pieces)
    try:
        yield
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum


@torch.inference_mode()
def validate(
    network: Network, valid_set: VolumeSet, batch: int, workers: int, stop: StopRequest, console: Console, what: str
) -> tuple[float | None, float | None]:
    """Mean cross-entropy and accuracy over a set; (None, None) where it is empty. Cut short where `stop` comes.

    The loss is not a number where the network answers with what is none.
    """
    if not len(valid_set):
        return None, None
    loss, correct = 0.0, 0
    with console.progress(len(valid_set), what, "volumes", tenths=False) as advance:
        for some in valid_set.batches(in_order(len(valid_set), batch), workers):
            try:
                probabilities = torch.from_numpy(network.probabilities(some.volumes))
            except ModelRefusedError:
                return math.nan, 0.0
            loss += float(F.nll_loss(probabilities.clamp_min(1e-300).log(), some.labels, reduction="sum"))
            correct += int((probabilities.argmax(1) == some.labels).sum())
            advance(len(some.labels))
            if stop.received:
                break
    return loss / len(valid_set), correct / len(valid_set)
