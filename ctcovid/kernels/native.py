"""The compiled passes of _passes.cpp, as functions of tensors, and the way to call what else is compiled.

They are built when ctcovid is installed and a C++ compiler with OpenMP is at hand. `usable` says whether a tensor can be given to them;
where it cannot, as on a GPU, callers use torch's own operations. All tensors are dense, with the channels as their last dimension.
"""

from __future__ import annotations

import ctypes
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch
from torch import Tensor

_TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
# Raised with every change of a function's name or parameters, here and there: a checkout may have moved on since it was last compiled.
_INTERFACE = 4


class _Grid(ctypes.Structure):
    _fields_ = (("size", ctypes.c_int64 * 4), ("stride", ctypes.c_int64 * 4))


class _Strides(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_int64) for name in ("B", "D", "H", "W", "C", "b", "d", "h", "w"))


def _load() -> ctypes.CDLL | None:
    for suffix in EXTENSION_SUFFIXES:
        path = Path(__file__).with_name(f"_native{suffix}")
        if path.is_file():
            try:
                found = ctypes.CDLL(str(path))
                return found if found.interface() == _INTERFACE else None
            except (OSError, AttributeError):
                # Built for another machine, or against libraries that are not here: torch's own operations do the same.
                return None
    return None


compiled = _load()


def usable(x: Tensor) -> bool:
    """Whether the compiled passes are there and take this tensor."""
    # Tensors of other types, as in tracing, have no memory to work on.
    real = type(x) in (Tensor, torch.nn.Parameter) and not torch.jit.is_tracing() and not torch.compiler.is_compiling()
    return compiled is not None and real and x.device.type == "cpu" and x.dtype in _TYPES


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel of (..., C), float32 (C,)."""
    mean, var = _channels(x), _channels(x)
    _call("moments", x, x, x.numel() // x.shape[-1], x.shape[-1], mean, var)
    return mean, var


def normalise(x: Tensor, scale: Tensor, shift: Tensor, relu: bool, residual: Tensor | None = None) -> Tensor:
    """``x * scale + shift + residual``, then ReLU where `relu`.

    Parameters
    ----------
    x : (n0, n1, n2, n3, C)
    scale, shift : float32 (C,)
    residual : (n0, n1, n2, n3, C' <= C), any strides but adjacent channels; missing channels count as zero
    """
    out = torch.empty_like(x)
    grid, fewer = None, 0
    if residual is not None:
        if residual.shape[:4] != x.shape[:4] or residual.shape[4] > x.shape[4] or residual.dtype != x.dtype:
            raise ValueError(f"A residual of shape {tuple(residual.shape)} cannot be added to one of {tuple(x.shape)}.")
        grid, fewer = _Grid((ctypes.c_int64 * 4)(*residual.shape[:4]), (ctypes.c_int64 * 4)(*residual.stride()[:4])), residual.shape[4]
    _call("normalise", x, x, residual, grid, x.numel() // x.shape[-1], x.shape[-1], fewer, scale, shift, relu, out)
    return out


def reduce(g: Tensor, x: Tensor, out: Tensor | None, scale: Tensor, shift: Tensor, mean: Tensor, relu: bool) -> tuple[Tensor, Tensor]:
    """Sums over all rows of g' and of ``g' * (x - mean)``, float32 (C,) each.

    g' is `g` where the ReLU let something through: where `out` is positive, or, without `out`, ``x * scale + shift``.
    """
    total, dot = _channels(x), _channels(x)
    _call("reduce", x, g, x, out, x.numel() // x.shape[-1], x.shape[-1], scale, shift, mean, relu, total, dot)
    return total, dot


def backward(
    g: Tensor, x: Tensor, out: Tensor | None, scale: Tensor, shift: Tensor, relu: bool, factors: tuple[Tensor, Tensor, Tensor], masked: bool
) -> tuple[Tensor, Tensor | None]:
    """``a * g' + b * x + k`` for `factors` (a, b, k), float32 (C,) each, and g' itself where `masked`; g' as in `reduce`."""
    gx = torch.empty_like(x)
    gr = torch.empty_like(x) if masked else None
    _call("backward", x, g, x, out, x.numel() // x.shape[-1], x.shape[-1], scale, shift, relu, *factors, gx, gr)
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


def _channels(x: Tensor) -> Tensor:
    return torch.empty(x.shape[-1], dtype=torch.float32, device=x.device)


def _strides(x: Tensor) -> _Strides:
    return _Strides(*x.shape, *x.stride()[:4])


def _call(name: str, like: Tensor, *arguments: Tensor | _Grid | _Strides | int | None) -> None:
    call(f"{name}_{_TYPES[like.dtype]}", *arguments)


def call(name: str, *arguments: Tensor | _Grid | _Strides | int | None) -> None:
    """Run a compiled function. Tensors are handed over as their memory, which must be dense; the last argument is the number of threads."""
    assert compiled is not None
    # The converted arguments have to live until the call is over.
    converted = [_convert(argument) for argument in arguments]
    getattr(compiled, name)(*converted, ctypes.c_int(torch.get_num_threads()))


def _convert(argument: Tensor | _Grid | _Strides | int | None) -> object:
    if argument is None:
        return ctypes.c_void_p(None)
    if isinstance(argument, Tensor):
        if argument.device.type != "cpu":
            raise ValueError(f"The compiled passes take tensors on the CPU, not on {argument.device}.")
        return ctypes.c_void_p(argument.data_ptr())
    if isinstance(argument, (_Grid, _Strides)):
        return ctypes.byref(argument)
    if isinstance(argument, bool):
        return ctypes.c_int(argument)
    return ctypes.c_int64(argument)
