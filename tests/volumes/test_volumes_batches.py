"""Batches of depth-n volumes."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from ctcovid.base.errors import CtcovidError, InputError
from ctcovid.base.signals import StopAwaitedError, StopRequest
from ctcovid.volumes import batches as batches_module
from ctcovid.volumes.batches import VolumeSet, Way, affordable, in_order
from ctcovid.volumes.limits import naming_limits
from ctcovid.volumes.reader import VolumesFile


def expected(known_scans: list, part: str, depth: int) -> tuple[np.ndarray, list[int]]:
    volumes, labels = [], []
    for scan in known_scans:
        if scan.row.split == part:
            for first in range(0, len(scan.pixels) - depth + 1, depth):
                volumes.append(scan.pixels[first : first + depth])
                labels.append(["NCP", "CP", "Normal"].index(scan.row.label))
    return np.stack(volumes), labels


@pytest.mark.parametrize(("depth", "workers", "shared"), [(2, 0, 0), (3, 0, 0), (3, 1, 0), (2, 1, 1 << 40)])
def test_batches_hold_each_volume_of_the_part_once_with_its_label(
    depth: int, workers: int, shared: int, volumes_file: Path, known_scans: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches_module, "free_shared", lambda: shared)
    data = VolumeSet(VolumesFile(volumes_file), "train", depth)
    pixels, labels = expected(known_scans, "train", depth)
    assert len(data) == len(labels)
    batches = list(data.batches(in_order(len(data), 2), workers))
    assert [len(batch.labels) for batch in batches] == [2] * (len(labels) // 2) + [1] * (len(labels) % 2)
    assert np.array_equal(np.concatenate([batch.volumes.numpy() for batch in batches]), pixels)
    assert np.concatenate([batch.labels.numpy() for batch in batches]).tolist() == labels
    assert np.concatenate([batch.indices.numpy() for batch in batches]).tolist() == list(range(len(labels)))


def test_batches_come_as_they_were_ordered(volumes_file: Path, known_scans: list) -> None:
    data = VolumeSet(VolumesFile(volumes_file), "train", 2)
    pixels, labels = expected(known_scans, "train", 2)
    (first, second) = data.batches([[5, 0], [3]], workers=0)
    assert np.array_equal(first.volumes.numpy(), pixels[[5, 0]]) and first.labels.tolist() == [labels[5], labels[0]]
    assert np.array_equal(second.volumes.numpy(), pixels[[3]]) and second.indices.tolist() == [3]


def test_damaged_volume_is_an_input_error_that_names_the_scan(volumes_file: Path) -> None:
    with h5py.File(volumes_file, "r") as plain:
        chunk = plain["slices"].id.get_chunk_info_by_coord((0, 0, 0))
    content = bytearray(volumes_file.read_bytes())
    content[chunk.byte_offset + 500] ^= 1
    volumes_file.write_bytes(content)
    data = VolumeSet(VolumesFile(volumes_file), "train", 2)
    with pytest.raises(InputError, match=r"is damaged: .*NCP/16/1000"):
        list(data.batches(in_order(len(data), 2), workers=0))


def test_order_covers_everything_once() -> None:
    assert in_order(7, 3) == [[0, 1, 2], [3, 4, 5], [6]]
    assert in_order(6, 3) == [[0, 1, 2], [3, 4, 5]]
    assert in_order(0, 3) == []


def test_process_whose_worker_met_a_damaged_volume_names_the_scan_and_ends(volumes_file: Path) -> None:
    """Its worker ignores SIGTERM, so nothing at the end of the process may wait for it."""
    with h5py.File(volumes_file, "r") as plain:
        chunk = plain["slices"].id.get_chunk_info_by_coord((0, 0, 0))
    content = bytearray(volumes_file.read_bytes())
    content[chunk.byte_offset + 500] ^= 1
    volumes_file.write_bytes(content)
    code = (
        "import sys; from pathlib import Path\n"
        "from ctcovid.base.errors import InputError\n"
        "from ctcovid.volumes.batches import VolumeSet, in_order\n"
        "from ctcovid.volumes.reader import VolumesFile\n"
        "data = VolumeSet(VolumesFile(Path(sys.argv[1])), 'train', 2)\n"
        "try: list(data.batches(in_order(len(data), 1), 1))\n"
        "except InputError as error: kept = error\n"
        "print(kept)\n"
        "sys.exit(kept.exit_code)"
    )
    line = [sys.executable, "-c", code, str(volumes_file)]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        said = process.communicate(timeout=60)[0]
        assert process.returncode == 3
        assert "is damaged" in said and "NCP/16/1000" in said
    finally:
        # The worker of a process that did not end would outlive it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_readers_are_as_many_as_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches_module, "affordable_workers", lambda wanted: min(wanted, 6))
    monkeypatch.setattr(batches_module, "free_memory", lambda: 400)
    monkeypatch.setattr(batches_module, "free_shared", lambda: 100)
    assert affordable(8, 1) == Way(6, True)
    # Two batches of each reader and two in use: 14, 12 and 10 times the batch, in a quarter of the memory and 0.9 of what is shared.
    assert affordable(8, 7) == Way(6, False)
    assert affordable(8, 9) == Way(4, False)
    assert affordable(8, 60) == Way(0, False)
    monkeypatch.setattr(batches_module, "free_memory", lambda: 0)
    assert affordable(8, 60) == Way(6, False)


class Hanging(VolumeSet):
    """Its second volume never comes."""

    def __getitem__(self, index: int) -> tuple[np.ndarray, int, int] | InputError:
        if index == 1:
            threading.Event().wait()
        return super().__getitem__(index)


def test_a_stop_is_heeded_while_a_volume_is_awaited_that_does_not_come(volumes_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches_module, "POLL", 0.2)
    stop = StopRequest()
    with contextlib.closing(Hanging(VolumesFile(volumes_file), "train", 2).batches([[0], [1], [2]], 1, stop=stop)) as batches:
        assert next(batches).indices.tolist() == [0]
        stop.received = signal.SIGTERM
        with pytest.raises(StopAwaitedError):
            next(batches)
        for child in multiprocessing.active_children():
            child.kill()


def test_what_a_reader_complains_of_arrives(volumes_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tensor: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(batches_module, "free_shared", lambda: 1 << 40)
    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    with pytest.raises(CtcovidError, match=r"ran out of shared memory, /dev/shm .*--shm-size"), naming_limits(1):
        list(VolumeSet(VolumesFile(volumes_file), "train", 2).batches([[0]], 1))
