"""The compiled library of _passes.cpp and _convolutions.cpp: its prototypes, the way to call it, and its passes as functions of tensors.

It is built when ctcovid is installed and a C++ compiler with OpenMP is at hand. `usable` says whether it takes a tensor. Where it does not,
as on a GPU, callers use torch's own operations. All tensors are dense, with the channels as their last dimension.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ctcovid.kernels.choice import plain_torch

# The prototypes of the C functions, from which the types of their arguments are made. Those of _passes.cpp exist once for each T.
PASSES = (
    "void moments_T(const T *x, i64 rows, i64 C, float *mean, float *var, int threads)",
    "void normalise_T(const T *x, const T *residual, const i64 grid[8], i64 rows, i64 C, i64 Cr, const float *scale, const float *shift, "
    "int relu, T *out, int threads)",
    "void reduce_T(const T *g, const T *x, const T *z, i64 rows, i64 C, const float *scale, const float *shift, const float *mean, "
    "int relu, float *sum, float *dot, int threads)",
    "void backward_T(const T *g, const T *x, const T *z, i64 rows, i64 C, const float *scale, const float *shift, int relu, "
    "const float *a, const float *b, const float *k, T *gx, T *gr, int threads)",
    "void pool_T(const T *x, const i64 in[9], const float *sign, T *out, uint8_t *tap, const i64 to[9], float *mean, float *var, "
    "int threads)",
    "void unpool_T(const T *g, const uint8_t *tap, const i64 to[9], const T *x, const i64 in[9], const float *slope, const float *level, "
    "T *gx, int threads)",
)
SUPPORTED = "int convolutions_supported(void)"
# The other functions of _convolutions.cpp exist for the processors that they are for.
CONVOLUTIONS = (
    "void winograd_pack(const float *w, i64 O, i64 I, int turned, bf16 *u, int threads)",
    "void winograd_forward(const bf16 *x, i64 B, i64 H, i64 W, i64 D, i64 K, i64 N, const bf16 *u, const float *bias, "
    "const bf16 *residual, int relu, bf16 *y, int threads)",
    "void winograd_gradient(const bf16 *x, const bf16 *g, i64 B, i64 H, i64 W, i64 D, i64 K, i64 N, float *w, void *scratch, int threads)",
    "i64 winograd_scratch(i64 B, i64 H, i64 W, i64 D, i64 K, i64 N)",
    "void few_channels_forward(const bf16 *x, i64 B, i64 H, i64 W, i64 C, i64 side, i64 stride, i64 padding, i64 N, i64 slices, "
    "const bf16 *u, const float *bias, bf16 *y, int threads)",
    "void few_channels_gradient(const bf16 *x, const bf16 *g, i64 B, i64 H, i64 W, i64 C, i64 side, i64 stride, i64 padding, i64 N, "
    "i64 slices, float *w, int threads)",
    "void stem_and_pool(const bf16 *x, i64 B, i64 H, i64 W, i64 C, i64 side, i64 stride, i64 padding, i64 N, i64 depth, const bf16 *u, "
    "const float *bias, bf16 *y, int threads)",
)
# Each T with its name in the names of functions.
_TYPES = {torch.float32: ("float", "float32"), torch.bfloat16: ("bf16", "bfloat16")}


@dataclass(frozen=True)
class _Memory:
    """A C pointer to the numbers of a tensor, which have to be of one type; None is the null pointer."""

    dtype: torch.dtype

    def from_param(self, tensor: Tensor | None) -> ctypes.c_void_p:
        if tensor is not None and (tensor.device.type != "cpu" or tensor.dtype != self.dtype):
            raise ValueError(f"The compiled library expects {self.dtype} on the CPU, not {tensor.dtype} on {tensor.device}.")
        return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


@dataclass(frozen=True)
class _Numbers:
    """A C array of `count` integers; None is the null pointer."""

    count: int

    def from_param(self, numbers: Sequence[int] | None) -> object:
        if numbers is None:
            return None
        if len(numbers) != self.count:
            raise ValueError(f"The compiled library expects {self.count} numbers, not {len(numbers)}.")
        return (ctypes.c_int64 * self.count)(*numbers)


_ARGUMENTS: dict[str, Any] = {
    "i64": ctypes.c_int64,
    "int": ctypes.c_int,
    "float *": _Memory(torch.float32),
    "bf16 *": _Memory(torch.bfloat16),
    "uint8_t *": _Memory(torch.uint8),
    "void *": _Memory(torch.uint8),
}
_RESULTS = {"void": None, "int": ctypes.c_int, "i64": ctypes.c_int64}


def for_each_type(prototypes: Sequence[str]) -> list[str]:
    """Prototypes with T in them, once for each type."""
    return [one.replace("_T(", f"_{name}(").replace("T *", f"{c_type} *") for c_type, name in _TYPES.values() for one in prototypes]


def parameter_type(declared: str) -> Any:
    """What ctypes converts an argument with, for a C parameter such as ``const float *x``."""
    numbers = re.fullmatch(r"const i64 \w+\[(\d+)\]", declared)
    if numbers:
        return _Numbers(int(numbers[1]))
    return _ARGUMENTS[re.sub(r"\w+$", "", declared.removeprefix("const ")).strip()]


def _declare(library: ctypes.CDLL, prototypes: Sequence[str]) -> bool:
    """Give each function its argument types. False where the library has been compiled from other prototypes."""
    for prototype in prototypes:
        result, name, parameters = re.fullmatch(r"(\w+) (\w+)\((.*)\)", prototype).groups()  # type: ignore[union-attr]
        compiled_from = getattr(library, f"{name}_prototype", None)
        if compiled_from is None:
            return False
        compiled_from.restype = ctypes.c_char_p
        if compiled_from().decode() != prototype:
            return False
        function = getattr(library, name)
        function.restype = _RESULTS[result]
        function.argtypes = [] if parameters == "void" else [parameter_type(one) for one in parameters.split(", ")]
    return True


def load(path: Path) -> ctypes.CDLL | None:
    """The library, its functions declared. None where it cannot be loaded here, or was compiled from sources with other prototypes."""
    try:
        library = ctypes.CDLL(str(path))
    except OSError:
        # Built for another machine, or against libraries that are not here: torch's own operations do the same.
        return None
    if not _declare(library, [*for_each_type(PASSES), SUPPORTED]):
        return None
    return library if not library.convolutions_supported() or _declare(library, CONVOLUTIONS) else None


LIBRARY = next((path for suffix in EXTENSION_SUFFIXES if (path := Path(__file__).with_name(f"_native{suffix}")).is_file()), None)
compiled = None if LIBRARY is None else load(LIBRARY)


def usable(x: Tensor) -> bool:
    """Whether the compiled library is there and takes this tensor."""
    # Tensors of other types, as in tracing, have no memory to work on.
    real = type(x) in (Tensor, torch.nn.Parameter) and not torch.jit.is_tracing() and not torch.compiler.is_compiling()
    return compiled is not None and real and x.device.type == "cpu" and x.dtype in _TYPES and not plain_torch()


@dataclass(frozen=True)
class Affine:
    """What a batch norm does to each channel, ``x * scale + shift``, float32 (C,) each, and then the ReLU where `relu`."""

    scale: Tensor
    shift: Tensor
    relu: bool = True


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel of (..., C), float32 (C,)."""
    mean, var = _channels(x), _channels(x)
    _call("moments", x, x, *_rows(x), mean, var)
    return mean, var


