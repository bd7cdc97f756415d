"""Volumes kept in fast memory during training, so that no step waits for the disk."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Generator, Sequence

import torch
from torch import Tensor

from ctcovid.base.console import Console
from ctcovid.base.errors import agreeing, counted
from ctcovid.base.memory import free_memory
from ctcovid.base.signals import StopAwaitedError, StopRequest
from ctcovid.volumes.batches import Batch, VolumeSet, in_order

# Share of the free memory that the volumes to train on may take, and with those to validate on: the paper's 21.7 GB fit on a GPU of
# 80 GB, and their validation part beside them, with room for activations.
SHARE, SHARE_OF_BOTH = 0.3, 0.4
# Volumes that are read at a time.
READ_AT_ONCE = 32


class Resident:
    """The volumes of a set in one uint8 tensor (N, D, H, W), in the memory of the GPU or of the host.

    Each slice is stored once, as volumes do not overlap.
    """

    def __init__(self, volumes: Tensor, labels: Tensor, device: torch.device) -> None:
        self.volumes, self.labels, self.device = volumes, labels, device

    def batches(self, order: Sequence[Sequence[int]]) -> Generator[Batch, None, None]:
        """The batches that `order` lists by index, on the device."""
        for batch in order:
            indices = torch.tensor(batch)
            if self.volumes.device.type == self.device.type:
                volumes = self.volumes[indices.to(self.volumes.device)]
            else:
                # Pinned batch by batch: torch would round the whole up to the next power of two. Its allocator does not reuse pinned
                # memory before the copy from it is done.
                volumes = self.volumes[indices].pin_memory().to(self.device, non_blocking=True)
            yield Batch(volumes, self.labels[indices], indices)


def size_of(volumes: VolumeSet) -> int:
    """Bytes of a set in memory."""
    return len(volumes) * math.prod(volumes.shape)


def resident(volumes: VolumeSet, memory: str, device: torch.device, workers: int, stop: StopRequest, console: Console) -> Resident | None:
    """The set in `memory`, see `fastest_memory`, for use on `device`; None if a stop was requested.

    Raises InputError if a volume cannot be read.
    """
    count = len(volumes)
    kept = "on the GPU" if memory == "gpu" else "in the host's memory"
    what = f"{counted(count, 'volume')} of the {volumes.part} part ({size_of(volumes) / 1e9:.1f} GB)"
    console.say(f"{what} {agreeing(count, 'is', 'are')} read once and kept {kept}.")
    began = time.monotonic()
    shape = (count, volumes.depth, volumes.file.size, volumes.file.size)
    pixels = torch.empty(shape, dtype=torch.uint8, device=device if memory == "gpu" else "cpu")
    with console.progress(count, "Reading volumes", "volumes") as advance, contextlib.suppress(StopAwaitedError):
        for batch in volumes.batches(in_order(count, READ_AT_ONCE), workers, memory == "gpu", stop):
            if stop.received:
                break
            pixels[batch.indices[0] : batch.indices[-1] + 1] = batch.volumes.to(pixels.device, non_blocking=True)
            advance(len(batch.indices))
    if stop.received:
        return None
    console.say(f"Read {count / max(time.monotonic() - began, 1e-9):,.0f} volumes/s, with {counted(workers, 'worker')}.")
    return Resident(pixels, torch.from_numpy(volumes.labels), device)


def fastest_memory(train: int, valid: int, device: torch.device, processes: int = 1) -> tuple[str | None, str | None]:
    """Where the volumes to train and to validate on are kept, each ``gpu``, ``host``, or None if workers have to read them.

    None on a CPU, where reading is hidden behind the computation. The validation part goes where both fit.

    Parameters
    ----------
    train, valid : bytes of the two in each of the `processes` of a node, which have a GPU each and share the host's memory
    """
    if device.type != "cuda":
        return None, None
    free = {"gpu": torch.cuda.mem_get_info(device)[0], "host": free_memory() // processes}
    place = next((name for name, room in free.items() if train <= SHARE * room), None)
    beside = {name: train if name == place else 0 for name in free}
    return place, next((name for name, room in free.items() if valid and beside[name] + valid <= SHARE_OF_BOTH * room), None)
