"""Which limit of the job is the likely reason that worker processes die or are slow."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator
from typing import TypeVar

from ctcovid.base import cpus
from ctcovid.base.console import Console
from ctcovid.base.errors import CtcovidError
from ctcovid.base.memory import free_in_words, killed_for_memory
from ctcovid.base.room import free_shared

T = TypeVar("T")
# Warn if reading takes more than this share of an epoch that takes more than so many seconds.
SHARE, SECONDS = 0.5, 60.0


@contextlib.contextmanager
def naming_limits(workers: int) -> Iterator[None]:
    """Turn what torch raises when one of its `workers` dies or is silent into a CtcovidError with the likely reason."""
    before = killed_for_memory()
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if not re.search(r"DataLoader|shared memory", text):
            raise
        raise CtcovidError(_reason(text, workers, killed_for_memory() > before)) from error


def _reason(text: str, workers: int, for_memory: bool) -> str:
    fewer = f"pass fewer --workers than {workers}" if workers > 1 else "choose a smaller --batch or --depth"
    if "timed out" in text:
        return (
            f"The {workers} processes that read volumes have sent nothing for a long time. Either the disk does not respond, or the "
            f"{cpus.allowed()} CPUs of this job are too few: ask for more, as with --cpus-per-task."
        )
    if re.search(r"Bus error|SIGBUS|shared memory|No space", text):
        free = f" ({free_shared() / 1e6:,.0f} MB are free)"
        return f"A process that reads volumes ran out of shared memory, /dev/shm{free}. Enlarge it (docker: --shm-size), or {fewer}."
    if "SIGKILL" in text:
        cause = "because" if for_memory else "most likely because"
        return (
            f"A process that reads volumes was killed by the kernel, {cause} the job is out of memory ({free_in_words()}). "
            f"Ask for more, as with --mem, or {fewer}."
        )
    return f"A process that reads volumes died ({text.splitlines()[0][:200]}). Often the job is out of memory: ask for more, or {fewer}."


class Waiting:
    """Measures the time that an epoch spends waiting for the readers."""

    def __init__(self) -> None:
        self.began, self.waited = time.monotonic(), 0.0

    def timed(self, items: Iterator[T]) -> Iterator[T]:
        """`items`, while the time that each takes is added up."""
        while True:
            before = time.monotonic()
            try:
                item = next(items)
            except StopIteration:
                return
            finally:
                self.waited += time.monotonic() - before
            yield item

    def warn(self, workers: int, console: Console) -> bool:
        """Warn if the network had to wait for the readers; whether it had to."""
        took = time.monotonic() - self.began
        if took < SECONDS or self.waited < SHARE * took:
            return False
        have = cpus.allowed()
        remedy = f"pass more --workers than {workers}" if workers < have else f"ask for more CPUs than {have}, as with --cpus-per-task"
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
        busy = f" The node is busy: a load of {load:.0f}." if load > 2 * (os.cpu_count() or 1) else ""
        console.warn(
            f"{self.waited / took:.0%} of the epoch was spent waiting for volumes to be read: {remedy}, or use a faster disk.{busy}"
        )
        return True
