"""A step in pieces is the step of the whole batch, as nearly as batch norm lets it be."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctcovid.base.launch import Place
from ctcovid.models import kernels, registry
from ctcovid.models.catalog import architecture
from ctcovid.models.network import Network
from ctcovid.models.ranks import Ranks
from ctcovid.training.recipe import Recipe
from ctcovid.training.step import Step, Stepper
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


def make_step(network: Network, optimiser: torch.optim.Optimizer, recipe: Recipe, batch: Batch) -> Step:
    return Stepper(network, optimiser, recipe, Ranks(Place())).make(batch, batch.indices.tolist())


def step(micro_batch: int, normed: bool) -> tuple[dict[str, Tensor], float, int]:
    torch.manual_seed(0)
    network = Network(Small(normed), architecture("r3d18"), ["a", "b", "c"], CPU, torch.float32)
    network.module.train()
    recipe = Recipe(batch=7, micro_batch=micro_batch)
    volumes = torch.randint(0, 256, (7, 2, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    made = make_step(network, recipe.optimiser(network.module), recipe, Batch(volumes, torch.arange(7) % 3, torch.arange(7)))
    outcome = made.look()
    return dict(network.module.state_dict()), outcome.loss, outcome.correct


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
        make_step(network, optimiser, recipe, Batch(volumes, torch.arange(4) % 3, torch.arange(4)))
        plain.load_state_dict(network.module.state_dict())
        with torch.inference_mode():
            expected = plain.eval()(network.scale(volumes)).double().softmax(1).numpy()
        assert network.probabilities(volumes) == pytest.approx(expected, abs=1e-4)
