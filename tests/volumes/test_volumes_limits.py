"""Dead or silent readers are explained by the likely limit."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from ctcovid.base.errors import CtcovidError
from ctcovid.volumes.batches import VolumeSet
from ctcovid.volumes.limits import naming_limits
from ctcovid.volumes.reader import VolumesFile


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
