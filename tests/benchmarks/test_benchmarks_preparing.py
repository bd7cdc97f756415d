"""preparing.py runs the command itself on data sets whose size it knows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import preparing

from ctcovid.phantom.chest import ScanKey, slices_of_chest
from ctcovid.volumes.reader import VolumesFile


def test_every_slice_is_prepared_and_counted(tmp_path: Path) -> None:
    greys = np.stack([drawn.pixels for drawn in slices_of_chest("NCP", 8, 64, ScanKey(1, 0))])
    decoded, deflated, _, size = preparing.measure(tmp_path, greys, *preparing.FORMATS["PNG"], scans=3, rounds=1)
    assert decoded > 0 and deflated > 0
    assert [row.slice_count for row in VolumesFile(tmp_path / "5.h5").rows] == [8] * 5
    # Of so small slices the file is mostly table.
    assert size > 1
