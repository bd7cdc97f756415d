"""The paper's recipe: cross-entropy, Adam, a learning rate that falls in steps, batches drawn anew in each epoch; and what goes beyond."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ctcovid.options.recipe import RecipeOptions
from ctcovid.training.balance import balanced_draw


@dataclass(frozen=True)
class Recipe(RecipeOptions):
    """How to train, as chosen by options, with the settings that are not options.

    At most `micro_batch` volumes are in memory at a time (0: the whole batch). The learning rate falls by the factor `decay` every
    `decay_every` epochs.

    Raises UsageError if the values contradict each other.
    """

    micro_batch: int = 0
    decay: float = 0.1
    decay_every: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        self.require_recipe()

    def rate(self, epoch: int, step: int = 0, steps: int = 1) -> float:
        """Learning rate in a step of an epoch that has so many, epoch and step counted from 0."""
        warm = round(self.warmup * steps)
        now = epoch * steps + step
        if self.schedule == "cosine":
            falling = cosine(max(0, now - warm), max(1, self.epochs * steps - warm))
        else:
            falling = self.decay ** (epoch // self.decay_every)
        return self.learning_rate * falling * warm_up(now, warm)

    def optimiser(self, module: nn.Module) -> torch.optim.Optimizer:
        """Adam with the defaults of torch but for the learning rate; parameters are updated in one fused pass.

        With a weight decay it is AdamW. Biases and batch norms are not decayed, as they do not make a network more complex.
        """
        learning = [parameter for parameter in module.parameters() if parameter.requires_grad]
        if not self.weight_decay:
            return torch.optim.Adam(learning, lr=self.learning_rate, fused=True)
        groups = [
            {"params": [parameter for parameter in learning if parameter.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [parameter for parameter in learning if parameter.ndim <= 1], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=self.learning_rate, fused=True)

    def step_seed(self, epoch: int, step: int, rank: int = 0) -> int:
        """Seed of the random numbers that a network draws in a step, such as for dropout. A resumed run draws the same."""
        return int(np.random.SeedSequence([self.seed, epoch, step, *([rank] if rank else [])]).generate_state(1)[0])

    def pieces(self, volumes: int, largest: int = 0) -> list[int]:
        """Sizes of the pieces in which so many volumes of a step go through the network, as equal as possible.

        There are as many as `largest` volumes need, if all processes must have the same number of pieces. A piece takes one volume more
        than `micro_batch` rather than leave a single one to batch norm, unless `micro_batch` is 1.
        """
        largest = largest or volumes
        count = -(-largest // self.micro_batch) if self.micro_batch else 1
        if self.micro_batch > 1:
            count = max(1, min(count, largest // 2))
        return [volumes // count + (number < volumes % count) for number in range(count)]

    def of_each(self, processes: int) -> int:
        """The largest share of a batch that one of the processes has."""
        return -(-self.batch // processes)

    def at_once(self, processes: int) -> int:
        """The most volumes of a step that one of the processes has in memory at a time."""
        most = self.of_each(processes)
        return min(self.micro_batch or most, most)

    def at_work(self, volumes: int, processes: int, synchronised: bool = False) -> int:
        """How many of the processes share a batch of so many volumes.

        A shorter last batch goes to fewer processes, rather than one volume to each. Unless it is `synchronised`, batch norm learns little
        from a single volume, and nothing at the smallest sizes.
        """
        few = not synchronised and volumes < 2 * processes <= self.batch
        return max(1, volumes // 2) if few else processes

    def fewest(self, volumes: int, labels: np.ndarray | None = None, processes: int = 1, synchronised: bool = False) -> int:
        """The fewest volumes that a batch norm sees at a time in an epoch over so many, shared among the processes."""
        return min(self._fewest(size, processes, synchronised) for size in {len(batch) for batch in self.order(volumes, 0, labels)})

    def _fewest(self, volumes: int, processes: int, synchronised: bool) -> int:
        at_work = self.at_work(volumes, processes, synchronised)
        shares = [len(range(rank, volumes, at_work)) for rank in range(at_work)]
        if synchronised:
            # Batch norm sees the pieces of all processes with the same number as one.
            return min(map(sum, zip(*(self.pieces(share, shares[0]) for share in shares), strict=True)))
        return min(min(self.pieces(share)) for share in shares if share)

    def steps(self, volumes: int) -> int:
        """How many batches an epoch over so many volumes has."""
        joined = volumes > self.batch and (volumes - 1) % self.batch == 0
        return -(-volumes // self.batch) - joined

    def order(self, volumes: int, epoch: int, labels: np.ndarray | None = None) -> list[list[int]]:
        """The batches of an epoch. They depend on the seed and the epoch alone, so that a resumed run has the same.

        A last batch of one volume joins the one before: batch norm cannot learn from a single value.

        labels : int (volumes,), which the sampler needs
        """
        generator = np.random.default_rng([self.seed, epoch])
        if self.class_balance == "sampler":
            assert labels is not None
            shuffled = balanced_draw(labels, generator).tolist()
        else:
            shuffled = generator.permutation(volumes).tolist()
        batches = [shuffled[first : first + self.batch] for first in range(0, volumes, self.batch)]
        if len(batches) > 1 and len(batches[-1]) == 1:
            single = batches.pop()
            batches[-1] += single
        return batches


def warm_up(step: int, steps: int) -> float:
    """A factor that rises linearly over the first `steps` steps, from 1 / `steps`, and then is 1 (Goyal et al. 2017, Sec. 2.2)."""
    return min(1.0, (step + 1) / steps) if steps else 1.0


def cosine(step: int, steps: int) -> float:
    """A factor that falls from 1 along half a cosine and would be 0 at step number `steps` (Loshchilov and Hutter 2017, Eq. (5))."""
    return (1 + math.cos(math.pi * min(1.0, step / steps))) / 2
