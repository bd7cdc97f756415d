"""The passes of native.py on a GPU: the same functions of tensors, whose Triton kernels are in triton_kernels.py and triton_pooling.py.

They take any strides with adjacent channels, and write in any of the memory orders: a change of order costs no pass of its own. Nothing is
read back, so that they can be captured in a CUDA graph.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from ctcovid.kernels import triton_kernels as kernels
from ctcovid.kernels import triton_pooling as pooling
from ctcovid.kernels.native import Affine

# Elements that a program takes at a time; with 128 threads, four vectors of 16 bytes in bfloat16 for each.
ELEMENTS = 4096
# Groups whose sums are merged at the end: as many programs as run at a time, and not many more. Fewer, larger ones in pooling.
PROGRAMS_PER_PROCESSOR, MOST_GROUPS, POOLING_GROUPS = 8, 1024, 4096
# Windows and channels of a program that pools.
WINDOWS, POOLED_CHANNELS = 16, 64
# Programs that merge groups: channels, and groups at a time.
MERGED_CHANNELS, MERGED_GROUPS = 4, 256

Sizes = tuple[int, ...]


@functools.lru_cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def _launch(kernel: Any, programs: int, like: Tensor, *arguments: Any, **settings: Any) -> None:
    with torch.cuda.device_of(like):
        kernel[(programs,)](*arguments, **settings)


def _channel_block(channels: int, most: int = 256) -> int:
    """How many channels a program takes: a power of two, with few idle ones in the last block."""
    whole = triton.next_power_of_2(channels)
    candidates = [block for block in (64, 128, 256) if block <= most]
    return whole if whole <= 64 else min(candidates, key=lambda block: (triton.cdiv(channels, block) * block, -block))


class _Rows:
    """Rows of adjacent channels over four outer dimensions, as few of them as all tensors allow, the longest last.

    Each of `tensors` has the same four outer sizes, and some stride along each.
    """

    def __init__(self, *tensors: Tensor) -> None:
        sizes = tuple(tensors[0].shape[:4])
        strides = [tensor.stride()[:4] for tensor in tensors]
        found = [_merged(sizes, strides, order) for order in ((0, 1, 2, 3), (0, 3, 1, 2))]
        self.sizes, self.strides = max(found, key=lambda one: one[0][-1])
        channels = tensors[0].shape[4]
        self.channel_block = _channel_block(channels)
        self.channel_blocks = triton.cdiv(channels, self.channel_block)
        self.row_block = min(ELEMENTS // self.channel_block, triton.next_power_of_2(self.sizes[3]))
        self.blocks = triton.cdiv(self.sizes[3], self.row_block)
        self.tiles = math.prod(self.sizes[:3]) * self.blocks

    @property
    def blocking(self) -> dict[str, int]:
        return {"BR": self.row_block, "BC": self.channel_block}


def _merged(sizes: Sizes, strides: Sequence[Sizes], order: Sizes) -> tuple[Sizes, list[Sizes]]:
    """Sizes and strides in another order of dimensions, neighbours merged where each tensor steps evenly through both; four of each."""
    merged: list[tuple[int, Sizes]] = []
    for dim in order:
        size, steps = sizes[dim], tuple(one[dim] for one in strides)
        if size == 1:
            continue
        if merged and merged[-1][1] == tuple(size * step for step in steps):
            merged[-1] = (merged[-1][0] * size, steps)
        else:
            merged.append((size, steps))
    merged = [(1, (0,) * len(strides))] * (4 - len(merged)) + merged
    return tuple(size for size, _ in merged), [tuple(steps[one] for _, steps in merged) for one in range(len(strides))]


def _groups(rows: int, channel_blocks: int, like: Tensor) -> tuple[int, int]:
    """How many groups of how many blocks each, for so many blocks of rows."""
    most = min(rows, MOST_GROUPS, max(1, PROGRAMS_PER_PROCESSOR * _processors(like.device) // channel_blocks))
    each = triton.cdiv(rows, most)
    return triton.cdiv(rows, each), each


def _floats(like: Tensor, *sizes: int) -> Tensor:
    return torch.empty(sizes, dtype=torch.float32, device=like.device)


def _merge(kernel: Any, part: Tensor, first: Tensor, second: Tensor) -> None:
    _, groups, channels = part.shape
    programs = triton.cdiv(channels, MERGED_CHANNELS)
    at_once = min(MERGED_GROUPS, triton.next_power_of_2(groups))
    _launch(kernel, programs, part, part, first, second, groups, channels, groups * channels, BG=at_once, BC=MERGED_CHANNELS)


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel of a dense (n0, n1, n2, n3, C), float32 (C,)."""
    channels = x.shape[4]
    mean, var = _floats(x, channels), _floats(x, channels)
    if not x.numel():
        return mean.fill_(math.nan), var.fill_(math.nan)
    rows = _Rows(x)
    groups, each = _groups(rows.tiles, rows.channel_blocks, x)
    part = _floats(x, 3, groups, channels)
    programs, count = groups * rows.channel_blocks, x.numel() // channels
    _launch(kernels.moments, programs, x, x, part, count, channels, rows.channel_blocks, groups * channels, each, **rows.blocking)
    _merge(kernels.finish_moments, part, mean, var)
    return mean, var


