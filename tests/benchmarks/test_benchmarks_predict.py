"""The benchmark of predict runs at a small size, and every scan of it is classified."""

from __future__ import annotations

import predict


def test_scans_are_measured_against_the_network_and_from_the_start() -> None:
    found = predict.measure("r3d18", 4, 64, 2, 24, 1, "cpu")
    assert all(found["volumes_per_second"][name] > 0 for name in ("network", "scans", "share"))
    assert found["start_to_row"] > 0
