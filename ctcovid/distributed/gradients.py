"""Gradients and running statistics of a step, combined over all processes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from ctcovid.distributed.ranks import Ranks

# Values per message: large enough to use a network's bandwidth, small enough to send the first while the second is packed.
BUCKET = 8 << 20


class Gradients:
    """Sums the gradients of `parameters` over all processes, in buckets of some million values that are reused in every step."""

    def __init__(self, parameters: Iterable[nn.Parameter], ranks: Ranks) -> None:
        self.ranks = ranks
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self.buckets: list[Tensor] = []
        self.views: list[Tensor] = []
        if ranks.size > 1:
            for group in _groups(self.parameters):
                bucket = torch.zeros(sum(p.numel() for p in group), device=group[0].device)
                self.buckets.append(bucket)
                self.views += [v.view_as(p) for v, p in zip(bucket.split([p.numel() for p in group]), group, strict=True)]

    def of(self, loss: Tensor) -> list[Tensor | None]:
        """The gradients of `loss` in tensors of their own, each in the memory order of its parameter, as ``backward`` would leave them."""
        found = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        return [
            g if g is None or g.stride() == p.stride() else torch.empty_like(p).copy_(g)
            for g, p in zip(found, self.parameters, strict=True)
        ]

    def add(self, gradients: Sequence[Tensor | None], lent: bool) -> None:
        """Add gradients to those of the parameters, as ``backward`` does. If they are only `lent`, the first ones are copied."""
        sums: list[Tensor] = []
        more: list[Tensor] = []
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            if gradient is None:
                continue
            if parameter.grad is None:
                parameter.grad = gradient.clone() if lent else gradient
            else:
                sums.append(parameter.grad)
                more.append(gradient)
        if sums:
            torch._foreach_add_(sums, more)

    def exchange(self, *more: Tensor) -> None:
        """Give every process the sum of the gradients, and of the tensors in `more`. A process without volumes adds nothing."""
        if self.ranks.size == 1:
            return
        for parameter, view in zip(self.parameters, self.views, strict=True):
            if parameter.grad is None:
                view.zero_()
            else:
                view.copy_(parameter.grad)
        self.ranks.sum(*more, *self.buckets)
        for parameter, view in zip(self.parameters, self.views, strict=True):
            if parameter.grad is None:
                parameter.grad = torch.empty_like(parameter)
            parameter.grad.copy_(view)


class RunningStatistics:
    """The running means and variances of all batch norms of a module that learn, as one tensor. Frozen ones do not change."""

    def __init__(self, module: nn.Module) -> None:
        norms = [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm) and _learns(layer)]
        self.buffers = [b for norm in norms for b in (norm.running_mean, norm.running_var) if b is not None]

    def read(self, like: Tensor) -> Tensor:
        """All of them, float (K,), on the device of `like`."""
        return torch.cat([buffer.flatten() for buffer in self.buffers]) if self.buffers else like.new_zeros(0)

    def write(self, values: Tensor) -> None:
        """Set all of them from float (K,)."""
        for buffer, chunk in zip(self.buffers, values.split([b.numel() for b in self.buffers]), strict=True):
            buffer.copy_(chunk.view_as(buffer))


def _learns(norm: nn.Module) -> bool:
    parameters = list(norm.parameters())
    return not parameters or any(parameter.requires_grad for parameter in parameters)


def _groups(parameters: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    groups: list[list[nn.Parameter]] = []
    room = 0
    for parameter in parameters:
        if parameter.numel() > room:
            groups.append([])
            room = BUCKET
        groups[-1].append(parameter)
        room -= parameter.numel()
    return groups
