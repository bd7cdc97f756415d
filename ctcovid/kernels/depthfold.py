"""Depth folding: 3D operations that run as 2D ones on the same numbers.

At depth 4 most of a 3D ResNet works on a depth of 2 or 1, where a 3x3x3 kernel spends half to two thirds of its work on padding. Here an
activation is a logical (B, C, D, H, W) tensor whose memory is in one of two orders, both with adjacent channels:

- *folded*, (B, H, W, D, C): seen as (B, D*C, H, W), it is what a 2D convolution takes, and a 3D convolution is the 2D one whose kernel
  is the banded block matrix ``[d_out, d_in] -> w[:, :, d_in - d_out * stride + padding]``, zero outside the kernel's taps;
- *by slices*, (B, D, H, W, C), channels_last_3d: seen as (B*D, C, H, W), where a kernel has no extent in depth.

Parameters keep the names and shapes of ``Conv3d``, so that weights interchange with every other implementation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from ctcovid.kernels import convolutions, gpu_convolutions, passes
from ctcovid.kernels.convolutions import FewChannels

Triple = tuple[int, int, int]
Order = tuple[int, ...]

# Dimensions of (B, C, D, H, W) in memory order, and the way back.
FOLDED, FOLDED_BACK = (0, 3, 4, 2, 1), (0, 4, 3, 1, 2)
BY_SLICES, BY_SLICES_BACK = (0, 2, 3, 4, 1), (0, 4, 1, 2, 3)

# How much longer a multiplication takes in a 3D kernel of the libraries than in a 2D one, at least; see `folds`.
MARGIN = 1.5


def folds(depth: int, kernel: int) -> bool:
    """Whether a convolution with `kernel` taps in depth over `depth` slices is cheaper folded than plain.

    For each output slice the dense band multiplies all `depth` input slices. The plain convolution multiplies `kernel` of them, padding
    included, and its multiplications take at least `MARGIN` times as long.
    """
    return depth <= MARGIN * kernel


def depth_out(depth: int, kernel: int, stride: int, padding: int) -> int:
    return (depth + 2 * padding - kernel) // stride + 1


def folded(x: Tensor) -> Tensor:
    """Logical (B, C, D, H, W) as dense (B, H, W, D, C); a copy only where memory is in another order."""
    return x.permute(FOLDED).contiguous()


def by_slices(x: Tensor) -> Tensor:
    """Logical (B, C, D, H, W) as dense (B, D, H, W, C); a copy only where memory is in another order."""
    return x.permute(BY_SLICES).contiguous()


def memory_order(x: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The order of dimensions in which `x` is dense with adjacent channels, and the way back; the folded one where it is in neither."""
    return (BY_SLICES, BY_SLICES_BACK) if x.permute(BY_SLICES).is_contiguous() else (FOLDED, FOLDED_BACK)


@dataclass(frozen=True)
class Prepared:
    """A kernel ready for volumes of one size: the `way` to run it, weight and bias in the shape and precision that this way needs.

    `packed` is set where the 2D convolution is Winograd's; the weight is then float32 (O, 3, 3, I). `on_gpu` says that it is one of
    gpu_convolutions.py.
    """

    way: str
    weight: Tensor
    bias: Tensor | None
    stride: Triple
    padding: Triple
    depth_out: int
    packed: Tensor | None = None
    on_gpu: bool = False


def way(depth: int, kernel: Triple, padding: Triple) -> str:
    """How a convolution runs: as ``points``, ``slices``, ``columns``, a dense ``band`` of columns, ``folded``, or ``plain``."""
    if kernel[0] == 1 and padding[0] == 0:
        return "points" if kernel == (1, 1, 1) and padding == (0, 0, 0) else "slices"
    if kernel[1:] == (1, 1) and padding[1:] == (0, 0):
        return "band" if depth < kernel[0] else "columns"
    return "folded" if folds(depth, kernel[0]) else "plain"


