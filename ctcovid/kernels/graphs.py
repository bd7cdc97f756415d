"""Functions of tensors as CUDA graphs: captured at their first call, and from then on replayed as a whole on the same memory.

A training step has hundreds of launches, which take Python longer to issue than the GPU to run. A graph issues all of them at once. It
reads its inputs from memory that stays where it is, and writes its outputs there. Everything that a call changes or depends on beside
its inputs has to be in the memory of the network, or be the same in every call.

Before a graph is used it is held against the same operations run one by one, with the inputs and weights at hand and with others: one that
does not agree, and whatever torch cannot capture, is never replayed.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import threading
import weakref
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from ctcovid.kernels.choice import plain_torch, warn_once

# What a function returns: no other than tensors, so that all of it can be in memory that stays.
Outputs = tuple[Tensor | None, ...]
Function = Callable[..., Outputs]

# How far two runs of the same kernels may be apart, as a share of the norm; stale or foreign memory is off by as much as the norm itself.
TOLERANCE = {torch.float32: 1e-2, torch.bfloat16: 5e-2}
# A tensor with less than this share of the norm of all of them counts as having that share.
SMALL = 1e-2

# A process captures one graph at a time.
_one_at_a_time = threading.Lock()

logger = logging.getLogger(__name__)


class Recorder(Protocol):
    """What captures and replays; on a GPU :class:`CudaRecorder`."""

    def apart(self, work: Callable[[], Outputs]) -> Outputs:
        """What `work` returns, run as a capture would run it, but at once: libraries choose their kernels on the first call."""

    def record(self, work: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
        """The function that replays `work`, and the memory that each replay writes to. The capture itself may leave anything in there."""

    def used(self) -> int:
        """Bytes that torch holds."""

    def free(self) -> int:
        """Bytes that are left to others."""


class CudaRecorder:
    """Captures on one GPU. All graphs of a GPU share the memory of what is not an output: only one of them runs at a time."""

    # By device: the stream on which graphs are captured, which memory belongs to, and those that are in use.
    _shared: ClassVar[dict[torch.device, tuple[torch.cuda.Stream, weakref.WeakSet[Any]]]] = {}

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device not in self._shared:
            self._shared[device] = torch.cuda.Stream(device), weakref.WeakSet()
        self.stream, self.living = self._shared[device]

    def apart(self, work: Callable[[], Outputs]) -> Outputs:
        here = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(here)
        with torch.cuda.stream(self.stream):
            found = work()
        here.wait_stream(self.stream)
        return found

    def record(self, work: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
        graph, other = torch.cuda.CUDAGraph(), next(iter(self.living), None)
        pool = None if other is None else other.pool()
        # Garbage that is collected during a capture would end it, and so would a thread that pins memory if the whole process captured.
        gc.collect()
        capturing = torch.cuda.graph(graph, pool, self.stream, capture_error_mode="thread_local")
        here = torch.cuda.current_stream(self.device)
        try:
            with _one_at_a_time, torch.cuda.device(self.device), _collecting_nothing(), capturing:
                outputs = work()
        finally:
            # A capture that fails leaves its own stream as the current one.
            torch.cuda.set_stream(here)
        self.living.add(graph)
        return graph.replay, outputs

    def used(self) -> int:
        return torch.cuda.memory_reserved(self.device)

    def free(self) -> int:
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(self.device)[0]


@contextlib.contextmanager
def _collecting_nothing() -> Iterator[None]:
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def recorder(device: torch.device) -> Recorder | None:
    """What captures on that device; None where everything runs as it is called, as with CTCOVID_KERNELS=torch."""
    return CudaRecorder(device) if device.type == "cuda" and not plain_torch() else None


@dataclass(frozen=True)
class _Graph:
    """A captured function. `kept` are objects whose memory it reads, though nothing else may need them any more."""

    inputs: list[Tensor | None]
    outputs: Outputs
    replay: Callable[[], None]
    kept: list[Any]

    def run(self, inputs: Sequence[Tensor | None]) -> Outputs:
        with torch.no_grad():
            for own, given in zip(self.inputs, inputs, strict=True):
                if own is not None and given is not None:
                    own.copy_(given, non_blocking=True)
        self.replay()
        return self.outputs


class Graphs:
    """The graphs of one network, on the device that it is on.

    Attributes
    ----------
    recorder : None where nothing is captured
    """

    _all: ClassVar[weakref.WeakSet[Graphs]] = weakref.WeakSet()

    def __init__(self, module: nn.Module, device: torch.device, precision: torch.dtype) -> None:
        self.module, self.device, self.tolerance = module, device, TOLERANCE[precision]
        self.recorder = recorder(device)
        self._hooks = _hooks(module)
        self._known: dict[Hashable, _Graph | None] = {}
        self._weights: list[tuple[int, int]] = []
        self._bytes = 0
        # A network may be used by several threads.
        self._lock = threading.Lock()
        self._all.add(self)

    def run(self, what: str, function: Function, *inputs: Tensor | None, key: Hashable = None, lent: bool = False) -> Outputs:
        """``function(*inputs)``, as a replay where there is a graph, or as a capture where there may be one.

        The function has to do the same in every call with the same `what`, the same `key`, and inputs of the same shapes. It reads the
        weights of the network, which may change between calls, and may change the running statistics. An input is a tensor or None.

        Parameters
        ----------
        what : the function in words, for messages, such as "the training step"
        lent : return the graph's own memory, which the next run overwrites, in place of copies
        """
        if self.recorder is None or _hooks(self.module) != self._hooks:
            # Somebody wants to be called by a module, which a replay does not do.
            return function(*inputs)
        full = (what, key, self.module.training, *((x.shape, x.dtype) if x is not None else None for x in inputs))
        with self._lock:
            self._forget_changed()
            if full not in self._known:
                graph, outputs = self._capture(what, function, inputs)
                if outputs is not None:
                    # Nothing to hold a graph against.
                    return outputs
                self._known[full] = graph
            elif (graph := self._known[full]) is not None:
                graph.run(inputs)
            if graph is not None:
                return graph.outputs if lent else tuple(None if y is None else y.clone() for y in graph.outputs)
        try:
            return function(*inputs)
        except torch.OutOfMemoryError:
            # Graphs keep memory that the function could use.
            if lent or not _release_all():
                raise
        return function(*inputs)

    def make_room(self) -> None:
        """Give up the graphs if what they hold is more than what is free: something else as large is about to run."""
        if self._bytes and self.recorder is not None and self.recorder.free() < self._bytes:
            self.release()

    def release(self) -> None:
        """Give up the graphs and their memory. The next run captures again."""
        with self._lock:
            self._known.clear()
            self._bytes = 0

    def _forget_changed(self) -> None:
        """Give up all graphs if tensors of the network have been replaced, or weights that nothing trains were changed.

        Kernels that were made ready from such weights are made once, and not by the graph.
        """
        now = [
            (tensor.data_ptr(), tensor._version if frozen and not tensor.is_inference() else 0)
            for module in self.module.modules()
            for frozen in [bool(module._parameters) and not any(p is not None and p.requires_grad for p in module._parameters.values())]
            for tensor in (*module._parameters.values(), *module._buffers.values())
            if tensor is not None
        ]
        if now != self._weights:
            self._known.clear()
            self._bytes = 0
        self._weights = now

    def _capture(self, what: str, function: Function, inputs: Sequence[Tensor | None]) -> tuple[_Graph | None, Outputs | None]:
        """A graph that has just been run with these inputs, or None with the state before; outputs if they are not finite."""
        before = _State(self.module, self.device)
        try:
            with torch.inference_mode(False), torch.no_grad():
                static = [None if x is None else torch.empty_like(x, device=self.device).copy_(x) for x in inputs]
                others = [None if x is None else x.roll(1, 0) for x in static]
            # Other inputs and other weights first: what is left at the end is what the inputs at hand do.
            expected = [self._one_by_one(function, some, before, turned) for some, turned in ((others, True), (static, False))]
            if not _finite(expected[1][0]):
                return None, expected[1][0]
            if not _finite(expected[0][0]):
                raise RuntimeError("with other weights its results are not finite")
            before.restore()
            graph = self._record(partial(function, *static), static)
            for some, turned, (outputs, buffers) in ((others, True, expected[0]), (inputs, False, expected[1])):
                before.restore(turned)
                apart = max(_apart(graph.run(some), outputs), _apart(tuple(self.module.buffers()), buffers))
                if not apart <= self.tolerance:
                    before.restore()
                    warn_once(
                        f"the CUDA graph of {what} differs by {apart:.0%} from the same operations one by one and is not used. "
                        "Results are not affected, but everything takes longer."
                    )
                    return None, None
            return graph, None
        except Exception as error:
            # Whatever it is: the same function runs next without a graph, and raises it again if the graph was not the reason.
            before.restore()
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            logger.info(f"No CUDA graph of {what}: {reason}.")
            return None, None

    def _one_by_one(self, function: Function, inputs: Sequence[Tensor | None], before: _State, turned: bool) -> tuple[Outputs, Outputs]:
        """Outputs and running statistics without a graph."""
        assert self.recorder is not None
        before.restore(turned)
        outputs = self.recorder.apart(partial(function, *inputs))
        return outputs, tuple(buffer.clone() for buffer in self.module.buffers())

    def _record(self, work: Callable[[], Outputs], static: list[Tensor | None]) -> _Graph:
        assert self.recorder is not None
        self.recorder.free()
        held = self.recorder.used()
        replay, outputs = self.recorder.record(work)
        self._bytes += max(0, self.recorder.used() - held)
        # Kernels that modules keep ready are not made by the graph, which reads them.
        return _Graph(static, outputs, replay, [dict(vars(module)) for module in self.module.modules()])


class _State:
    """Weights, running statistics and random numbers of a network, as they are."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        self.device = device
        self.learning = [p for p in module.parameters() if p.requires_grad]
        # Statistics of layers that do not learn stay as they are, and so does the trace of changes to them.
        self.changing = [*self.learning, *(b for layer in module.modules() if layer.training for b in layer.buffers(recurse=False))]
        self.values = [tensor.detach().clone() for tensor in self.changing]
        self.numbers = torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    @torch.no_grad()
    def restore(self, turned: bool = False) -> None:
        """Set all as it was, or with the weights of each layer `turned`: each output channel has those of the one before."""
        for tensor, value in zip(self.changing, self.values, strict=True):
            tensor.copy_(value)
        for tensor in self.learning if turned else ():
            tensor.copy_(tensor.roll(1, 0))
        torch.set_rng_state(self.numbers[0])
        if self.numbers[1] is not None:
            torch.cuda.set_rng_state(self.numbers[1], self.device)


