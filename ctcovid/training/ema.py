"""An exponential moving average of a network's weights, which is validated and kept instead of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class Ema:
    """The average of all weights and running statistics of `module` over its steps.

    In step n the average keeps ``min(decay, (1 + n) / (10 + n))`` of itself and takes the rest from the network. This is the bound of
    TensorFlow's ExponentialMovingAverage; without it, a short training would be validated with its random initial weights. Skipped steps
    do not count. Their number stays on the device, so that the program does not wait for it.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = torch.zeros((), device=next(module.parameters()).device)
        self.tensors = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, skipped: Tensor | None = None) -> None:
        """Average in the weights after a step, unless it was `skipped`, bool ()."""
        made = torch.ones_like(self.updates) if skipped is None else (~skipped).to(self.updates)
        self.updates += made
        # 9 / (10 + n) is 1 - (1 + n) / (10 + n).
        taken = made * (9 / (10 + self.updates)).clamp(min=1 - self.decay)
        for name, tensor in module.state_dict().items():
            average = self.tensors[name]
            if average.is_floating_point():
                average.lerp_(tensor, taken)
            else:
                average.copy_(torch.where(made > 0, tensor, average))

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {"updates": int(self.updates), "tensors": self.tensors}

    def load(self, state: dict[str, Any]) -> None:
        """Restore from what a checkpoint holds."""
        self.updates.fill_(state["updates"])
        for name, tensor in state["tensors"].items():
            self.tensors[name].copy_(tensor)

    @torch.no_grad()
    def exchange(self, module: nn.Module) -> None:
        """Swap the averages and the values of `module`. A second call restores the same bits."""
        for name, tensor in module.state_dict().items():
            own = tensor.clone()
            tensor.copy_(self.tensors[name])
            self.tensors[name].copy_(own)


@contextmanager
def averaged(module: nn.Module, ema: Ema | None) -> Iterator[None]:
    """Give `module` the averages while the block runs; without an `ema` it keeps its own values."""
    if ema is None:
        yield
        return
    ema.exchange(module)
    try:
        yield
    finally:
        ema.exchange(module)
