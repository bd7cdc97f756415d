"""Batch norm with all that stands between two convolutions: residual sum, ReLU, max pooling. Few passes over memory, fewer tensors kept.

With the passes of passes.py, on a CPU or a GPU, forward and backward are written out here. Elsewhere they are torch's own operations.
Statistics are float32 or better in any case. The memory orders of activations are those of depthfold.py. On a GPU a pass may write another
order than it reads, and there may be more channels than the batch norm has: those are zero, and stay so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ctcovid.kernels import passes
from ctcovid.kernels.depthfold import BY_SLICES, Order, memory_order, shortcut
from ctcovid.kernels.native import Affine


@dataclass(frozen=True)
class Activation:
    """What enters a convolution. `again` computes the values once more from tensors that are kept in any case, None where it cannot."""

    values: Tensor
    again: Callable[[], Tensor] | None = None


def norm_relu(
    x: Tensor, norm: nn.BatchNorm3d, relu: bool = True, residual: Tensor | None = None, stride: int = 1, wanted: Order | None = None
) -> Activation:
    """``relu(norm(x) + shortcut(residual))`` with the statistics of the batch, which enter the running ones.

    Parameters
    ----------
    x : float (B, C, D, H, W)
    relu : without it, the values before it
    residual : float (B, C' <= C, ...) of which every `stride`-th voxel is added, zeros in place of missing channels
    wanted : the memory order of the result, where passes can choose it; otherwise that of `x`
    """
    if not passes.usable(x):
        y = _batch_norm(x, norm)
        if residual is not None:
            y = y + shortcut(residual, x.shape[1], stride)
        return Activation(y.relu_() if relu else y)
    _require_several(x)
    order, back = memory_order(x)
    memory = _memory(order, wanted) if wanted is not None and passes.on_gpu(x) else None
    rows, mean, var, scale, shift = _NormRelu.apply(x, norm.weight, norm.bias, residual, _Settings(norm.eps, relu, stride, memory))
    y = rows.permute(back)
    _update_running(x, norm, mean, var)
    if residual is not None:
        return Activation(y)
    return Activation(y, lambda: passes.normalise(x.detach().permute(order).contiguous(), Affine(scale, shift, relu), None, memory))


def forgetful(conv: nn.Module, x: Activation, *more: int | None) -> Tensor:
    """``conv(x, *more)``; values that can be computed again are not kept for the backward pass.

    Between two convolutions only the output of the first is kept. The values behind its batch norm and ReLU, which the gradient of the
    second one's weight needs, are computed twice: one more pass over memory, for half of what a training step keeps. Hooks for saved
    tensors that are set outside do not see those of this convolution.
    """
    again = x.again
    if again is None:
        result: Tensor = conv(x.values, *more)
        return result
    storage = x.values.untyped_storage().data_ptr()

    # Neither of these refers to x, which would keep its values.
    def pack(kept: Tensor) -> Any:
        return (kept.shape, kept.stride(), kept.storage_offset()) if kept.untyped_storage().data_ptr() == storage else kept

    def unpack(kept: Any) -> Tensor:
        return kept if isinstance(kept, Tensor) else again().as_strided(*kept)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        return conv(x.values, *more)


def norm_relu_pool(x: Tensor, norm: nn.BatchNorm3d, maxpool: nn.MaxPool3d, wanted: Order | None = None) -> Tensor:
    """``maxpool(relu(norm(x)))`` with the statistics of the batch, which enter the running ones; `maxpool` is 3x3x3, stride 2, padding 1.

    Batch norm and ReLU keep the order of values, or reverse it where a channel's weight is negative. So the largest values are found
    first, and the rest is done at an eighth of the size.
    """
    if not passes.usable(x):
        return maxpool(F.relu(_batch_norm(x, norm), inplace=True))
    _require_several(x)
    memory = _memory(memory_order(x)[0], wanted) if wanted is not None and passes.on_gpu(x) else None
    pooled, mean, var = _NormReluPool.apply(x, norm.weight, norm.bias, norm.eps, memory)
    _update_running(x, norm, mean, var)
    y: Tensor = pooled.permute(memory_order(x)[1])
    return y


def relu_pool(x: Tensor, maxpool: nn.MaxPool3d) -> Tensor:
    """``maxpool(relu(x))``, in the other order."""
    if passes.usable(x) and not (torch.is_grad_enabled() and x.requires_grad):
        order, _ = memory_order(x)
        return passes.relu_pool(_logical(x.permute(order).contiguous(), order)).permute(0, 4, 1, 2, 3)
    return F.relu(maxpool(x))


def fold_norm(weight: Tensor, norm: nn.BatchNorm3d) -> tuple[Tensor, Tensor]:
    """Weight and bias of one convolution that does, in inference, a convolution without bias and the batch norm behind it."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return weight * scale[:, None, None, None, None], norm.bias - norm.running_mean * scale


def _batch_norm(x: Tensor, norm: nn.BatchNorm3d) -> Tensor:
    """torch's batch norm, over activations seen as (B, C, H, W) in channels-last memory, for which it has its fastest kernels."""
    order, back = memory_order(x)
    rows = x.permute(order).contiguous()
    image = rows.flatten(1, 2).permute(0, 3, 1, 2)
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    y = F.batch_norm(image, norm.running_mean, norm.running_var, norm.weight, norm.bias, True, _momentum(norm), norm.eps)
    return y.permute(0, 2, 3, 1).contiguous().view(rows.shape).permute(back)


def _momentum(norm: nn.BatchNorm3d) -> float:
    if norm.momentum is not None:
        return norm.momentum
    assert norm.num_batches_tracked is not None
    return 1.0 / float(norm.num_batches_tracked)


@torch.no_grad()
def _update_running(x: Tensor, norm: nn.BatchNorm3d, mean: Tensor, var: Tensor) -> None:
    """Update the running statistics as torch does, with the unbiased variance."""
    assert norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None
    count = x.numel() // x.shape[1]
    if not count:
        return
    norm.num_batches_tracked.add_(1)
    momentum, old = _momentum(norm), (norm.running_mean, norm.running_var)
    module = passes.gpu(x)
    if module is not None and all(one.dtype == torch.float32 and one.is_contiguous() and not one.is_inference() for one in old):
        module.update_running(old, mean, var, momentum, count)
        return
    mean, var = mean[: norm.num_features], var[: norm.num_features]
    norm.running_mean.lerp_(mean.to(norm.running_mean.dtype), momentum)
    norm.running_var.lerp_((var * (count / (count - 1))).to(norm.running_var.dtype), momentum)


def _require_several(x: Tensor) -> None:
    if x.numel() == x.shape[1]:
        raise ValueError(f"Expected more than 1 value per channel when training, got input size {tuple(x.shape)}")


@dataclass(frozen=True)
class _Settings:
    """How `_NormRelu` normalises; `stride` is that of the residual, `memory` as in `passes.normalise`."""

    eps: float
    relu: bool
    stride: int
    memory: tuple[int, ...] | None


def _memory(order: Order, wanted: Order) -> tuple[int, ...]:
    """The order in memory of the dimensions of what is permuted by `order`, such that memory is in the wanted one."""
    return tuple(order.index(dim) for dim in wanted)


def _affine(x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Scale and shift that normalise, and 1 / standard deviation, float32 (C,) each."""
    module = passes.gpu(x)
    if module is not None:
        return module.affine(weight.contiguous(), bias.contiguous(), mean, var, eps)
    inverse = (var + eps).rsqrt()
    scale = weight.float() * inverse
    return scale, bias.float() - mean * scale, inverse


@dataclass(frozen=True)
class _Factors:
    """(a, b, k) of the input gradient ``a * g' + b * x + k`` of a batch norm, and the gradient of its weight."""

    a: Tensor
    b: Tensor
    k: Tensor
    weight: Tensor


def _factors(x: Tensor, known: Affine, inverse: Tensor, mean: Tensor, sums: tuple[Tensor, Tensor]) -> _Factors:
    """From the results of `passes.reduce`; x : (n0, n1, n2, n3, C)."""
    (total, dot), scale, count = sums, known.scale, x.numel() // x.shape[4]
    module = passes.gpu(x)
    if module is not None:
        return _Factors(scale, *module.factors(known, inverse, mean, total, dot, count))
    b = scale * inverse * inverse * dot / -count
    return _Factors(scale, b, -scale * total / count - b * mean, dot * inverse)


def _logical(dense: Tensor, order: tuple[int, ...]) -> Tensor:
    """Dense memory in `order` as (B, D, H, W, C)."""
    return dense if order == BY_SLICES else dense.permute(0, 3, 1, 2, 4)


class _NormRelu(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, settings: _Settings
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        order, back = memory_order(x)
        rows = x.permute(order).contiguous()
        mean, var = passes.moments(rows)
        scale, shift, inverse = _affine(rows, weight, bias, mean, var, settings.eps)
        relu, s, added = settings.relu, settings.stride, None
        if residual is not None:
            added = residual.to(x.dtype)[:, :, ::s, ::s, ::s].permute(order)
            added = added if added.stride(4) == 1 else added.contiguous()
        out = passes.normalise(rows, Affine(scale, shift, relu), added, settings.memory)
        # Without a residual, the ReLU's mask follows from x, which is kept in any case.
        ctx.save_for_backward(rows, out if relu and residual is not None else None, mean, scale, shift, inverse)
        ctx.back, ctx.settings, ctx.channels = back, settings, len(weight)
        # The gradient of a residual is added to another one, which has the memory order of the residual.
        spread = order if residual is None or not passes.on_gpu(x) else memory_order(residual)[0]
        ctx.residual = None if residual is None else (residual.shape, residual.dtype, spread)
        ctx.mark_non_differentiable(mean, var, scale, shift)
        return out, mean, var, scale, shift

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
        rows, out, mean, scale, shift, inverse = ctx.saved_tensors
        g, affine = passes.rows(gradient), Affine(scale, shift, ctx.settings.relu)
        total, dot = passes.reduce(g, rows, out, affine, mean)
        found = _factors(rows, affine, inverse, mean, (total, dot))
        wanted = ctx.needs_input_grad[3]
        gx, masked = passes.backward(g, rows, out, affine, (found.a, found.b, found.k), masked=wanted and affine.relu)
        gr = None
        if wanted:
            gr = (g if masked is None else masked).permute(ctx.back)
            shape, dtype, order = ctx.residual
            if gr.shape != shape:
                s = ctx.settings.stride
                wide = g.new_zeros([shape[dim] for dim in order]).permute([order.index(dim) for dim in range(5)])
                wide[:, :, ::s, ::s, ::s] = gr[:, : shape[1]]
                gr = wide
            gr = gr.to(dtype)
        n = ctx.channels
        return gx.permute(ctx.back), found.weight[:n], total[:n], gr, None


class _NormReluPool(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, memory: tuple[int, ...] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        order, _ = memory_order(x)
        rows = _logical(x.permute(order).contiguous(), order)
        sign = 1 - 2 * (weight < 0).float()
        pooled, tap, mean, var = passes.pool(rows, sign)
        scale, shift, inverse = _affine(rows, weight, bias, mean, var, eps)
        dense = _dense(pooled, order)
        out = passes.normalise(dense, Affine(scale, shift), None, memory)
        ctx.save_for_backward(rows, dense, tap, mean, scale, shift, inverse)
        ctx.order = order
        ctx.mark_non_differentiable(mean, var)
        return out, mean, var

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
        rows, dense, tap, mean, scale, shift, inverse = ctx.saved_tensors
        g, affine = passes.rows(gradient), Affine(scale, shift)
        total, dot = passes.reduce(g, dense, None, affine, mean)
        found = _factors(rows, affine, inverse, mean, (total, dot))
        nothing = torch.zeros_like(found.a)
        sent, _ = passes.backward(g, dense, None, affine, (found.a, nothing, nothing), masked=False)
        gx = passes.unpool(_logical(sent, ctx.order), tap, rows, found.b, found.k)
        return gx.permute(0, 4, 1, 2, 3), found.weight, total, None, None


def _dense(logical: Tensor, order: tuple[int, ...]) -> Tensor:
    """(B, D, H, W, C) in the memory order in which it is dense; undoes `_logical`."""
    return logical if order == BY_SLICES else logical.permute(0, 2, 3, 1, 4)
