"""The processes that train, evaluate or predict together, and what they tell each other.

torch is imported only where there are several, so that a single process which needs no network starts without it.
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
# How long processes may start one after another, and how long one may wait in a step for another that is alive: while it reads the
# volumes into memory, or writes a checkpoint to a slow disk. Dead ones are noticed in seconds, see heartbeat.py.
JOINING, WORKING = datetime.timedelta(minutes=5), datetime.timedelta(minutes=30)


class Ranks:
    """This process among those that work together; a single one is `rank` 0 of `size` 1, and says nothing to anybody.

    It may use `cpus` CPUs, and has `readers` worker processes read for it.

    All processes have to call `sum` and `gather` in the same order.
    """

    def __init__(self, here: ProcessInfo, heartbeat: Heartbeat | None = None) -> None:
        self.rank, self.size, self.local_size = here.rank, here.size, here.local_size
        self.first = here.rank == 0
        self.heartbeat = heartbeat
        # Its neighbours on the node need some too.
        self.cpus = max(1, cpus.allowed() // (1 if here.own_cpus else here.local_size))
        self.readers = min(self.cpus, 8)

    def share(self, things: Sequence[T]) -> Sequence[T]:
        """Every size-th of `things`: this process's part, such that no two parts differ by more than one in length."""
        return things[self.rank :: self.size]

    def at_most(self, batch: int, things: int) -> int:
        """The size of batches of at most `batch` in which so many things are shared out evenly."""
        return max(1, min(batch, -(-things // self.size)))

    def sum(self, *tensors: Tensor) -> None:
        """Replace each tensor by the sum of it over all processes, the same to the bit in each.

        Raises PeerError where another process has failed.
        """
        if self.heartbeat is None:
            return
        import torch.distributed as dist

        self.heartbeat.check()
        try:
            waiting = [dist.all_reduce(tensor, async_op=True) for tensor in tensors]
            for work in waiting:
                work.wait()
        except RuntimeError as error:
            raise self.heartbeat.explained(error) from error

    def gather(self, thing: T) -> list[T]:
        """What each process gave, by rank, in every one of them.

        Raises PeerError where another process has failed.
        """
        if self.heartbeat is None:
            return [thing]
        import torch.distributed as dist

        self.heartbeat.check()
        found: list[Any] = [None] * self.size
        try:
            dist.all_gather_object(found, thing)
        except RuntimeError as error:
            raise self.heartbeat.explained(error) from error
        return found

    def check(self) -> None:
        """Raises PeerError where another process has failed, as work that takes long without an exchange wants to know."""
        if self.heartbeat is not None:
            self.heartbeat.check()

    def require_same(self, thing: object, what: str) -> None:
        """Raises CtcovidError where the processes differ in `thing`, as where they see different files."""
        if len({repr(one) for one in self.gather(thing)}) > 1:
            raise CtcovidError(f"The processes do not agree on {what}. Look whether all of them see the same files, and start them again.")

    def tell_of(self, stop: StopRequest) -> None:
        """Let the others know soon of a signal that `stop` notes, and let it note theirs."""
        if self.heartbeat is not None:
            self.heartbeat.stop = stop

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """A file is written: even a failure elsewhere does not cut this process short."""
        if self.heartbeat is None:
            yield
        else:
            with self.heartbeat.writing:
                yield


@contextlib.contextmanager
def together(console: Console, device: str, again: str) -> Iterator[Ranks]:
    """Join the processes that torchrun or srun has started with this one; all end together, however one ends.

    The first one alone speaks on `console`. `again` says how to go on after a process has died.

    Raises what the block raises, on the first process also what another one raised; ToldError on the others.
    """
    here = process_info()
    if here.size == 1:
        yield Ranks(here)
        return
    import torch.distributed as dist

    if here.rank:
        console.hush()
    store = dist.PrefixStore(f"ctcovid/{here.attempt}", _meet(here))
    heartbeat = Heartbeat(here, dist.PrefixStore(f"ctcovid/{here.attempt}", _client(here)), again)
    heartbeat.start()
    try:
        _begin(here, store, device, console)
        yield Ranks(here, heartbeat)
        heartbeat.leave()
    except BaseException as error:
        end = _ended(error, heartbeat, console)
        if end is error:
            raise
        raise end from error
    finally:
        heartbeat.closed.set()
        heartbeat.join(2)
        if dist.is_initialized():
            dist.destroy_process_group()


def _meet(here: ProcessInfo) -> dist.Store:
    """The store at the meeting place, once all have come to it.

    Raises CtcovidError where they do not.
    """
    import torch.distributed as dist

    where = f"{here.address}:{here.port}"
    try:
        opens = here.rank == 0 and not here.hosted
        store = dist.TCPStore(here.address, here.port, is_master=opens, timeout=JOINING, wait_for_workers=False)
        own = dist.PrefixStore(f"ctcovid/{here.attempt}", store)
        own.set(f"here/{here.rank}", "1")
        own.wait([f"here/{rank}" for rank in range(here.size)], JOINING)
    except RuntimeError as error:
        reason = (str(error).splitlines() or [""])[0][:200]
        raise CtcovidError(
            f"Process {here.rank} of {here.size} did not meet the others at {where} within {JOINING.seconds // 60} minutes, or cannot "
            f"({reason}). Look whether all have started; MASTER_ADDR and MASTER_PORT name another place."
        ) from error
    return store


def _client(here: ProcessInfo) -> dist.Store:
    """A second connection for the heartbeat: a store answers one question at a time, and the work may wait long for its answer."""
    import torch.distributed as dist

    return dist.TCPStore(here.address, here.port, is_master=False, timeout=datetime.timedelta(seconds=20), wait_for_workers=False)


def _begin(here: ProcessInfo, store: dist.Store, device: str, console: Console) -> None:
    """NCCL between GPUs, Gloo between CPUs, and where processes share a GPU, which NCCL refuses."""
    import torch
    import torch.distributed as dist

    from ctcovid.models.device import choose_device

    chosen = choose_device(device)
    backend = "gloo"
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
        store.set(f"card/{here.rank}", f"{socket.gethostname()} {torch.cuda.get_device_properties(chosen).uuid}")
        cards = store.multi_get([f"card/{rank}" for rank in range(here.size)])
        shared = len(set(cards)) < here.size
        backend = "gloo" if shared else "cpu:gloo,cuda:nccl"
        if shared:
            console.warn(f"{here.size} processes share {len(set(cards))} GPUs; they exchange gradients through the host, slowly.")
    if here.address == "127.0.0.1" and not os.environ.get("GLOO_SOCKET_IFNAME") and os.path.exists("/sys/class/net/lo"):  # noqa: PTH110
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group(backend, store=store, rank=here.rank, world_size=here.size, timeout=WORKING)


def _ended(error: BaseException, heartbeat: Heartbeat, console: Console) -> BaseException:
    """What this process has to end with, after the others have been told."""
    rank = heartbeat.place.rank
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
