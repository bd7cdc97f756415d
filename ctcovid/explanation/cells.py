"""Where the cells of a saliency map lie in the volume that it explains.

A convolution that is padded by half its kernel centres its first cell on the first pixel, not on the first `stride` pixels: cell i of a
ResNet's stage lies over pixel i * stride. Enlarged like a picture, the map would be shifted by half a cell to the right, down and towards
the feet: at layer4 by 15.5 pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ctcovid.models.network import Network

Triple = tuple[float, float, float]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Cells:
    """The cells of maps of a volume: along each axis, the centre of cell i is at `first` + i * `step`.

    shape : slices, rows and columns of the volume; the centre of its first slice, row and column is at 0
    """

    shape: Shape
    first: Triple
    step: Triple


def boxes(shape: Shape, native: Shape) -> Cells:
    """Cells (d, h, w) that divide a volume (D, H, W) evenly, such as patches."""
    steps = [whole / count for whole, count in zip(shape, native, strict=True)]
    return Cells(shape, _triple([(step - 1) / 2 for step in steps]), _triple(steps))


@torch.inference_mode()
def cells_of(network: Network, shape: Shape, native: Shape) -> Cells:
    """The cells of the network's feature maps of `native` shape (d, h, w), for volumes of `shape` (D, H, W).

    Found from the shapes that convolutions, poolings and patch mergings give in one forward pass. A window of k cells with stride s and
    padding p makes cells that are s times as far apart and begin (k - 1) / 2 - p cells further in. Feature maps of equal shape have equal
    cells.
    """
    known = {tuple(shape): Cells(shape, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))}

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        merges = type(module).__name__ == "PatchMerging"
        before, after = (tuple(tensor.shape[1:4] if merges else tensor.shape[2:]) for tensor in (inputs[0], output))
        if before not in known or after in known:
            return
        window = ((1, 2, 2), (1, 2, 2), (0, 0, 0)) if merges else _window(module)
        cells = known[before]
        inward = [(size - 1) / 2 - padding for size, padding in zip(window[0], window[2], strict=True)]
        known[after] = Cells(
            shape,
            _triple([first + step * by for first, step, by in zip(cells.first, cells.step, inward, strict=True)]),
            _triple([step * stride for step, stride in zip(cells.step, window[1], strict=True)]),
        )

    windows = [module for module in network.module.modules() if isinstance(module, WINDOWS) or type(module).__name__ == "PatchMerging"]
    handles = [module.register_forward_hook(note) for module in windows]
    try:
        network.logits(torch.zeros((1, *shape), dtype=torch.uint8))
    finally:
        for handle in handles:
            handle.remove()
    # What is not made by a window, such as adaptive pooling, divides the volume evenly.
    return known.get(tuple(native)) or boxes(shape, native)


WINDOWS = (nn.Conv3d, nn.MaxPool3d, nn.AvgPool3d)


def _window(module: Any) -> tuple[Triple, Triple, Triple]:
    """How many cells a window spans, its stride, and its padding before the first cell."""
    size, stride, padding, dilation = (_three(getattr(module, name, 1)) for name in ("kernel_size", "stride", "padding", "dilation"))
    return _triple([apart * (cells - 1) + 1 for cells, apart in zip(size, dilation, strict=True)]), stride, padding


def _three(value: Any) -> Triple:
    return _triple(value if isinstance(value, tuple) else (value, value, value))


def _triple(values: Any) -> Triple:
    slices, rows, columns = (float(value) for value in values)
    return slices, rows, columns
