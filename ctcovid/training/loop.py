"""The training loop."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

from ctcovid.base.console import Console
from ctcovid.base.errors import CtcovidError
from ctcovid.base.signals import StopRequest
from ctcovid.models.network import Network
from ctcovid.training.checkpoint import Progress
from ctcovid.training.history import EpochRow
from ctcovid.training.recipe import Recipe
from ctcovid.volumes.batches import VolumeSet, in_order


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
    epoch_done: Callable[[EpochRow], None],
) -> bool:
    """Train from where `progress` stands to the recipe's last epoch (Li et al. 2021, Sec. 2.3), moving `progress` along.

    `epoch_done` is called after each epoch, with `progress` at its end. Returns False where `stop` came first; `progress` then
    stands between two steps, or before the validation of an epoch, from where a later call goes on with the same result.

    Raises CtcovidError where the loss is no longer finite.
    """
    while progress.epoch < recipe.epochs:
        if not _train_epoch(network, optimiser, recipe, train_set, progress, workers, stop, console):
            return False
        loss, accuracy = validate(network, valid_set, recipe.batch, workers, stop)
        if stop.received:
            return False
        row = EpochRow(
            progress.epoch + 1,
            recipe.rate(progress.epoch),
            progress.loss_sum / progress.seen,
            progress.correct / progress.seen,
            loss,
            accuracy,
        )
        progress.history.append(row)
        progress.epoch, progress.step = progress.epoch + 1, 0
        progress.loss_sum, progress.correct, progress.seen = 0.0, 0, 0
        epoch_done(row)
        if stop.received and progress.epoch < recipe.epochs:
            return False
    return True


def _train_epoch(
    network: Network,
    optimiser: torch.optim.Optimizer,
    recipe: Recipe,
    train_set: VolumeSet,
    progress: Progress,
    workers: int,
    stop: StopRequest,
    console: Console,
) -> bool:
    """The rest of an epoch; False where it was stopped."""
    network.module.train()
    for group in optimiser.param_groups:
        group["lr"] = recipe.rate(progress.epoch)
    order = recipe.order(len(train_set), progress.epoch)[progress.step :]
    pin = network.device.type == "cuda"
    with console.progress(sum(map(len, order)), f"Epoch {progress.epoch + 1} of {recipe.epochs}") as advance:
        for batch in train_set.batches(order, workers, pin):
            if stop.received:
                return False
            torch.manual_seed(recipe.step_seed(progress.epoch, progress.step))
            labels = batch.labels.to(network.device, non_blocking=True)
            logits = network.logits(batch.volumes)
            loss = F.cross_entropy(logits, labels)
            # Progress is counted only where the step is made, so that a stopped run and an undisturbed one agree.
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            value = loss.item()
            if not math.isfinite(value):
                raise CtcovidError(
                    f"The loss is {value} in epoch {progress.epoch + 1}, step {progress.step + 1}: the training has diverged. "
                    "Try a lower --learning-rate."
                )
            optimiser.step()
            progress.step += 1
            progress.loss_sum += value * len(labels)
            progress.correct += int((logits.argmax(1) == labels).sum())
            progress.seen += len(labels)
            advance(len(labels))
    return not stop.received


@torch.inference_mode()
def validate(network: Network, valid_set: VolumeSet, batch: int, workers: int, stop: StopRequest) -> tuple[float | None, float | None]:
    """Mean cross-entropy and accuracy over a set; (None, None) where it is empty. Cut short where `stop` comes."""
    if not len(valid_set):
        return None, None
    loss, correct = 0.0, 0
    for some in valid_set.batches(in_order(len(valid_set), batch), workers):
        probabilities = torch.from_numpy(network.probabilities(some.volumes))
        loss += float(F.nll_loss(probabilities.clamp_min(1e-300).log(), some.labels, reduction="sum"))
        correct += int((probabilities.argmax(1) == some.labels).sum())
        if stop.received:
            break
    return loss / len(valid_set), correct / len(valid_set)
