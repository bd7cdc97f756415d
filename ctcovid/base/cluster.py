"""Workers on a cluster, in place of local processes: those of a Dask scheduler, or the processes of an MPI job."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import socket
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Executor, Future, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

from ctcovid.base.errors import CtcovidError, UsageError
from ctcovid.base.signals import ignore_stopping
from ctcovid.base.workers import Result, Task, Workers

PROCESSES, DASK, MPI = "processes", "dask", "mpi"
# Seconds to wait for a scheduler's answer, and for a cluster without workers to get one.
ANSWER, PATIENCE = 30, 120
# Seconds between requests for the size of a cluster, which may grow and shrink.
ASK_AGAIN = 10.0


def require_engine(name: str) -> None:
    """Raises UsageError if `name` is not ``processes``, ``dask``, ``dask://HOST:PORT`` or ``mpi``, or its package is not installed."""
    engine = name.split("://")[0]
    if name not in (PROCESSES, DASK, MPI) and not (engine == DASK and name.removeprefix("dask://")):
        raise UsageError(
            f"--executor {name}: give processes, dask://HOST:8786 (a Dask scheduler), dask (the scheduler in Dask's configuration), or mpi."
        )
    for extra, package, called in ((DASK, "distributed", "Dask"), (MPI, "mpi4py", "mpi4py")):
        if engine == extra and importlib.util.find_spec(package) is None:
            raise UsageError(f"--executor {extra} needs {called}, which is not installed: pip install 'ctcovid[{extra}]'")
    if engine == DASK:
        scheduler_address(name)


def cluster_workers(name: str, shared: Path) -> Workers:
    """The workers of engine `name`, which must have access to `shared`, the folder or file to be read.

    Raises UsageError if the engine does not answer.
    """
    return MpiWorkers(shared) if name == MPI else DaskWorkers(scheduler_address(name), shared)


def scheduler_address(name: str) -> str:
    """The address in ``dask://HOST:PORT``; for ``dask``, the one in Dask's configuration, such as DASK_SCHEDULER_ADDRESS.

    Raises UsageError if that has none.
    """
    import dask

    address = dask.config.get("scheduler-address", None) if name == DASK else name.replace("dask://", "tcp://", 1)
    if not address:
        raise UsageError("--executor dask: Dask's configuration names no scheduler. Give dask://HOST:8786, or set DASK_SCHEDULER_ADDRESS.")
    return str(address)


@dataclass(frozen=True)
class RequiringAccess(Generic[Task, Result]):
    """`work`, after a check that the worker has access to `shared`. Without access every file would count as damaged."""

    work: Callable[[Task], Result]
    shared: Path

    def __call__(self, task: Task) -> Result:
        """Raises CtcovidError, with the node's name, if there is no access."""
        if not self.shared.exists():
            raise CtcovidError(
                f"{socket.gethostname()} has no access to {self.shared}. Put the scans on a disk that all nodes of the cluster share."
            )
        return self.work(task)


class ClusterWorkers(Workers):
    """Workers on other nodes. Their engine repeats lost tasks, or the run ends with an error that names the remedy."""

    pool: Executor

    def __init__(self, pool: Executor, shared: Path) -> None:
        self.pool, self.shared = pool, shared.absolute()

    def submit(self, work: Callable[[Task], Result], task: Task) -> Future[Result]:
        return self.pool.submit(RequiringAccess(work, self.shared), task)

    def result(self, future: Future[Result]) -> Result:
        """Raises CtcovidError if the engine is gone, or cannot run ctcovid."""
        try:
            self.wait(future)
            return future.result()
        except (ImportError, AttributeError) as error:
            raise CtcovidError(f"A worker cannot run this ctcovid ({error}). Install the same version on all nodes.") from error


class DaskWorkers(ClusterWorkers):
    """The workers of the Dask scheduler at `address`, whose number may change."""

    def __init__(self, address: str, shared: Path) -> None:
        from distributed import Client

        # Lost connections are reported by an error here.
        for logger in ("distributed", "distributed.client"):
            logging.getLogger(logger).setLevel(logging.CRITICAL)
        try:
            self.client = Client(address, timeout=ANSWER, set_as_default=False)
        except (OSError, ValueError, asyncio.TimeoutError) as error:
            raise UsageError(f"No Dask scheduler answers at {address}. Start one with dask scheduler, or correct the address.") from error
        self.address, self.asked, self.seen, self.threads = address, 0.0, time.monotonic(), 0
        # pure=False: every task is new, so that looking for an earlier result gains nothing.
        super().__init__(self.client.get_executor(pure=False), shared)

    def __exit__(self, *failure: object) -> None:
        self.pool.shutdown(wait=False)
        self.client.close(timeout=ANSWER)

    def room(self) -> int:
        """Two tasks for each thread that the cluster has now."""
        if time.monotonic() > self.asked + ASK_AGAIN:
            self._ask()
        return 2 * self.threads + 2

    def wait(self, future: Future[Any]) -> None:
        while not wait([future], timeout=1).done:
            self.heed()
            self._ask()
            if time.monotonic() > self.seen + PATIENCE:
                raise CtcovidError(
                    f"The Dask scheduler at {self.address} has no workers. Start some with dask worker, and run the same command again."
                )

    def result(self, future: Future[Result]) -> Result:
        from distributed import KilledWorker

        try:
            return super().result(future)
        except KilledWorker as error:
            raise CtcovidError(
                "Several Dask workers died of the same slices, probably out of memory. Give them more, and run the same command again."
            ) from error
        except CancelledError as error:
            raise self._lost() from error

    def _ask(self) -> None:
        try:
            self.threads = sum(self.client.nthreads().values())
        except (OSError, RuntimeError, ValueError, asyncio.TimeoutError) as error:
            raise self._lost() from error
        self.asked = time.monotonic()
        if self.threads:
            self.seen = self.asked

    def _lost(self) -> CtcovidError:
        return CtcovidError(f"The Dask scheduler at {self.address} is gone. Start it again, and run the same command again.")


class MpiWorkers(ClusterWorkers):
    """The other processes of ``mpiexec python -m mpi4py.futures -m ctcovid``, or processes that MPI starts for this one."""

    def __init__(self, shared: Path) -> None:
        try:
            from mpi4py.futures import MPIPoolExecutor
        except (ImportError, RuntimeError) as error:
            raise UsageError(
                f"--executor mpi: mpi4py finds no MPI ({str(error).splitlines()[0]}). Load the cluster's MPI module."
            ) from error
        # main=False: tasks import what they need, and no process may run the command itself again.
        pool = MPIPoolExecutor(main=False, initializer=ignore_stopping)
        pool.bootup(wait=True)
        self.count = pool.num_workers
        if not self.count:
            raise UsageError("--executor mpi: no worker processes. Start it as mpiexec -n 8 python -m mpi4py.futures -m ctcovid prepare …")
        super().__init__(pool, shared)

    def __exit__(self, *failure: object) -> None:
        self.pool.shutdown(cancel_futures=True)

    def room(self) -> int:
        return 2 * self.count + 2
