"""A step in pieces is the step of the whole batch, as nearly as batch norm lets it be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctcovid.base.console import Console
from ctcovid.base.errors import CtcovidError
from ctcovid.base.signals import StopRequest
from ctcovid.models import kernels, registry
from ctcovid.models.catalog import architecture
from ctcovid.models.network import Network
from ctcovid.training import loop
from ctcovid.training.checkpoint import Progress
from ctcovid.training.loop import _make_step, fit
from ctcovid.training.recipe import Recipe
from ctcovid.volumes.batches import Batch

CPU = torch.device("cpu")


class Small(nn.Module):
    """A network with batch norm, or without it, where the pieces must not show at all."""

    def __init__(self, normed: bool) -> None:
        super().__init__()
        self.conv = nn.Conv3d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm3d(4) if normed else nn.Identity()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(F.relu(self.norm(self.conv(x))).mean((2, 3, 4)))
        return y


def step(micro_batch: int, normed: bool) -> tuple[dict[str, Tensor], float, int]:
    torch.manual_seed(0)
    network = Network(Small(normed), architecture("r3d18"), ["a", "b", "c"], CPU, torch.float32)
    network.module.train()
    recipe = Recipe(batch=7, micro_batch=micro_batch)
    volumes = torch.randint(0, 256, (7, 2, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    made = _make_step(network, recipe.optimiser(network.module), recipe, Batch(volumes, torch.arange(7) % 3, torch.arange(7)))
    return dict(network.module.state_dict()), made.loss.item(), int(made.correct)


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 6])
def test_without_batch_norm_a_step_in_pieces_is_the_step_of_the_whole_batch(micro_batch: int) -> None:
    whole, loss, correct = step(0, normed=False)
    pieces, found, as_many = step(micro_batch, normed=False)
    assert found == pytest.approx(loss, rel=1e-6)
    assert as_many == correct
    for name, tensor in whole.items():
        torch.testing.assert_close(pieces[name], tensor, rtol=0, atol=1e-5)


def test_running_statistics_move_as_far_in_pieces_as_in_one() -> None:
    whole, _, _ = step(0, normed=True)
    pieces, _, _ = step(2, normed=True)
    for name in ("norm.running_mean", "norm.running_var"):
        torch.testing.assert_close(pieces[name], whole[name], rtol=0.02, atol=0.01)


@pytest.mark.parametrize(
    ("micro_batch", "volumes", "expected"),
    [(0, 32, [32]), (8, 32, [8, 8, 8, 8]), (8, 9, [5, 4]), (40, 32, [32]), (1, 3, [1, 1, 1]), (2, 3, [3]), (2, 5, [3, 2])],
)
def test_pieces_are_as_equal_as_can_be(micro_batch: int, volumes: int, expected: list[int]) -> None:
    assert Recipe(micro_batch=micro_batch).pieces(volumes) == expected


@pytest.mark.parametrize("passes", ["compiled", "torch"])
def test_validation_sees_the_weights_of_the_last_step(passes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fused optimiser changes weights without a trace; kernels that were made ready before must not outlive that."""
    if passes == "torch":
        monkeypatch.setattr(kernels, "compiled", None)
    torch.manual_seed(0)
    network = registry.place("r3d18", ["a", "b", "c"], "cpu", "float32")
    plain = registry.create("r3d18", plain=True)
    recipe = Recipe(batch=4, learning_rate=1e-2)
    optimiser = recipe.optimiser(network.module)
    volumes = torch.randint(0, 256, (4, 4, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    for _ in range(3):
        network.module.train()
        _make_step(network, optimiser, recipe, Batch(volumes, torch.arange(4) % 3, torch.arange(4)))
        plain.load_state_dict(network.module.state_dict())
        with torch.inference_mode():
            expected = plain.eval()(network.scale(volumes)).double().softmax(1).numpy()
        assert network.probabilities(volumes) == pytest.approx(expected, abs=1e-4)


class Volumes:
    """Seven volumes that lie in memory, where a VolumeSet is wanted."""

    def __len__(self) -> int:
        return 7

    def batches(self, order: list[list[int]], workers: int, pin: bool = False) -> Iterator[Batch]:
        for indices in order:
            generator = torch.Generator().manual_seed(1)
            volumes = torch.randint(0, 256, (len(indices), 2, 8, 8), dtype=torch.uint8, generator=generator)
            yield Batch(volumes, torch.tensor(indices) % 3, torch.tensor(indices))


def test_a_validation_loss_that_is_no_number_stops_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics that are only used in validation can be broken while every training loss is finite."""
    monkeypatch.setattr(loop, "resident", lambda *_: None)
    network = Network(Small(normed=True), architecture("r3d18"), ["a", "b", "c"], CPU, torch.float32)
    network.module.norm.running_var.fill_(-1000)
    recipe, progress, kept = Recipe(epochs=2, batch=4), Progress(), []
    data: Any = Volumes()
    with pytest.raises(CtcovidError, match=r"validation loss is nan after epoch 1.*--learning-rate"):
        fit(network, recipe.optimiser(network.module), recipe, data, data, progress, 1, StopRequest(), Console(quiet=True), kept.append)
    assert (progress.epoch, progress.history, kept) == (0, [], [])
