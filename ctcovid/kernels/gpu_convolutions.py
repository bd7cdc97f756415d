"""Convolutions on a GPU, in the shapes that its libraries are fast at, and their kernels in one launch each.

- A kernel of one pixel is a matrix product. The gradient of its weight sums over millions of rows: they are multiplied in parts, as many
  as fill the processors, and the parts are added.
- With few input channels and stride 2, as in the stem, libraries have no fast kernel. With 4 slices or more, it is a convolution of 2x2
  blocks (a quarter of the pixels, four times the channels); its weight's gradient is faster directly. With fewer, it is a matrix product
  of patches.
- In inference, bias, residual and ReLU belong to the convolution.

Images are dense (N, H, W, C) here, weights (O, I, kh, kw).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ctcovid.kernels import passes
from ctcovid.kernels.choice import warn_once

Pair = tuple[int, int]

# Channels that tensor cores and vectors of 32 bytes want multiples of.
ALIGNMENT = 16
# With more input channels than these, libraries have fast kernels. With fewer than these, blocks of 2x2 have too few channels as well.
FEW, BLOCKS_FROM = 16, 4
# Columns of a matrix of patches: vectors of 16 bytes.
PATCH_ALIGNMENT = 8
# How many tiles of 128x128 numbers keep a GPU busy, and how many rows are worth a part.
TILES, PART = 256, 2048

# Kinds of fused convolutions that the library refuses or gets wrong, which torch then does in steps; and the types that were checked.
_refused: set[tuple[object, ...]] = set()
_checked: dict[tuple[torch.device, torch.dtype], bool] = {}


def aligned(channels: int, to: int = ALIGNMENT) -> int:
    return -(-channels // to) * to


def kernel(weight: Tensor, sizes: tuple[int, int, int, int], stride: int, padding: int, x: Tensor) -> Tensor:
    """The 2D kernel (out * O', depth * I', kh, kw) of a Conv3d weight (O, I, k, kh, kw), in the dtype of `x`, input channels adjacent.

    sizes : (out, O', depth, I'): output slices, and output channels with zeros in place of missing ones, and those of the input
    """
    made: Tensor = _Band.apply(weight, sizes, (stride, padding), passes.gpu(x), x.dtype)
    return made.flatten(4).flatten(0, 1).permute(0, 3, 1, 2)


def convolve(
    images: Tensor, weight: Tensor, bias: Tensor | None, geometry: tuple[Pair, Pair], added: Tensor | None = None, relu: bool = False
) -> Tensor:
    """A 2D convolution with stride and padding, then the sum with `added`, of the result's shape, and the ReLU, where wanted."""
    fuses = not torch.is_grad_enabled() or not any(one is not None and one.requires_grad for one in (images, weight, bias, added))
    point = weight.shape[2:] == (1, 1) and geometry == ((1, 1), (0, 0))
    few = geometry[0] == (2, 2) and weight.shape[1] <= FEW and not point
    if few:
        at_once = relu and fuses and added is None
        y = _few(images, weight, bias, geometry, at_once)
        if at_once:
            return y
    elif point and added is None and not (relu and fuses):
        y = product(images, weight.flatten(1)) if bias is None or not fuses else F.linear(images, weight.flatten(1), bias)
        bias = None if fuses else bias
    elif fuses and relu:
        return _fused(images, weight, bias, geometry, added)
    else:
        return _steps(images, weight, bias, geometry, added, relu)
    if bias is not None and not few:
        y = y + bias
    if added is not None:
        y = y + added
    return y.relu_() if relu else y


def _nchw(images: Tensor) -> Tensor:
    return images.permute(0, 3, 1, 2)


def _steps(images: Tensor, weight: Tensor, bias: Tensor | None, geometry: tuple[Pair, Pair], added: Tensor | None, relu: bool) -> Tensor:
    y = F.conv2d(_nchw(images), weight, bias, *geometry).permute(0, 2, 3, 1).contiguous()
    if added is not None:
        y = y + added
    return y.relu_() if relu else y


def _fused(images: Tensor, weight: Tensor, bias: Tensor | None, geometry: tuple[Pair, Pair], added: Tensor | None) -> Tensor:
    """Convolution, bias, residual and ReLU in one kernel of the library; in steps where it has none."""
    kind = (images.dtype, weight.shape, geometry, added is None)
    if images.is_cuda and images.numel() and kind not in _refused and _agrees(images):
        try:
            return _library(images, weight, bias, geometry, added)
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError:
            # The library has no kernel of this kind: in steps it is slower, not other.
            _refused.add(kind)
    return _steps(images, weight, bias, geometry, added, relu=True)


