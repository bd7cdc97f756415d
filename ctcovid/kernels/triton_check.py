"""The Triton passes held against torch's operations in float64, on small tensors, once in a process and type of numbers."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor

from ctcovid.kernels import triton_passes as passes
from ctcovid.kernels.native import Affine

# Of the largest value; numbers are rounded to 8 bits in bfloat16.
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
# As many channels as the networks' first layers have, so that the kernels compiled here are theirs.
SIZES = (2, 3, 6, 6, 64)

Found = Iterator[tuple[str, Tensor, Tensor]]


@torch.no_grad()
def disagreement(device: torch.device, dtype: torch.dtype) -> str | None:
    """The name of the first pass whose results are not torch's, or None."""
    generator = torch.Generator().manual_seed(0)

    def random(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator, dtype=torch.float32).to(device)

    x, g = (random(*SIZES) * 2 + 1).to(dtype), random(*SIZES).to(dtype)
    channels = [random(SIZES[-1]) for _ in range(5)]
    for name, found, expected in chain(_rows(x, g, channels), _pooling(x, channels), _kernels(random(16, 16, 3, 3, 3), dtype)):
        off = (found.double() - expected).abs().max()
        if not bool(off <= TOLERANCES[dtype] * expected.abs().max()):
            return name
    return None


def _rows(x: Tensor, g: Tensor, channels: list[Tensor]) -> Found:
    """Mean, variance, normalisation with and without a residual, and the gradients, in one memory order and in two."""
    scale, shift, mean, factor, level = channels
    wide, wide_g = x.double(), g.double()
    for found, expected in zip(passes.moments(x), (wide.mean((0, 1, 2, 3)), wide.var((0, 1, 2, 3), correction=0)), strict=True):
        yield "moments", found, expected
    affine, factors = Affine(scale, shift), (factor, level, mean)
    var, eps = wide.var((0, 1, 2, 3), correction=0).float(), 1e-5
    deviation = (var.double() + eps).sqrt()
    right = (scale / deviation, shift - mean * scale / deviation, 1 / deviation)
    for found, expected in zip(passes.affine(scale, shift, mean, var, eps), right, strict=True):
        yield "affine", found, expected
    b = -scale.double() * level.double() ** 2 * factor / 100
    right = (b, -scale.double() * shift / 100 - b * mean, factor.double() * level)
    for found, expected in zip(passes.factors(affine, level, mean, shift, factor, 100), right, strict=True):
        yield "factors", found, expected
    other = torch.empty_like(x.permute(0, 3, 1, 2, 4), memory_format=torch.contiguous_format).permute(0, 2, 3, 1, 4)
    for residual in (None, g):
        before = wide * scale.double() + shift.double() + (0 if residual is None else wide_g)
        for to in (torch.empty_like(x), other.clone()):
            y = passes.normalise(x, affine, residual, to)
            yield "normalise", y, before.relu()
        out = None if residual is None else y
        passed = torch.where((before if out is None else out.double()) > 0, wide_g, 0)
        for sent in (g, other.copy_(g)):
            total, dot = passes.reduce(sent, x, out, affine, mean)
            yield "reduce", total, passed.sum((0, 1, 2, 3))
            yield "reduce", dot, (passed * (wide - mean.double())).sum((0, 1, 2, 3))
            gx, gr = passes.backward(sent, x, out, affine, factors, masked=out is not None)
            yield "backward", gx, factor.double() * passed + level.double() * wide + mean.double()
            if gr is not None:
                yield "backward", gr, passed


def _pooling(x: Tensor, channels: list[Tensor]) -> Found:
    """Pooling with its taps and moments, without them, and its gradient."""
    slope, level = channels[:2]
    sign = 1 - 2 * (slope < 0).float()
    signed = (x.double() * sign.double()).permute(0, 4, 1, 2, 3)
    expected, chosen = F.max_pool3d(signed, 3, 2, 1, return_indices=True)
    pooled, tap, mean, var = passes.pool(x, sign, measure=True)
    yield "pool", pooled, expected.permute(0, 2, 3, 4, 1) * sign.double()
    yield "pool", mean, x.double().mean((0, 1, 2, 3))
    yield "pool", var, x.double().var((0, 1, 2, 3), correction=0)
    ones = torch.ones_like(sign)
    found = passes.pool(x, ones, measure=False, taps=False, relu=True)[0]
    yield "pool", found, F.max_pool3d(x.double().permute(0, 4, 1, 2, 3), 3, 2, 1).relu().permute(0, 2, 3, 4, 1)
    back = torch.zeros_like(signed).flatten(2)
    back.scatter_add_(2, chosen.flatten(2), pooled.double().permute(0, 4, 1, 2, 3).flatten(2))
    sent = back.view(signed.shape).permute(0, 2, 3, 4, 1)
    yield "unpool", passes.unpool(pooled, tap, x, slope, level), slope.double() * x.double() + level.double() + sent


def _kernels(weight: Tensor, dtype: torch.dtype) -> Found:
    """The banded kernel of two slices, with more channels than the weight has, and its gradient; patches, as of the stem."""
    outputs, inputs = weight.shape[:2]
    expected = weight.new_zeros((2, outputs + 8, 3, 3, 2, inputs + 8), dtype=torch.float64)
    for o in range(2):
        for i in range(2):
            expected[o, :outputs, :, :, i, :inputs] = weight[:, :, i - o + 1].permute(0, 2, 3, 1)
    made = passes.band(weight, (2, outputs + 8, 2, inputs + 8), 1, 1, dtype)
    yield "band", made, expected
    found = passes.unband(made, torch.empty_like(weight), 1, 1)
    # Each tap stands as often in the band as there are slices that see each other through it.
    yield "unband", found, weight.double() * torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64, device=weight.device)[:, None, None]
    images = weight[:2, :15, :, 0, :1].to(dtype).contiguous()
    taken = passes.patches(images, (8, 2, 56), (7, 7), (2, 2), (3, 3))
    under = F.unfold(images.double().permute(0, 3, 1, 2), 7, stride=2, padding=3).transpose(1, 2).unflatten(1, (8, 2))
    yield "patches", taken, F.pad(under, (0, 7))
