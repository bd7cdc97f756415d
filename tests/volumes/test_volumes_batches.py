"""Batches of depth-n volumes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from ctcovid.base.errors import InputError
from ctcovid.volumes.batches import VolumeSet, in_order
from ctcovid.volumes.reader import VolumesFile


def expected(known_scans: list, part: str, depth: int) -> tuple[np.ndarray, list[int]]:
    volumes, labels = [], []
    for scan in known_scans:
        if scan.row.split == part:
            for first in range(0, len(scan.pixels) - depth + 1, depth):
                volumes.append(scan.pixels[first : first + depth])
                labels.append(["NCP", "CP", "Normal"].index(scan.row.label))
    return np.stack(volumes), labels


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("depth", [2, 3])
def test_batches_hold_each_volume_of_the_part_once_with_its_label(depth: int, workers: int, volumes_file: Path, known_scans: list) -> None:
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
