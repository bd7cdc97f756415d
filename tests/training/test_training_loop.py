"""What ends an epoch, and what is said and saved in it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import Breaking, Small, session, stepper

from ctcovid.base.console import Console
from ctcovid.base.errors import CtcovidError
from ctcovid.base.signals import StopRequest
from ctcovid.training.checkpoint import Progress, Saving
from ctcovid.training.data import TrainingData
from ctcovid.training.loop import fit
from ctcovid.training.recipe import Recipe
from ctcovid.volumes.batches import Batch, VolumeSet
from ctcovid.volumes.reader import VolumesFile

CPU = torch.device("cpu")


class Volumes:
    """Seven volumes that lie in memory, where a VolumeSet is wanted."""

    shape, labels = (2, 8, 8), np.arange(7) % 3

    def __len__(self) -> int:
        return 7

    def batches(self, order: list[list[int]], workers: int, pin: bool = False, stop: StopRequest | None = None) -> Iterator[Batch]:
        for indices in order:
            generator = torch.Generator().manual_seed(1)
            volumes = torch.randint(0, 256, (len(indices), 2, 8, 8), dtype=torch.uint8, generator=generator)
            yield Batch(volumes, torch.tensor(indices) % 3, torch.tensor(indices))


def test_a_validation_loss_that_is_nan_stops_the_run() -> None:
    """Statistics that are only used in validation can be broken while every training loss is finite."""
    steps, kept = stepper(Small(normed=True), Recipe(epochs=2, batch=4)), []
    steps.network.module.norm.running_var.fill_(-1000)
    data: Any = Volumes()
    with pytest.raises(CtcovidError, match=r"validation loss is nan after epoch 1.*--learning-rate"):
        fit(steps, TrainingData(data, data), session(), Saving(0, lambda: None), lambda row, pace: kept.append(row))
    progress = steps.state.progress
    assert (progress.epoch, progress.history, kept) == (0, [], [])


def test_speed_and_time_left_count_only_what_was_trained_on() -> None:
    """A run that was stopped at the end of its first epoch shows nothing when it resumes, and everything one epoch later."""
    recipe, told = Recipe(epochs=3, batch=4), []
    steps = stepper(Small(normed=True), recipe, Progress(step=recipe.steps(7), seen=7, loss_sum=7.0))
    data: Any = Volumes()
    fit(steps, TrainingData(data, data), session(), Saving(0, lambda: None), lambda row, pace: told.append(pace))
    assert told[0] == "" and re.fullmatch(r"[\d,.]+ volumes/s, about .* left", told[1]) and re.fullmatch(r"[\d,.]+ volumes/s", told[2])


def test_after_three_steps_that_are_not_finite_the_volumes_are_named(volumes_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = VolumesFile(volumes_file)
    train_set, valid_set = VolumeSet(file, "train", 2), VolumeSet(file, "valid", 2)
    # A validation loss that is not finite would end the run in the first epoch, which has a single step here.
    valid_set.volumes = []
    steps = stepper(Breaking(always=True), Recipe(epochs=20, batch=20))
    with pytest.raises(CtcovidError, match=r"3 steps in a row.*NCP/\d/1 slices 0-1, 2-3.*learning-rate"):
        fit(steps, TrainingData(train_set, valid_set), session(Console()), Saving(0, lambda: None), lambda row, pace: None)
    assert steps.state.progress.skipped == 3
    assert "The step is skipped, 2 so far" in capsys.readouterr().err


def test_checkpoints_are_saved_between_steps_when_they_are_due(volumes_file: Path) -> None:
    file = VolumesFile(volumes_file)
    saved, rows = [], []
    steps = stepper(Breaking(), Recipe(epochs=2, batch=2))
    progress = steps.state.progress
    saving = Saving(1e-9, lambda: saved.append((progress.epoch, progress.step, progress.seen)))
    data = TrainingData(VolumeSet(file, "train", 2), VolumeSet(file, "valid", 2))
    assert fit(steps, data, session(), saving, lambda row, pace: rows.append(row)) and len(rows) == 2
    per_epoch = len(saved) // 2
    assert [step for _, step, _ in saved] == [*range(1, per_epoch + 1)] * 2
    assert all(2 * step <= seen <= 3 * step for _, step, seen in saved)
