"""One step of the optimiser, over all processes, in pieces that fit into memory."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn

from ctcovid.base.signals import STOPPING, StopRequest
from ctcovid.distributed.gradients import Gradients, RunningStatistics
from ctcovid.distributed.ranks import Ranks
from ctcovid.models.network import Network
from ctcovid.training import augment
from ctcovid.training.ema import Ema
from ctcovid.training.loss import summed_loss
from ctcovid.training.recipe import Recipe
from ctcovid.volumes.batches import Batch

T = TypeVar("T")


@dataclass(frozen=True)
class Step:
    """What came of a step, still on the device and the same in every process.

    Attributes
    ----------
    numbers : float (4 + signals,): mean loss, volumes classified rightly, norm of the gradient, 1 where the step was not made because
        loss or gradient is not finite, and for each stopping signal how many processes have received it
    indices : the volumes of the whole batch, by their number in the training set
    """

    numbers: Tensor
    indices: Sequence[int]

    def look(self) -> Outcome:
        """Wait for the device."""
        loss, correct, norm, skipped, *signals = self.numbers.tolist()
        stopped = next((number for number, count in zip(STOPPING, signals, strict=True) if count), None)
        return Outcome(loss, round(correct) if math.isfinite(correct) else 0, norm, skipped > 0, stopped)


@dataclass(frozen=True)
class Outcome:
    """A step's mean loss, volumes classified rightly, norm of the gradient, whether it was skipped, and the signal to stop at, if any."""

    loss: float
    correct: int
    norm: float
    skipped: bool
    stopped: signal.Signals | None


class Stepper:
    """Makes steps with `network` and `optimiser`, together with the other processes; `ema` follows those that are made.

    Attributes
    ----------
    ahead : whether a step is looked at only when the next one is made, since the device works on while the program does
    """

    def __init__(
        self,
        network: Network,
        optimiser: torch.optim.Optimizer,
        recipe: Recipe,
        ranks: Ranks,
        synchronised: bool = False,
        ema: Ema | None = None,
    ) -> None:
        self.network, self.optimiser, self.recipe, self.ranks, self.synchronised = network, optimiser, recipe, ranks, synchronised
        self.ema = ema
        self.ahead = network.device.type != "cpu"
        self.gradients = Gradients(network.module.parameters(), ranks)
        self.statistics = RunningStatistics(network.module)

    def share(self, things: Sequence[T]) -> list[T]:
        """This process's part of a batch, see Recipe.at_work."""
        at_work = self.recipe.at_work(len(things), self.ranks.size, self.synchronised)
        return list(things[self.ranks.rank :: at_work]) if self.ranks.rank < at_work else []

    def make(
        self, batch: Batch, indices: Sequence[int], stop: StopRequest | None = None, seed: int = 0, weights: Tensor | None = None
    ) -> Step:
        """A step on the mean loss over the volumes `indices`, of which `batch` has this process's share.

        `seed`, the same in all processes, is what augmentation draws from; `weights`, float (classes,), are those of the classes in the
        loss. The gradient of the whole batch is clipped. Nothing changes, neither weights nor their average nor optimiser nor running
        statistics, where that loss or its gradient is not finite. Running statistics are afterwards the mean of those of all processes, by
        their numbers of volumes.
        """
        device = self.network.device
        before = self.statistics.read(torch.zeros((), device=device))
        self.optimiser.zero_grad(set_to_none=True)
        loss, correct = self._backward(batch, indices, seed, weights)
        signals = torch.zeros(len(STOPPING), device=device)
        if stop is not None and stop.received is not None:
            signals[STOPPING.index(stop.received)] = 1
        numbers = torch.cat([torch.stack([loss, correct]), signals])
        after = self.statistics.read(loss)
        if self.ranks.size > 1:
            both = torch.cat([numbers, after * (len(batch.labels) / len(indices))])
            self.gradients.exchange(both)
            numbers, after = both.split([len(numbers), len(after)])
        norm = self._clipped()
        skipped = ~(numbers[0].isfinite() & norm.isfinite())
        self.statistics.write(torch.where(skipped, before, after))
        # Fused optimisers leave out a step by themselves where this says so, and the program need not wait for the device to know.
        self.optimiser.found_inf = skipped.float()  # type: ignore[attr-defined]
        self.optimiser.step()
        if self.ema is not None:
            self.ema.update(self.network.module, skipped)
        return Step(torch.cat([numbers[:2], torch.stack([norm, skipped.float()]), numbers[2:]]), indices)

    def _backward(self, batch: Batch, indices: Sequence[int], seed: int, weights: Tensor | None) -> tuple[Tensor, Tensor]:
        """This process's part of the mean loss and of the number of volumes classified rightly; gradients are left in the parameters."""
        network = self.network
        loss, correct = torch.zeros((), device=network.device), torch.zeros((), device=network.device)
        if not len(batch.labels) and not self.synchronised:
            return loss, correct
        labels = batch.labels.to(network.device, non_blocking=True)
        # Drawn for the whole batch: what happens to a volume that is in it twice must not depend on who has it.
        changes = self.share(augment.draw(seed, indices)) if self.recipe.augment else []
        # Synchronised batch norms wait for every process: all go through as many pieces, though the last ones may be empty.
        pieces = self.recipe.pieces(len(labels), -(-len(indices) // self.ranks.size) if self.synchronised else 0)
        with _running_slower(network.module, len(pieces)):
            for some, targets in zip(batch.volumes.split(pieces), labels.split(pieces), strict=True):
                scaled = network.scale(some)
                if len(targets) and self.recipe.augment:
                    scaled = augment.apply(scaled, changes[: len(targets)])
                    del changes[: len(targets)]
                logits = network.forward(scaled)
                part = summed_loss(logits, targets, self.recipe.label_smoothing, weights) / len(indices)
                part.backward()
                loss += part.detach()
                correct += (logits.detach().argmax(1) == targets).sum()
        return loss, correct

    def _clipped(self) -> Tensor:
        """The norm of the whole batch's gradient, which is scaled down where that is too high."""
        norm = nn.utils.get_total_norm([p.grad for p in self.gradients.parameters if p.grad is not None])
        if self.recipe.clip_gradient:
            nn.utils.clip_grads_with_norm_(self.gradients.parameters, self.recipe.clip_gradient, norm)
        return norm


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
