"""Occlusion covers the whole slice, with the grey of lungs, and finds what a class depends on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ctcovid.base.choices import OCCLUSION
from ctcovid.explanation.methods import Method, saliency_maps
from ctcovid.explanation.occlusion import CELLS, covered, log_odds, lung_grey, odds_of, patches
from ctcovid.models.architectures import architecture
from ctcovid.models.network import Network


class Brightness(nn.Module):
    """Class 0 grows with how much bright there is, class 1 shrinks, class 2 does not care."""

    def forward(self, x: Tensor) -> Tensor:
        bright = torch.relu(x - 0.8).mean((1, 2, 3, 4)) * 100
        return torch.stack([bright, -bright, 0 * bright], 1)


@pytest.fixture(scope="module")
def network() -> Network:
    return Network(Brightness(), architecture("r3d18"), ["NCP", "CP", "Normal"], torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("size", [24, 50, 96])
def test_every_pixel_is_covered_and_patches_are_a_sixth_of_the_side(size: int) -> None:
    times = np.zeros((size, size), int)
    for _, rows, columns in patches(size, size):
        assert abs(rows.stop - rows.start - size / 6) < 2
        times[rows, columns] += 1
    assert times.min() >= 1 and times.max() == 4


def test_the_map_lies_where_the_class_is_and_is_that_of_each_class(network: Network) -> None:
    volumes = np.full((2, 4, 48, 48), 60, np.uint8)
    volumes[0, 1:3, 8:16, 32:40] = 255
    done: list[int] = []
    maps = saliency_maps(network, volumes, Method(OCCLUSION), [0, 1], done.append)
    assert maps.shape == (2, 2, 1, CELLS, CELLS) and done == [1, 1]
    row, column = np.unravel_index(maps[0, 0, 0].argmax(), (CELLS, CELLS))
    assert 2 <= row < 4 and 8 <= column < 10
    assert maps[0, 0, 0, 6:].max() == 0 and maps[0, 0, 0, :, :6].max() == 0
    # What speaks against a class is not salient for it; where nothing is, nothing is lost.
    assert maps[0, 1].max() == 0 and maps[1].max() == 0


def test_a_cell_has_the_mean_loss_of_the_patches_that_cover_it(network: Network) -> None:
    volume = np.random.default_rng(0).integers(0, 256, (2, 24, 24), dtype=np.uint8)
    maps = saliency_maps(network, volume[None], Method(OCCLUSION), [0])[0, 0, 0]
    grey = lung_grey(volume)
    expected = []
    for down in (4, 6):
        for across in (8, 10):
            other = covered(volume, slice(down, down + 4), slice(across, across + 4), grey)
            odds = log_odds(network, [volume, other])[:, 0]
            expected.append(max(odds[0] - odds[1], 0))
    assert maps[3, 5] == pytest.approx(np.mean(expected), rel=1e-5)


def test_log_odds_are_those_of_the_softmax() -> None:
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).double()
    p = logits.softmax(1)
    torch.testing.assert_close(odds_of(logits), torch.log(p / (1 - p)))


def test_the_cover_is_the_grey_of_lungs_and_neither_air_nor_tissue(sample_data: object) -> None:
    from pathlib import Path

    from ctcovid.scans.read import read_picture

    pixels = read_picture(Path(str(sample_data)) / "ccccii" / "NCP" / "16" / "1164" / "0060.png").pixels
    grey = lung_grey(pixels[None])
    assert 8 <= grey < 128
    assert np.mean(np.abs(pixels.astype(int) - grey) < 15) > 0.05