def prepare(weight: Tensor, bias: Tensor | None, stride: Triple, padding: Triple, x: Tensor, outputs: int | None = None) -> Prepared:
    """Make a Conv3d kernel, float (O, I, k, kh, kw), ready for volumes of the depth, height, width and dtype of `x`.

    On a GPU, `outputs` asks for more output channels than O, which are zero, and `x` may have more than I, which are not looked at.
    """
    if passes.on_gpu(x):
        return _prepare_on_gpu(weight, bias, stride, padding, x, len(weight) if outputs is None else outputs)
    k, kh, kw = weight.shape[2:]
    depth, pixels = x.shape[2], x.shape[3] * x.shape[4]
    chosen, out = way(depth, (k, kh, kw), padding), depth_out(depth, k, stride[0], padding[0])
    fast = convolutions.usable(x) and (chosen == "folded" or (chosen == "slices" and stride[0] == 1))
    fast = fast and convolutions.pays(weight[:, :, 0], stride[1:], padding[1:], pixels)
    dtype = torch.float32 if fast else x.dtype
    if chosen in ("folded", "band"):
        kernel = _Band.apply(weight, depth, out, list(_taps(k, depth, out, stride[0], padding[0])), dtype)  # (out, O, kh, kw, depth, I)
        kernel = kernel.flatten(4).flatten(0, 1).permute(0, 3, 1, 2)
        bias = None if bias is None else bias.repeat(out)
    else:
        kernel = {"points": weight.flatten(3), "slices": weight.squeeze(2), "columns": weight.flatten(3)}.get(chosen, weight).to(dtype)
    packed = None
    if fast:
        kernel = kernel.permute(0, 2, 3, 1).contiguous()
        packed = convolutions.pack(kernel)
    return Prepared(chosen, kernel, None if bias is None else bias.to(dtype), stride, padding, out, packed)


def _prepare_on_gpu(weight: Tensor, bias: Tensor | None, stride: Triple, padding: Triple, x: Tensor, outputs: int) -> Prepared:
    k, kh, kw = weight.shape[2:]
    inputs, depth = x.shape[1:3]
    chosen, out = way(depth, (k, kh, kw), padding), depth_out(depth, k, stride[0], padding[0])
    if chosen == "band" and depth > 1 and bias is not None:
        # In inference, no batch norm stands before it that could change the memory order at no cost.
        chosen = "columns"
    if bias is not None and outputs > len(weight):
        bias = F.pad(bias, (0, outputs - len(weight)))
    if chosen in ("folded", "band"):
        kernel = gpu_convolutions.kernel(weight, (out, outputs, depth, inputs), stride[0], padding[0], x)
        bias = None if bias is None else bias.repeat(out)
    elif chosen == "plain":
        kernel = F.pad(weight, (0, 0, 0, 0, 0, 0, 0, inputs - weight.shape[1], 0, outputs - len(weight))).to(x.dtype)
    else:
        flat = weight.transpose(2, 3) if chosen == "columns" else weight
        kernel = gpu_convolutions.kernel(flat, (1, outputs, 1, inputs), 1, 0, x)
    return Prepared(chosen, kernel, None if bias is None else bias.to(x.dtype), stride, padding, out, on_gpu=True)


def convolve(x: Tensor, kernel: Prepared, relu: bool = False, residual: Tensor | None = None) -> Tensor:
    """A 3D convolution, then the sum with `residual` and the ReLU, where wanted.

    Parameters
    ----------
    x : float (B, I, D, H, W), of the dtype and size that the kernel was prepared for
    residual : of the output's shape

    Returns
    -------
    float (B, O, D', H', W'), dense with adjacent channels
    """
    if kernel.packed is not None and not _differentiated(x, kernel.weight, kernel.bias, residual):
        added = None if residual is None else _volumes(residual, kernel.way)
        y = convolutions.convolve_relu(_volumes(x, kernel.way), kernel.packed, kernel.bias, added, relu, len(kernel.weight))
        return _back(y, kernel)
    if kernel.on_gpu and kernel.way != "plain":
        return _convolve_on_gpu(x, kernel, relu, residual)
    y = _convolve(x, kernel)
    if residual is not None:
        y = y + residual
    return y.relu_() if relu else y


def stem(x: Tensor, kernel: Prepared) -> Tensor | None:
    """Convolution, ReLU and 3x3x3 max pooling with stride 2 in one pass, as :func:`convolve`; None where no such pass takes them."""
    if (
        kernel.on_gpu
        or kernel.way != "folded"
        or kernel.bias is None
        or not convolutions.usable(x)
        or _differentiated(x, kernel.weight, kernel.bias)
    ):
        return None
    few = FewChannels.of(kernel.weight, kernel.stride[1:], kernel.padding[1:])
    if few is None or len(kernel.weight) // kernel.depth_out % 16:
        return None
    return convolutions.stem(folded(x).flatten(3), kernel.weight, kernel.bias, few, kernel.depth_out).permute(FOLDED_BACK)


