"""What the C library does with freed memory."""

from __future__ import annotations

import contextlib
import ctypes
import sys

# Parameters of glibc's mallopt, as in malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
# The largest M_MMAP_THRESHOLD that older releases of glibc accept.
OLDER = 32 << 20


def keep_freed_memory(largest: int, most: int = -1) -> bool:
    """Make glibc keep freed memory for later allocations, in the whole process. False if the C library refuses, or is not glibc.

    By default, glibc returns every large block to the system, which then creates and clears its pages again for the next block. On a CPU
    that takes a tenth of a training step of r3d18, and a quarter of one of r2plus1d18 (tests/benchmarks/RESULTS.md).

    Parameters
    ----------
    largest : bytes of the largest block that is kept
    most : bytes that are kept in all; -1 for no limit
    """
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "gnu_get_libc_version"):
        return False
    kept = libc.mallopt(M_MMAP_THRESHOLD, largest) == 1
    if not kept:
        libc.mallopt(M_MMAP_THRESHOLD, OLDER)
    return libc.mallopt(M_TRIM_THRESHOLD, most) == 1 and kept


def hand_back() -> None:
    """Return free memory to the system, if the C library is glibc."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
