"""Slices to chunks of volumes.h5, in worker processes: decode, resize, compress."""

from __future__ import annotations

import os
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, TypeVar

import h5py

from ctcovid.base.errors import CtcovidError, InputError
from ctcovid.base.signals import held_back, ignore_stopping
from ctcovid.scans.kind import looks_masked
from ctcovid.scans.read import ScanFormat, probe, read_slice, square

# gzip is the one filter that every HDF5 tool has; level 1 costs least for what it saves on CT.
CHUNK_OPTIONS: dict[str, Any] = {"compression": "gzip", "compression_opts": 1, "fletcher32": True}
# Slices per task: large enough that handing over costs nothing, small enough that memory stays small.
BATCH = 8

Task = TypeVar("Task")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Chunk:
    """One slice as it will lie in the file: compressed bytes, with what the writer wants to know of its pixels."""

    data: bytes
    crc32: int
    masked: bool


def encode_slices(job: tuple[tuple[Path, ...], int, int]) -> list[Chunk] | InputError:
    """Chunks of the slices ``(paths, bits, size)``; the error rather than an exception where one cannot be read."""
    paths, bits, size = job
    chunks = []
    try:
        for path in paths:
            pixels = square(read_slice(path, bits), size)
            # HDF5 itself makes the chunk, in memory, so that its bytes are what any HDF5 library expects.
            with h5py.File("chunk", "w", driver="core", backing_store=False) as file:
                dataset = file.create_dataset("slice", data=pixels[None], chunks=(1, size, size), **CHUNK_OPTIONS)
                chunks.append(Chunk(dataset.id.read_direct_chunk((0, 0, 0))[1], zlib.crc32(pixels.tobytes()), looks_masked(pixels)))
    except InputError as error:
        return error
    return chunks


def probe_scan(slices: tuple[Path, ...]) -> ScanFormat | InputError:
    """The scan's format; the error rather than an exception where it has none."""
    try:
        return probe(slices)
    except InputError as error:
        return error


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
        # Forked processes would inherit the HDF5 file that the main process is writing.
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
