"""Worker processes that work through tasks in order, and end with their parent."""

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
from ctcovid.base.signals import ignore_stopping, stopping_blocked

Task = TypeVar("Task")
Result = TypeVar("Result")


# Bytes of the largest blocks that slices take, and of all freed memory that a worker keeps for reuse.
LARGE, HELD = 32 << 20, 256 << 20


def _begin_worker() -> None:
    ignore_stopping()
    keep_freed_memory(LARGE, HELD)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Without this, the workers of a killed parent would wait for tasks for ever."""
    if parent := parent_process():
        parent.join()
        os._exit(1)


class Workers:
    """Processes that work through tasks in order, with only a few results in memory at a time."""

    pool: Executor

    def __init__(self, count: int) -> None:
        self.count = count
        # Not forked: they would inherit threads, and the HDF5 file that the main process is writing.
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
            with stopping_blocked():
                waiting += [self.submit(work, task) for task in islice(rest, max(0, self.room() - len(waiting)))]
            if not waiting:
                return
            yield self.result(waiting.pop(0))

    def room(self) -> int:
        """How many tasks may be submitted at a time."""
        return 2 * self.count + 2

    def submit(self, work: Callable[[Task], Result], task: Task) -> Future[Result]:
        """Submit a task."""
        return self.pool.submit(work, task)

    def result(self, future: Future[Result]) -> Result:
        """The result of a task.

        Raises CtcovidError if its worker died.
        """
        try:
            return future.result()
        except BrokenProcessPool as error:
            raise CtcovidError("A worker process died, probably out of memory. Ask for more, or pass fewer --workers.") from error
