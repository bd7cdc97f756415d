"""Checkpoints hold all of a run, and run no code."""

from __future__ import annotations

import pickle
import re
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ctcovid.base.errors import CtcovidError, ModelRefusedError
from ctcovid.models.architectures import architecture
from ctcovid.models.network import Network
from ctcovid.training.checkpoint import Progress, TrainingState, read_checkpoint, restore, room_for, save_checkpoint
from ctcovid.training.history import EpochRow
from ctcovid.training.recipe import Recipe


def _row(epoch: int, loss: float | None, accuracy: float | None) -> EpochRow:
    return EpochRow(epoch, 1e-3, 1.0, 0.5, loss, accuracy)


def _state(module: nn.Module, progress: Progress | None = None) -> TrainingState:
    network = Network(module, architecture("r3d18"), ["a", "b"], torch.device("cpu"), torch.float32)
    return TrainingState(network, Recipe().optimiser(module), progress=progress or Progress())


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
    progress = Progress(epoch=1, step=2, loss_sum=0.1, correct=3, seen=4, history=[_row(1, 0.5, 0.5)])
    state = _state(torch.nn.Linear(3, 2), progress)
    state.network.module(torch.ones(1, 3)).sum().backward()
    state.optimiser.step()
    save_checkpoint(tmp_path / "last.pt", state, {"arch": "r3d18"})

    other = _state(torch.nn.Linear(3, 2))
    content = read_checkpoint(tmp_path / "last.pt")
    assert restore(content, other, 100).progress == progress
    assert content["settings"] == {"arch": "r3d18"}
    assert torch.equal(other.network.module.weight, state.network.module.weight)
    assert other.optimiser.state_dict()["state"][0]["step"] == 1


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


def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path: Path) -> None:
    path, state = tmp_path / "last.pt", _state(nn.Linear(1000, 2000), Progress(step=1))
    save_checkpoint(path, state, {})
    state.progress.step = 2
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 20, limits[1]))
    try:
        with pytest.raises(CtcovidError, match=r"The previous .*last\.pt is kept.*--resume"), room_for(path):
            save_checkpoint(path, state, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before and [one.name for one in tmp_path.iterdir()] == ["last.pt"]
    assert read_checkpoint(path)["progress"]["step"] == 1


def _trained() -> TrainingState:
    state = _state(torch.nn.Linear(3, 2), Progress(epoch=1, step=2, loss_sum=0.1, correct=3, seen=4, history=[_row(1, 0.5, 0.5)]))
    state.network.module(torch.ones(1, 3)).sum().backward()
    state.optimiser.step()
    return state


WRONG: dict[str, tuple[tuple[Any, ...], Any]] = {
    "progress.history": (("progress", "epoch"), 2),
    "epoch": (("progress", "epoch"), -1),
    "step": (("progress", "step"), "2"),
    "progress.step": (("progress", "step"), 101),
    "seen": (("progress", "seen"), True),
    "progress.correct": (("progress", "correct"), 5),
    "history.0.learning_rate": (("progress", "history", 0, "learning_rate"), float("nan")),
    "history.0": (("progress", "history", 0, "valid_loss"), None),
    "micro_batch": (("settings", "micro_batch"), "many"),
    "ranks": (("settings", "ranks"), 0),
    "pretrained.sha256": (("settings", "pretrained"), {"path": "x"}),
    "JSON serializable": (("settings", "arch"), torch.zeros(2)),
    "optimiser does not hold": (("optimiser",), [1]),
    "optimiser.state": (("optimiser", "state", 7), {}),
    "optimiser.state.0 is not that of Adam": (("optimiser", "state", 0), {"step": torch.tensor(1.0)}),
    "optimiser.state.0.exp_avg ": (("optimiser", "state", 0, "exp_avg"), torch.zeros(3, 2)),
    "optimiser.state.0.exp_avg_sq": (("optimiser", "state", 0, "exp_avg_sq"), torch.full((2, 3), torch.inf)),
    "betas": (("optimiser", "param_groups", 0, "betas"), (0.9, "x")),
    "lr": (("optimiser", "param_groups", 0, "lr"), float("nan")),
    "optimiser.param_groups": (("optimiser", "param_groups", 0, "params"), [0]),
    "model.weight": (("model", "weight"), torch.zeros(2, 4)),
    "model.more": (("model", "more"), torch.zeros(2)),
    "model holds NaN": (("model", "bias"), torch.full((2,), torch.nan)),
    "model.bias is not of the shape": (("model", "bias"), [0.0, 0.0]),
    "model.weight has more values": (("model", "weight"), torch.zeros(1).as_strided((2, 10**9), (0, 0))),
}


@pytest.mark.parametrize("said", WRONG)
def test_a_checkpoint_that_is_not_as_declared_is_refused_by_the_field(said: str, tmp_path: Path) -> None:
    state, (where, value) = _trained(), WRONG[said]
    save_checkpoint(tmp_path / "last.pt", state, {"arch": "r3d18"})
    content = torch.load(tmp_path / "last.pt", weights_only=True)
    inner = content
    for name in where[:-1]:
        inner = inner[name]
    inner[where[-1]] = value
    torch.save(content, tmp_path / "last.pt")
    with pytest.raises(ModelRefusedError, match=re.escape(said)):
        restore(read_checkpoint(tmp_path / "last.pt"), _state(torch.nn.Linear(3, 2)), 100)
