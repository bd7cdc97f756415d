"""The CPUs of the job, not those of the node."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ctcovid.base import cpus


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A node of 8 CPUs without quota or SLURM; the file of the control group's quota, absent."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    monkeypatch.setattr(cpus, "Path", lambda name: tmp_path / Path(name).name)
    return tmp_path / "cpu.max"


def test_affinity_is_the_limit_where_nothing_else_is(node: Path) -> None:
    assert cpus.allowed() == 8


def test_slurm_allots_fewer_than_the_node_has(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "3")
    assert cpus.allowed() == 3


@pytest.mark.parametrize("said", ["64", "", "all"])
def test_slurm_never_gives_more_than_the_process_may_use(said: str, node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", said)
    assert cpus.allowed() == 8


@pytest.mark.parametrize(("quota", "expected"), [("max 100000\n", 8), ("250000 100000\n", 2), ("50000 100000\n", 1)])
def test_quota_of_the_control_group_counts_whole_cpus_and_at_least_one(quota: str, expected: int, node: Path) -> None:
    node.write_text(quota)
    assert cpus.allowed() == expected


def test_least_of_all_limits_holds(node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node.write_text("400000 100000\n")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "6")
    assert cpus.allowed() == 4
