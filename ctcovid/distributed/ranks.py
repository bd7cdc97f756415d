"""The processes that train, evaluate or predict together, and what they exchange.

torch is imported only if there are several, so that a single process that needs no network starts without it.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import traceback
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from ctcovid.base import cpus
from ctcovid.base.console import Console
from ctcovid.base.errors import EXIT_INTERRUPTED, EXIT_UNEXPECTED, CtcovidError, PeerError, StoppedError, ToldError
from ctcovid.base.process_info import ProcessInfo, process_info
from ctcovid.base.signals import StopRequest
from ctcovid.distributed.heartbeat import Heartbeat

if TYPE_CHECKING:
    import torch.distributed as dist
    from torch import Tensor

T = TypeVar("T")
# How long processes may start after one another, and how long one may wait in a step for another that is alive and, for example, reads
# the volumes into memory or writes a checkpoint to a slow disk. Dead processes are noticed in seconds, see heartbeat.py.
JOINING, WORKING = datetime.timedelta(minutes=5), datetime.timedelta(minutes=30)


class Ranks:
    """This process among those that work together; a single one is `rank` 0 of `size` 1, and exchanges nothing.

    It may use `cpus` CPUs; `readers` is the default number of worker processes that read for it.

    All processes have to call `sum` and `gather` in the same order.
    """

    def __init__(self, info: ProcessInfo, heartbeat: Heartbeat | None = None) -> None:
        self.rank, self.size, self.local_size = info.rank, info.size, info.local_size
        self.first = info.rank == 0
        self.heartbeat = heartbeat
        self.cpus = cpus.allowed()
        # On one CPU, a process that reads would only take turns with this one.
        self.readers = min(self.cpus, 8) if self.cpus > 1 else 0

    def share(self, things: Sequence[T]) -> Sequence[T]:
        """This process's share of `things`: every size-th. No two shares differ by more than one in length."""
        return things[self.rank :: self.size]

    def at_most(self, batch: int, things: int) -> int:
        """The batch size, at most `batch`, with which the processes share so many things evenly."""
        return max(1, min(batch, -(-things // self.size)))

    def sum(self, *tensors: Tensor) -> None:
        """Replace each tensor by its sum over all processes, equal to the bit in each.

        Raises PeerError if another process has failed.
        """
        if self.heartbeat is None:
            return
        import torch.distributed as dist

        with self.heartbeat.exchange():
            waiting = [dist.all_reduce(tensor, async_op=True) for tensor in tensors]
            for work in waiting:
                work.wait()

    def gather(self, thing: T) -> list[T]:
        """What each process gave, by rank, in every one of them.

        Raises PeerError if another process has failed.
        """
        if self.heartbeat is None:
            return [thing]
        import torch.distributed as dist

        found: list[Any] = [None] * self.size
        with self.heartbeat.exchange():
            dist.all_gather_object(found, thing)
        return found

    def check(self) -> None:
        """Raises PeerError if another process has failed; for long work without an exchange."""
        if self.heartbeat is not None:
            self.heartbeat.check()

    def require_same(self, thing: object, what: str) -> None:
        """Raises CtcovidError if `thing` is not the same in all processes, for example because they see different files."""
        if len({repr(one) for one in self.gather(thing)}) > 1:
            raise CtcovidError(f"The processes do not agree on {what}. Check that all of them see the same files, and start them again.")

    def tell_of(self, stop: StopRequest) -> None:
        """Pass on to the others the signal that `stop` notes, and note theirs in it."""
        if self.heartbeat is not None:
            self.heartbeat.stop = stop

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """While the block writes a file, a failure of another process does not end this one."""
        if self.heartbeat is None:
            yield
        else:
            with self.heartbeat.writing:
                yield


@contextlib.contextmanager
def together(console: Console, device: str, remedy: str) -> Iterator[Ranks]:
    """Join the processes that torchrun or srun has started with this one. All end together, however one ends.

    Only the first process writes to `console`. `remedy` is the sentence that says how to resume after a process has died.

    Raises what the block raises, on the first process also what another one raised; ToldError on the others.
    """
    info = process_info()
    if info.size == 1:
        yield Ranks(info)
        return
    import torch.distributed as dist

    if info.rank:
        console.hush()
    store = dist.PrefixStore(f"ctcovid/{info.attempt}", _meet(info))
    heartbeat = Heartbeat(info, dist.PrefixStore(f"ctcovid/{info.attempt}", _client(info)), remedy)
    heartbeat.start()
    try:
        _begin(info, store, device, console)
        yield Ranks(info, heartbeat)
        heartbeat.leave()
    except BaseException as error:
        end = _reported(error, heartbeat, console)
        if end is error:
            raise
        raise end from error
    finally:
        heartbeat.closed.set()
        heartbeat.join(2)
        if dist.is_initialized():
            dist.destroy_process_group()


def _meet(info: ProcessInfo) -> dist.Store:
    """The store at MASTER_ADDR and MASTER_PORT, once all processes have connected to it.

    Raises CtcovidError if they do not.
    """
    import torch.distributed as dist

    where = f"{info.address}:{info.port}"
    try:
        opens = info.rank == 0 and not info.hosted
        store = dist.TCPStore(info.address, info.port, is_master=opens, timeout=JOINING, wait_for_workers=False)
        own = dist.PrefixStore(f"ctcovid/{info.attempt}", store)
        own.set(f"here/{info.rank}", "1")
        own.wait([f"here/{rank}" for rank in range(info.size)], JOINING)
    except RuntimeError as error:
        reason = (str(error).splitlines() or [""])[0][:200]
        raise CtcovidError(
            f"Process {info.rank} of {info.size} did not find the others at {where} within {JOINING.seconds // 60} minutes ({reason}). "
            "Check that all have started, and that MASTER_ADDR and MASTER_PORT name a free port that all can reach."
        ) from error
    return store


def _client(info: ProcessInfo) -> dist.Store:
    """A second connection for the heartbeat: a connection answers one request at a time, and the main thread may wait long for its own."""
    import torch.distributed as dist

    return dist.TCPStore(info.address, info.port, is_master=False, timeout=datetime.timedelta(seconds=20), wait_for_workers=False)


def _begin(info: ProcessInfo, store: dist.Store, device: str, console: Console) -> None:
    """Start NCCL between GPUs, Gloo between CPUs and between processes that share a GPU, which NCCL refuses."""
    import torch
    import torch.distributed as dist

    from ctcovid.models.device import choose_device

    chosen = choose_device(device)
    backend = "gloo"
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
        store.set(f"card/{info.rank}", f"{socket.gethostname()} {torch.cuda.get_device_properties(chosen).uuid}")
        cards = store.multi_get([f"card/{rank}" for rank in range(info.size)])
        shared = len(set(cards)) < info.size
        backend = "gloo" if shared else "cpu:gloo,cuda:nccl"
        if shared:
            console.warn(f"{info.size} processes share {len(set(cards))} GPUs; gradients are exchanged through the host, which is slow.")
    if info.address == "127.0.0.1" and not os.environ.get("GLOO_SOCKET_IFNAME") and os.path.exists("/sys/class/net/lo"):  # noqa: PTH110
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(backend, store=store, rank=info.rank, world_size=info.size, timeout=WORKING)


def _reported(error: BaseException, heartbeat: Heartbeat, console: Console) -> BaseException:
    """Tell the others of `error`. Returns what this process raises: ToldError if another one reports it."""
    rank = heartbeat.info.rank
    if isinstance(error, StoppedError) and error.together:
        try:
            heartbeat.leave()
        except (CtcovidError, StoppedError) as failure:
            error = failure
        else:
            return error if rank == 0 else ToldError(error.exit_code)
    if error is heartbeat.failure or isinstance(error, PeerError):
        assert isinstance(error, CtcovidError | StoppedError)
        if rank == 0:
            heartbeat.fail(str(error), error.exit_code)
        return error if heartbeat.tells or heartbeat.failure is None else ToldError(error.exit_code)
    message, code = _sentence(error)
    if console.verbose and rank:
        traceback.print_exception(error)
    return ToldError(code) if heartbeat.fail(message, code) else error


def _sentence(error: BaseException) -> tuple[str, int]:
    if isinstance(error, CtcovidError | StoppedError):
        return str(error), error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "Stopped by Ctrl-C.", EXIT_INTERRUPTED
    return f"unexpected {type(error).__name__}: {error}.", EXIT_UNEXPECTED
