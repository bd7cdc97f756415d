"""How much memory this job may still take, and whether the system has killed one of its processes for it."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from ctcovid.base.cgroups import SYSTEM, groups, number
from ctcovid.base.faults import MachineFaultError

# Version 1 of control groups counts far above any memory if there is no limit.
NO_LIMIT = 1 << 60
# Bytes of address space without which importing torch fails.
LEAST_FOR_TORCH = 750 << 20


def free_memory(system: Path = SYSTEM) -> int:
    """Bytes of the host's memory that this job may still take; 0 if unknown."""
    found = [room for _, room in _limits(system)]
    with contextlib.suppress(OSError):
        kilobytes = re.search(r"^MemAvailable:\s*(\d+)", (system / "proc/meminfo").read_text(), re.MULTILINE)
        found += [int(kilobytes[1]) * 1024] if kilobytes else []
    return max(0, min(found, default=0))


def free_in_words(system: Path = SYSTEM) -> str:
    """What is free, and the tightest limit of the job if it has one: ``0.2 of 4.0 GB are free now``."""
    limits = [most for most, _ in _limits(system)]
    return f"{free_memory(system) / 1e9:.1f} {f'of {min(limits) / 1e9:.1f} ' if limits else ''}GB are free now"


def killed_for_memory(system: Path = SYSTEM) -> int:
    """How many processes the kernel has killed in this process's control group because its memory was used up."""
    counts = (number(group / name, "oom_kill") for group in groups("memory", system) for name in ("memory.events", "memory.oom_control"))
    return next((count for count in counts if count is not None), 0)


def require_address_space() -> None:
    """Raises MachineFaultError if ulimit -v leaves too little for torch, which would end without a sentence."""
    for most, left in _address_space():
        if left < LEAST_FOR_TORCH:
            raise MachineFaultError(
                f"ulimit -v allows {most / 1e9:.1f} GB of address space, and torch alone needs about 1 GB. Raise the limit."
            )


def address_space() -> int:
    """Bytes of address space that this process has taken.

    Raises OSError or ImportError where the system does not say.
    """
    import resource

    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _limits(system: Path) -> Iterator[tuple[int, int]]:
    """Each limit on the memory of this job in bytes, and what is left of it."""
    for group in groups("memory", system):
        for limit, used, cached in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            most, now = number(group / limit), number(group / used)
            if most is not None and now is not None and most < NO_LIMIT:
                # What was read from files counts, but is dropped when memory is needed.
                yield most, most - now + (number(group / "memory.stat", cached) or 0)
    if system == SYSTEM:
        yield from _address_space()


def _address_space() -> Iterator[tuple[int, int]]:
    """The limit of ulimit -v, if it is set, and what is left of it."""
    try:
        import resource

        most, _ = resource.getrlimit(resource.RLIMIT_AS)
        has = address_space()
    except (ImportError, OSError):
        return
    if most != resource.RLIM_INFINITY:
        yield most, most - has
