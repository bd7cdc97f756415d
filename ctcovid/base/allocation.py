"""What the C library does with memory that is freed."""

from __future__ import annotations

import contextlib
import ctypes
import sys

# Parameters of glibc's mallopt, as in malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
# The largest that older releases of glibc take.
OLDER = 32 << 20


def keep_freed_memory(largest: int, most: int = -1) -> bool:
    """Have glibc keep what is freed for what is asked for next, in the whole process; False where the C library refuses, or is another one.

    As it comes, it gives every large block back to the system, whose pages are then made and cleared again one by one for the next:
    on a CPU a tenth of a training step of r3d18, a quarter of one of r2plus1d18 (tests/benchmarks/RESULTS.md).

    Parameters
    ----------
    largest : bytes of the largest block that is kept
    most : bytes that are kept in all; -1, all of them
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
    """Give what is free back to the system, where the C library is glibc."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
