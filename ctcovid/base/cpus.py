"""How many CPUs this job may use; on a cluster these are fewer than the node has."""

from __future__ import annotations

import os
from pathlib import Path


def allowed() -> int:
    """CPUs by affinity, by the control group's quota and by SLURM, whichever is least; at least 1."""
    limits = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.is_file():
        allowance, period = quota.read_text().split()
        if allowance != "max":
            limits.append(int(allowance) // int(period))
    if (slurm := os.environ.get("SLURM_CPUS_PER_TASK", "")).isdigit():
        limits.append(int(slurm))
    return max(1, min(limits))
