"""The cost of each convolution of a network, plain and as it is run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ctcovid.kernels.depthfold import Conv3d, way
from ctcovid.models.registry import create, require_fit


@dataclass(frozen=True)
class LayerCost:
    """One convolution of one volume.

    Attributes
    ----------
    shape : of its output, (O, D, H, W)
    plain : GMAC (10^9 multiply-accumulates) of the 3D convolution, padding and equal input channels included
    folded : GMAC of the 2D convolution over folded depth, None in networks that do not fold
    way : how it is run (depthfold.way)
    cost : GMAC of that way; where the network folds, one input channel stands for equal ones
    """

    layer: str
    shape: tuple[int, int, int, int]
    plain: float
    folded: float | None
    way: str
    cost: float


def plan(name: str, depth: int, size: int) -> list[LayerCost]:
    """The convolutions of an architecture, in the order in which volumes of `depth` slices of `size` pixels pass through them.

    Raises UsageError if the architecture is unknown or does not take such volumes.
    """
    require_fit(name, depth, size)
    rows: list[LayerCost] = []
    with torch.device("meta"), torch.inference_mode():
        # The plain network, because there each convolution is one module called once.
        network = create(name, plain=True).eval()
        folds = any(isinstance(module, Conv3d) for module in create(name).modules())
        for layer, module in network.named_modules():
            if isinstance(module, nn.Conv3d):
                module.register_forward_hook(_cost(rows, layer, folds))
        network(torch.empty(1, 1, depth, size, size))
    return rows


def _cost(rows: list[LayerCost], layer: str, folds: bool) -> Any:
    def add(conv: nn.Conv3d, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        k, kh, kw = conv.kernel_size
        assert not isinstance(conv.padding, str)
        depth, (p0, p1, p2) = inputs[0].shape[2], conv.padding
        channels, out, height, width = output.shape[1:]
        plane = kh * kw * height * width * channels * conv.in_channels // conv.groups / 1e9
        # All input channels of the first convolution are equal, and in networks that fold one stands for them.
        grey = 1 / conv.in_channels if folds and not rows else 1.0
        plain, dense = plane * out * k, plane * out * (depth if k > 1 else 1) * grey
        chosen = way(depth, (k, kh, kw), (p0, p1, p2)) if folds else "plain"
        cost = dense if chosen in ("folded", "band") else plain * grey
        rows.append(LayerCost(layer, (channels, out, height, width), plain, dense if folds else None, chosen, cost))

    return add
