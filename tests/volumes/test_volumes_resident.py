"""Volumes that are kept in fast memory are those of the file, in the order that is asked for."""

from __future__ import annotations

import re
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
def test_batches_are_those_that_workers_would_read(
    volumes_file: Path, depth: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(resident_module, "READ_AT_ONCE", 2)
    volumes = VolumeSet(VolumesFile(volumes_file), "train", depth)
    order = [[2, 0], [1, len(volumes) - 1]]
    with StopRequest() as stop:
        kept = resident(volumes, "host", CPU, 2, stop, Console())
    assert kept is not None
    said = capsys.readouterr().err
    assert f"{len(volumes)} volumes of the train part (0.0 GB) are read once and kept in the host's memory." in said
    assert re.search(r"Read [\d,]+ volumes/s, with 2 workers\.", said)
    for found, expected in zip(kept.batches(order), volumes.batches(order, 0), strict=True):
        assert torch.equal(found.volumes, expected.volumes)
        assert torch.equal(found.labels, expected.labels)
        assert torch.equal(found.indices, expected.indices)


def test_on_a_cpu_workers_read() -> None:
    assert fastest_memory(1, 1, CPU) == (None, None)


@pytest.mark.parametrize(
    ("train", "valid", "expected"),
    [
        (30, 10, ("gpu", "gpu")),
        (30, 11, ("gpu", "host")),
        (31, 9, ("host", "gpu")),
        (300, 100, ("host", "host")),
        (300, 101, ("host", None)),
        (301, 41, (None, "host")),
        (301, 401, (None, None)),
        (30, 0, ("gpu", None)),
    ],
)
def test_volumes_go_where_training_leaves_room_for_those_to_validate_on(
    train: int, valid: int, expected: tuple[str | None, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most three tenths of what is free for the training part, and four tenths with the other one beside it."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 1000))
    for processes in (1, 4):
        monkeypatch.setattr(resident_module, "free_memory", lambda: 1000 * processes)  # noqa: B023
        assert fastest_memory(train, valid, torch.device("cuda"), processes) == expected


def test_a_stop_while_volumes_are_read_is_heeded(volumes_file: Path) -> None:
    with StopRequest() as stop:
        stop.received = signal.SIGTERM
        assert resident(VolumeSet(VolumesFile(volumes_file), "train", 1), "host", CPU, 0, stop, quiet()) is None
