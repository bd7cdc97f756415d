"""Volumes that stay in fast memory during training, so that no step waits for the disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ctcovid.base.console import Console
from ctcovid.base.signals import StopRequest
from ctcovid.volumes.batches import Batch, VolumeSet, in_order

# Share of what is free that the volumes may take; activations, and whatever else the job does, need the rest.
SHARE = 0.5
# Volumes that are read at a time while memory is filled.
READ_AT_ONCE = 32


class Resident:
    """The volumes of a set in one uint8 tensor (N, D, H, W), on the GPU or in pinned memory of the host, and batches of them.

    Each slice is there once: volumes do not overlap.
    """

    def __init__(self, volumes: Tensor, labels: Tensor, device: torch.device) -> None:
        self.volumes, self.labels, self.device = volumes, labels, device

    def batches(self, order: Sequence[Sequence[int]]) -> Iterator[Batch]:
        """The batches that `order` lists by index, on the device."""
        for batch in order:
            indices = torch.tensor(batch)
            if self.volumes.device == self.device:
                volumes = self.volumes[indices.to(self.device)]
            else:
                # The host's allocator does not hand pinned memory out again before the copy from it is done.
                volumes = self.volumes[indices].pin_memory().to(self.device, non_blocking=True)
            yield Batch(volumes, self.labels[indices], indices)


def resident(volumes: VolumeSet, device: torch.device, workers: int, stop: StopRequest, console: Console) -> Resident | None:
    """The set in the fastest memory that has room for it, said on stderr; None where workers have to read it, or `stop` came.

    Raises InputError where a volume cannot be read.
    """
    count = len(volumes)
    size = count * volumes.depth * volumes.file.size**2
    place = where(size, device)
    if place is None:
        return None
    kept = "on the GPU" if place == "gpu" else "in pinned memory"
    console.say(f"The {count:,} training volumes ({size / 1e9:.1f} GB) are read once and kept {kept}.")
    pixels = torch.empty(
        (count, volumes.depth, volumes.file.size, volumes.file.size),
        dtype=torch.uint8,
        device=device if place == "gpu" else "cpu",
        pin_memory=place == "host",
    )
    with console.progress(count, "Reading volumes") as advance:
        for batch in volumes.batches(in_order(count, READ_AT_ONCE), workers, pin=place == "gpu"):
            if stop.received:
                return None
            pixels[batch.indices[0] : batch.indices[-1] + 1] = batch.volumes.to(pixels.device, non_blocking=True)
            advance(len(batch.indices))
    return Resident(pixels, torch.from_numpy(volumes.labels), device)


def where(size: int, device: torch.device) -> str | None:
    """``gpu``, pinned memory of the ``host``, or None, for so many bytes. On a CPU reading is hidden behind the computation."""
    if device.type != "cuda":
        return None
    if size <= SHARE * torch.cuda.mem_get_info(device)[0]:
        return "gpu"
    return "host" if size <= SHARE * free_memory() else None


def free_memory() -> int:
    """Bytes of the host's memory that this job may still take; 0 where that cannot be told."""
    found = []
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        found += [int(line.split()[1]) * 1024 for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable:")]
    # A batch system gives a job less than the node has.
    groups = Path("/proc/self/cgroup")
    named = [line.split(":", 2)[2].strip("/") for line in groups.read_text().splitlines()] if groups.is_file() else []
    for group in {"", *named}:
        limit, used = (Path("/sys/fs/cgroup", group, name) for name in ("memory.max", "memory.current"))
        if limit.is_file() and used.is_file() and limit.read_text().strip() != "max":
            found.append(int(limit.read_text()) - int(used.read_text()))
    return max(0, min(found, default=0))
