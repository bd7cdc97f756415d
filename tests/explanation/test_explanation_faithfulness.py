"""Faithfulness tells a map that shows what the network uses from one that does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ctcovid.explanation.cells import boxes
from ctcovid.explanation.faithfulness import (
    GRID,
    STEPS,
    Faithfulness,
    area,
    correlation,
    faithfulness,
    in_squares,
    steps,
    with_random_weights,
)
from ctcovid.explanation.scan_maps import ScanMaps
from ctcovid.models import registry
from ctcovid.models.architectures import architecture
from ctcovid.models.network import Network
from ctcovid.models.registry import TrainedModel

SIZE = 32


class Corner(nn.Module):
    """Class 0 is how bright the upper left corner is."""

    def forward(self, x: Tensor) -> Tensor:
        bright = x[..., : SIZE // 4, : SIZE // 4].mean((1, 2, 3, 4))
        return torch.stack([10 * bright - 5, 0 * bright, 0 * bright], 1)


@pytest.fixture(scope="module")
def volumes() -> np.ndarray:
    found = np.full((3, 2, SIZE, SIZE), 60, np.uint8)
    found[:, :, : SIZE // 4, : SIZE // 4] = 250
    found[:, :, -8:, -8:] = 250
    return found


def measured(volumes: np.ndarray, right: bool, randomised: np.ndarray | None = None) -> Faithfulness:
    network = Network(Corner(), architecture("r3d18"), ["NCP", "CP", "Normal"], torch.device("cpu"), torch.float32)
    native = np.zeros((3, 1, GRID, GRID), np.float32)
    corner = native[:, :, :4, :4] if right else native[:, :, -4:, -4:]
    corner[:] = 1
    maps = ScanMaps(native[:, None], boxes(volumes.shape[1:], native.shape[1:]), target=0)
    model = TrainedModel("corner", Path("corner"), {}, network)
    return faithfulness(model, volumes, maps, native if randomised is None else randomised, seed=1)


def test_a_right_map_beats_random_order_and_a_wrong_one_does_not(volumes: np.ndarray) -> None:
    good, bad = measured(volumes, right=True), measured(volumes, right=False)
    assert area(good.deletion) < area(good.deletion_random) < area(bad.deletion)
    assert area(good.insertion) > area(good.insertion_random) > area(bad.insertion)
    assert good.average_drop == pytest.approx(0, abs=0.02) and bad.average_drop > 0.5
    assert good.increase == bad.increase == 0


def test_curves_begin_and_end_with_the_volume_whole_and_covered(volumes: np.ndarray) -> None:
    found = measured(volumes, right=True)
    assert len(found.shares) == len(found.deletion) == STEPS + 1
    assert found.deletion[0] == pytest.approx(found.insertion[-1]) and found.deletion[-1] == pytest.approx(found.insertion[0])
    # The corner is a sixteenth of the slice: the first step takes it away, and the rest changes nothing.
    assert found.deletion[1] == pytest.approx(found.deletion[-1], abs=1e-6)
    assert found.document()["deletion_area"] == pytest.approx(area(found.deletion))
    assert "not whether the model is medically right" in str(found.document()["caution"])


def test_the_strength_of_a_square_is_the_mean_of_its_pixels() -> None:
    pixels = np.random.default_rng(0).random((70, 64))
    found = in_squares(pixels)
    assert found.shape == (GRID, GRID)
    assert found[0, 1] == pytest.approx(pixels[:4, 4:8].mean()) and found[8, 15] == pytest.approx(pixels[35:39, 60:].mean())


def test_random_weights_are_not_those_that_training_began_with() -> None:
    torch.manual_seed(0)
    network = registry.build("tv_mc3_18", ["a", "b", "c"], "cpu", "float32")
    fresh, again = with_random_weights(network, 0), with_random_weights(network, 0)
    for (name, one), other in zip(network.module.named_parameters(), fresh.module.parameters(), strict=True):
        if one.ndim == 5:
            together = torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1]
            assert abs(together) < 5 / one.numel() ** 0.5, name
    assert all(torch.equal(one, other) for one, other in zip(fresh.module.parameters(), again.module.parameters(), strict=True))


@pytest.mark.parametrize("insert", [False, True])
def test_squares_are_covered_in_the_given_order(insert: bool) -> None:
    volume = np.full((1, SIZE, SIZE), 200, np.uint8)
    order = np.random.default_rng(0).permutation(GRID * GRID)
    made = list(steps(volume, order, 9, insert))
    shown = [float((one == 200).mean()) for one in made]
    assert shown == pytest.approx(np.linspace(0, 1, STEPS + 1)[:: 1 if insert else -1])
    row, column = divmod(int(order[0]), GRID)
    assert made[1][0, row * 2, column * 2] == (200 if insert else 9)


def test_maps_that_do_not_depend_on_the_weights_correlate_with_random_ones(volumes: np.ndarray) -> None:
    assert measured(volumes, right=True).randomised_correlation == pytest.approx(1)
    other = np.random.default_rng(0).random((3, 1, GRID, GRID))
    assert abs(measured(volumes, right=True, randomised=other).randomised_correlation) < 0.1
    assert correlation(np.zeros((1, 2, 2)), np.ones((1, 2, 2))) == 0
