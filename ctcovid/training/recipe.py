"""The paper's recipe: cross-entropy, Adam, a learning rate that falls in steps, batches drawn afresh in each epoch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Recipe:
    """How to train (Li et al. 2021, Sec. 2.3; batch size from Table 6).

    Adam at `learning_rate`, which falls by `decay` every `decay_every` epochs, `epochs` in all, `batch` volumes to a step, of which at
    most `micro_batch` are in memory at a time (0: all of them).
    """

    epochs: int = 20
    batch: int = 32
    micro_batch: int = 0
    learning_rate: float = 1e-3
    decay: float = 0.1
    decay_every: int = 10
    seed: int = 0

    def rate(self, epoch: int) -> float:
        """Learning rate in `epoch`, counted from 0."""
        return self.learning_rate * self.decay ** (epoch // self.decay_every)

    def optimiser(self, module: torch.nn.Module) -> torch.optim.Optimizer:
        """Adam with the defaults of torch but for the learning rate; parameters are updated in one fused pass."""
        return torch.optim.Adam(module.parameters(), lr=self.learning_rate, fused=True)

    def step_seed(self, epoch: int, step: int, rank: int = 0) -> int:
        """Seed of what a network itself draws in a step, such as dropout, so that a resumed run draws the same."""
        return int(np.random.SeedSequence([self.seed, epoch, step, *([rank] if rank else [])]).generate_state(1)[0])

    def pieces(self, volumes: int, largest: int = 0) -> list[int]:
        """Sizes of the pieces in which so many volumes of a step go through the network, as equal as can be.

        There are as many as `largest` volumes would need, where several processes have to go through as many pieces. Rather than have
        batch norm learn from a single volume, a piece takes one more than `micro_batch`, unless that is 1.
        """
        largest = largest or volumes
        count = -(-largest // self.micro_batch) if self.micro_batch else 1
        if self.micro_batch > 1:
            count = max(1, min(count, largest // 2))
        return [volumes // count + (number < volumes % count) for number in range(count)]

    def order(self, volumes: int, epoch: int) -> list[list[int]]:
        """The batches of an epoch, which depend on the seed and the epoch alone, so that a resumed run draws the same.

        A last batch of one volume joins the one before: batch norm cannot learn from a single value.
        """
        shuffled = np.random.default_rng([self.seed, epoch]).permutation(volumes).tolist()
        batches = [shuffled[first : first + self.batch] for first in range(0, volumes, self.batch)]
        if len(batches) > 1 and len(batches[-1]) == 1:
            single = batches.pop()
            batches[-1] += single
        return batches
