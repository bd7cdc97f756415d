"""A run is resumed only as the same training."""

from __future__ import annotations

from pathlib import Path

import h5py
import pytest

from ctcovid.base.console import Console
from ctcovid.base.errors import InputError
from ctcovid.training.resume import changes, require_same
from ctcovid.volumes.reader import VolumesFile


def test_data_that_changed_since_the_run_started_are_refused(volumes_file: Path) -> None:
    before = VolumesFile(volumes_file).fingerprint
    with h5py.File(volumes_file, "r+") as file:
        file["scans/crc32"][0] += 1
    now = VolumesFile(volumes_file).fingerprint
    with pytest.raises(InputError, match="when the run started"):
        require_same({"data": before}, {"data": now}, Path("runs/a"), Console())
    require_same({"data": before, "ranks": 2}, {"data": before, "ranks": 1, "sync_batchnorm": False}, Path("runs/a"), Console())


def test_another_number_of_processes_is_said() -> None:
    now = {"ranks": 1, "sync_batchnorm": False, "device": "cpu"}
    assert changes({}, now) == []
    (said,) = changes({"ranks": 2}, now)
    assert "batch norm" in said
    (said,) = changes({"ranks": 2}, now | {"ranks": 4, "sync_batchnorm": True})
    assert "batch norm" not in said
