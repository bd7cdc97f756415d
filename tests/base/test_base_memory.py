"""The memory that the job may still take: of the host, of each control group around this process, and under ulimit -v."""

from __future__ import annotations

from pathlib import Path

import pytest
from groups import write_groups

from ctcovid.base.faults import MachineFaultError
from ctcovid.base.memory import free_in_words, free_memory, killed_for_memory, require_address_space


def test_free_memory_is_some_of_the_machines() -> None:
    if Path("/proc/meminfo").is_file():
        total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
        assert 0 < free_memory() <= total


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not say what the process has")
def test_a_limit_on_the_process_itself_counts() -> None:
    """ulimit -v, as some batch systems set it."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_AS)
    has = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (has + (400 << 20), before[1]))
    try:
        assert free_memory() <= 400 << 20
        with pytest.raises(MachineFaultError, match=r"ulimit -v allows .*Raise the limit"):
            require_address_space()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("version", [1, 2])
def test_the_tightest_of_nested_groups_counts_without_what_was_read_from_files(version: int, tmp_path: Path) -> None:
    limit, used, cached = {
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        2: ("memory.max", "memory.current", "inactive_file"),
    }[version]
    write_groups(tmp_path, version, "memory", "/slurm/job_7", own={limit: "max" if version == 2 else str(1 << 63), used: "5"})
    assert free_memory(tmp_path) == 0 and free_in_words(tmp_path) == "0.0 GB are free now"
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000000 kB\nMemAvailable:    8000000 kB\n")
    assert free_memory(tmp_path) == 8_192_000_000
    write_groups(
        tmp_path, version, "memory", "/slurm/job_7", above={limit: "3000000000", used: "2500000000", "memory.stat": f"x 1\n{cached} 7"}
    )
    assert free_memory(tmp_path) == 500_000_007
    assert free_in_words(tmp_path) == "0.5 of 3.0 GB are free now"
    write_groups(tmp_path, version, "memory", "/slurm/job_7", own={limit: "1000", used: "4000"})
    assert free_memory(tmp_path) == 0


@pytest.mark.parametrize(("version", "name"), [(1, "memory.oom_control"), (2, "memory.events")])
def test_processes_that_the_kernel_has_killed_are_counted(version: int, name: str, tmp_path: Path) -> None:
    write_groups(tmp_path, version, "memory", "/job", own={name: "oom 5\noom_kill 2\n"}, above={name: "oom_kill 9\n"})
    assert killed_for_memory(tmp_path) == 2
