"""How many CPUs the job gives to this process; on a cluster these are fewer than the node has."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ctcovid.base.cgroups import SYSTEM, groups, number
from ctcovid.base.errors import counted
from ctcovid.base.process_info import process_info

# CPUs of the job on a node, by the names that PBS (three), LSF, SGE and SLURM use.
OF_THE_JOB = ("PBS_NUM_PPN", "NCPUS", "PBS_NP", "LSB_DJOB_NUMPROC", "NSLOTS", "SLURM_CPUS_ON_NODE")
OF_THE_TASK = "SLURM_CPUS_PER_TASK"


@dataclass(frozen=True)
class Allowed:
    """CPUs of this process, at least 1, and what decided."""

    count: int
    reason: str

    def __str__(self) -> str:
        return f"{counted(self.count, 'CPU')} ({self.reason})"


def allowed() -> int:
    """CPUs of this process; see `decided`."""
    return decided().count


def decided(environment: Mapping[str, str] = os.environ, system: Path = SYSTEM) -> Allowed:
    """The least of affinity, quota of the control groups, and what the batch system says, shared by the processes on the node."""
    limits = list(_limits(environment, system))
    least = min(count for count, _ in limits)
    # Of equal limits, the batch system's says most: it comes last.
    return next(Allowed(max(1, count), reason) for count, reason in reversed(limits) if count == least)


def _limits(environment: Mapping[str, str], system: Path) -> Iterator[tuple[int, str]]:
    here = process_info(environment)
    shared = f", shared by {here.local_size} processes" if here.local_size > 1 else ""
    node = os.cpu_count() or 1
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else node
    what = "affinity" if affinity < node else "all of this node"
    # srun may bind each process to CPUs of its own.
    yield (affinity, what) if here.own_cpus else (affinity // here.local_size, what + shared)
    quotas = [quota for group in groups("cpu", system) if (quota := _quota(group)) is not None]
    if quotas:
        yield int(min(quotas) / here.local_size), f"quota of the control group{shared}"
    for name in OF_THE_JOB:
        if (count := _own(name, environment)) is not None:
            yield count // here.local_size, name + shared
    if (count := _own(OF_THE_TASK, environment)) is not None:
        yield (count, OF_THE_TASK) if here.own_cpus else (count // here.local_size, OF_THE_TASK + shared)


def _quota(group: Path) -> float | None:
    """CPUs by the quota of a control group of version 1 or 2; None if it has none."""
    quota, period = number(group / "cpu.cfs_quota_us"), number(group / "cpu.cfs_period_us")
    if (group / "cpu.max").is_file():
        quota, period = number(group / "cpu.max"), int((group / "cpu.max").read_text().split()[1])
    return quota / period if quota and period and quota > 0 else None


def _own(name: str, environment: Mapping[str, str]) -> int | None:
    """A number of CPUs from the environment; LSF's is that of all hosts, which it also lists with the CPUs of each."""
    text = environment.get(name, "")
    words = environment.get("LSB_MCPU_HOSTS", "").split() if name == "LSB_DJOB_NUMPROC" else []
    hosts = dict(zip(words[::2], words[1::2], strict=False))
    if len(hosts) > 1:
        here = platform.node()
        text = next((count for host, count in hosts.items() if host == here or host.split(".")[0] == here.split(".")[0]), text)
    return int(text) if text.isdecimal() and text.isascii() and int(text) > 0 else None
