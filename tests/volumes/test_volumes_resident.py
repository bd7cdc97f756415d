"""Volumes that are kept in fast memory are those of the file, in the order that is asked for."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch

from ctcovid.base.console import Console
from ctcovid.base.signals import StopRequest
from ctcovid.volumes import resident as resident_module
from ctcovid.volumes.batches import VolumeSet
from ctcovid.volumes.reader import VolumesFile
from ctcovid.volumes.resident import fastest_memory, resident

CPU = torch.device("cpu")


def quiet() -> Console:
    return Console(quiet=True, verbose=False, json=False)


@pytest.mark.parametrize("depth", [1, 3])
def test_batches_are_those_that_workers_would_read(volumes_file: Path, depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident_module, "fastest_memory", lambda *_: "gpu")
    monkeypatch.setattr(resident_module, "READ_AT_ONCE", 2)
    volumes = VolumeSet(VolumesFile(volumes_file), "train", depth)
    order = [[2, 0], [1, len(volumes) - 1]]
    with StopRequest() as stop:
        kept = resident(volumes, CPU, 2, stop, quiet())
    assert kept is not None
    for found, expected in zip(kept.batches(order), volumes.batches(order, 0), strict=True):
        assert torch.equal(found.volumes, expected.volumes)
        assert torch.equal(found.labels, expected.labels)
        assert torch.equal(found.indices, expected.indices)


def test_on_a_cpu_workers_read() -> None:
    assert fastest_memory(1, CPU) is None


@pytest.mark.parametrize(("size", "expected"), [(30, "gpu"), (31, "host"), (300, "host"), (301, None)])
def test_volumes_go_where_they_take_at_most_three_tenths_of_what_is_free(size: int, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 1000))
    monkeypatch.setattr(resident_module, "free_memory", lambda: 1000)
    assert fastest_memory(size, torch.device("cuda")) == expected


def test_a_stop_while_volumes_are_read_is_heeded(volumes_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resident_module, "fastest_memory", lambda *_: "gpu")
    with StopRequest() as stop:
        stop.received = signal.SIGTERM
        assert resident(VolumeSet(VolumesFile(volumes_file), "train", 1), CPU, 0, stop, quiet()) is None
