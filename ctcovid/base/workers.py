"""Worker processes that end when they should."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import get_context, parent_process
from typing import TypeVar

from ctcovid.base.errors import CtcovidError
from ctcovid.base.signals import held_back, ignore_stopping

Task = TypeVar("Task")
Result = TypeVar("Result")


def _begin_worker() -> None:
    ignore_stopping()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent tells its workers nothing, and they would wait for tasks for ever."""
    if parent := parent_process():
        parent.join()
        os._exit(1)


class Workers:
    """Processes that work through tasks in order, holding only a few results at a time, however many tasks there are."""

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
        try:
            while True:
                with held_back():
                    waiting += [self.pool.submit(work, task) for task in islice(rest, 2 * self.count + 2 - len(waiting))]
                if not waiting:
                    return
                yield waiting.pop(0).result()
        except BrokenProcessPool as error:
            raise CtcovidError("A worker process died, most likely for want of memory. Ask for more, or pass fewer --workers.") from error
