"""Batches of depth-n volumes, read by worker processes."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import active_children
from multiprocessing.connection import wait
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ctcovid.base.errors import InputError
from ctcovid.base.memory import free_memory
from ctcovid.base.process_info import process_info
from ctcovid.base.room import affordable_workers, free_shared
from ctcovid.base.signals import StopAwaitedError, StopRequest, ignore_stopping, stopping_blocked
from ctcovid.volumes.reader import Volume, VolumesFile

# Seconds without a batch after which readers count as dead though they live, and after which it is looked whether they do.
SLOWEST, POLL = 900.0, 2.0
# Batches of each worker that are on the way, as torch has it, and those that are in use.
AHEAD = 2
# Shares of the free memory, and of the free shared memory, that these may take.
SHARE, SHARE_OF_SHARED = 0.25, 0.9


@dataclass(frozen=True)
class Batch:
    """uint8 `volumes` (B, D, H, W), int64 `labels` (B,), and int64 `indices` (B,) into their set."""

    volumes: Tensor
    labels: Tensor
    indices: Tensor


class VolumeSet(Dataset[object]):
    """The depth-n volumes of one part of a volumes.h5, as a torch Dataset.

    An item is ``(uint8 (D, H, W), label, index)``, or the InputError raised by reading it: torch would wrap an exception of a worker
    in a traceback.
    """

    def __init__(self, file: VolumesFile, part: str, depth: int) -> None:
        self.file, self.part, self.depth = file, part, depth
        self.volumes: list[Volume] = file.volumes(part, depth)
        self.labels = np.array([file.classes.index(volume.scan.label) for volume in self.volumes], dtype=np.int64)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of a volume: (D, H, W)."""
        return self.depth, self.file.size, self.file.size

    def __len__(self) -> int:
        return len(self.volumes)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int, int] | InputError:
        try:
            return self.file.read(self.volumes[index].first_slice, self.depth), int(self.labels[index]), index
        except InputError as error:
            return error

    def named(self, indices: Sequence[int]) -> str:
        """Volumes as found on disk, as in ``NCP/16/1164 slices 0-3, 8-11; CP/7/3 slices 4-7``, counted from 0."""
        slices: dict[str, list[str]] = {}
        for volume in sorted((self.volumes[index] for index in indices), key=lambda volume: volume.first_slice):
            first = volume.number * self.depth
            slices.setdefault(volume.scan.source, []).append(f"{first}-{first + self.depth - 1}")
        return "; ".join(f"{source} slices {', '.join(numbers)}" for source, numbers in slices.items())

    def batches(
        self, order: Sequence[Sequence[int]], workers: int, pin: bool = False, stop: StopRequest | None = None
    ) -> Generator[Batch, None, None]:
        """The batches that `order` lists by index, read by at most so many `workers`; without any, by this process.

        Raises InputError if a volume cannot be read, RuntimeError if a worker dies, StopAwaitedError if `stop` was requested and no
        batch comes.
        """
        largest = max(map(len, order), default=0) * self.depth * self.file.size**2
        way = affordable(min(workers, len(order)), largest)
        loader: DataLoader[object] = DataLoader(
            self,
            batch_sampler=[list(batch) for batch in order],
            num_workers=way.workers,
            timeout=POLL if way.workers else 0,
            collate_fn=_collate_shared if way.shared else _collate,
            worker_init_fn=_begin_worker,
            pin_memory=pin,
        )
        before = set(active_children())
        with stopping_blocked(), _own_handler():
            batches = iter(loader)
        readers = set(active_children()) - before
        try:
            while (batch := _awaited(batches, stop)) is not None:
                if isinstance(batch, InputError):
                    raise batch
                volumes, labels, indices = (torch.as_tensor(one) for one in batch)
                yield Batch(volumes, labels, indices)
        except (RuntimeError, OSError, EOFError) as error:
            # A batch is fetched from the memory of a worker, which raises other errors than waiting for one does.
            if not readers:
                raise
            wait([reader.sentinel for reader in readers], timeout=5)
            killed = {signal.Signals(-reader.exitcode).name for reader in readers if reader.exitcode and reader.exitcode < 0}
            if not killed and isinstance(error, RuntimeError):
                raise
            how = ", ".join(sorted(killed)) or "an unknown cause"
            raise RuntimeError(f"DataLoader workers ended by {how}: {error}") from error
        finally:
            # The workers end with the iterator. If an exception's traceback kept it alive, they would wait for each other at exit.
            del batches


@dataclass(frozen=True)
class Way:
    """How volumes get here: read by so many workers, 0 for this process, and handed over in shared memory or as bytes in a pipe."""

    workers: int
    shared: bool


def affordable(workers: int, batch: int) -> Way:
    """The fastest way for which there is room, for batches of so many bytes: of each worker, AHEAD are on the way at a time.

    Shared memory takes half the time of a pipe. In containers it is often smaller than one batch.
    """
    workers = affordable_workers(workers)
    while workers and batch * (AHEAD * workers + AHEAD) > SHARE * (free_memory() or math.inf):
        workers -= 1
    room = free_shared() // process_info().local_size
    return Way(workers, workers > 0 and batch * (AHEAD * workers + AHEAD) < SHARE_OF_SHARED * room)


def _awaited(batches: Iterator[object], stop: StopRequest | None) -> Any:
    """The next of the batches, None at their end. torch looks for dead workers only when its time-out ends, so that is short."""
    began = time.monotonic()
    while True:
        try:
            return next(batches, None)
        except RuntimeError as error:
            if "timed out" not in str(error):
                raise
            if time.monotonic() - began > SLOWEST:
                raise RuntimeError(f"DataLoader timed out after {SLOWEST:.0f} seconds") from error
            if stop is not None and stop.received is not None:
                raise StopAwaitedError from error


@contextlib.contextmanager
def _own_handler() -> Iterator[None]:
    """Keep the handler of SIGCHLD: torch's raises at any point of the program when a worker ends.

    Without it, the loader notices within seconds, while it waits for the worker.
    """
    ours = hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGCHLD) if ours else None
    try:
        yield
    finally:
        if before is not None:
            signal.signal(signal.SIGCHLD, before)


def in_order(count: int, batch: int) -> list[list[int]]:
    """Batches of at most `batch` indices, in order."""
    return [list(range(first, min(first + batch, count))) for first in range(0, count, batch)]


def _collate(items: list[tuple[np.ndarray, int, int] | InputError]) -> tuple[np.ndarray | Tensor, list[int], list[int]] | InputError:
    for item in items:
        if isinstance(item, InputError):
            return item
    pixels, labels, indices = zip(*items, strict=True)
    return np.stack(pixels), list(labels), list(indices)


def _collate_shared(items: list[tuple[np.ndarray, int, int] | InputError]) -> tuple[np.ndarray | Tensor, list[int], list[int]] | InputError:
    batch = _collate(items)
    # Here, and not when torch sends it: what fails there is only printed, and the batch never comes.
    return batch if isinstance(batch, InputError) else (torch.as_tensor(batch[0]).share_memory_(), *batch[1:])


def _begin_worker(number: int) -> None:
    ignore_stopping()
