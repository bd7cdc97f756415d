"""The six passes between two convolutions, by device: compiled C++ on a CPU (native.py), Triton on a GPU (triton_passes.py).

`usable` says whether one of them takes a tensor. Where none does, callers use torch's own operations. All tensors have adjacent channels as
their last dimension. Those of a CPU are dense; those of a GPU may have any strides, and results any memory order, at no further cost.
"""

from __future__ import annotations

import importlib
import os
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ctcovid.kernels import native
from ctcovid.kernels.choice import plain_torch, warn_once
from ctcovid.kernels.native import Affine

TYPES = (torch.float32, torch.bfloat16)
# Devices that Triton computes on. Its tests add the CPU, where its interpreter runs.
GPUS = {"cuda"}

# For each device and type, the module of the passes; None where they cannot be used.
_found: dict[tuple[torch.device, torch.dtype], ModuleType | None] = {}


def on_gpu(x: Tensor) -> bool:
    """Whether this tensor is computed by the Triton passes, and by convolutions in the shapes and orders that a GPU is fast at."""
    real = type(x) in (Tensor, torch.nn.Parameter) and not torch.jit.is_tracing() and not torch.compiler.is_compiling()
    if not real or x.device.type not in GPUS or x.dtype not in TYPES or plain_torch():
        return False
    key = (x.device, x.dtype)
    if key not in _found:
        if x.is_cuda and torch.cuda.is_current_stream_capturing():
            # The check reads results back, which nothing that is captured may do.
            return False
        _found[key] = _checked(*key)
    return _found[key] is not None


def _checked(device: torch.device, dtype: torch.dtype) -> ModuleType | None:
    """The Triton passes, held against torch's operations on small tensors of this device."""
    refused = "so torch's own operations are used, which are slower"
    if device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return None
    try:
        passes = importlib.import_module("ctcovid.kernels.triton_passes")
        check = importlib.import_module("ctcovid.kernels.triton_check")
    except ImportError as error:
        warn_once(f"Triton is not installed ({error}), {refused}.")
        return None
    try:
        wrong = check.disagreement(device, dtype)
    except Exception as error:
        # Triton raises what its compilers, drivers and operating systems raise.
        warn_once(f"Triton cannot compile or run the passes on this GPU ({_first_line(error)}), {refused}.")
        return None
    if wrong:
        warn_once(f"The passes in Triton do not agree with torch on this GPU ({wrong}), {refused}. Please report it.")
        return None
    return passes


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip()[:200]}" if lines else type(error).__name__


def usable(x: Tensor) -> bool:
    """Whether there are passes that take this tensor."""
    return native.usable(x) if x.device.type not in GPUS else on_gpu(x)


def rows(x: Tensor) -> Tensor:
    """(n0, n1, n2, n3, C) as the passes take it: dense on a CPU, with adjacent channels on a GPU."""
    return x if x.stride(4) == 1 and x.device.type in GPUS else x.contiguous()


def gpu(x: Tensor) -> Any:
    """The module of the passes for a tensor that is `on_gpu`; None for those of a CPU."""
    return _found[x.device, x.dtype] if x.device.type in GPUS else None


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel of a dense (n0, n1, n2, n3, C), float32 (C,)."""
    module = gpu(x)
    return native.moments(x) if module is None else module.moments(x)


def normalise(x: Tensor, affine: Affine, residual: Tensor | None = None, memory: tuple[int, ...] | None = None) -> Tensor:
    """``x * scale + shift + residual``, then ReLU; see native.py. On a GPU, `memory` is the order of the result's dimensions in memory."""
    module = gpu(x)
    if module is None:
        return native.normalise(x, affine, residual)
    if residual is not None:
        native.require_fit(x, residual)
    if memory is None:
        return module.normalise(x, affine, residual, torch.empty_like(x))
    back = [memory.index(dim) for dim in range(5)]
    return module.normalise(x, affine, residual, x.new_empty([x.shape[dim] for dim in memory]).permute(back))


def reduce(g: Tensor, x: Tensor, out: Tensor | None, affine: Affine, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Sums over all rows of g' and of ``g' * (x - mean)``; see native.py."""
    module = gpu(x)
    return native.reduce(g, x, out, affine, mean) if module is None else module.reduce(g, x, out, affine, mean)


def backward(
    g: Tensor, x: Tensor, out: Tensor | None, affine: Affine, factors: tuple[Tensor, Tensor, Tensor], masked: bool
) -> tuple[Tensor, Tensor | None]:
    """``a * g' + b * x + k`` for `factors` (a, b, k), and g' itself where `masked`; see native.py."""
    module = gpu(x)
    return native.backward(g, x, out, affine, factors, masked) if module is None else module.backward(g, x, out, affine, factors, masked)


def pool(x: Tensor, sign: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """3x3x3 max pooling with stride 2 and padding 1 of ``sign * x``, its taps, and mean and biased variance of x; see native.py."""
    module = gpu(x)
    if module is not None:
        return module.pool(x, sign, measure=True)
    pooled, tap, mean, var = native.pool(x, sign, measure=True)
    assert mean is not None and var is not None
    return pooled, tap, mean, var


def relu_pool(x: Tensor) -> Tensor:
    """``relu(pool(x))``, logical (B, D, H, W, C), without taps and moments."""
    ones = torch.ones(x.shape[4], dtype=torch.float32, device=x.device)
    module = gpu(x)
    if module is None:
        return native.pool(x, ones, measure=False)[0].relu_()
    return module.pool(x, ones, measure=False, taps=False, relu=True)[0]


def unpool(g: Tensor, tap: Tensor, x: Tensor, slope: Tensor, level: Tensor) -> Tensor:
    """``slope * x + level``, plus each `g` at the voxel that `tap` says; see native.py."""
    module = gpu(x)
    return native.unpool(g, tap, x, slope, level) if module is None else module.unpool(g, tap, x, slope, level)
