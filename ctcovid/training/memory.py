"""How many volumes of a step fit into memory at a time, found by trial."""

from __future__ import annotations

import contextlib
import gc
import math
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ctcovid.base.allocation import hand_back
from ctcovid.base.console import Console
from ctcovid.base.errors import UsageError
from ctcovid.distributed.gradients import RunningStatistics
from ctcovid.distributed.ranks import Ranks
from ctcovid.distributed.sync_batchnorm import alone
from ctcovid.models.device import device_name
from ctcovid.models.network import Network
from ctcovid.training.freeze import learn
from ctcovid.training.recipe import Recipe
from ctcovid.volumes.resident import free_memory

# Share of the host's free memory that a step may take: the readers and the system need some of it.
SHARE = 0.7


def fitted(
    recipe: Recipe,
    network: Network,
    shape: tuple[int, int, int],
    checkpoint: dict[str, Any] | None,
    ranks: Ranks,
    console: Console,
) -> int:
    """The micro-batch for "auto", 0 for the whole batch: that of the checkpoint, or what fits in every process."""
    before = checkpoint["settings"] if checkpoint else {}
    most = recipe.of_each(ranks.size)
    known = before.get("micro_batch")
    if isinstance(known, int) and before.get("ranks", 1) == ranks.size:
        return 0 if known >= most else known
    found = min(ranks.gather(fitting(network, most, shape, ranks.local_size)))
    console.say(f"{found} volumes fit into memory at a time, of {most} in a step{' of each process' if ranks.size > 1 else ''}.")
    return 0 if found == most else found


def is_want_of_memory(error: BaseException) -> bool:
    """Whether memory did not suffice, on a GPU or on the host, for which torch has no class of errors."""
    said = isinstance(error, RuntimeError) and re.search(r"DefaultCPUAllocator|out of memory", str(error))
    return bool(said) or isinstance(error, torch.OutOfMemoryError | MemoryError)


def too_large(error: BaseException, recipe: Recipe, network: Network, shape: tuple[int, int, int], ranks: Ranks) -> UsageError:
    """What to do about volumes that did not fit into memory, as `error` said."""
    # What the step had made is still held by its functions, which the error remembers.
    traceback.clear_frames(error.__traceback__)
    most = recipe.micro_batch or recipe.of_each(ranks.size)
    network.module.zero_grad(set_to_none=True)
    way_out = "Choose a smaller --depth or --arch."
    if most > 1:
        found = fitting(network, most // 2, shape)
        way_out = f"Add --micro-batch {found}, which fits, or --micro-batch auto; the batch stays."
    return UsageError(f"Volumes do not fit into the memory of {device_name(network.device)}, {most} at a time. {way_out}")


def fitting(network: Network, most: int, shape: tuple[int, int, int], processes: int = 1) -> int:
    """The largest of `most`, half of it, a quarter and so on of volumes of `shape` (D, H, W) that fit into memory in a training step.

    On a GPU a step is tried, with room for what Adam keeps. On a CPU, where too much would end the process, it is worked out from the
    peak of two small steps, and from what the `processes` of this node may still take. Weights and running statistics stay as they are.

    Raises UsageError where not even one fits.
    """
    fits = _tried if network.device.type != "cpu" else _worked_out(network, shape, processes)
    size = most
    with _unchanged(network.module), alone(network.module):
        while not fits(network, size, shape):
            if size == 1:
                raise UsageError(
                    f"Not even one volume of {'×'.join(map(str, shape))} fits into the memory of {device_name(network.device)}. "
                    "Choose a smaller --depth or --arch."
                )
            size = (size + 1) // 2
    return size


def _tried(network: Network, size: int, shape: tuple[int, int, int]) -> bool:
    try:
        # A piece may be one volume larger than the rest, see Recipe.pieces.
        _step(network, size + 1, shape, moments=True)
    except (RuntimeError, MemoryError) as error:
        if not is_want_of_memory(error):
            raise
        return False
    finally:
        network.module.zero_grad(set_to_none=True)
        gc.collect()
        if network.device.type == "cuda":
            torch.cuda.empty_cache()
    return True


class _worked_out:  # noqa: N801
    """Judges by arithmetic: the step's peak grows with the number of volumes."""

    def __init__(self, network: Network, shape: tuple[int, int, int], processes: int) -> None:
        few, more = 2, 6
        try:
            with _unchanged(network.module), alone(network.module):
                hand_back()
                _forget_the_peak()
                _step(network, few, shape, moments=False)
                before = _peak()
                hand_back()
                _step(network, more, shape, moments=False)
                self.each = (_peak() - before) / (more - few)
        except (RuntimeError, MemoryError) as error:
            if not is_want_of_memory(error):
                raise
            # With so little left there is nothing to choose.
            self.each = math.inf
        network.module.zero_grad(set_to_none=True)
        # What these steps have left behind is free, though the process may still hold it.
        hand_back()
        self.room = SHARE * free_memory() / processes

    def __call__(self, network: Network, size: int, shape: tuple[int, int, int]) -> bool:
        return self.each * (size + 1) <= self.room


def _step(network: Network, size: int, shape: tuple[int, int, int], moments: bool) -> None:
    kept = [torch.empty_like(p) for p in network.module.parameters() for _ in range(2) if moments and p.requires_grad]
    volumes = torch.randint(0, 256, (size, *shape), dtype=torch.uint8)
    network.logits(volumes).square().mean().backward()
    del kept


@contextlib.contextmanager
def _unchanged(module: nn.Module) -> Iterator[None]:
    """Running statistics, random numbers and mode are afterwards what they were."""
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


def _forget_the_peak() -> None:
    """What came before, such as the reading of the file, may have taken more than a small step does, and would hide it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> float:
    """Bytes that this process has had at most, as the system counts them; 0 where it does not."""
    # Not ru_maxrss where this can be had: a process inherits that from the one which started it.
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024.0
    try:
        import resource
    except ImportError:
        return 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1.0 if sys.platform == "darwin" else 1024.0)
