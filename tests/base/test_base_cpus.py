"""The CPUs of the job, not those of the node, and what decided."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from groups import write_groups

from ctcovid.base import cpus
from ctcovid.base.cpus import Allowed, decided

STEP = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "1", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1", "SLURM_TASKS_PER_NODE": "4"}
TORCHRUN = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "localhost"}


@pytest.fixture(autouse=True)
def node(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node of 16 CPUs, of which this process may use 8."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Allowed(8, "affinity")),
        ({"SLURM_CPUS_PER_TASK": "3", "SLURM_CPUS_ON_NODE": "6"}, Allowed(3, "SLURM_CPUS_PER_TASK")),
        ({"SLURM_CPUS_PER_TASK": "64"}, Allowed(8, "affinity")),
        ({"SLURM_CPUS_PER_TASK": "all", "NSLOTS": "", "PBS_NP": "0"}, Allowed(8, "affinity")),
        ({"SLURM_CPUS_ON_NODE": "4"}, Allowed(4, "SLURM_CPUS_ON_NODE")),
        ({"PBS_NP": "6", "NCPUS": "3"}, Allowed(3, "NCPUS")),
        ({"PBS_NP": "5"}, Allowed(5, "PBS_NP")),
        ({"NSLOTS": "2"}, Allowed(2, "NSLOTS")),
        ({"LSB_DJOB_NUMPROC": "7"}, Allowed(7, "LSB_DJOB_NUMPROC")),
        ({"LSB_DJOB_NUMPROC": "7", "LSB_MCPU_HOSTS": "far.org 4 here.org 3"}, Allowed(3, "LSB_DJOB_NUMPROC")),
        # srun binds each process, or does not; --cpus-per-task is of each.
        ({**STEP, "SLURM_CPUS_ON_NODE": "8"}, Allowed(2, "SLURM_CPUS_ON_NODE, shared by 4 processes")),
        ({**STEP, "SLURM_CPUS_ON_NODE": "12", "SLURM_CPUS_PER_TASK": "1"}, Allowed(1, "SLURM_CPUS_PER_TASK")),
        ({**STEP, "SLURM_CPUS_ON_NODE": "2"}, Allowed(1, "SLURM_CPUS_ON_NODE, shared by 4 processes")),
        ({**TORCHRUN}, Allowed(2, "affinity, shared by 4 processes")),
        ({**TORCHRUN, "SLURM_CPUS_PER_TASK": "4"}, Allowed(1, "SLURM_CPUS_PER_TASK, shared by 4 processes")),
    ],
)
def test_the_least_of_what_limits_this_process_counts_and_is_named(
    environment: dict[str, str], expected: Allowed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpus.platform, "node", lambda: "here")
    assert decided(environment, tmp_path) == expected


@pytest.mark.parametrize("root", ["/", "/job"])
@pytest.mark.parametrize(("quota", "above", "expected"), [(None, 250000, 2), (50000, None, 1), (300000, 200000, 2), (None, None, 8)])
@pytest.mark.parametrize("version", [1, 2])
def test_quotas_of_nested_groups_count_whole_cpus(
    version: int, quota: int | None, above: int | None, expected: int, root: str, tmp_path: Path
) -> None:
    def files(limit: int | None) -> dict[str, str]:
        if version == 2:
            return {"cpu.max": f"{limit or 'max'} 100000\n"}
        return {"cpu.cfs_quota_us": f"{limit or -1}\n", "cpu.cfs_period_us": "100000\n"}

    write_groups(tmp_path, version, "cpu", "/job/step", files(quota), files(above), root)
    found = decided({}, tmp_path)
    assert found == Allowed(expected, "affinity" if expected == 8 else "quota of the control group")
    assert str(found).startswith(f"{expected} CPU")


def test_a_whole_node_is_called_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert str(decided({}, tmp_path)) == "8 CPUs (all of this node)"


def test_the_real_groups_of_this_process_leave_it_at_least_one() -> None:
    assert 1 <= decided({}).count <= 8
