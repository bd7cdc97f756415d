"""The paper's recipe, its order of batches, and learning rates equal to those of torch's schedulers."""

from __future__ import annotations

import pytest
import torch
from torch.optim import lr_scheduler

from ctcovid.base.errors import UsageError
from ctcovid.training.recipe import Recipe

STEPS = 7


def test_default_recipe_is_the_papers() -> None:
    recipe = Recipe()
    assert (recipe.epochs, recipe.batch) == (20, 32)
    assert [recipe.rate(epoch) for epoch in (0, 9, 10, 19)] == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4])
    optimiser = recipe.optimiser(torch.nn.Linear(2, 2))
    assert type(optimiser) is torch.optim.Adam
    assert optimiser.defaults["betas"] == (0.9, 0.999) and optimiser.defaults["weight_decay"] == 0


@pytest.mark.parametrize("volumes", [2, 31, 32, 33, 64, 65, 100])
def test_each_epoch_sees_every_volume_once_and_no_batch_of_one(volumes: int) -> None:
    batches = Recipe(batch=32).order(volumes, 0)
    assert sorted(index for batch in batches for index in batch) == list(range(volumes))
    assert all(1 < len(batch) <= 33 for batch in batches)


@pytest.mark.parametrize(
    ("batch", "micro_batch", "volumes", "fewest"), [(1, 0, 7, 1), (4, 1, 7, 1), (4, 0, 7, 3), (4, 0, 9, 4), (32, 2, 7, 2), (32, 0, 2, 2)]
)
def test_fewest_volumes_at_a_time_are_those_of_the_smallest_piece(batch: int, micro_batch: int, volumes: int, fewest: int) -> None:
    assert Recipe(batch=batch, micro_batch=micro_batch).fewest(volumes) == fewest


@pytest.mark.parametrize(
    ("batch", "micro_batch", "volumes", "processes", "fewest"),
    [(8, 0, 16, 2, 4), (8, 0, 17, 2, 4), (8, 0, 10, 4, 2), (2, 0, 4, 2, 1), (8, 3, 16, 2, 2), (9, 0, 9, 2, 4), (8, 0, 11, 2, 3)],
)
def test_of_several_processes_the_smallest_piece_of_any_counts(
    batch: int, micro_batch: int, volumes: int, processes: int, fewest: int
) -> None:
    recipe = Recipe(batch=batch, micro_batch=micro_batch)
    assert recipe.fewest(volumes, None, processes) == fewest
    # A synchronised batch norm sees those of all together.
    assert recipe.fewest(volumes, None, processes, synchronised=True) >= min(2, batch)


def test_order_depends_on_seed_and_epoch_alone() -> None:
    assert Recipe(seed=1).order(50, 3) == Recipe(seed=1, epochs=99).order(50, 3)
    assert Recipe(seed=1).order(50, 3) != Recipe(seed=1).order(50, 4)
    assert Recipe(seed=1).order(50, 3) != Recipe(seed=2).order(50, 3)


@pytest.mark.parametrize(("epochs", "warmup", "steps"), [(1, 0.6, 1), (20, 19.9, 3)])
def test_a_warm_up_that_rounds_to_the_whole_training_leaves_rates_above_0(epochs: int, warmup: float, steps: int) -> None:
    recipe = Recipe(epochs=epochs, warmup=warmup, schedule="cosine")
    assert all(recipe.rate(epoch, step, steps) > 0 for epoch in range(epochs) for step in range(steps))


@pytest.mark.parametrize(
    ("micro_batch", "volumes", "expected"),
    [(0, 32, [32]), (8, 32, [8, 8, 8, 8]), (8, 9, [5, 4]), (40, 32, [32]), (1, 3, [1, 1, 1]), (2, 3, [3]), (2, 5, [3, 2])],
)
def test_pieces_are_as_equal_as_can_be(micro_batch: int, volumes: int, expected: list[int]) -> None:
    assert Recipe(micro_batch=micro_batch).pieces(volumes) == expected


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
