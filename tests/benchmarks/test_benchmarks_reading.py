"""reading.py writes in each format the same scan, so that its rates are about the same work."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import reading
from whole import read_scan

from ctcovid.scans.discover import find_scans


@pytest.mark.parametrize("name", reading.FORMATS)
def test_each_format_gives_the_same_slices(name: str, tmp_path: Path) -> None:
    y, x = np.mgrid[:64, :64]
    # Smooth, so that a lossy JPEG comes near.
    greys = np.stack([(40 + y + 2 * x + 3 * number) % 256 for number in range(3)]).astype(np.uint8)
    write, decoder = reading.FORMATS[name]
    write(tmp_path, greys)
    (scan,) = find_scans([tmp_path])
    found = read_scan(scan, 64)
    assert np.abs(found.astype(int) - greys).max() <= (12 if name == "JPEG" else 1)
    assert all(rate > 0 for rate in reading.measure(tmp_path, decoder, 1))