def normalise(x: Tensor, affine: Affine, residual: Tensor | None = None) -> Tensor:
    """``x * scale + shift + residual``, then ReLU.

    Parameters
    ----------
    x : (n0, n1, n2, n3, C)
    residual : (n0, n1, n2, n3, C' <= C), any strides but adjacent channels; missing channels count as zero
    """
    out = torch.empty_like(x)
    grid, fewer = None, 0
    if residual is not None:
        require_fit(x, residual)
        grid, fewer = (*residual.shape[:4], *residual.stride()[:4]), residual.shape[4]
    _call("normalise", x, x, residual, grid, *_rows(x), fewer, affine.scale, affine.shift, affine.relu, out)
    return out


def reduce(g: Tensor, x: Tensor, out: Tensor | None, affine: Affine, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over all rows of g' and of ``g' * (x - mean)``, float32 (C,) each.

    g' is `g` where the ReLU let something through: where `out` is positive, or, without `out`, ``x * scale + shift``.
    """
    total, dot = _channels(x), _channels(x)
    _call("reduce", x, g, x, out, *_rows(x), affine.scale, affine.shift, mean, affine.relu, total, dot)
    return total, dot


def backward(
    g: Tensor, x: Tensor, out: Tensor | None, affine: Affine, factors: tuple[Tensor, Tensor, Tensor], masked: bool
) -> tuple[Tensor, Tensor | None]:
    """``a * g' + b * x + k`` for `factors` (a, b, k), float32 (C,) each, and g' itself where `masked`; g' as in `reduce`."""
    gx = torch.empty_like(x)
    gr = torch.empty_like(x) if masked else None
    _call("backward", x, g, x, out, *_rows(x), affine.scale, affine.shift, affine.relu, *factors, gx, gr)
    return gx, gr


def pool(x: Tensor, sign: Tensor, measure: bool) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """3x3x3 max pooling with stride 2 and padding 1 of ``sign * x``, and mean and biased variance of x where `measure`.

    Parameters
    ----------
    x : logical (B, D, H, W, C), in any memory order with adjacent channels
    sign : float32 (C,), 1 or -1

    Returns
    -------
    pooled : (B, ceil(D / 2), ceil(H / 2), ceil(W / 2), C) of x itself, in the memory order of x
    tap : uint8 of that shape, the number of the chosen voxel in its window
    mean, var : float32 (C,), or None
    """
    B, D, H, W, C = x.shape
    order = sorted(range(5), key=lambda dim: (-x.stride()[dim], dim))
    sizes = (B, -(-D // 2), -(-H // 2), -(-W // 2), C)
    pooled = x.new_empty([sizes[dim] for dim in order]).permute([order.index(dim) for dim in range(5)])
    tap = torch.empty_like(pooled, dtype=torch.uint8)
    mean, var = (_channels(x), _channels(x)) if measure else (None, None)
    _call("pool", x, x, _strides(x), sign, pooled, tap, _strides(pooled), mean, var)
    return pooled, tap, mean, var


def unpool(g: Tensor, tap: Tensor, x: Tensor, slope: Tensor, level: Tensor) -> Tensor:
    """``slope * x + level``, plus each `g` at the voxel that `tap` says; shapes as in `pool`."""
    gx = torch.empty_like(x)
    if g.stride() != tap.stride():
        g = torch.empty_like(tap, dtype=g.dtype).copy_(g)
    _call("unpool", x, g, tap, _strides(tap), x, _strides(x), slope, level, gx)
    return gx


def require_fit(x: Tensor, residual: Tensor) -> None:
    """Raises ValueError if `residual` cannot be added to `x`."""
    if residual.shape[:4] != x.shape[:4] or residual.shape[4] > x.shape[4] or residual.dtype != x.dtype:
        raise ValueError(f"A residual of shape {tuple(residual.shape)} cannot be added to one of {tuple(x.shape)}.")


def _rows(x: Tensor) -> tuple[int, int]:
    """How many rows of how many channels."""
    return x.numel() // x.shape[-1], x.shape[-1]


def _channels(x: Tensor) -> Tensor:
    return torch.empty(x.shape[-1], dtype=torch.float32, device=x.device)


def _strides(x: Tensor) -> tuple[int, ...]:
    return (*x.shape, *x.stride()[:4])


def _call(name: str, like: Tensor, *arguments: Tensor | Sequence[int] | int | None) -> None:
    call(f"{name}_{_TYPES[like.dtype][1]}", *arguments)


def call(name: str, *arguments: Tensor | Sequence[int] | int | None) -> None:
    """Run a compiled function; its last argument is the number of threads. Tensors are passed as their memory, which must be dense."""
    assert compiled is not None
    getattr(compiled, name)(*arguments, torch.get_num_threads())