def _library(images: Tensor, weight: Tensor, bias: Tensor | None, geometry: tuple[Pair, Pair], added: Tensor | None) -> Tensor:
    with_bias = weight.new_zeros(len(weight)) if bias is None else bias
    if added is None:
        y = torch.cudnn_convolution_relu(_nchw(images), weight, with_bias, *geometry, (1, 1), 1)
    else:
        y = torch.cudnn_convolution_add_relu(_nchw(images), weight, _nchw(added), 1.0, with_bias, *geometry, (1, 1), 1)
    return y.permute(0, 2, 3, 1).contiguous()


def _agrees(images: Tensor) -> bool:
    """Whether the library's fused convolution does what its steps do, on small tensors of this device and type."""
    key = (images.device, images.dtype)
    if key not in _checked:
        if torch.cuda.is_current_stream_capturing():
            return False
        generator = torch.Generator().manual_seed(0)
        sizes = ((2, 8, 8, 64), (64, 3, 3, 64), (64,), (2, 8, 8, 64))
        x, weight, bias, added = (torch.randn(size, generator=generator).to(images) for size in sizes)
        operands = (x, weight.permute(0, 3, 1, 2), bias, ((1, 1), (1, 1)))
        try:
            pairs = [(_library(*operands, other), _steps(*operands, other, relu=True)) for other in (None, added)]
            # The library rounds once, the steps after each of them.
            _checked[key] = all(bool((one - steps).abs().max() <= 0.02 * steps.abs().max()) for one, steps in pairs)
        except RuntimeError:
            _checked[key] = False
        if not _checked[key]:
            warn_once("cuDNN has no sound convolution with bias, sum and ReLU in one on this GPU, so these are passes of their own.")
    return _checked[key]


# ---- kernels in one launch ----


class _Band(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, sizes: tuple[int, int, int, int], geometry: Pair, module: Any, dtype: torch.dtype
    ) -> Tensor:  # fmt: skip
        ctx.module, ctx.geometry = module, geometry
        ctx.like = weight.shape, weight.stride(), weight.dtype
        made: Tensor = module.band(weight, sizes, *geometry, dtype)
        return made

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        # In the memory order of the weight, or it would be copied into that once more.
        shape, strides, dtype = ctx.like
        found = torch.empty_strided(shape, strides, dtype=dtype, device=gradient.device)
        return ctx.module.unband(gradient.contiguous(), found, *ctx.geometry), None, None, None, None


# ---- some of the voxels ----


def thinned(x: Tensor, steps: tuple[int, int, int], order: tuple[int, ...]) -> Tensor:
    """Every so many voxels of a logical (B, C, D, H, W) in depth, height and width; values and gradient are dense in `order`."""
    if steps == (1, 1, 1):
        return x
    found: Tensor = _Thinned.apply(x, steps, order)
    return found


class _Thinned(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, steps: tuple[int, int, int], order: tuple[int, ...]) -> Tensor:
        ctx.steps, ctx.order, ctx.shape = steps, order, x.shape
        back = [order.index(dim) for dim in range(5)]
        s, t, u = steps
        return x[:, :, ::s, ::t, ::u].permute(order).contiguous().permute(back)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        # torch's own gradient of a slice is in the order of dimensions: each step there would be a copy of all into another order.
        wide = gradient.new_zeros([ctx.shape[dim] for dim in ctx.order]).permute([ctx.order.index(dim) for dim in range(5)])
        s, t, u = ctx.steps
        wide[:, :, ::s, ::t, ::u] = gradient
        return wide, None, None


# ---- matrix products ----


def product(rows: Tensor, weight: Tensor) -> Tensor:
    """``rows @ weight.T`` for rows (..., K) and a weight (N, K)."""
    found: Tensor = _Product.apply(rows, weight)
    return found


