"""How many volumes of a step fit into memory at a time, found by trial."""

from __future__ import annotations

import contextlib
import gc
import math
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ctcovid.base.allocation import hand_back
from ctcovid.base.errors import UsageError, agreeing, counted
from ctcovid.base.memory import free_memory
from ctcovid.distributed.gradients import RunningStatistics
from ctcovid.distributed.ranks import Ranks
from ctcovid.distributed.session import Session
from ctcovid.distributed.sync_batchnorm import alone
from ctcovid.models.device import device_name
from ctcovid.models.network import Network
from ctcovid.training.freeze import learn
from ctcovid.training.recipe import Recipe

# Share of the host's free memory that a step may take. The readers and the system need the rest.
SHARE = 0.7


def automatic_micro_batch(
    recipe: Recipe, network: Network, shape: tuple[int, int, int], checkpoint: dict[str, Any] | None, session: Session
) -> int:
    """The micro-batch for "auto", 0 for the whole batch: that of the checkpoint, or the largest that fits in every process."""
    ranks, before = session.ranks, checkpoint["settings"] if checkpoint else {}
    most = recipe.of_each(ranks.size)
    known = before.get("micro_batch")
    if isinstance(known, int) and before.get("ranks", 1) == ranks.size:
        return 0 if known >= most else known
    found = min(ranks.gather(largest_fitting(network, most, shape, ranks.local_size)))
    each = " of each process" if ranks.size > 1 else ""
    session.console.say(f"{counted(found, 'volume')} {agreeing(found, 'fits', 'fit')} into memory at a time, of {most} in a step{each}.")
    return 0 if found == most else found


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory was not enough, on a GPU or on the host, for which torch has no class of errors."""
    said = isinstance(error, RuntimeError) and re.search(r"DefaultCPUAllocator|out of memory", str(error))
    return bool(said) or isinstance(error, torch.OutOfMemoryError | MemoryError)


@contextlib.contextmanager
def suggesting_micro_batch(recipe: Recipe, network: Network, shape: tuple[int, int, int], ranks: Ranks) -> Iterator[None]:
    """Turn an error about memory into one that says which micro-batch of volumes of `shape` (D, H, W) fits.

    Raises UsageError instead.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        # The error holds the frames of the step, and these its tensors.
        traceback.clear_frames(error.__traceback__)
        most = recipe.micro_batch or recipe.of_each(ranks.size)
        network.module.zero_grad(set_to_none=True)
        remedy = "Choose a smaller --depth or --arch."
        if most > 1:
            found = largest_fitting(network, most // 2, shape)
            remedy = f"Add --micro-batch {found}, which fits, or --micro-batch auto. The batch stays the same."
        raise UsageError(
            f"{counted(most, 'volume')} at a time {agreeing(most, 'does', 'do')} not fit into the memory of "
            f"{device_name(network.device)}. {remedy}"
        ) from error


def largest_fitting(network: Network, most: int, shape: tuple[int, int, int], processes: int = 1) -> int:
    """How many volumes of `shape` (D, H, W) fit into memory in a training step: `most`, half of it, a quarter and so on.

    On a GPU a step is tried, with room for Adam's moments. On a CPU, where too much would end the process, it is estimated from the peaks
    of two small steps, and from the memory that is left for the `processes` of this node. Weights and running statistics do not change.

    Raises UsageError if not even one fits.
    """
    size = most
    with _unchanged(network.module), alone(network.module):
        fits = _fits(network, shape, processes)
        # A piece may have one volume more than the others, see Recipe.pieces.
        while not fits(size + 1):
            if size == 1:
                raise UsageError(
                    f"Not even one volume of {'×'.join(map(str, shape))} fits into the memory of {device_name(network.device)}. "
                    "Choose a smaller --depth or --arch."
                )
            size = (size + 1) // 2
    return size


def _fits(network: Network, shape: tuple[int, int, int], processes: int) -> Callable[[int], bool]:
    """Whether a step of so many volumes fits into memory, as a function of their number."""
    if network.device.type != "cpu":
        return lambda size: _tried(network, size, shape)
    each = _bytes_per_volume(network, shape)
    room = SHARE * free_memory() / processes
    return lambda size: each * size <= room


def _tried(network: Network, size: int, shape: tuple[int, int, int]) -> bool:
    try:
        _step(network, size, shape, moments=True)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        network.module.zero_grad(set_to_none=True)
        gc.collect()
        if network.device.type == "cuda":
            torch.cuda.empty_cache()
    return True


def _bytes_per_volume(network: Network, shape: tuple[int, int, int]) -> float:
    """How much the peak of a step's memory grows with each volume, from two small steps; infinite if not even these fit."""
    few, more = 2, 6
    try:
        hand_back()
        _reset_peak()
        _step(network, few, shape, moments=False)
        before = _peak()
        hand_back()
        _step(network, more, shape, moments=False)
        return (_peak() - before) / (more - few)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return math.inf
    finally:
        network.module.zero_grad(set_to_none=True)
        # The memory of these steps is free, though the process may still hold it.
        hand_back()


def _step(network: Network, size: int, shape: tuple[int, int, int], moments: bool) -> None:
    kept = [torch.empty_like(p) for p in network.module.parameters() for _ in range(2) if moments and p.requires_grad]
    volumes = torch.randint(0, 256, (size, *shape), dtype=torch.uint8)
    network.logits(volumes).square().mean().backward()
    del kept


@contextlib.contextmanager
def _unchanged(module: nn.Module) -> Iterator[None]:
    """Restore running statistics, the state of the random numbers and the mode after the block."""
    statistics, training = RunningStatistics(module), module.training
    before = statistics.read(torch.zeros(()))
    counts = [buffer.clone() for name, buffer in module.named_buffers() if name.endswith("num_batches_tracked")]
    with torch.random.fork_rng():
        try:
            learn(module)
            yield
        finally:
            module.train(training)
            statistics.write(before)
            tracked = [buffer for name, buffer in module.named_buffers() if name.endswith("num_batches_tracked")]
            for buffer, count in zip(tracked, counts, strict=True):
                buffer.copy_(count)


def _reset_peak() -> None:
    """Earlier work, such as reading the file, may have taken more memory than a small step, and would hide its peak."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> float:
    """Peak memory of this process in bytes, as the system counts it; 0 if it does not."""
    # Preferred to ru_maxrss, which a process inherits from the one that started it.
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024.0
    try:
        import resource
    except ImportError:
        return 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1.0 if sys.platform == "darwin" else 1024.0)
