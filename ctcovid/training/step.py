"""One step of the optimiser, over all processes, in pieces that fit into memory."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctcovid.base.signals import STOPPING, StopRequest
from ctcovid.distributed.gradients import Gradients, RunningStatistics
from ctcovid.distributed.ranks import Ranks
from ctcovid.training import augment
from ctcovid.training.checkpoint import TrainingState
from ctcovid.training.recipe import Recipe
from ctcovid.volumes.batches import Batch

T = TypeVar("T")


@dataclass(frozen=True)
class Step:
    """The result of a step, still on the device and the same in every process.

    Attributes
    ----------
    numbers : float (4 + signals,): mean loss, correctly classified volumes, norm of the gradient, 1 if the step was skipped because
        loss or gradient is not finite, and for each stopping signal the number of processes that have received it
    indices : the volumes of the whole batch, by their number in the training set
    """

    numbers: Tensor
    indices: Sequence[int]

    def read(self) -> Outcome:
        """Wait for the device, and return the numbers."""
        loss, correct, norm, skipped, *signals = self.numbers.tolist()
        stopped = next((number for number, count in zip(STOPPING, signals, strict=True) if count), None)
        return Outcome(loss, round(correct) if math.isfinite(correct) else 0, norm, skipped > 0, stopped)


@dataclass(frozen=True)
class Outcome:
    """A step's mean loss, correctly classified volumes, norm of the gradient, whether it was skipped, and the signal to stop at, if any."""

    loss: float
    correct: int
    norm: float
    skipped: bool
    stopped: signal.Signals | None