def normalise(x: Tensor, affine: Affine, residual: Tensor | None, out: Tensor) -> Tensor:
    """``x * scale + shift + residual``, then ReLU, into `out`, which has the shape of `x`; the residual may have fewer channels."""
    if x.numel():
        rows = _Rows(x, out, out if residual is None else residual)
        channels, fewer = x.shape[4], 0 if residual is None else residual.shape[4]
        sizes = (channels, fewer, rows.channel_blocks, rows.blocks, *rows.sizes[1:])
        added = x if residual is None else residual
        strides = [step for one in rows.strides for step in one]
        settings = {"RELU": affine.relu, "RES": residual is not None, **rows.blocking}
        programs = rows.tiles * rows.channel_blocks
        _launch(kernels.normalise, programs, x, x, affine.scale, affine.shift, added, out, *sizes, *strides, **settings)
    return out


def affine(weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Scale and shift of a batch norm, and 1 / standard deviation, float32 (C,) each; zeros for channels that it lacks."""
    channels = len(mean)
    scale, shift, inverse = (torch.empty_like(mean) for _ in range(3))
    made = (weight, bias, mean, var, scale, shift, inverse, channels, len(weight), eps)
    _launch(kernels.affine, triton.cdiv(channels, 128), mean, *made, BC=128)
    return scale, shift, inverse


def factors(known: Affine, inverse: Tensor, mean: Tensor, total: Tensor, dot: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Factors b and k of the input gradient ``scale * g' + b * x + k`` over `count` values per channel, and the weight's gradient."""
    channels = len(mean)
    b, k, weight = (torch.empty_like(mean) for _ in range(3))
    made = (known.scale, inverse, mean, total, dot, b, k, weight, channels, 1 / max(count, 1))
    _launch(kernels.factors, triton.cdiv(channels, 128), mean, *made, BC=128)
    return b, k, weight


def update_running(old: tuple[Tensor, Tensor], mean: Tensor, var: Tensor, momentum: float, count: int) -> None:
    """Move running mean and variance, float32 (C,) each, towards those of a batch of `count` values per channel, in place."""
    channels = len(old[0])
    _launch(kernels.running, triton.cdiv(channels, 128), mean, *old, mean, var, channels, momentum, count / (count - 1), BC=128)
    for tensor in old:
        # Whoever keeps what was made of them has to see that they are others now.
        torch.autograd.graph.increment_version(tensor)


def reduce(g: Tensor, x: Tensor, out: Tensor | None, affine: Affine, mean: Tensor) -> tuple[Tensor, Tensor]:
    """As in native.py, with any strides."""
    channels = x.shape[4]
    total, dot = _floats(x, channels), _floats(x, channels)
    if not x.numel():
        return total.zero_(), dot.zero_()
    known = x if out is None else out
    rows = _Rows(g, x, known)
    groups, each = _groups(rows.tiles, rows.channel_blocks, x)
    part = _floats(x, 2, groups, channels)
    sizes = (channels, rows.channel_blocks, rows.blocks, groups * channels, each, *rows.sizes)
    strides = [step for one in rows.strides for step in one]
    settings = {"RELU": affine.relu, "OUT": out is not None, **rows.blocking}
    programs = groups * rows.channel_blocks
    _launch(kernels.reduce, programs, x, g, x, known, affine.scale, affine.shift, mean, part, *sizes, *strides, **settings)
    _merge(kernels.finish_sums, part, total, dot)
    return total, dot


def backward(
    g: Tensor, x: Tensor, out: Tensor | None, affine: Affine, factors: tuple[Tensor, Tensor, Tensor], masked: bool
) -> tuple[Tensor, Tensor | None]:
    """As in native.py, with any strides. The second result has the memory order of `out`."""
    known = x if out is None else out
    gx = torch.empty_like(x)
    gr = torch.empty_like(known) if masked else None
    if x.numel():
        sent = gx if gr is None else gr
        rows = _Rows(g, x, known, gx, sent)
        sizes = (x.shape[4], rows.channel_blocks, rows.blocks, *rows.sizes[1:])
        strides = [step for one in rows.strides for step in one]
        settings = {"RELU": affine.relu, "OUT": out is not None, "MASKED": masked, **rows.blocking}
        programs = rows.tiles * rows.channel_blocks
        _launch(
            kernels.backward, programs, x, g, x, known, affine.scale, affine.shift, *factors, gx, sent, *sizes, *strides, **settings
        )  # fmt: skip
    return gx, gr


def pool(x: Tensor, sign: Tensor, measure: bool, taps: bool = True, relu: bool = False) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As in native.py. Without `taps` the signs are all 1, and taps are not found; without `measure`, mean and variance are not."""
    B, D, H, W, C = x.shape
    order = sorted(range(5), key=lambda dim: (-x.stride()[dim], dim))
    sizes = (B, -(-D // 2), -(-H // 2), -(-W // 2), C)
    pooled = x.new_empty([sizes[dim] for dim in order]).permute([order.index(dim) for dim in range(5)])
    tap = torch.empty_like(pooled, dtype=torch.uint8) if taps else sign
    mean, var = (_floats(x, C), _floats(x, C)) if measure else (sign, sign)
    if not x.numel():
        return pooled, tap, mean.fill_(math.nan) if measure else mean, var.fill_(math.nan) if measure else var
    block = _channel_block(C, POOLED_CHANNELS)
    channel_blocks, wide, high = triton.cdiv(C, block), triton.cdiv(sizes[3], WINDOWS), sizes[2]
    steps = min(high, triton.cdiv(B * high * wide, POOLING_GROUPS))
    high = triton.cdiv(high, steps)
    groups = B * high * wide
    part = _floats(x, 3, groups, C) if measure else sign
    counts = (channel_blocks, wide, high, groups * C, steps, D, H, W, C)
    settings = {"MEASURE": measure, "TAP": taps, "RELU": relu, "BW": WINDOWS, "BC": block}
    strides = (*x.stride()[:4], *sizes[1:4], *pooled.stride()[:4])
    _launch(pooling.pool, groups * channel_blocks, x, x, sign, pooled, tap, part, *counts, *strides, **settings)
    if measure:
        _merge(kernels.finish_moments, part, mean, var)
    return pooled, tap, mean, var


def unpool(g: Tensor, tap: Tensor, x: Tensor, slope: Tensor, level: Tensor) -> Tensor:
    """As in native.py, with any strides."""
    gx = torch.empty_like(x)
    if x.numel():
        B, D, H, W, C = x.shape
        block = _channel_block(C, POOLED_CHANNELS)
        channel_blocks, wide = triton.cdiv(C, block), triton.cdiv(tap.shape[3], WINDOWS)
        programs = B * tap.shape[1] * tap.shape[2] * wide * channel_blocks
        inputs = (channel_blocks, wide, D, H, W, C, *x.stride()[:4], *gx.stride()[:4])
        windows = (*tap.shape[1:4], *g.stride()[:4], *tap.stride()[:4])
        _launch(pooling.unpool, programs, x, g, tap, x, slope, level, gx, *inputs, *windows, BW=WINDOWS, BC=block)
    return gx


# ---- kernels of convolutions ----


def _weight_blocks(inputs: int) -> tuple[int, int]:
    """Rows and inputs that a program takes."""
    block = min(256, triton.next_power_of_2(inputs))
    return 1024 // block, block


def band(weight: Tensor, sizes: Sizes, stride: int, padding: int, dtype: torch.dtype) -> Tensor:
    """The banded block kernel (out, O', kh, kw, depth, I') in `dtype` of a weight (O <= O', I <= I', k, kh, kw), zeros elsewhere.

    sizes : (out, O', depth, I')
    """
    out, more_outputs, depth, more_inputs = sizes
    outputs, inputs, taps, kh, kw = weight.shape
    made = torch.empty((out, more_outputs, kh, kw, depth, more_inputs), dtype=dtype, device=weight.device)
    if made.numel():
        rows, block = _weight_blocks(more_inputs)
        count = made.numel() // more_inputs
        numbers = (count, outputs, inputs, more_outputs, more_inputs, taps, kh, kw, depth, stride, padding, *weight.stride())
        programs = triton.cdiv(count, rows) * triton.cdiv(more_inputs, block)
        _launch(kernels.band, programs, weight, weight, made, *numbers, BR=rows, BI=block)
    return made


def unband(gradient: Tensor, found: Tensor, stride: int, padding: int) -> Tensor:
    """The gradient of the weight, into `found`, from that of its dense band."""
    out, more_outputs, kh, kw, depth, more_inputs = gradient.shape
    outputs, inputs, taps = found.shape[:3]
    if found.numel():
        rows, block = _weight_blocks(inputs)
        count = outputs * kh * kw * taps
        numbers = (count, outputs, inputs, more_outputs, more_inputs, taps, kh, kw, depth, out, stride, padding, *found.stride())
        programs = triton.cdiv(count, rows) * triton.cdiv(inputs, block)
        _launch(kernels.unband, programs, found, gradient, found, *numbers, BR=rows, BI=block)
    return found


def patches(images: Tensor, sizes: tuple[int, int, int], kernel: Sizes, stride: Sizes, padding: Sizes) -> Tensor:
    """The numbers under a 2D kernel for each pixel of its output, (N, H', W', K) for `sizes` (H', W', K), zeros behind the last.

    images : dense (N, H, W, C); a number's place is that of its row, column and channel in the kernel. K is a multiple of 8.
    """
    N, H, W, C = images.shape
    high, wide, taken = sizes
    found = images.new_empty((N, high, wide, taken))
    if found.numel():
        whole = triton.next_power_of_2(taken)
        rows = max(1, ELEMENTS // whole)
        blocks = triton.cdiv(wide, rows)
        run = kernel[1] * C
        numbers = (H, W, C, high, wide, blocks, kernel[0] * run, taken // 8, *stride, *padding, *images.stride()[:2])
        settings = {"RUN": run, "LARGE": H * W * C >= 1 << 30, "BR": rows, "BK": whole}
        _launch(kernels.patches, N * high * blocks, images, images, found, *numbers, **settings)
    return found