def _apart(found: Outputs, expected: Outputs) -> float:
    """How far tensors are from the expected ones, as a share of their norms; infinite if something is missing, or only one is finite.

    Whole numbers are not compared: a count of correct answers may change with the last digit of one.
    """
    pairs = [(one, other) for one, other in zip(found, expected, strict=True) if one is not None or other is not None]
    if any(one is None or other is None for one, other in pairs):
        return math.inf
    floating = [(one.detach().float(), other.detach().float()) for one, other in pairs if other.is_floating_point()]  # type: ignore[union-attr]
    if not floating:
        return 0.0
    norms = torch.stack([other.norm() for _, other in floating])
    least = SMALL * norms.norm()
    shares = torch.stack([(one - other).norm() for one, other in floating]) / torch.maximum(norms, least).clamp_min(1e-30)
    worst = float(shares.max())
    return math.inf if math.isnan(worst) else worst


def _finite(outputs: Outputs) -> bool:
    return all(bool(y.isfinite().all()) for y in outputs if y is not None)


def _hooks(module: nn.Module) -> list[Any]:
    """What the modules inside call beside their own functions. torch has no public way to ask."""
    return [
        hook
        for one in module.modules()
        for hooks in (one._forward_hooks, one._forward_pre_hooks, one._backward_hooks, one._backward_pre_hooks)
        for hook in hooks.values()
    ]


def _release_all() -> bool:
    """Give up the graphs of all networks; False if there was none."""
    some = [graphs for graphs in Graphs._all if graphs._known]
    for graphs in some:
        graphs.release()
    gc.collect()
    torch.cuda.empty_cache()
    return bool(some)