class Stepper:
    """Makes steps with the network and optimiser of `state`, together with the other processes; its average follows those that are made.

    Attributes
    ----------
    synchronised : whether batch norm uses the volumes of all processes
    ahead : whether a step is read only after the next one was started, because the device works while the program continues
    """

    def __init__(self, state: TrainingState, recipe: Recipe, ranks: Ranks, synchronised: bool = False) -> None:
        self.state, self.recipe, self.ranks, self.synchronised = state, recipe, ranks, synchronised
        self.network = state.network
        self.ahead = self.network.device.type != "cpu"
        self.gradients = Gradients(self.network.module.parameters(), ranks)
        self.statistics = RunningStatistics(self.network.module)

    def share(self, things: Sequence[T]) -> list[T]:
        """This process's share of a batch, see Recipe.at_work."""
        at_work = self.recipe.at_work(len(things), self.ranks.size, self.synchronised)
        return list(things[self.ranks.rank :: at_work]) if self.ranks.rank < at_work else []

    def make(
        self, batch: Batch, indices: Sequence[int], stop: StopRequest | None = None, seed: int = 0, weights: Tensor | None = None
    ) -> Step:
        """A step on the mean loss over the volumes `indices`, of which `batch` has this process's share.

        The gradient of the whole batch is clipped. If the loss or the gradient is not finite, nothing changes: neither weights nor their
        average nor optimiser nor running statistics. Otherwise running statistics become the mean of those of all processes, weighted by
        their numbers of volumes.

        Parameters
        ----------
        stop : its signal is shared with the other processes
        seed : what augmentation draws from, the same in all processes
        weights : float (classes,), the weights of the classes in the loss
        """
        device = self.network.device
        before = self.statistics.read(torch.zeros((), device=device))
        self.state.optimiser.zero_grad(set_to_none=True)
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
        _step_unless(skipped, self.state.optimiser)
        if self.state.ema is not None:
            self.state.ema.update(self.network.module, skipped)
        return Step(torch.cat([numbers[:2], torch.stack([norm, skipped.float()]), numbers[2:]]), indices)

    def _backward(self, batch: Batch, indices: Sequence[int], seed: int, weights: Tensor | None) -> tuple[Tensor, Tensor]:
        """This process's share of the mean loss and of the number of correct volumes; gradients are left in the parameters."""
        network, graphs = self.network, self.network.graphs
        if len(indices) != self.recipe.batch or self.synchronised:
            # A smaller batch runs as it is.
            graphs.make_room()
        loss, correct = torch.zeros((), device=network.device), torch.zeros((), device=network.device)
        if not len(batch.labels) and not self.synchronised:
            return loss, correct
        labels = batch.labels.to(network.device, non_blocking=True)
        # Drawn for the whole batch: the change to a volume that is in it twice must not depend on which process has it.
        changes = self.share(augment.draw(seed, indices)) if self.recipe.augment else []
        # Synchronised batch norms wait for every process: all need the same number of pieces, though the last ones may be empty.
        pieces = self.recipe.pieces(len(labels), -(-len(indices) // self.ranks.size) if self.synchronised else 0)
        with _running_slower(network.module, len(pieces)):
            for some, targets in zip(batch.volumes.split(pieces), labels.split(pieces), strict=True):
                entering = some
                if len(targets) and self.recipe.augment:
                    entering = augment.apply(network.scale(some), changes[: len(targets)])
                    del changes[: len(targets)]
                share, right = self._piece(entering, targets, weights, len(indices), len(pieces))
                loss += share
                correct += right
        return loss, correct

    def _piece(self, entering: Tensor, targets: Tensor, weights: Tensor | None, volumes: int, pieces: int) -> tuple[Tensor, Tensor]:
        """Share of the mean loss over `volumes`, and number of correct ones, of a piece; its gradients are added to the parameters'.

        entering : uint8 (B, D, H, W), or scaled and augmented, float32 (B, 1, D, H, W)
        """
        if self.network.graphs.recorder is None or self.synchronised or volumes != self.recipe.batch:
            share, right = self._share(entering, targets, weights, volumes)
            share.backward()
            return share.detach(), right

        def differentiated(entering: Tensor, targets: Tensor, weights: Tensor | None) -> tuple[Tensor | None, ...]:
            with torch.enable_grad():
                share, right = self._share(entering, targets, weights, volumes)
                return share.detach(), right, *self.gradients.of(share)

        found = self.network.graphs.run("the training step", differentiated, entering, targets, weights, key=(volumes, pieces), lent=True)
        loss, count, *gradients = found
        assert loss is not None and count is not None
        self.gradients.add(gradients, lent=pieces > 1)
        return loss, count

    def _share(self, entering: Tensor, targets: Tensor, weights: Tensor | None, volumes: int) -> tuple[Tensor, Tensor]:
        scaled = self.network.scale(entering) if entering.dtype == torch.uint8 else entering
        logits = self.network.forward(scaled)
        share = summed_loss(logits, targets, self.recipe.label_smoothing, weights) / volumes
        return share, (logits.detach().argmax(1) == targets).sum()

    def _clipped(self) -> Tensor:
        """The norm of the whole batch's gradient, which is scaled down if that is too high."""
        norm = nn.utils.get_total_norm([p.grad for p in self.gradients.parameters if p.grad is not None])
        if self.recipe.clip_gradient:
            nn.utils.clip_grads_with_norm_(self.gradients.parameters, self.recipe.clip_gradient, norm)
        return norm


def summed_loss(logits: Tensor, labels: Tensor, smoothing: float = 0.0, weights: Tensor | None = None) -> Tensor:
    """Cross-entropy, summed over the volumes, float (); 0 without volumes.

    With `weights`, float (classes,), a volume counts as many times as its class says. The mean over a batch is this sum divided by the
    number of its volumes, not by the sum of their weights as in torch. So the pieces of a batch add up to the batch, however it is cut.

    logits : float (B, classes); labels : int64 (B,); smoothing : the share of the target that is spread over all classes
    """
    if weights is None:
        return F.cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing)
    each = F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    return (each * weights[labels]).sum()


def _step_unless(skipped: Tensor, optimiser: torch.optim.Optimizer) -> None:
    """A step of a fused `optimiser`, which changes nothing if `skipped`, bool (), is true.

    The kernel reads `found_inf` on the device, so that the program does not wait for it. torch.amp.GradScaler sets and removes the
    attribute of the same name in the same way.
    """
    optimiser.found_inf = skipped.float()  # type: ignore[attr-defined]
    optimiser.step()
    del optimiser.found_inf  # type: ignore[attr-defined]


@contextmanager
def _running_slower(module: nn.Module, pieces: int) -> Iterator[None]:
    """Let the running statistics of batch norms change in `pieces` passes as much as they otherwise would in one."""
    norms = [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    before = [norm.momentum for norm in norms]
    if pieces > 1:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = None if momentum is None else 1 - (1 - momentum) ** (1 / pieces)
    try:
        yield
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum
