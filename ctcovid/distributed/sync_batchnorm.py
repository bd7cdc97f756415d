"""Batch norm with the statistics of the whole batch over all processes. Unlike torch's own, it works with Gloo on CPUs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class SyncBatchNorm3d(nn.BatchNorm3d):
    """``nn.BatchNorm3d`` over the volumes of all processes together; `exchange` replaces a tensor by its sum over them.

    In evaluation mode it is plain batch norm. Every process has to take part in training, if only with an empty batch.
    """

    exchange: Callable[[Tensor], None]

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        y, mean, var, count = _Normalise.apply(x, self.weight, self.bias, self.eps, self.exchange)
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            momentum = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(var * (count / (count - 1).clamp(min=1)).float(), momentum)
        result: Tensor = y
        return result


def synchronise(module: nn.Module, exchange: Callable[[Tensor], None]) -> int:
    """Replace each batch norm of `module` by a synchronised one with the same parameters and buffers; returns how many there were."""
    count = 0
    for name, child in module.named_children():
        if type(child) is nn.BatchNorm3d:
            norm = SyncBatchNorm3d(child.num_features, child.eps, child.momentum)
            norm.weight, norm.bias = child.weight, child.bias
            norm._buffers.update(child._buffers)
            norm.exchange, norm.training = exchange, child.training
            setattr(module, name, norm)
            count += 1
        else:
            count += synchronise(child, exchange)
    return count


@contextlib.contextmanager
def alone(module: nn.Module) -> Iterator[None]:
    """While the block runs, synchronised batch norms of `module` use the volumes of this process only."""
    norms = [layer for layer in module.modules() if isinstance(layer, SyncBatchNorm3d)]
    before = [norm.exchange for norm in norms]
    for norm in norms:
        norm.exchange = lambda sums: None
    try:
        yield
    finally:
        for norm, exchange in zip(norms, before, strict=True):
            norm.exchange = exchange


class _Normalise(torch.autograd.Function):
    """The normalised values, and mean, biased variance and number of values of all processes together."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, exchange: Callable[[Tensor], None]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        dims = (0, 2, 3, 4)
        n = x.numel() // x.shape[1]
        # Moments about each process's own mean, combined in float64: sums of squares would lose float32's precision.
        if n:
            var, mean = torch.var_mean(x.float(), dims, correction=0)
        else:
            var = mean = torch.zeros(x.shape[1], device=x.device)
        mean, var = mean.double(), var.double()
        sums = torch.cat([mean * n, (var + mean * mean) * n, mean.new_full((1,), n)])
        exchange(sums)
        count = sums[-1]
        mean, square = (sums[:-1] / count).chunk(2)
        var = (square - mean * mean).clamp_(min=0)
        inverse = (var + eps).rsqrt().float()
        mean32 = mean.float()
        scale = weight * inverse
        y = (x.float() - _wide(mean32)).mul_(_wide(scale)).add_(_wide(bias)).to(x.dtype)
        ctx.save_for_backward(x, weight, mean32, inverse, count)
        ctx.exchange = exchange
        ctx.mark_non_differentiable(mean32, count)
        var = var.float()
        ctx.mark_non_differentiable(var)
        return y, mean32, var, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse, count = ctx.saved_tensors
        g = gradient.float()
        hat = (x.float() - _wide(mean)).mul_(_wide(inverse))
        total, dot = g.sum((0, 2, 3, 4)), (g * hat).sum((0, 2, 3, 4))
        # The gradients of weight and bias are summed over the processes with those of all other parameters.
        sums = torch.cat([total, dot]).double()
        ctx.exchange(sums)
        all_total, all_dot = (sums / count).float().chunk(2)
        gx = (g - _wide(all_total) - hat.mul_(_wide(all_dot))).mul_(_wide(weight * inverse))
        return gx.to(x.dtype), dot, total, None, None


def _wide(values: Tensor) -> Tensor:
    return values[None, :, None, None, None]