def _weight_gradient(g: Tensor, rows: Tensor) -> Tensor:
    """``g.T @ rows`` for (M, N) and (M, K), as a sum over parts of the rows, always the same ones."""
    count, tiles = len(rows), -(-g.shape[1] // 128) * -(-rows.shape[1] // 128)
    parts = 1
    while parts * tiles < TILES and count % (2 * parts) == 0 and count // (2 * parts) >= PART:
        parts *= 2
    found = torch.bmm(g.unflatten(0, (parts, -1)).transpose(1, 2), rows.unflatten(0, (parts, -1))) if count else g.T[None] @ rows
    return found.sum(0, dtype=torch.float32).to(g.dtype)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weight)
        return F.linear(rows, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        g = gradient.contiguous()
        for_rows, for_weight = ctx.needs_input_grad
        found = _weight_gradient(g.flatten(0, -2), rows.flatten(0, -2)) if for_weight else None
        return g @ weight if for_rows else None, found


# ---- few input channels ----


def _few(images: Tensor, weight: Tensor, bias: Tensor | None, geometry: tuple[Pair, Pair], relu: bool) -> Tensor:
    (kh, kw), (p, q) = weight.shape[2:], geometry[1]
    blocks = weight.shape[1] >= BLOCKS_FROM and kh % 2 and kw % 2 and not (images.shape[1] % 2 or images.shape[2] % 2)
    if relu:
        if blocks:
            return _fused(_blocks(images, p, q), _block_kernel(weight), bias, ((1, 1), (0, 0)), None)
        rows, matrix = _patches(images, weight, geometry), _patch_kernel(weight)
        # The product's own ReLU; as the name says, torch may drop it.
        together = getattr(torch, "_addmm_activation", None)
        if bias is None or together is None or not rows.numel():
            return F.linear(rows, matrix, bias).relu_()
        y: Tensor = together(bias, rows.flatten(0, 2), matrix.T)
        return y.unflatten(0, rows.shape[:3])
    y = _Few.apply(images, weight, geometry, bool(blocks))
    return y if bias is None else y + bias


def _blocks(images: Tensor, p: int, q: int) -> Tensor:
    """(N, H, W, C) with margins as blocks of 2x2 pixels, (N, H / 2 + p, W / 2 + q, 4 * C)."""
    N, H, W, C = images.shape
    high, wide = H // 2 + p, W // 2 + q
    # The margins are p and q pixels on each side: p and q blocks together.
    apart = F.pad(images, (0, 0, q, q, p, p)).view(N, high, 2, wide, 2, C)
    return apart.transpose(2, 3).reshape(N, high, wide, 4 * C)


def _block_kernel(weight: Tensor) -> Tensor:
    """The kernel of the same convolution over blocks, (O, 4 * I, (kh + 1) / 2, (kw + 1) / 2); kh and kw are odd."""
    high, wide = (weight.shape[2] + 1) // 2, (weight.shape[3] + 1) // 2
    apart = F.pad(weight, (0, 1, 0, 1)).unflatten(3, (wide, 2)).unflatten(2, (high, 2))
    return apart.permute(0, 2, 4, 3, 5, 1).flatten(3).permute(0, 3, 1, 2)


def _patches(images: Tensor, weight: Tensor, geometry: tuple[Pair, Pair]) -> Tensor:
    """(N, H', W', K): the pixels under the kernel for each pixel of the output, and zeros up to a multiple of PATCH_ALIGNMENT."""
    kh, kw = weight.shape[2:]
    (s, t), (p, q) = geometry
    high, wide = (images.shape[1] + 2 * p - kh) // s + 1, (images.shape[2] + 2 * q - kw) // t + 1
    taken = aligned(kh * kw * images.shape[3], PATCH_ALIGNMENT)
    found: Tensor = passes.gpu(images).patches(images, (high, wide, taken), (kh, kw), (s, t), (p, q))
    return found


def _patch_kernel(weight: Tensor) -> Tensor:
    """(O, K) in the order of :func:`_patches`."""
    flat = weight.permute(0, 2, 3, 1).flatten(1)
    return F.pad(flat, (0, aligned(flat.shape[1], PATCH_ALIGNMENT) - flat.shape[1]))


class _Few(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, geometry: tuple[Pair, Pair], blocks: bool) -> Tensor:
        ctx.save_for_backward(images, weight)
        ctx.geometry, ctx.blocks = geometry, blocks
        if blocks:
            y = F.conv2d(_nchw(_blocks(images, *geometry[1])), _block_kernel(weight))
            return y.permute(0, 2, 3, 1).contiguous()
        return F.linear(_patches(images, weight, geometry), _patch_kernel(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        images, weight = ctx.saved_tensors
        for_images, for_weight, _, _ = ctx.needs_input_grad
        g = gradient.contiguous()
        gx, gw = _library_gradients(g, images, weight, ctx.geometry, (for_images, for_weight and ctx.blocks))
        if for_weight and not ctx.blocks:
            C, kh, kw = weight.shape[1:]
            found = _weight_gradient(g.flatten(0, 2), _patches(images, weight, ctx.geometry).flatten(0, 2))
            gw = found[:, : kh * kw * C].unflatten(1, (kh, kw, C)).permute(0, 3, 1, 2)
        return None if gx is None else gx.permute(0, 2, 3, 1), gw, None, None


def _library_gradients(
    g: Tensor, images: Tensor, weight: Tensor, geometry: tuple[Pair, Pair], wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of the direct convolution's images and weight, where wanted."""
    if not any(wanted):
        return None, None
    gx, gw, _ = torch.ops.aten.convolution_backward(
        _nchw(g), _nchw(images), weight, None, *geometry, (1, 1), False, (0, 0), 1, (*wanted, False)
    )
    return gx, gw
