"""Worker processes that end when they should."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import get_context, parent_process
from typing import TypeVar

from ctcovid.base.allocation import keep_freed_memory
from ctcovid.base.errors import CtcovidError
from ctcovid.base.signals import held_back, ignore_stopping

Task = TypeVar("Task")
Result = TypeVar("Result")


# Bytes of the blocks that slices take, and of all that a worker keeps for the next.
LARGE, HELD = 32 << 20, 256 << 20


def _begin_worker() -> None:
    ignore_stopping()
    keep_freed_memory(LARGE, HELD)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent tells its workers nothing, and they would wait for tasks for ever."""
    if parent := parent_process():
        parent.join()
        os._exit(1)


class Workers:
    """Processes that work through tasks in order, holding only a few results at a time, however many tasks there are."""

    pool: Executor

    def __init__(self, count: int) -> None:
        self.count = count
        # Forked processes would inherit threads, and the HDF5 file that the main process is writing.
        self.pool = ProcessPoolExecutor(count, mp_context=get_context("spawn"), initializer=_begin_worker)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *failure: object) -> None:
        self.pool.shutdown(cancel_futures=True)

    def map(self, work: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """Results of `work` in the order of `tasks`."""
        waiting: list[Future[Result]] = []
        rest = iter(tasks)
        while True:
            with held_back():
                waiting += [self.submit(work, task) for task in islice(rest, max(0, self.room() - len(waiting)))]
            if not waiting:
                return
            yield self.result(waiting.pop(0))

    def room(self) -> int:
        """How many tasks may be under way at a time."""
        return 2 * self.count + 2

    def submit(self, work: Callable[[Task], Result], task: Task) -> Future[Result]:
        """Hand a task over."""
        return self.pool.submit(work, task)

    def result(self, future: Future[Result]) -> Result:
        """What has become of a task.

        Raises CtcovidError where its worker died.
        """
        try:
            return future.result()
        except BrokenProcessPool as error:
            raise CtcovidError("A worker process died, most likely for want of memory. Ask for more, or pass fewer --workers.") from error
