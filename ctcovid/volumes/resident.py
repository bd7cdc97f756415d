"""Volumes kept in fast memory during training, so that no step waits for the disk."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ctcovid.base.console import Console
from ctcovid.base.errors import agreeing, counted
from ctcovid.base.signals import StopRequest
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
    with console.progress(count, "Reading volumes", "volumes") as advance:
        for batch in volumes.batches(in_order(count, READ_AT_ONCE), workers, pin=memory == "gpu"):
            if stop.received:
                return None
            pixels[batch.indices[0] : batch.indices[-1] + 1] = batch.volumes.to(pixels.device, non_blocking=True)
            advance(len(batch.indices))
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


def free_memory() -> int:
    """Bytes of the host's memory that this job may still take; 0 if unknown."""
    found = []
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():
        found += [int(line.split()[1]) * 1024 for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable:")]
    # A batch system limits the memory of a job, on one of the control groups that contain it.
    groups = Path("/proc/self/cgroup")
    for line in groups.read_text().splitlines() if groups.is_file() else []:
        _, controllers, path = line.split(":", 2)
        old = "memory" in controllers.split(",")
        if old or not controllers:
            root = Path("/sys/fs/cgroup/memory" if old else "/sys/fs/cgroup")
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if old else ("memory.max", "memory.current")
            own = root / path.strip("/")
            found += [room for group in (own, *own.parents) if group.is_relative_to(root) and (room := _room(group, *names)) is not None]
    found += _address_space_left()
    return max(0, min(found, default=0))


def _address_space_left() -> list[int]:
    """Bytes of address space left under ulimit -v, if it is set."""
    try:
        import resource

        most, _ = resource.getrlimit(resource.RLIMIT_AS)
        has = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except (ImportError, OSError):
        return []
    return [] if most == resource.RLIM_INFINITY else [most - has]


def _room(group: Path, limit: str, used: str) -> int | None:
    """Bytes that are left under a control group's limit; None if it has none."""
    try:
        most = (group / limit).read_text().strip()
        return None if most == "max" else int(most) - int((group / used).read_text())
    except (OSError, ValueError):
        return None
