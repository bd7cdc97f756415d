"""Convolutions in bfloat16 by the compiled _convolutions.cpp, on CPUs that multiply it in vectors of AVX-512 and have no AMX.

Winograd's F(2x2, 3x3) (Lavin and Gray 2016, Sec. 4.1) needs 16 multiplications where a direct 3x3 convolution needs 36, in all three of
its forms: forward, gradient of the input, gradient of the kernel. Its sums are in float32, but its factors are rounded to bfloat16 after
the transforms, not before them. The error of its results is 0.3 to 0.4 %, that of a direct convolution in bfloat16 0.2 %; a whole network
is as near to float32 with it as without. It is used in bfloat16 only.

Convolutions with few input channels, such as the stem, are direct ones. In inference, the stem is one pass with the ReLU and the pooling
behind it. Infinite values become NaN or spread to a neighbour; NaN stays NaN.

Volumes are (B, H, W, D, C) here, in this order in memory, and a 2D kernel goes over each slice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_input

from ctcovid.kernels import native

# With fewer channels or pixels than these, the transforms take longer than they save.
CHANNELS, PIXELS = 32, 64
# With more input channels than these, libraries are as fast in both directions, and their results are in the order needed here.
FEW = 16

supported = native.compiled is not None and bool(native.compiled.convolutions_supported())


def usable(x: Tensor) -> bool:
    """Whether the compiled functions are there, made for this processor, and take this tensor."""
    return supported and x.dtype == torch.bfloat16 and x.numel() > 0 and native.usable(x)


def pays(weight: Tensor, stride: tuple[int, int], padding: tuple[int, int], pixels: int) -> bool:
    """Whether a 2D convolution by `weight`, (O, I, kh, kw), of images of so many pixels is of this kind, and large enough to gain."""
    outputs, inputs, *kernel = weight.shape
    return kernel == [3, 3] and stride == padding == (1, 1) and min(outputs, inputs) >= CHANNELS and pixels >= PIXELS


def pack(kernel: Tensor) -> Tensor:
    """A kernel, float32 (O, 3, 3, I), transformed and in the order in which :func:`convolve` reads it."""
    return _pack(kernel.detach(), turned=False)


def convolve(x: Tensor, kernel: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """A convolution with stride 1 and padding 1.

    Parameters
    ----------
    x : bfloat16 (B, H, W, D, I), dense
    kernel : float32 (O, 3, 3, I), dense; the gradient goes to it
    packed : the same kernel, as :func:`pack` makes it
    bias : float32 (O,)

    Returns
    -------
    bfloat16 (B, H, W, D, O)
    """
    result: Tensor = _Winograd.apply(x, kernel, packed, bias)
    return result


def convolve_relu(x: Tensor, packed: Tensor, bias: Tensor | None, residual: Tensor | None, relu: bool, outputs: int) -> Tensor:
    """The same without gradients, plus `residual`, bfloat16 (B, H, W, D, O) and dense, and then the ReLU, where wanted."""
    y = x.new_empty((*x.shape[:4], outputs))
    if residual is not None and (residual.shape != y.shape or residual.dtype != y.dtype or not residual.is_contiguous()):
        raise ValueError(f"A {residual.dtype} residual of shape {tuple(residual.shape)} cannot be added to one of {tuple(y.shape)}.")
    assert x.is_contiguous()
    native.call("winograd_forward", x, *x.shape, outputs, packed, bias, residual, relu, y)
    return y


@dataclass(frozen=True)
class FewChannels:
    """A convolution with few input channels: a square kernel (O, I, side, side), `stride` and `padding` in both directions."""

    side: int
    stride: int
    padding: int

    @staticmethod
    def of(weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> FewChannels | None:
        """The geometry of a weight (O, I, kh, kw), or None where it is of another kind."""
        outputs, inputs, high, wide = weight.shape
        square = high == wide > 1 and stride[0] == stride[1] and padding[0] == padding[1]
        return FewChannels(high, stride[0], padding[0]) if square and inputs <= FEW <= outputs else None

    def size(self, pixels: int) -> int:
        """Pixels of a side of the output. Raises ValueError where the kernel does not fit."""
        if pixels + 2 * self.padding < self.side:
            raise ValueError(f"A kernel of {self.side} pixels does not fit into {pixels} and {self.padding} of padding on each side.")
        return (pixels + 2 * self.padding - self.side) // self.stride + 1


def convolve_few(x: Tensor, kernel: Tensor, bias: Tensor | None, few: FewChannels, slices: int) -> Tensor:
    """A convolution with few input channels.

    Parameters
    ----------
    x : bfloat16 (B * slices, H, W, I), dense
    kernel : bfloat16 (O, I, side, side)
    bias : (O,)

    Returns
    -------
    bfloat16 (B, H', W', slices, O)
    """
    result: Tensor = _FewChannels.apply(x, kernel, bias, few, slices)
    return result


def stem(x: Tensor, kernel: Tensor, bias: Tensor, few: FewChannels, depth: int) -> Tensor:
    """Convolution, ReLU, and 3x3x3 max pooling with stride 2 and padding 1, without gradients.

    Parameters
    ----------
    x : bfloat16 (B, H, W, I), dense
    kernel : bfloat16 (depth * C, I, side, side), of which C is a multiple of 16
    bias : (depth * C,)
    depth : slices of the convolution's output

    Returns
    -------
    bfloat16 (B, H', W', ceil(depth / 2), C)
    """
    assert x.is_contiguous()
    sizes = [-(-few.size(pixels) // 2) for pixels in x.shape[1:3]]
    y = x.new_empty((len(x), *sizes, -(-depth // 2), len(kernel) // depth))
    native.call("stem_and_pool", x, *x.shape, few.side, few.stride, few.padding, len(kernel), depth, _pack_few(kernel), bias.float(), y)
    return y


def _pack_few(kernel: Tensor) -> Tensor:
    """The kernel as blocks of 64 outputs, each as rows of the kernel, each as pairs of neighbours of all outputs in whole vectors."""
    outputs, inputs, side, _ = kernel.shape
    rows = F.pad(kernel.permute(0, 2, 3, 1).flatten(2), (0, side * inputs % 2, 0, 0, 0, -outputs % 16))
    return torch.cat([block.unflatten(2, (-1, 2)).permute(1, 2, 0, 3).flatten() for block in rows.split(64)])


def _pack(kernel: Tensor, turned: bool) -> Tensor:
    """A packed kernel; with `turned`, that of the input's gradient: reversed in the plane, with input and output channels exchanged."""
    outputs, _, _, inputs = kernel.shape
    size = 16 * _whole_vectors(outputs) * _whole_vectors(inputs)
    packed = torch.empty(size, dtype=torch.bfloat16, device=kernel.device)
    native.call("winograd_pack", kernel, outputs, inputs, turned, packed)
    return packed


