"""The arithmetic of scaling.py against values worked out by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import scaling
from scaling import Link, Reading

# 1 GB/s and 1 ms a message, so that the values below can be followed in one's head.
SLOW = Link("slow", 1e9, 1e-3, 10**6)
FREE = Link("free", float("inf"), 0.0, 10**6)


@pytest.mark.parametrize(
    ("gpus", "expected"),
    # 2(n-1)/n of 100 MB at 1 GB/s, and 2(n-1) messages of 1 ms.
    [(1, 0.0), (2, 0.1 + 0.002), (4, 0.15 + 0.006), (8, 0.175 + 0.014)],
)
def test_a_ring_all_reduce_sends_twice_what_the_others_hold(gpus: int, expected: float) -> None:
    assert scaling.all_reduce_seconds(gpus, 100e6, SLOW) == pytest.approx(expected)


def test_the_largest_share_of_the_batch_sets_the_time() -> None:
    # 32 volumes in 3.2 s: 16, 4, 11 and 1 volumes on the busiest GPU.
    assert [scaling.compute_seconds(gpus, 32, 3.2) for gpus in (2, 8, 3, 64)] == pytest.approx([1.6, 0.4, 1.1, 0.1])


def test_gradients_after_the_backward_pass_add_their_whole_time() -> None:
    assert scaling.step_seconds(2, 32, 3.2, 100e6, SLOW, beside=False) == pytest.approx(1.6 + 0.102)


def test_gradients_beside_the_backward_pass_show_their_last_bucket_or_what_outlasts_it() -> None:
    # 100 MiB are four buckets of 25 MiB, 0.0262144 + 0.002 s each on two GPUs.
    bucket = 25 * 2**20 / 1e9 + 0.002
    assert scaling.step_seconds(2, 32, 3.2, 100 * 2**20, SLOW, beside=True) == pytest.approx(1.6 + bucket)
    # A backward pass of 2/3 of 0.06 s hides that much of the four.
    assert scaling.step_seconds(2, 2, 0.12, 100 * 2**20, SLOW, beside=True) == pytest.approx(0.06 + 4 * bucket - 0.04)


def test_one_gpu_is_the_measure_and_free_links_lose_nothing_but_what_does_not_divide() -> None:
    for beside in (False, True):
        for grows in (False, True):
            assert scaling.efficiency(1, 32, 3.2, 1e8, SLOW, beside, grows) == 1
        assert scaling.efficiency(64, 32, 3.2, 1e8, FREE, beside, grows=True) == pytest.approx(1)
        assert scaling.efficiency(8, 32, 3.2, 1e8, FREE, beside, grows=False) == pytest.approx(1)
        # Half of 64 GPUs have nothing to do with a batch of 32; three GPUs take 11 volumes of 32 at the most.
        assert scaling.efficiency(64, 32, 3.2, 1e8, FREE, beside, grows=False) == pytest.approx(0.5)
        assert scaling.efficiency(3, 32, 3.2, 1e8, FREE, beside, grows=False) == pytest.approx(32 / 33)
    # 3.2 s of work for each, and 0.102 s until all know the gradients.
    assert scaling.efficiency(2, 32, 3.2, 100e6, SLOW, beside=False, grows=True) == pytest.approx(3.2 / 3.302)


def test_reading_is_the_limit_where_processes_do_not_keep_up() -> None:
    reading = Reading(slice_seconds=0.002, slice_bytes=200e3)
    # 100 volumes of 4 slices are 400 slices a second, 0.8 s of one process and 80 MB.
    assert reading.processes(100, 4) == pytest.approx(0.8)
    assert reading.bytes_per_second(100, 4) == pytest.approx(80e6)
    assert reading.limit(8, 4) == pytest.approx(1000)
    found = scaling.simulate(32, 4, 0.32, 132e6, reading, processes=8)
    # One GPU takes 100 volumes a second.
    assert found["limit"] == pytest.approx(1000) and found["limit_gpus"] == pytest.approx(10)
    assert [need["volumes_per_second"] for need in found["reading"]] == pytest.approx([100, 200, 800, 6400])


def test_nvlink_says_nothing_of_64_gpus() -> None:
    rows = scaling.simulate(32, 4, 0.32, 132e6, Reading(0.002, 2e5), 8)["rows"]
    assert all((row["efficiency"][64] is None) == row["link"].startswith("NVLink") for row in rows)


def test_the_script_measures_prints_and_writes_what_it_was_told_to(tmp_path: Path) -> None:
    line = [sys.executable, scaling.__file__, "--size", "32", "--batch", "2", "--rounds", "1", "--device", "cpu"]
    done = subprocess.run([*line, "--json", str(tmp_path / "s.json")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "s.json").read_text())
    # 33,031,619 float32 parameters of r3d18.
    assert found["gradient_bytes"] == 4 * 33_031_619
    assert found["step_seconds"] > 0 and found["slice_seconds"] > 0 and 0 < found["slice_bytes"] < 32 * 32 + 2000
    assert "measured on cpu" in done.stdout and "computed, not measured" in done.stdout
