"""Convolutions in bfloat16 on CPUs that multiply it in vectors of AVX-512 and have no AMX, by the compiled _convolutions.cpp.

Winograd's F(2x2, 3x3) (Lavin and Gray 2016, Sec. 4.1) needs 16 multiplications where a direct 3x3 convolution needs 36, in all three of
its forms: forward, gradient of the input, gradient of the kernel. Its sums are in float32, but what is multiplied is rounded to bfloat16
behind the transforms, not before them, and so its results are up to three times as far from the exact ones as those of a direct
convolution in bfloat16: no further than the rounding of activations is in any case. It is used in that precision only.

In use, the stem is done together with the ReLU and the pooling behind it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ctcovid.models import kernels

# With fewer channels or pixels than these, the transforms take longer than what they save.
CHANNELS, PIXELS = 32, 64

supported = kernels.compiled is not None and bool(kernels.compiled.convolutions_supported())


def usable(x: Tensor) -> bool:
    """Whether the compiled functions are there, the processor is one that they are for, and they take this tensor."""
    return supported and x.dtype == torch.bfloat16 and kernels.usable(x)


def pays(weight: Tensor, stride: tuple[int, int], padding: tuple[int, int], pixels: int) -> bool:
    """Whether a 2D convolution by `weight`, (O, I, kh, kw), of images of so many pixels is of the kind meant here, and large enough."""
    outputs, inputs, *kernel = weight.shape
    return kernel == [3, 3] and stride == padding == (1, 1) and min(outputs, inputs) >= CHANNELS and pixels >= PIXELS


def pack(kernel: Tensor) -> Tensor:
    """A kernel, float32 (O, 3, 3, I), transformed and in the order in which :func:`convolve` reads it."""
    return _pack(kernel.detach(), turned=False)


def convolve(x: Tensor, kernel: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    """A convolution with stride 1 and padding 1.

    Parameters
    ----------
    x : bfloat16 (B, H, W, I), dense
    kernel : float32 (O, 3, 3, I), dense; the gradient goes to it
    packed : the same, as :func:`pack` makes it
    bias : float32 (O,)

    Returns
    -------
    bfloat16 (B, H, W, O)
    """
    result: Tensor = _Convolution.apply(x, kernel, packed, bias)
    return result


def convolve_relu(x: Tensor, packed: Tensor, bias: Tensor | None, residual: Tensor | None, relu: bool, outputs: int) -> Tensor:
    """The same without gradients, plus `residual`, bfloat16 (B, H, W, O) and dense, and then the ReLU, where wanted."""
    y = x.new_empty((*x.shape[:3], outputs))
    kernels.call("winograd_forward", x, *x.shape, outputs, packed, bias, residual, relu, y)
    return y


def stem(x: Tensor, kernel: Tensor, bias: Tensor, stride: int, padding: int, depth: int) -> Tensor:
    """Convolution, ReLU, and 3x3x3 max pooling with stride 2 and padding 1, without gradients.

    Parameters
    ----------
    x : bfloat16 (B, H, W, D), dense
    kernel : bfloat16 (depth * C, D, k, k), of which C is a multiple of 16
    bias : (depth * C,)
    depth : slices of the convolution's output

    Returns
    -------
    bfloat16 (B, H', W', ceil(depth / 2), C)
    """
    side, channels = kernel.shape[2], len(kernel) // depth
    # The compiled function wants blocks of 64 outputs, in them rows of the kernel, in them pairs of neighbours of all outputs.
    rows = F.pad(kernel.permute(0, 2, 3, 1).flatten(2), (0, side * x.shape[3] % 2))
    packed = torch.cat([block.unflatten(2, (-1, 2)).permute(1, 2, 0, 3).flatten() for block in rows.split(64)])
    sizes = [-(-((size + 2 * padding - side) // stride + 1) // 2) for size in x.shape[1:3]]
    y = x.new_empty((len(x), *sizes, -(-depth // 2), channels))
    kernels.call("stem_and_pool", x, *x.shape, side, stride, padding, depth, channels, packed, bias.float(), y)
    return y


def _pack(kernel: Tensor, turned: bool) -> Tensor:
    """`turned`, it is the kernel of the input's gradient: the other way round in the plane, with input and output channels exchanged."""
    outputs, _, _, inputs = kernel.shape
    size = 16 * _whole_vectors(outputs) * _whole_vectors(inputs)
    packed = torch.empty(size, dtype=torch.bfloat16, device=kernel.device)
    kernels.call("winograd_pack", kernel, outputs, inputs, turned, packed)
    return packed


def _whole_vectors(channels: int) -> int:
    return -(-channels // 16) * 16


class _Convolution(torch.autograd.Function):
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
            kernels.call("winograd_gradient", x, g, *x.shape, len(kernel), gk)
        return gx, gk, None, g.sum((0, 1, 2), dtype=torch.float32) if for_bias else None
