"""On a GPU: a training that replays CUDA graphs is the one that launches every kernel by itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ctcovid.base.process_info import ProcessInfo
from ctcovid.distributed.ranks import Ranks
from ctcovid.kernels import graphs
from ctcovid.models import registry
from ctcovid.models.device import deterministic_convolutions
from ctcovid.training.checkpoint import TrainingState
from ctcovid.training.ema import Ema
from ctcovid.training.freeze import freeze, learn
from ctcovid.training.recipe import Recipe
from ctcovid.training.step import Stepper
from ctcovid.volumes.batches import Batch

pytestmark = pytest.mark.cuda

STEPS, BATCH = 20, 8


def begin(arch: str, recipe: Recipe, device: torch.device, frozen: str) -> Stepper:
    torch.manual_seed(0)
    network = registry.build(arch, ["NCP", "CP", "Normal"], str(device))
    if frozen:
        freeze(network.module, frozen)
    learn(network.module)
    state = TrainingState(network, recipe.optimiser(network.module), Ema(network.module, recipe.ema) if recipe.ema else None)
    return Stepper(state, recipe, Ranks(ProcessInfo()))


def trained(arch: str, options: dict[str, Any], device: torch.device, frozen: str = "", new_at: int = -1) -> tuple[list[float], Tensor]:
    """Losses of 20 steps, of which every fifth is smaller, and by how much the weights have moved. `new_at`: resumed before that step."""
    recipe = Recipe(batch=BATCH, learning_rate=1e-5, **options)
    stepper, losses = begin(arch, recipe, device, frozen), []
    first = torch.cat([p.detach().flatten().clone() for p in stepper.network.module.parameters()])
    generator = torch.Generator().manual_seed(1)
    with deterministic_convolutions():
        for number in range(STEPS):
            if number == new_at:
                before, stepper = stepper.state, begin(arch, recipe, device, frozen)
                stepper.network.module.load_state_dict(before.network.module.state_dict())
                stepper.state.optimiser.load_state_dict(before.optimiser.state_dict())
                if before.ema is not None and stepper.state.ema is not None:
                    stepper.state.ema.load(before.ema.state())
            count = 5 if number % 5 == 4 else BATCH
            volumes = torch.randint(0, 256, (count, 4, 64, 64), dtype=torch.uint8, generator=generator)
            batch = Batch(volumes, torch.arange(count) % 3, torch.arange(count) + 10 * number)
            torch.manual_seed(number)
            weights = torch.tensor([0.5, 1.0, 2.0], device=device) if recipe.class_balance == "weights" else None
            losses.append(stepper.make(batch, batch.indices.tolist(), None, number, weights).read().loss)
    if stepper.network.graphs.recorder is not None:
        assert all(stepper.network.graphs._known.values()), "not captured, or refused"
        assert len(stepper.network.graphs._known) == (2 if recipe.micro_batch else 1)
    return losses, torch.cat([p.detach().flatten() for p in stepper.network.module.parameters()]) - first


EVERYTHING: dict[str, Any] = {
    "augment": True,
    "class_balance": "weights",
    "label_smoothing": 0.1,
    "clip_gradient": 0.5,
    "weight_decay": 0.1,
    "ema": 0.9,
}


@pytest.mark.parametrize(
    ("arch", "options", "frozen"),
    [
        ("r3d18", {}, ""),
        ("r3d18", {"micro_batch": 3}, ""),
        ("r3d18", {**EVERYTHING, "micro_batch": 3}, ""),
        ("r2plus1d18", EVERYTHING, ""),
        ("r3d18", {}, "layer2"),
        ("tv_mc3_18", {}, ""),
    ],
)
def test_twenty_replayed_steps_are_twenty_steps(
    arch: str, options: dict[str, Any], frozen: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, resumed = trained(arch, options, device, frozen), trained(arch, options, device, frozen, new_at=11)
    monkeypatch.setattr(graphs, "recorder", lambda device: None)
    losses, moved = trained(arch, options, device, frozen)
    assert moved.norm() > 0
    for other in (found, resumed):
        assert other[0] == pytest.approx(losses, rel=1e-2)
        assert (other[1] - moved).norm() < 0.2 * moved.norm()
