"""The micro-batch for which a step fits into memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from small import Breaking

from ctcovid.base.errors import UsageError
from ctcovid.models.architectures import architecture
from ctcovid.models.network import Network
from ctcovid.training import memory

CPU = torch.device("cpu")


@pytest.mark.parametrize(("room", "expected"), [(100, 32), (33, 32), (32, 16), (8, 4), (2, 1)])
def test_the_micro_batch_is_halved_until_a_step_fits(room: int, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(Breaking(), architecture("r3d18"), ["a", "b", "c"], CPU, torch.float32)
    network.device = torch.device("mps")

    def step(network: Network, size: int, *rest: object, **more: object) -> None:
        if size > room:
            raise torch.OutOfMemoryError

    monkeypatch.setattr(memory, "_step", step)
    assert memory.largest_fitting(network, 32, (4, 8, 8)) == expected


def test_a_volume_that_does_not_fit_alone_is_an_error_of_use(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(Breaking(), architecture("r3d18"), ["a", "b", "c"], CPU, torch.float32)
    monkeypatch.setattr(memory, "free_memory", lambda: 0)
    monkeypatch.setattr(memory, "_peak", iter([0.0, 4e9]).__next__)
    with pytest.raises(UsageError, match="--depth"):
        memory.largest_fitting(network, 32, (4, 8, 8))


def test_on_a_cpu_the_micro_batch_is_estimated_and_the_trial_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(Breaking(), architecture("r3d18"), ["a", "b", "c"], CPU, torch.float32)
    before = {name: tensor.clone() for name, tensor in network.module.state_dict().items()}
    drawn = torch.random.get_rng_state()
    # One gigabyte for each volume, and 0.7 of 14 free between two processes: 4.9.
    monkeypatch.setattr(memory, "free_memory", lambda: 14_000_000_000)
    monkeypatch.setattr(memory, "_peak", iter([1e9, 5e9]).__next__)
    assert memory.largest_fitting(network, 13, (4, 8, 8), processes=2) == 2
    assert all(torch.equal(network.module.state_dict()[name], tensor) for name, tensor in before.items())
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert all(parameter.grad is None for parameter in network.module.parameters())


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system cannot reset the peak")
def test_what_the_process_took_before_does_not_hide_what_a_volume_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(Breaking(), architecture("r3d18"), ["a", "b", "c"], CPU, torch.float32)
    monkeypatch.setattr(memory, "_step", lambda network, size, *rest, **more: np.ones(size * 50_000_000, np.uint8))
    np.ones(600_000_000, np.uint8)
    # Small pieces come from the heap, whose end is held by the last of them, so that a step could be given what the others leave.
    pieces = [np.ones(60_000, np.uint8) for _ in range(5000)]
    del pieces[:-1]
    assert memory._bytes_per_volume(network, (4, 8, 8)) == pytest.approx(50e6, rel=0.2)
