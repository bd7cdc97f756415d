"""A step in pieces is the step of the whole batch, as nearly as batch norm lets it be."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctcovid.base.console import Console
from ctcovid.base.errors import CtcovidError
from ctcovid.base.process_info import ProcessInfo
from ctcovid.base.signals import StopRequest
from ctcovid.distributed.ranks import Ranks
from ctcovid.kernels import native
from ctcovid.models import registry
from ctcovid.models.catalog import architecture
from ctcovid.models.network import Network
from ctcovid.training.checkpoint import Progress, Saving
from ctcovid.training.ema import Ema
from ctcovid.training.loop import fit
from ctcovid.training.recipe import Recipe
from ctcovid.training.step import Step, Stepper
from ctcovid.volumes.batches import Batch

CPU = torch.device("cpu")
BATCH = Batch(
    torch.randint(0, 256, (7, 2, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)),
    torch.arange(7) % 3,
    torch.arange(7),
)


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


def make_step(network: Network, optimiser: torch.optim.Optimizer, recipe: Recipe, batch: Batch, *more: Any) -> Step:
    return Stepper(network, optimiser, recipe, Ranks(ProcessInfo())).make(batch, batch.indices.tolist(), None, *more)


def step(micro_batch: int, normed: bool, **beyond: Any) -> tuple[dict[str, Tensor], float, int]:
    network, recipe = small(normed), Recipe(batch=7, micro_batch=micro_batch, **beyond)
    weights = torch.tensor([0.5, 1.0, 3.0]) if recipe.class_balance == "weights" else None
    outcome = make_step(network, recipe.optimiser(network.module), recipe, BATCH, 5, weights).look()
    return dict(network.module.state_dict()), outcome.loss, outcome.correct


def small(normed: bool) -> Network:
    torch.manual_seed(0)
    network = Network(Small(normed), architecture("r3d18"), ["a", "b", "c"], CPU, torch.float32)
    network.module.train()
    return network


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 6])
@pytest.mark.parametrize("beyond", [{}, {"augment": True, "class_balance": "weights", "label_smoothing": 0.1, "clip_gradient": 0.01}])
def test_without_batch_norm_a_step_in_pieces_is_the_step_of_the_whole_batch(micro_batch: int, beyond: dict[str, Any]) -> None:
    whole, loss, correct = step(0, normed=False, **beyond)
    pieces, found, as_many = step(micro_batch, normed=False, **beyond)
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
        monkeypatch.setattr(native, "compiled", None)
    torch.manual_seed(0)
    network = registry.build("r3d18", ["a", "b", "c"], "cpu", "float32")
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


class Volumes:
    """Seven volumes that lie in memory, where a VolumeSet is wanted."""

    shape, labels = (2, 8, 8), np.arange(7) % 3

    def __len__(self) -> int:
        return 7

    def batches(self, order: list[list[int]], workers: int, pin: bool = False) -> Iterator[Batch]:
        for indices in order:
            generator = torch.Generator().manual_seed(1)
            volumes = torch.randint(0, 256, (len(indices), 2, 8, 8), dtype=torch.uint8, generator=generator)
            yield Batch(volumes, torch.tensor(indices) % 3, torch.tensor(indices))


def test_a_validation_loss_that_is_no_number_stops_the_run() -> None:
    """Statistics that are only used in validation can be broken while every training loss is finite."""
    network = Network(Small(normed=True), architecture("r3d18"), ["a", "b", "c"], CPU, torch.float32)
    network.module.norm.running_var.fill_(-1000)
    recipe, progress, kept = Recipe(epochs=2, batch=4), Progress(), []
    data: Any = Volumes()
    with pytest.raises(CtcovidError, match=r"validation loss is nan after epoch 1.*--learning-rate"):
        stepper = Stepper(network, recipe.optimiser(network.module), recipe, Ranks(ProcessInfo()))
        saving = Saving(0, lambda: None)
        fit(stepper, data, None, data, progress, 1, StopRequest(), Console(quiet=True), saving, lambda row, pace: kept.append(row))
    assert (progress.epoch, progress.history, kept) == (0, [], [])


def test_speed_and_time_left_are_told_of_what_was_seen_alone() -> None:
    """A run that was stopped at the end of its first epoch has nothing to tell when it goes on, and everything one epoch later."""
    network = Network(Small(normed=True), architecture("r3d18"), ["a", "b", "c"], CPU, torch.float32)
    recipe, told = Recipe(epochs=3, batch=4), []
    progress = Progress(step=recipe.steps(7), seen=7, loss_sum=7.0)
    data: Any = Volumes()
    stepper = Stepper(network, recipe.optimiser(network.module), recipe, Ranks(ProcessInfo()))
    saving = Saving(0, lambda: None)
    fit(stepper, data, None, data, progress, 1, StopRequest(), Console(quiet=True), saving, lambda row, pace: told.append(pace))
    assert told[0] == "" and re.fullmatch(r"[\d,.]+ volumes/s, about .* left", told[1]) and re.fullmatch(r"[\d,.]+ volumes/s", told[2])


def test_a_clipped_gradient_keeps_its_direction_and_has_the_norm_that_was_asked_for() -> None:
    def gradient(clip: float) -> np.ndarray:
        network, recipe = small(normed=False), Recipe(batch=7, clip_gradient=clip)
        make_step(network, recipe.optimiser(network.module), recipe, BATCH)
        return torch.cat([parameter.grad.flatten() for parameter in network.module.parameters() if parameter.grad is not None]).numpy()

    whole = gradient(0)
    norm = float(np.linalg.norm(whole))
    assert gradient(norm / 10) == pytest.approx(whole / 10, rel=1e-3, abs=1e-7)
    assert gradient(norm * 10) == pytest.approx(whole, abs=1e-7)


def test_weight_decay_is_adamws_and_spares_biases_and_norms() -> None:
    """Loshchilov and Hutter 2019, Algorithm 2, from the gradients of two steps."""
    network, recipe = small(normed=True), Recipe(batch=7, weight_decay=0.3, learning_rate=1e-2)
    optimiser = recipe.optimiser(network.module)
    expected = {name: parameter.detach().double().numpy() for name, parameter in network.module.named_parameters()}
    m, v = ({name: np.zeros_like(value) for name, value in expected.items()} for _ in range(2))
    for number in (1, 2):
        make_step(network, optimiser, recipe, BATCH)
        for name, parameter in network.module.named_parameters():
            assert parameter.grad is not None
            g = parameter.grad.double().numpy()
            m[name] = 0.9 * m[name] + 0.1 * g
            v[name] = 0.999 * v[name] + 0.001 * g**2
            step = m[name] / (1 - 0.9**number) / (np.sqrt(v[name] / (1 - 0.999**number)) + 1e-8)
            decay = 0.3 if name in ("conv.weight", "fc.weight") else 0
            expected[name] = expected[name] * (1 - 1e-2 * decay) - 1e-2 * step
    for name, parameter in network.module.named_parameters():
        assert parameter.detach().numpy() == pytest.approx(expected[name], abs=1e-5), name


def test_augmentation_changes_what_a_step_learns_from() -> None:
    assert step(0, normed=False, augment=True)[1] != step(0, normed=False)[1]


def test_averages_move_in_the_steps_that_are_made_and_in_no_others() -> None:
    network, recipe = small(normed=True), Recipe(batch=7)
    ema = Ema(network.module, 0.5)
    stepper = Stepper(network, recipe.optimiser(network.module), recipe, Ranks(ProcessInfo()), ema=ema)
    for weights, updates in ((None, 1), (torch.full((3,), torch.inf), 1), (None, 2)):
        before = {name: tensor.clone() for name, tensor in ema.tensors.items()}
        outcome = stepper.make(BATCH, BATCH.indices.tolist(), weights=weights).look()
        assert outcome.skipped == (weights is not None)
        assert ema.state()["updates"] == updates
        assert all(torch.equal(tensor, before[name]) == outcome.skipped for name, tensor in ema.tensors.items())