def _differentiated(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def _volumes(x: Tensor, way: str) -> Tensor:
    """Logical (B, C, D, H, W) as dense (B, H, W, D, C), or, where slices are folded, (B, H, W, 1, D * C)."""
    return folded(x).flatten(3).unsqueeze(3) if way == "folded" else folded(x)


def _back(y: Tensor, kernel: Prepared) -> Tensor:
    """Undoes :func:`_volumes` on the convolution's output."""
    return (y.squeeze(3).unflatten(3, (kernel.depth_out, -1)) if kernel.way == "folded" else y).permute(FOLDED_BACK)


def _convolve(x: Tensor, kernel: Prepared) -> Tensor:
    s, plane = kernel.stride[0], kernel.stride[1:]
    if kernel.way in ("folded", "band", "slices"):
        if kernel.packed is not None:
            return _back(convolutions.convolve(_volumes(x, kernel.way), kernel.weight, kernel.packed, kernel.bias), kernel)
        images = by_slices(x[:, :, ::s]).flatten(0, 1) if kernel.way == "slices" else folded(x).flatten(3)
        few = FewChannels.of(kernel.weight, plane, kernel.padding[1:]) if convolutions.usable(images) else None
        if few is not None:
            return _back(convolutions.convolve_few(images, kernel.weight, kernel.bias, few, len(images) // len(x)), kernel)
        y = F.conv2d(images.permute(0, 3, 1, 2), kernel.weight, kernel.bias, plane, kernel.padding[1:]).permute(0, 2, 3, 1).contiguous()
        if kernel.way == "slices":
            return y.unflatten(0, (len(x), -(-x.shape[2] // s))).permute(BY_SLICES_BACK)
        return y.unflatten(3, (kernel.depth_out, -1)).permute(FOLDED_BACK)
    if kernel.way == "plain":
        return _plain(x.contiguous(memory_format=torch.channels_last_3d), kernel)
    if kernel.way == "points":
        kept = x[:, :, ::s, :: plane[0], :: plane[1]]
        order, back = memory_order(kept)
        points = kept.permute(order).contiguous()
        y = F.linear(points, kernel.weight.flatten(1), kernel.bias)
        return y.permute(back)
    # A kernel without extent in the plane sees a volume as an image whose height is the depth and whose width is all pixels of a slice.
    columns = by_slices(x[:, :, :, :: plane[0], :: plane[1]])
    y = F.conv2d(columns.flatten(2, 3).permute(0, 3, 1, 2), kernel.weight, kernel.bias, (s, 1), (kernel.padding[0], 0))
    y = y.permute(0, 2, 3, 1).contiguous()
    return y.unflatten(2, columns.shape[2:4]).permute(BY_SLICES_BACK)


def _convolve_on_gpu(x: Tensor, kernel: Prepared, relu: bool, residual: Tensor | None) -> Tensor:
    s, plane, p, margins = kernel.stride[0], kernel.stride[1:], kernel.padding[0], kernel.padding[1:]
    geometry = (plane, margins)
    if kernel.way in ("points", "columns"):
        geometry = ((1, 1), (0, 0)) if kernel.way == "points" else ((s, 1), (p, 0))
        x = gpu_convolutions.thinned(x, (s if kernel.way == "points" else 1, *plane), memory_order(x)[0])
    elif kernel.way == "slices":
        x = gpu_convolutions.thinned(x, (s, 1, 1), BY_SLICES)
    order, back = memory_order(x) if kernel.way == "points" else (BY_SLICES, BY_SLICES_BACK)
    if kernel.way in ("folded", "band"):
        order, back = FOLDED, FOLDED_BACK

    def images(volumes: Tensor) -> Tensor:
        dense = volumes.permute(order).contiguous()
        if kernel.way == "slices":
            return dense.flatten(0, 1)
        return dense.flatten(3) if order == FOLDED and kernel.way != "points" else dense.flatten(2, 3)

    added = None if residual is None else images(residual)
    y = gpu_convolutions.convolve(images(x), kernel.weight, kernel.bias, geometry, added, relu)
    if kernel.way == "slices":
        y = y.unflatten(0, (len(x), -1)) if len(x) else y.unsqueeze(1)
    elif kernel.way in ("folded", "band"):
        y = y.unflatten(3, (kernel.depth_out, -1))
    else:
        y = y.unflatten(2, x.permute(order).shape[2:4])
    return y.permute(back)


def _plain(x: Tensor, kernel: Prepared) -> Tensor:
    if x.device.type == "cpu" and x.dtype == torch.bfloat16:
        # The library has no fast bfloat16 kernel for the backward pass of Conv3d, and the one that it has corrupts memory at batch 1.
        bias = None if kernel.bias is None else kernel.bias.float()
        return F.conv3d(x.float(), kernel.weight.float(), bias, kernel.stride, kernel.padding).to(x.dtype)
    return F.conv3d(x, kernel.weight, kernel.bias, kernel.stride, kernel.padding)


class Conv3d(nn.Conv3d):
    """``nn.Conv3d`` without bias, groups and dilation, in the cheapest of the ways above. One input channel stands for equal ones.

    `kept` is a kernel that is ready for use, with what it was made from.
    """

    kept: tuple[object, Prepared] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "kept"}

    def forward(self, x: Tensor, outputs: int | None = None) -> Tensor:
        if torch.jit.is_tracing():
            # A trace, as for export, is of operations that every runtime knows.
            return F.conv3d(x, self.kernel_for(x), None, *self.geometry)
        kernel = prepare(self.kernel_for(x), None, *self.geometry, x, outputs)
        return convolve(x, kernel)

    def order_for(self, depth: int) -> Order | None:
        """The memory order in which volumes of this depth enter without a copy; None if any does."""
        assert not isinstance(self.padding, str)
        (k, kh, kw), (p0, p1, p2) = self.kernel_size, self.padding
        chosen = way(depth, (k, kh, kw), (p0, p1, p2))
        return {"points": None, "folded": FOLDED, "band": FOLDED}.get(chosen, BY_SLICES)

    def kernel_for(self, x: Tensor) -> Tensor:
        """The weight, summed over its input channels where `x` has one that stands for all of them."""
        return self.weight.sum(1, keepdim=True) if x.shape[1] == 1 < self.in_channels else self.weight

    @property
    def geometry(self) -> tuple[Triple, Triple]:
        """Stride and padding."""
        assert not isinstance(self.padding, str)
        (s0, s1, s2), (p0, p1, p2) = self.stride, self.padding
        return (s0, s1, s2), (p0, p1, p2)


class MaxPool3d(nn.MaxPool3d):
    """3x3x3 max pooling with stride 2 and padding 1 in either memory order: in the plane first, then over the slices of a window."""

    def __init__(self) -> None:
        super().__init__(3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_tracing():
            return super().forward(x)
        B, C, D = x.shape[:3]
        order, back = memory_order(x)
        if order == FOLDED:
            y = F.max_pool2d(folded(x).flatten(3).permute(0, 3, 1, 2), 3, 2, 1).permute(0, 2, 3, 1).contiguous().unflatten(3, (D, C))
        else:
            y = F.max_pool2d(by_slices(x).flatten(0, 1).permute(0, 3, 1, 2), 3, 2, 1)
            y = y.permute(0, 2, 3, 1).contiguous().unflatten(0, (B, D))
        slices = y.permute(back).unbind(2)
        pooled = []
        for middle in range(0, D, 2):
            best = slices[max(middle - 1, 0)]
            for other in slices[max(middle, 1) : middle + 2]:
                # The first of equal ones wins and takes the whole gradient, as in torch; torch.maximum would halve it.
                best = torch.where((other > best) | other.isnan(), other, best)
            pooled.append(best)
        return torch.stack([one.permute(0, 2, 3, 1) for one in pooled], order.index(2)).permute(back)


def shortcut(x: Tensor, width: int, stride: int) -> Tensor:
    """Identity; where dimensions grow, every `stride`-th voxel with zeros for the new channels (Li et al. 2021, Sec. 2.4).

    x : float (B, C, D, H, W); returns float (B, width, D', H', W'), in the memory order of x
    """
    order, back = memory_order(x)
    if stride != 1:
        x = x[:, :, ::stride, ::stride, ::stride]
    missing = width - x.shape[1]
    if missing and x.stride(1) == 1:
        return F.pad(x.permute(order), (0, missing)).permute(back)
    return F.pad(x, (0, 0, 0, 0, 0, 0, 0, missing)) if missing else x


class GlobalAverage(nn.Module):
    """Mean over depth, height and width, in float32 at least: float (B, C, D, H, W) to (B, C, 1, 1, 1)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3, 4), keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))


def _taps(kernel: int, depth: int, out: int, stride: int, padding: int) -> Iterator[tuple[int, int, int]]:
    """Output slice, input slice, and the tap through which the one sees the other."""
    for o in range(out):
        for i in range(depth):
            tap = i - o * stride + padding
            if 0 <= tap < kernel:
                yield o, i, tap


class _Band(torch.autograd.Function):
    """The banded block kernel, (out, O, kh, kw, depth, I) in `dtype`, of a weight (O, I, k, kh, kw) with its `_taps`."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, depth: int, out: int, taps: list[tuple[int, int, int]], dtype: torch.dtype) -> Tensor:
        outputs, inputs, _, kh, kw = weight.shape
        ctx.taps, ctx.like = taps, (weight.shape, weight.stride(), weight.dtype)
        full = len(taps) == out * depth
        band = (torch.empty if full else torch.zeros)(out, outputs, kh, kw, depth, inputs, dtype=dtype, device=weight.device)
        for o, i, tap in taps:
            band[o, :, :, :, i] = weight[:, :, tap].permute(0, 2, 3, 1)
        return band

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        # In the memory order of the weight, or it would be copied into that once more.
        shape, strides, dtype = ctx.like
        found = torch.empty_strided(shape, strides, dtype=dtype, device=gradient.device).zero_()
        for o, i, tap in ctx.taps:
            found[:, :, tap] += gradient[o, :, :, :, i].permute(0, 3, 1, 2)
        return found, None, None, None, None
