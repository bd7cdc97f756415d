"""Worker processes that work through tasks in order, and end with their parent."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import active_children, get_context, parent_process
from typing import TypeVar

from ctcovid.base.allocation import keep_freed_memory
from ctcovid.base.errors import CtcovidError
from ctcovid.base.memory import free_in_words, killed_for_memory
from ctcovid.base.room import affordable_workers
from ctcovid.base.signals import StopAwaitedError, StopRequest, ignore_stopping, stopping_blocked

Task = TypeVar("Task")
Result = TypeVar("Result")


# Bytes of the largest blocks that slices take, and of all freed memory that a worker keeps for reuse.
LARGE, HELD = 32 << 20, 256 << 20
# Seconds after which it is looked whether a stop was requested.
POLL = 1.0


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
    """Processes that work through tasks in order, with only a few results in memory at a time.

    There are fewer than `count` if file handles or shared memory do not suffice. If they suffice for none, this process does the work.

    Attributes
    ----------
    stop : if set, waiting for a result ends when a stop is requested
    """

    pool: Executor | None
    stop: StopRequest | None = None

    def __init__(self, count: int) -> None:
        self.count = affordable_workers(count)
        self._before, self._killed = set(active_children()), killed_for_memory()
        # Not forked: they would inherit threads, and the HDF5 file that the main process is writing.
        start = get_context("spawn")
        self.pool = ProcessPoolExecutor(self.count, mp_context=start, initializer=_begin_worker) if self.count else None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(wait=kind is None, cancel_futures=True)
            # One may wait for a disk that does not answer.
            for worker in set(active_children()) - self._before if kind else ():
                worker.kill()

    def map(self, work: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """Results of `work` in the order of `tasks`.

        Raises StopAwaitedError if a stop is requested while one is awaited.
        """
        if self.pool is None:
            yield from map(work, tasks)
            return
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
        assert self.pool is not None
        return self.pool.submit(work, task)

    def wait(self, future: Future[Result]) -> None:
        """Return when the task is done. Raises StopAwaitedError if a stop is requested before."""
        while not wait([future], POLL).done:
            self.heed()

    def heed(self) -> None:
        """Raises StopAwaitedError if a stop is requested."""
        if self.stop is not None and self.stop.received is not None:
            raise StopAwaitedError

    def result(self, future: Future[Result]) -> Result:
        """The result of a task.

        Raises CtcovidError if its worker died.
        """
        self.wait(future)
        try:
            return future.result()
        except BrokenProcessPool as error:
            for_memory = killed_for_memory() > self._killed
            how = f"was killed by the kernel, out of memory ({free_in_words()})" if for_memory else "died, probably out of memory"
            raise CtcovidError(f"A worker process {how}. Ask for more, or pass fewer --workers.") from error
