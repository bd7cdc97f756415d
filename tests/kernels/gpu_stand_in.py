"""The functions of triton_passes.py by torch's operations, so that what is around them can be tested without a GPU and without Triton."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

from ctcovid.kernels.native import Affine

OUTER = (0, 1, 2, 3)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    assert x.is_contiguous()
    return x.double().mean(OUTER).float(), x.double().var(OUTER, correction=0).float()


def normalise(x: Tensor, affine: Affine, residual: Tensor | None, out: Tensor) -> Tensor:
    y = x.float() * affine.scale + affine.shift
    if residual is not None:
        y += F.pad(residual.float(), (0, x.shape[4] - residual.shape[4]))
    return out.copy_(y.relu() if affine.relu else y)


def affine(weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    missing, inverse = len(mean) - len(weight), (var + eps).rsqrt()
    scale = F.pad(weight, (0, missing)) * inverse
    return scale, F.pad(bias, (0, missing)) - mean * scale, inverse


def factors(known: Affine, inverse: Tensor, mean: Tensor, total: Tensor, dot: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    b = known.scale * inverse * inverse * dot / -count
    return b, -known.scale * total / count - b * mean, dot * inverse


def update_running(old: tuple[Tensor, Tensor], mean: Tensor, var: Tensor, momentum: float, count: int) -> None:
    for one, new in zip(old, (mean, var * count / (count - 1)), strict=True):
        one.lerp_(new[: len(one)], momentum)


def _passed(g: Tensor, x: Tensor, out: Tensor | None, affine: Affine) -> Tensor:
    known = x.float() * affine.scale + affine.shift if out is None else out
    return torch.where(known > 0, g.float(), 0) if affine.relu else g.float()


def reduce(g: Tensor, x: Tensor, out: Tensor | None, affine: Affine, mean: Tensor) -> tuple[Tensor, Tensor]:
    passed = _passed(g, x, out, affine).double()
    return passed.sum(OUTER).float(), (passed * (x.double() - mean)).sum(OUTER).float()


def backward(
    g: Tensor, x: Tensor, out: Tensor | None, affine: Affine, factors: tuple[Tensor, Tensor, Tensor], masked: bool
) -> tuple[Tensor, Tensor | None]:
    a, b, k = factors
    passed = _passed(g, x, out, affine)
    gx = torch.empty_like(x).copy_(a * passed + b * x.float() + k)
    return gx, torch.empty_like(x if out is None else out).copy_(passed) if masked else None


def pool(x: Tensor, sign: Tensor, measure: bool, taps: bool = True, relu: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    values, chosen = F.max_pool3d((x.float() * sign).permute(0, 4, 1, 2, 3), 3, 2, 1, return_indices=True)
    found = (values.permute(0, 2, 3, 4, 1) * sign).to(x.dtype)
    order = sorted(range(5), key=lambda dim: (-x.stride()[dim], dim))
    pooled = found.permute(order).contiguous().permute([order.index(dim) for dim in range(5)])
    # Places in the whole volume stand for the numbers of taps.
    mean, var = (x.double().mean(OUTER).float(), x.double().var(OUTER, correction=0).float()) if measure else (sign, sign)
    return pooled.relu() if relu else pooled, chosen.permute(0, 2, 3, 4, 1), mean, var


def unpool(g: Tensor, tap: Tensor, x: Tensor, slope: Tensor, level: Tensor) -> Tensor:
    back = torch.zeros_like(x.permute(0, 4, 1, 2, 3), dtype=torch.float32, memory_format=torch.contiguous_format).flatten(2)
    back.scatter_add_(2, tap.permute(0, 4, 1, 2, 3).flatten(2), g.float().permute(0, 4, 1, 2, 3).flatten(2))
    sent = back.view(x.permute(0, 4, 1, 2, 3).shape).permute(0, 2, 3, 4, 1)
    return torch.empty_like(x).copy_(slope * x.float() + level + sent)


def band(weight: Tensor, sizes: tuple[int, int, int, int], stride: int, padding: int, dtype: torch.dtype) -> Tensor:
    out, more_outputs, depth, more_inputs = sizes
    outputs, inputs, taps, kh, kw = weight.shape
    made = torch.zeros(out, more_outputs, kh, kw, depth, more_inputs, dtype=dtype)
    for o, i in itertools.product(range(out), range(depth)):
        if 0 <= i - o * stride + padding < taps:
            made[o, :outputs, :, :, i, :inputs] = weight[:, :, i - o * stride + padding].permute(0, 2, 3, 1)
    return made


def unband(gradient: Tensor, found: Tensor, stride: int, padding: int) -> Tensor:
    outputs, inputs, taps = found.shape[:3]
    found.zero_()
    for o, i in itertools.product(range(gradient.shape[0]), range(gradient.shape[4])):
        if 0 <= i - o * stride + padding < taps:
            found[:, :, i - o * stride + padding] += gradient[o, :outputs, :, :, i, :inputs].permute(0, 3, 1, 2)
    return found


def patches(images: Tensor, sizes: tuple[int, ...], kernel: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...]) -> Tensor:
    high, wide, taken = sizes
    found = F.unfold(images.permute(0, 3, 1, 2).float(), kernel, stride=stride, padding=padding).unflatten(1, (images.shape[3], -1))
    rows = found.permute(0, 3, 2, 1).flatten(2).unflatten(1, (high, wide))
    return F.pad(rows, (0, taken - rows.shape[3])).to(images.dtype)
