"""What goes wrong in a step or with a file leaves the run as it was, and is said in a sentence."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import signal
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ctcovid.base.console import Console
from ctcovid.base.errors import CtcovidError, InputError, UsageError
from ctcovid.base.process_info import ProcessInfo
from ctcovid.base.signals import StopRequest
from ctcovid.distributed.ranks import Ranks
from ctcovid.models.catalog import architecture
from ctcovid.models.network import Network
from ctcovid.training import memory
from ctcovid.training.checkpoint import Progress, Saving, read_checkpoint, room_for, save_checkpoint
from ctcovid.training.loop import fit
from ctcovid.training.recipe import Recipe
from ctcovid.training.resume import changed_ranks, require_same
from ctcovid.training.step import Stepper
from ctcovid.volumes.batches import Batch, VolumeSet
from ctcovid.volumes.limits import naming_limits
from ctcovid.volumes.reader import VolumesFile

CPU = torch.device("cpu")
WHITE = 255


class Breaking(nn.Module):
    """Gives what is not finite for a volume that is white throughout."""

    def __init__(self, always: bool = False) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv3d(1, 4, 3, padding=1), nn.BatchNorm3d(4), nn.Linear(4, 3)
        self.always = always

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(self.norm(self.conv(x)).relu().mean((2, 3, 4)))
        broken = x.amin((1, 2, 3, 4)) >= 1
        return y / torch.where(broken | self.always, 0.0, 1.0)[:, None]


def stepper(module: nn.Module, recipe: Recipe) -> Stepper:
    network = Network(module, architecture("r3d18"), ["NCP", "CP", "Normal"], CPU, torch.float32)
    network.module.train()
    return Stepper(network, recipe.optimiser(network.module), recipe, Ranks(ProcessInfo()))


def test_a_step_that_is_not_finite_changes_nothing() -> None:
    torch.manual_seed(0)
    steps = stepper(Breaking(), Recipe(batch=4))
    good = torch.randint(0, 200, (4, 4, 8, 8), dtype=torch.uint8)
    labels, indices = torch.arange(4) % 3, torch.arange(4)
    assert not steps.make(Batch(good, labels, indices), [0, 1, 2, 3]).look().skipped
    before = {name: tensor.clone() for name, tensor in steps.network.module.state_dict().items() if "tracked" not in name}
    moments = [{name: value.clone() for name, value in state.items()} for state in steps.optimiser.state.values()]
    bad = good.clone()
    bad[2] = WHITE
    assert steps.make(Batch(bad, labels, indices), [0, 1, 2, 3]).look().skipped
    after = steps.network.module.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    for state, kept in zip(steps.optimiser.state.values(), moments, strict=True):
        assert all(torch.equal(state[name], value) for name, value in kept.items())
    assert not steps.make(Batch(good, labels, indices), [0, 1, 2, 3]).look().skipped
    assert not torch.equal(steps.network.module.state_dict()["conv.weight"], before["conv.weight"])


def test_after_three_such_steps_the_volumes_are_named(volumes_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = VolumesFile(volumes_file)
    train_set, valid_set = VolumeSet(file, "train", 2), VolumeSet(file, "valid", 2)
    # A validation loss that is not finite would end the run in the first epoch, which has a single step here.
    valid_set.volumes = []
    progress = Progress()
    with StopRequest() as stop, pytest.raises(CtcovidError, match=r"3 steps in a row.*NCP/\d/1 slices 0-1, 2-3.*learning-rate"):
        fit(
            stepper(Breaking(always=True), Recipe(epochs=20, batch=20)),
            train_set,
            None,
            valid_set,
            progress,
            0,
            stop,
            Console(),
            Saving(0, lambda: None),
            lambda row, pace: None,
        )
    assert progress.skipped == 3
    assert "The step is skipped, 2 so far" in capsys.readouterr().err


def test_checkpoints_come_between_steps_where_they_are_due(volumes_file: Path) -> None:
    file = VolumesFile(volumes_file)
    progress, saved, rows = Progress(), [], []
    steps = stepper(Breaking(), Recipe(epochs=2, batch=2))
    with StopRequest() as stop:
        finished = fit(
            steps,
            VolumeSet(file, "train", 2),
            None,
            VolumeSet(file, "valid", 2),
            progress,
            0,
            stop,
            Console(quiet=True),
            Saving(1e-9, lambda: saved.append((progress.epoch, progress.step, progress.seen))),
            lambda row, pace: rows.append(row),
        )
    assert finished and len(rows) == 2
    per_epoch = len(saved) // 2
    assert [step for _, step, _ in saved] == [*range(1, per_epoch + 1)] * 2
    assert all(2 * step <= seen <= 3 * step for _, step, seen in saved)


@pytest.mark.parametrize(("room", "expected"), [(100, 32), (33, 32), (32, 16), (8, 4), (2, 1)])
def test_the_micro_batch_is_halved_until_a_step_fits(room: int, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(Breaking(), architecture("r3d18"), ["a", "b", "c"], CPU, torch.float32)
    network.device = torch.device("mps")

    def step(network: Network, size: int, *rest: object, **more: object) -> None:
        if size > room:
            raise torch.OutOfMemoryError

    monkeypatch.setattr(memory, "_step", step)
    assert memory.fitting(network, 32, (4, 8, 8)) == expected


def test_a_volume_that_does_not_fit_alone_is_an_error_of_use(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(Breaking(), architecture("r3d18"), ["a", "b", "c"], CPU, torch.float32)
    monkeypatch.setattr(memory, "free_memory", lambda: 0)
    monkeypatch.setattr(memory, "_peak", iter([0.0, 4e9]).__next__)
    with pytest.raises(UsageError, match="--depth"):
        memory.fitting(network, 32, (4, 8, 8))


def test_on_a_cpu_the_micro_batch_is_worked_out_and_the_trial_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(Breaking(), architecture("r3d18"), ["a", "b", "c"], CPU, torch.float32)
    before = {name: tensor.clone() for name, tensor in network.module.state_dict().items()}
    drawn = torch.random.get_rng_state()
    # One gigabyte for each volume, and 0.7 of 14 free between two processes: 4.9.
    monkeypatch.setattr(memory, "free_memory", lambda: 14_000_000_000)
    monkeypatch.setattr(memory, "_peak", iter([1e9, 5e9]).__next__)
    assert memory.fitting(network, 13, (4, 8, 8), processes=2) == 2
    assert all(torch.equal(network.module.state_dict()[name], tensor) for name, tensor in before.items())
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert all(parameter.grad is None for parameter in network.module.parameters())


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system forgets no peak")
def test_what_the_process_took_before_does_not_hide_what_a_volume_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(Breaking(), architecture("r3d18"), ["a", "b", "c"], CPU, torch.float32)
    monkeypatch.setattr(memory, "_step", lambda network, size, *rest, **more: np.ones(size * 50_000_000, np.uint8))
    np.ones(600_000_000, np.uint8)
    # Small pieces come from the heap, whose end is held by the last of them, so that a step could be given what the others leave.
    pieces = [np.ones(60_000, np.uint8) for _ in range(5000)]
    del pieces[:-1]
    assert memory._worked_out(network, (4, 8, 8), 1).each == pytest.approx(50e6, rel=0.2)


def test_a_full_disk_keeps_the_previous_checkpoint(tmp_path: Path) -> None:
    path, module = tmp_path / "last.pt", nn.Linear(1000, 2000)
    optimiser = Recipe().optimiser(module)
    save_checkpoint(path, module, optimiser, Progress(epoch=1), {})
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 20, limits[1]))
    try:
        with pytest.raises(CtcovidError, match=r"last\.pt is kept as it was.*--resume"), room_for(path):
            save_checkpoint(path, module, optimiser, Progress(epoch=2), {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before and [one.name for one in tmp_path.iterdir()] == ["last.pt"]
    assert read_checkpoint(path)["progress"]["epoch"] == 1


def test_a_reader_that_is_killed_is_explained_by_memory(volumes_file: Path) -> None:
    volumes = VolumeSet(VolumesFile(volumes_file), "train", 1)
    with (
        pytest.raises(CtcovidError, match="memory"),
        naming_limits(1),
        contextlib.closing(volumes.batches([[0, 1]] * 50, 1)) as batches,
    ):
        next(batches)
        for child in multiprocessing.active_children():
            os.kill(child.pid or 0, signal.SIGKILL)
        for _ in batches:
            pass


@pytest.mark.parametrize(
    ("said", "named"),
    [
        ("DataLoader workers ended by SIGBUS: DataLoader worker (pid 1) exited unexpectedly", "/dev/shm"),
        ("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)", "/dev/shm"),
        ("DataLoader timed out after 900 seconds", "--cpus-per-task"),
        ("DataLoader worker (pid(s) 5) exited unexpectedly", "memory"),
    ],
)
def test_what_torch_says_of_readers_becomes_the_likely_limit(said: str, named: str) -> None:
    with pytest.raises(CtcovidError, match=named), naming_limits(2):
        raise RuntimeError(said)
    with pytest.raises(RuntimeError, match="shape"), naming_limits(2):
        raise RuntimeError("shape mismatch")


def test_data_that_changed_since_the_run_began_are_refused(volumes_file: Path) -> None:
    before = VolumesFile(volumes_file).fingerprint
    with h5py.File(volumes_file, "r+") as file:
        file["scans/crc32"][0] += 1
    now = VolumesFile(volumes_file).fingerprint
    with pytest.raises(InputError, match="when the run began"):
        require_same({"data": before}, {"data": now}, Path("runs/a"), Console())
    require_same({"data": before, "ranks": 2}, {"data": before, "ranks": 1, "sync_batchnorm": False}, Path("runs/a"), Console())


def test_another_number_of_processes_is_said() -> None:
    assert changed_ranks({}, 1, False) is None
    assert "batch norm" in (changed_ranks({"ranks": 2}, 1, False) or "")
    assert "batch norm" not in (changed_ranks({"ranks": 2}, 4, True) or "batch norm")


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
