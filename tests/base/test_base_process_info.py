"""Rank, number of processes and rendezvous address from what torchrun and SLURM set."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from ctcovid.base.errors import UsageError
from ctcovid.base.process_info import ProcessInfo, first_host, process_info, working_alone

STEP = {
    "SLURM_JOB_ID": "123456",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_TASKS_PER_NODE": "4(x2)",
    "SLURM_JOB_NODELIST": "gpu[07-08]",
}


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("node[003-005,9]", "node003"),
        ("node[9,003-005]", "node9"),
        ("node7,other[1-2]", "node7"),
        ("gpu-a[1-2]-ib,login", "gpu-a1-ib"),
        ("r[01-02]n[1-4]", "r01n1"),
        ("a.site.org,b.site.org", "a.site.org"),
        ("node7", "127.0.0.1"),
        ("", "127.0.0.1"),
    ],
)
def test_first_host_of_slurms_list(hosts: str, first: str) -> None:
    assert first_host(hosts) == first


def test_a_list_that_cannot_be_read_names_the_way_out() -> None:
    with pytest.raises(UsageError, match="MASTER_ADDR"):
        first_host("node[003")


def test_srun_needs_no_wrapper() -> None:
    found = process_info(STEP)
    assert (found.rank, found.size, found.local_rank, found.local_size) == (5, 8, 1, 4)
    assert found.address == "gpu07" and 10000 <= found.port < 30000 and not found.hosted
    assert process_info({**STEP, "SLURM_PROCID": "0"}).port == found.port != process_info({**STEP, "SLURM_JOB_ID": "123457"}).port
    without_step = {name: value for name, value in STEP.items() if name != "SLURM_STEP_ID"}
    assert process_info(without_step).size == 8
    assert process_info({**STEP, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "4000"}).address == "10.0.0.1"


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"SLURM_JOB_ID": "1"},
        {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8"},
        {**STEP, "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "1"},
        # What a batch script sees outside of srun, in a job of eight tasks.
        {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "ENVIRONMENT": "BATCH"},
        {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_GTIDS": "0"},
        {"RANK": "0", "WORLD_SIZE": "1"},
    ],
)
def test_a_single_process_is_on_its_own(environment: dict[str, str]) -> None:
    assert process_info(environment) == ProcessInfo()


def test_torchrun_goes_before_slurm() -> None:
    torchrun = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "7"}
    assert process_info({**STEP, **torchrun}) == ProcessInfo(3, 4, 1, 2, "a", 7, False, "0", own_cpus=False)
    assert process_info({**torchrun, "TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "2"}).hosted


@pytest.mark.parametrize("wrong", [{"SLURM_PROCID": "8"}, {"SLURM_NTASKS": "many"}])
def test_contradictions_are_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(UsageError):
        process_info({**STEP, **wrong})


IN_STEP = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_TASKS_PER_NODE": "2"}


@pytest.mark.parametrize(
    "environment",
    [
        {"SLURM_NTASKS": "2", "SLURM_JOB_NAME": "interactive", "SLURM_TASKS_PER_NODE": "2"},
        IN_STEP | {"SLURM_STEP_ID": "4294967290"},
        {"SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_GTIDS": "0", "ENVIRONMENT": "BATCH"},
        IN_STEP | {"SLURM_PTY_PORT": "35177", "SLURM_TASK_PID": "1"},
    ],
    ids=["salloc", "step of salloc", "batch", "srun --pty bash"],
)
def test_a_shell_of_a_job_with_several_tasks_waits_for_no_others_and_says_so(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    assert process_info(environment) == ProcessInfo()
    (said,) = working_alone("train", environment)
    assert "2 tasks" in said and "with srun" in said
    assert working_alone("prepare", environment) == []


@pytest.mark.parametrize("task", [{}, {"SLURM_PTY_PORT": "1", "SLURM_TASK_PID": str(os.getpid())}])
def test_a_task_of_srun_is_one_of_several_with_a_terminal_too(task: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    assert process_info(IN_STEP | task).size == 2
    assert working_alone("train", IN_STEP | task) == []
