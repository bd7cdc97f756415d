"""Where the cells of a saliency map lie in the volume that it explains.

A convolution that is padded by half its kernel puts its first cell over the first pixel, not over the middle of the first `stride` pixels:
cell i of a ResNet's stage lies over pixel i * stride. A map that was enlarged as a picture is would lie half a cell too far right, down
and towards the feet, at layer4 by 15.5 pixels.
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
    """The cells of maps of a volume: along each axis, the middle of cell i is at `first` + i * `step`.

    shape : slices, rows and columns of the volume; the middle of its first slice, row and column is at 0
    """

    shape: Shape
    first: Triple
    step: Triple


def boxes(shape: Shape, native: Shape) -> Cells:
    """Cells (d, h, w) that divide a volume (D, H, W) evenly, as patches do."""
    steps = [whole / count for whole, count in zip(shape, native, strict=True)]
    return Cells(shape, _triple([(step - 1) / 2 for step in steps]), _triple(steps))


@torch.inference_mode()
def cells_of(network: Network, shape: Shape, native: Shape) -> Cells:
    """The cells of the network's feature maps of `native` shape (d, h, w), for volumes of `shape` (D, H, W).

    Found by watching convolutions, poolings and mergings of patches in one pass: a window of k cells, s apart and with p before the
    first, makes cells that are s as far apart and begin (k - 1) / 2 - p further in. Feature maps of one shape lie alike.
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

    watched = [module for module in network.module.modules() if isinstance(module, WINDOWS) or type(module).__name__ == "PatchMerging"]
    handles = [module.register_forward_hook(note) for module in watched]
    try:
        network.logits(torch.zeros((1, *shape), dtype=torch.uint8))
    finally:
        for handle in handles:
            handle.remove()
    # What no window makes, such as adaptive pooling, divides the volume.
    return known.get(tuple(native)) or boxes(shape, native)


WINDOWS = (nn.Conv3d, nn.MaxPool3d, nn.AvgPool3d)


def _window(module: Any) -> tuple[Triple, Triple, Triple]:
    """Cells that a window reaches over, its stride, and the padding before the first."""
    size, stride, padding, dilation = (_three(getattr(module, name, 1)) for name in ("kernel_size", "stride", "padding", "dilation"))
    return _triple([apart * (cells - 1) + 1 for cells, apart in zip(size, dilation, strict=True)]), stride, padding


def _three(value: Any) -> Triple:
    return _triple(value if isinstance(value, tuple) else (value, value, value))


def _triple(values: Any) -> Triple:
    slices, rows, columns = (float(value) for value in values)
    return slices, rows, columns
