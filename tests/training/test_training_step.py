"""A step in pieces is the step of the whole batch, as far as batch norm allows; and one that is not finite changes nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small import Breaking, Small, stepper
from torch import Tensor, nn

from ctcovid.base.process_info import ProcessInfo
from ctcovid.distributed.ranks import Ranks
from ctcovid.kernels import native
from ctcovid.models import registry
from ctcovid.models.architectures import architecture
from ctcovid.models.network import Network
from ctcovid.training.checkpoint import TrainingState
from ctcovid.training.ema import Ema
from ctcovid.training.recipe import Recipe
from ctcovid.training.step import Step, Stepper, summed_loss
from ctcovid.volumes.batches import Batch

CPU = torch.device("cpu")
WHITE = 255
BATCH = Batch(
    torch.randint(0, 256, (7, 2, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)),
    torch.arange(7) % 3,
    torch.arange(7),
)


def make_step(state: TrainingState, recipe: Recipe, batch: Batch, *more: Any) -> Step:
    return Stepper(state, recipe, Ranks(ProcessInfo())).make(batch, batch.indices.tolist(), None, *more)


def fresh(network: Network, recipe: Recipe) -> TrainingState:
    return TrainingState(network, recipe.optimiser(network.module))


def step(micro_batch: int, normed: bool, **beyond: Any) -> tuple[dict[str, Tensor], float, int]:
    network, recipe = small(normed), Recipe(batch=7, micro_batch=micro_batch, **beyond)
    weights = torch.tensor([0.5, 1.0, 3.0]) if recipe.class_balance == "weights" else None
    outcome = make_step(fresh(network, recipe), recipe, BATCH, 5, weights).read()
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


@pytest.mark.parametrize("passes", ["compiled", "torch"])
def test_validation_sees_the_weights_of_the_last_step(passes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fused optimiser changes weights without a trace; kernels that were made ready before must not outlive that."""
    if passes == "torch":
        monkeypatch.setattr(native, "compiled", None)
    torch.manual_seed(0)
    network = registry.build("r3d18", ["a", "b", "c"], "cpu", "float32")
    plain = registry.create("r3d18", plain=True)
    recipe = Recipe(batch=4, learning_rate=1e-2)
    state = fresh(network, recipe)
    volumes = torch.randint(0, 256, (4, 4, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    for _ in range(3):
        network.module.train()
        make_step(state, recipe, Batch(volumes, torch.arange(4) % 3, torch.arange(4)))
        plain.load_state_dict(network.module.state_dict())
        with torch.inference_mode():
            expected = plain.eval()(network.scale(volumes)).double().softmax(1).numpy()
        assert network.probabilities(volumes) == pytest.approx(expected, abs=1e-4)


def test_a_clipped_gradient_keeps_its_direction_and_has_the_norm_that_was_asked_for() -> None:
    def gradient(clip: float) -> np.ndarray:
        network, recipe = small(normed=False), Recipe(batch=7, clip_gradient=clip)
        make_step(fresh(network, recipe), recipe, BATCH)
        return torch.cat([parameter.grad.flatten() for parameter in network.module.parameters() if parameter.grad is not None]).numpy()

    whole = gradient(0)
    norm = float(np.linalg.norm(whole))
    assert gradient(norm / 10) == pytest.approx(whole / 10, rel=1e-3, abs=1e-7)
    assert gradient(norm * 10) == pytest.approx(whole, abs=1e-7)


def test_weight_decay_is_adamws_and_spares_biases_and_norms() -> None:
    """Loshchilov and Hutter 2019, Algorithm 2, from the gradients of two steps."""
    network, recipe = small(normed=True), Recipe(batch=7, weight_decay=0.3, learning_rate=1e-2)
    state = fresh(network, recipe)
    expected = {name: parameter.detach().double().numpy() for name, parameter in network.module.named_parameters()}
    m, v = ({name: np.zeros_like(value) for name, value in expected.items()} for _ in range(2))
    for number in (1, 2):
        make_step(state, recipe, BATCH)
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
    state = TrainingState(network, recipe.optimiser(network.module), ema)
    steps = Stepper(state, recipe, Ranks(ProcessInfo()))
    for weights, updates in ((None, 1), (torch.full((3,), torch.inf), 1), (None, 2)):
        before = {name: tensor.clone() for name, tensor in ema.tensors.items()}
        outcome = steps.make(BATCH, BATCH.indices.tolist(), weights=weights).read()
        assert outcome.skipped == (weights is not None)
        assert ema.state()["updates"] == updates
        assert all(torch.equal(tensor, before[name]) == outcome.skipped for name, tensor in ema.tensors.items())


def test_a_step_that_is_not_finite_changes_nothing() -> None:
    torch.manual_seed(0)
    steps = stepper(Breaking(), Recipe(batch=4))
    good = torch.randint(0, 200, (4, 4, 8, 8), dtype=torch.uint8)
    labels, indices = torch.arange(4) % 3, torch.arange(4)
    assert not steps.make(Batch(good, labels, indices), [0, 1, 2, 3]).read().skipped
    before = {name: tensor.clone() for name, tensor in steps.network.module.state_dict().items() if "tracked" not in name}
    moments = [{name: value.clone() for name, value in state.items()} for state in steps.state.optimiser.state.values()]
    bad = good.clone()
    bad[2] = WHITE
    assert steps.make(Batch(bad, labels, indices), [0, 1, 2, 3]).read().skipped
    after = steps.network.module.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    for state, kept in zip(steps.state.optimiser.state.values(), moments, strict=True):
        assert all(torch.equal(state[name], value) for name, value in kept.items())
    assert not steps.make(Batch(good, labels, indices), [0, 1, 2, 3]).read().skipped
    assert not torch.equal(steps.network.module.state_dict()["conv.weight"], before["conv.weight"])


@pytest.mark.parametrize("synchronised", [True, False])
def test_each_volume_of_a_batch_goes_to_one_process(synchronised: bool) -> None:
    for size in (1, 2, 3, 8):
        for volumes in range(1, 20):
            recipe, indices = Recipe(batch=16), list(range(100, 100 + volumes))
            shares = []
            for rank in range(size):
                steps = stepper(nn.Linear(1, 1), recipe)
                steps.ranks, steps.synchronised = Ranks(ProcessInfo(rank, size)), synchronised
                shares.append(steps.share(indices))
            assert sorted(index for share in shares for index in share) == indices
            if not synchronised and volumes > 1:
                assert 1 not in map(len, shares)
            if volumes == 16:
                assert len({len(share) for share in shares}) <= 2 and min(map(len, shares)) >= 2


def _batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(9, 3, generator=generator), torch.randint(0, 3, (9,), generator=generator)


def test_weighted_loss_is_torchs() -> None:
    logits, labels = _batch()
    weights = torch.tensor([0.5, 1.0, 3.0])
    expected = F.cross_entropy(logits, labels, weight=weights, reduction="sum")
    assert summed_loss(logits, labels, weights=weights).item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_parts_of_a_batch_add_up_to_the_batch_and_an_empty_one_adds_nothing() -> None:
    logits, labels = _batch()
    weights = torch.tensor([0.5, 1.0, 3.0])
    whole = summed_loss(logits, labels, 0.1, weights).item()
    parts = [summed_loss(logits[a:b], labels[a:b], 0.1, weights).item() for a, b in ((0, 2), (2, 7), (7, 7), (7, 9))]
    assert sum(parts) == pytest.approx(whole, rel=1e-6)


def test_label_smoothing_spreads_its_share_over_all_classes() -> None:
    logits, labels = _batch()
    target = 0.9 * np.eye(3)[labels] + 0.1 / 3
    log_probabilities = logits.double().log_softmax(1).numpy()
    expected = -(target * log_probabilities).sum()
    assert summed_loss(logits, labels, 0.1).item() == pytest.approx(expected, rel=1e-6)
    assert summed_loss(logits, labels, 0.1, torch.ones(3)).item() == pytest.approx(expected, rel=1e-6)
