"""Cells of a map lie where the network looked: held against receptive fields, which know nothing of strides and paddings."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from seers import brightness
from torch import Tensor

from ctcovid.base.choices import OCCLUSION, PLAIN
from ctcovid.explanation.activations import find_layer
from ctcovid.explanation.cells import boxes, cells_of
from ctcovid.explanation.methods import Method, map_cells, saliency_maps
from ctcovid.explanation.occlusion import CELLS, occlusion_maps
from ctcovid.explanation.upsample import to_slices
from ctcovid.models import registry, resnet3d
from ctcovid.models.network import Network

CLASSES = ["NCP", "CP", "Normal"]


OURS = ["r3d18", "r3d50", "r2plus1d18"]


def seen(network: Network, layer: str, volume: Tensor) -> tuple[tuple[int, ...], np.ndarray]:
    """The shape (d, h, w) of the layer's maps, and the middle of what reaches its middle cell: slice, row and column."""
    kept: list[Tensor] = []
    handle = find_layer(network.module, layer).register_forward_hook(lambda module, inputs, output: kept.append(output))
    network.forward(volume.requires_grad_())
    handle.remove()
    (maps,) = kept
    native = tuple(maps.shape[2:])
    middle = maps[0, :, native[0] // 2, native[1] // 2, native[2] // 2].sum()
    weight = torch.autograd.grad(middle, volume)[0][0, 0].double().abs()
    along = [weight.movedim(axis, 0).flatten(1).sum(1) for axis in range(3)]
    return native, np.array([float((torch.arange(len(sums)) * sums).sum() / sums.sum()) for sums in along])


THEIRS = [("tv_mc3_18", "layer2"), ("tv_swin3d_t", "patch_embed.proj")]


@pytest.mark.parametrize(("name", "layer"), [*product(OURS, ["layer1", "layer2", "layer3", "layer4"]), *THEIRS])
def test_a_cell_lies_in_the_middle_of_what_it_sees(name: str, layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = brightness(name, monkeypatch)
    shape = (32, 160, 160) if name in OURS else (8, 64, 64)
    # Of equal values a pooling takes the first; of random ones any, and the mean over some draws lies in the middle.
    generator = torch.Generator().manual_seed(0)
    draws = [seen(network, layer, torch.rand((1, 1, *shape), generator=generator)) for _ in range(4)]
    native = draws[0][0]
    cells = cells_of(network, shape, native)
    expected = [first + count // 2 * step for first, count, step in zip(cells.first, native, cells.step, strict=True)]
    # What the borders cut off shifts it a little; a map enlarged as a picture would be off by half of a cell.
    assert (np.abs(np.mean([middle for _, middle in draws], 0) - expected) <= np.maximum(1, np.array(cells.step) / 6)).all()


@pytest.mark.parametrize(
    ("name", "layer", "native", "first", "step"),
    [
        ("r3d18", "layer4", (1, 4, 4), (0, 0, 0), (16, 32, 32)),
        ("r3d200", "layer2", (1, 16, 16), (0, 0, 0), (4, 8, 8)),
        ("r2plus1d34", "layer3.0.conv1_t", (1, 8, 8), (0, 0, 0), (4, 16, 16)),
        # Patches of 2 x 4 x 4, merged twice, and boxes they stay.
        ("tv_swin3d_t", "norm", (2, 4, 4), (0.5, 15.5, 15.5), (2, 32, 32)),
    ],
)
def test_cells_lie_where_strides_and_paddings_put_them(
    name: str, layer: str, native: tuple[int, ...], first: tuple[float, ...], step: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resnet3d, "WIDTHS", (2, 2, 4, 4))
    network = registry.build(name, CLASSES, "cpu", "float32")
    cells = cells_of(network, (4, 128, 128), native)
    assert (cells.first, cells.step) == (first, step)
    assert saliency_maps(network, np.zeros((1, 4, 128, 128), np.uint8), Method(PLAIN, layer), [0]).shape[2:] == native


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("layer", ["layer2", "layer3", "layer4"])
def test_the_map_has_its_peak_over_the_lesion(name: str, layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bright ball in a grey volume, and a network to which bright is ill: the peak is over the ball, as near as cells are apart."""
    network = brightness(name, monkeypatch)
    for lesion in ((16, 64, 96), (16, 96, 64)):
        volume = np.full((1, 32, 160, 160), 60, np.uint8)
        volume[(0, *(slice(middle - 4, middle + 5) for middle in lesion))] = 250
        native = saliency_maps(network, volume, Method(PLAIN, layer), [0])[:, 0]
        cells = cells_of(network, volume.shape[1:], native.shape[1:])
        whole = to_slices(native, cells)[0]
        # Beyond the last cell, and where cells are equal, the peak is wide.
        peak = np.argwhere(whole > whole.max() - 1e-6 * np.ptp(whole))
        assert (np.abs(peak - lesion) <= 0.3 * np.array(cells.step)).all(1).any()


def test_patches_are_boxes() -> None:
    network = registry.build("tv_mc3_18", CLASSES, "cpu", "float32")
    volumes = np.zeros((1, 4, 48, 48), np.uint8)
    native = occlusion_maps(network, volumes, [0], lambda count: None).shape[2:]
    assert native == (1, CELLS, CELLS)
    assert map_cells(network, Method(OCCLUSION), (4, 48, 48), native) == boxes((4, 48, 48), native)
    assert boxes((4, 48, 48), native).first == (1.5, 1.5, 1.5)