def _whole_vectors(channels: int) -> int:
    return -(-channels // 16) * 16


def _gradient_scratch(x: Tensor, outputs: int) -> int:
    """Bytes that the kernel's gradient works in."""
    assert native.compiled is not None
    return int(native.compiled.winograd_scratch(*x.shape, outputs))


class _Winograd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, kernel)
        return convolve_relu(x, packed, bias, None, False, len(kernel))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, kernel = ctx.saved_tensors
        for_x, for_kernel, _, for_bias = ctx.needs_input_grad
        g, gx, gk = gradient.contiguous(), None, None
        if for_x:
            gx = convolve_relu(g, _pack(kernel, turned=True), None, None, False, kernel.shape[3])
        if for_kernel:
            gk = torch.empty_like(kernel)
            # Memory from torch, which raises a readable error when it is out of memory.
            scratch = torch.empty(_gradient_scratch(x, len(kernel)), dtype=torch.uint8)
            native.call("winograd_gradient", x, g, *x.shape, len(kernel), gk, scratch)
        return gx, gk, None, g.sum((0, 1, 2, 3), dtype=torch.float32) if for_bias else None


class _FewChannels(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: Tensor, bias: Tensor | None, few: FewChannels, slices: int) -> Tensor:
        ctx.save_for_backward(x, kernel)
        ctx.few, ctx.slices = few, slices
        assert x.is_contiguous()
        y = x.new_empty((len(x) // slices, few.size(x.shape[1]), few.size(x.shape[2]), slices, len(kernel)))
        added = None if bias is None else bias.float()
        native.call(
            "few_channels_forward", x, *x.shape, few.side, few.stride, few.padding, len(kernel), slices, _pack_few(kernel), added, y
        )
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, kernel = ctx.saved_tensors
        few, slices = ctx.few, ctx.slices
        for_x, for_kernel, for_bias, _, _ = ctx.needs_input_grad
        g, gx, gk = gradient.contiguous(), None, None
        if for_x:
            # Nothing before the stem is trained, so its input's gradient need not be fast.
            images, strides = g.movedim(3, 1).flatten(0, 1).permute(0, 3, 1, 2), (few.stride, few.stride)
            like = x.permute(0, 3, 1, 2)
            gx = conv2d_input(like.shape, kernel.float(), images.float(), strides, (few.padding, few.padding))
            gx = gx.permute(0, 2, 3, 1).to(x.dtype)
        if for_kernel:
            found = torch.empty((len(kernel), few.side, few.side, x.shape[3]), dtype=torch.float32)
            native.call("few_channels_gradient", x, g, *x.shape, few.side, few.stride, few.padding, len(kernel), slices, found)
            gk = found.permute(0, 3, 1, 2).to(kernel.dtype)
        return gx, gk, g.sum((0, 1, 2, 3)) if for_bias else None, None, None
