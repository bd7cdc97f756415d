"""The paper's recipe, its order of batches, and its checkpoints."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from ctcovid.base.errors import ModelRefusedError
from ctcovid.training.checkpoint import Progress, read_checkpoint, restore, save_checkpoint
from ctcovid.training.history import EpochRow, write_history
from ctcovid.training.recipe import Recipe


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


def _row(epoch: int, loss: float | None, accuracy: float | None) -> EpochRow:
    return EpochRow(epoch, 1e-3, 1.0, 0.5, loss, accuracy)


def test_best_epoch_has_the_highest_accuracy_then_the_lowest_loss_then_came_first() -> None:
    rows = [_row(1, 0.5, 0.8), _row(2, 0.9, 0.9), _row(3, 0.4, 0.9), _row(4, 0.4, 0.9), _row(5, 0.1, 0.85)]
    assert Progress(history=rows).best is rows[2]


@pytest.mark.parametrize(("patience", "over"), [(0, False), (1, True), (2, True), (3, False)])
def test_patience_counts_the_epochs_since_the_best(patience: int, over: bool) -> None:
    rows = [_row(1, 0.5, 0.8), _row(2, 0.4, 0.9), _row(3, 0.5, 0.9), _row(4, 0.9, 0.85)]
    assert Progress(epoch=4, history=rows).over(20, patience) is over
    assert Progress(epoch=4, history=rows).over(4, patience)


def test_without_validation_the_last_epoch_is_the_best() -> None:
    rows = [_row(1, None, None), _row(2, None, None)]
    assert Progress(history=rows).best is rows[1]


def test_checkpoint_restores_weights_optimiser_and_progress(tmp_path: Path) -> None:
    module = torch.nn.Linear(3, 2)
    optimiser = Recipe().optimiser(module)
    module(torch.ones(1, 3)).sum().backward()
    optimiser.step()
    progress = Progress(epoch=1, step=2, loss_sum=0.1, correct=3, seen=4, history=[_row(1, 0.5, 0.5)])
    save_checkpoint(tmp_path / "last.pt", module, optimiser, progress, {"arch": "r3d18"})

    other = torch.nn.Linear(3, 2)
    other_optimiser = Recipe().optimiser(other)
    content = read_checkpoint(tmp_path / "last.pt")
    assert restore(content, other, other_optimiser) == progress
    assert content["settings"] == {"arch": "r3d18"}
    assert torch.equal(other.weight, module.weight)
    assert other_optimiser.state_dict()["state"][0]["step"] == 1


class _Harmful:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.witness,)  # type: ignore[return-value]


def test_a_checkpoint_that_could_run_code_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"model": _Harmful(tmp_path / "harm")}, tmp_path / "zip.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(_Harmful(tmp_path / "harm")))
    (tmp_path / "short.pt").write_bytes(b"PK\x03\x04")
    torch.save({"epoch": 1}, tmp_path / "other.pt")
    for name in ("zip.pt", "plain.pt", "short.pt", "other.pt"):
        with pytest.raises(ModelRefusedError, match=name):
            read_checkpoint(tmp_path / name)
    assert not (tmp_path / "harm").exists()


def test_history_keeps_full_precision_and_leaves_blank_what_was_not_validated(tmp_path: Path) -> None:
    write_history(tmp_path / "metrics.csv", [EpochRow(1, 1e-3, 1 / 3, 0.5, None, None)])
    assert (tmp_path / "metrics.csv").read_text().splitlines() == [
        "epoch,learning_rate,train_loss,train_accuracy,valid_loss,valid_accuracy",
        "1,0.001,0.3333333333333333,0.5,,",
    ]


@pytest.mark.parametrize(("epochs", "warmup", "steps"), [(1, 0.6, 1), (20, 19.9, 3)])
def test_a_warm_up_that_rounds_to_the_whole_training_leaves_rates_above_0(epochs: int, warmup: float, steps: int) -> None:
    recipe = Recipe(epochs=epochs, warmup=warmup, schedule="cosine")
    assert all(recipe.rate(epoch, step, steps) > 0 for epoch in range(epochs) for step in range(steps))
