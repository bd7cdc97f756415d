"""Volumes kept in fast memory during training, so that no step waits for the disk."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence

import torch
from torch import Tensor

from ctcovid.base.console import Console
from ctcovid.base.errors import agreeing, counted
from ctcovid.base.memory import free_memory
from ctcovid.base.signals import StopAwaitedError, StopRequest
from ctcovid.volumes.batches import Batch, VolumeSet, in_order

# Share of the free memory that the volumes may take: the paper's 21.7 GB fit on a GPU of 80 GB, with room for activations.
SHARE = 0.3
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


def resident(
    volumes: VolumeSet, device: torch.device, workers: int, stop: StopRequest, console: Console, processes: int = 1
) -> Resident | None:
    """The set in the fastest memory that has room for it; None if workers have to read it, or a stop was requested.

    Each of the `processes` on a node has its own GPU and shares the host's memory.

    Raises InputError if a volume cannot be read.
    """
    count = len(volumes)
    size = count * volumes.depth * volumes.file.size**2
    memory = fastest_memory(size, device, processes)
    if memory is None or stop.received:
        return None
    kept = "on the GPU" if memory == "gpu" else "in the host's memory"
    console.say(f"{counted(count, 'training volume')} ({size / 1e9:.1f} GB) {agreeing(count, 'is', 'are')} read once and kept {kept}.")
    shape = (count, volumes.depth, volumes.file.size, volumes.file.size)
    pixels = torch.empty(shape, dtype=torch.uint8, device=device if memory == "gpu" else "cpu")
    with console.progress(count, "Reading volumes") as advance, contextlib.suppress(StopAwaitedError):
        for batch in volumes.batches(in_order(count, READ_AT_ONCE), workers, memory == "gpu", stop):
            if stop.received:
                break
            pixels[batch.indices[0] : batch.indices[-1] + 1] = batch.volumes.to(pixels.device, non_blocking=True)
            advance(len(batch.indices))
    if stop.received:
        return None
    return Resident(pixels, torch.from_numpy(volumes.labels), device)


def fastest_memory(size: int, device: torch.device, processes: int = 1) -> str | None:
    """``gpu``, ``host``, or None, for `size` bytes in each of the `processes` of a node.

    None on a CPU, where reading is hidden behind the computation.
    """
    if device.type != "cuda":
        return None
    if size <= SHARE * torch.cuda.mem_get_info(device)[0]:
        return "gpu"
    return "host" if processes * size <= SHARE * free_memory() else None
