"""Learning rates beside the paper's are those of torch's own schedulers."""

from __future__ import annotations

import pytest
import torch
from torch.optim import lr_scheduler

from ctcovid.base.errors import UsageError
from ctcovid.training.recipe import Recipe

STEPS = 7


def _ours(recipe: Recipe) -> list[float]:
    return [recipe.rate(epoch, step, STEPS) for epoch in range(recipe.epochs) for step in range(STEPS)]


def _torchs(epochs: int, warm: int, after: type[lr_scheduler.LRScheduler], **settings: int | float) -> list[float]:
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    schedulers = [after(optimiser, **settings)]  # type: ignore[call-arg]
    if warm:
        schedulers.insert(0, lr_scheduler.LinearLR(optimiser, 1 / warm, total_iters=warm - 1))
    scheduler = lr_scheduler.SequentialLR(optimiser, schedulers, [warm] if warm else [])
    found = []
    for _ in range(epochs * STEPS):
        found.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        scheduler.step()
    return found


def test_cosine_is_torchs() -> None:
    expected = _torchs(6, 0, lr_scheduler.CosineAnnealingLR, T_max=6 * STEPS)
    assert _ours(Recipe(epochs=6, schedule="cosine")) == pytest.approx(expected, rel=1e-9)


def test_warm_up_and_cosine_are_torchs() -> None:
    expected = _torchs(6, 2 * STEPS, lr_scheduler.CosineAnnealingLR, T_max=4 * STEPS)
    assert _ours(Recipe(epochs=6, schedule="cosine", warmup=2)) == pytest.approx(expected, rel=1e-9)


def test_warm_up_goes_before_the_papers_steps_and_leaves_them_where_they_are() -> None:
    plain, warm = _ours(Recipe(epochs=20)), _ours(Recipe(epochs=20, warmup=2))
    assert warm[2 * STEPS :] == plain[2 * STEPS :]
    assert warm[: 2 * STEPS] == pytest.approx([1e-3 * (step + 1) / (2 * STEPS) for step in range(2 * STEPS)])


def test_a_warm_up_that_never_ends_is_refused() -> None:
    with pytest.raises(UsageError, match="--warmup 5"):
        Recipe(epochs=5, warmup=5)


@pytest.mark.parametrize(("setting", "value"), [("class_balance", "wieghts"), ("schedule", "cosin")])
def test_an_unknown_word_is_refused_with_those_that_are_known(setting: str, value: str) -> None:
    option = setting.replace("_", "-")
    with pytest.raises(UsageError, match=f"--{option} {value}.*Use"):
        Recipe(**{setting: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("volumes", [1, 2, 31, 32, 33, 34, 64, 65, 100])
@pytest.mark.parametrize("batch", [1, 32])
def test_steps_are_counted_as_they_are_made(volumes: int, batch: int) -> None:
    recipe = Recipe(batch=batch)
    assert recipe.steps(volumes) == len(recipe.order(volumes, 0))
