"""What a process may still take of what is short in containers and under ulimit: shared memory and file handles."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

SHARED = Path("/dev/shm")
# Handles that reading and writing need beside those of worker processes, and of each worker: its pipes, and what watches it.
SPARE_HANDLES, HANDLES = 16, 4
# Bytes of shared memory that a semaphore takes, and how many the queues between processes have: in all, and for each worker.
SEMAPHORE, SEMAPHORES, SEMAPHORES_EACH = 4096, 12, 4


def free_shared() -> int:
    """Bytes that are free in /dev/shm; 0 if the system has none."""
    try:
        return shutil.disk_usage(SHARED).free
    except OSError:
        return 0


def free_handles() -> int:
    """How many files this process may still open."""
    try:
        import resource

        return resource.getrlimit(resource.RLIMIT_NOFILE)[0] - len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    except (ImportError, OSError):
        # A common limit, of which a new process has used little.
        return 200


def affordable_workers(wanted: int) -> int:
    """At most `wanted` worker processes: as many as there are handles and semaphores for, perhaps none."""
    most = (free_handles() - SPARE_HANDLES) // HANDLES
    if SHARED.is_dir():
        most = min(most, (free_shared() // SEMAPHORE - SEMAPHORES) // SEMAPHORES_EACH)
    return max(0, min(wanted, most))
