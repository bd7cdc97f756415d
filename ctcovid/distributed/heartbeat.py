"""A thread in each process that notices when another process of the run dies or fails, even while the main thread waits for it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from ctcovid.base.console import tell
from ctcovid.base.errors import EXIT_INTERRUPTED, EXIT_UNEXPECTED, CtcovidError, PeerError, StoppedError
from ctcovid.base.process_info import ProcessInfo
from ctcovid.base.signals import STOPPING, StopRequest

if TYPE_CHECKING:
    import torch.distributed as dist

# Seconds between two beats. A process whose counter did not change for LOOKS beats is dead, or for SUSPICIOUS once a connection broke.
# Beats are counted and not seconds, because a batch system may suspend all processes and resume them.
PAUSE, LOOKS, SUSPICIOUS = 1.0, 12, 4
# Seconds that the main thread has to end by itself once another process has failed, and that telling the others may take.
GRACE, FAREWELL = 8.0, 5.0


class Heartbeat(threading.Thread):
    """Counts up every second, and checks whether the others do too, whether one has failed, and whether one received a signal.

    Attributes
    ----------
    failure : what ended the run, once that is known
    orphaned : whether that is the death of the first process without a message
    remedy : the sentence that says how to resume after a process has died
    ended : set once the first process has said that all is done
    writing : a lock that the main thread holds while it writes a file that must be complete
    stop : where a stopping signal that another process received is noted
    """

    def __init__(self, info: ProcessInfo, store: dist.Store, remedy: str) -> None:
        super().__init__(daemon=True, name="heartbeat")
        self.info, self.store, self.remedy = info, store, remedy
        self.failure: CtcovidError | StoppedError | None = None
        self.orphaned = self._broken = False
        self.known, self.ended, self.aware, self.closed = (threading.Event() for _ in range(4))
        self.writing = threading.Lock()
        self.stop: StopRequest | None = None
        others = range(1, info.size) if info.rank == 0 else [0]
        self._counts = dict.fromkeys(others, (0, 0))

    def run(self) -> None:
        while not self.closed.wait(PAUSE):
            try:
                self._look()
            except RuntimeError:
                # The first process holds the store, or torchrun does.
                self._learn(0, False, f"{self._process(0)} has ended, or its node is down. {self.remedy}", EXIT_UNEXPECTED)
            if self.known.is_set():
                break
        if self.failure is None or self.closed.wait(GRACE) or (self.aware.is_set() and self.closed.wait(GRACE)):
            return
        # The main thread waits for a process that will not answer, in a call that nothing interrupts.
        with self.writing:
            if self.tells:
                tell(f"Error: {self.failure}")
            os._exit(self.failure.exit_code)

    @property
    def tells(self) -> bool:
        """Whether this process reports another one's failure to the user: the first does, or all if the first has died."""
        return self.info.rank == 0 or self.orphaned

    def _look(self) -> None:
        self.store.add(f"beat/{self.info.rank}", 1)
        if self.store.check(["failure"]):
            self._hear()
        elif self.store.check(["end"]):
            self.ended.set()
        else:
            for rank in self._counts:
                self._listen_to(rank)
            self._pass_on()

    def _hear(self) -> None:
        """Read which failure was posted, and confirm it to the process that waits in `fail`."""
        rank, host, message, code = json.loads(self.store.get("failure"))
        own = rank == self.info.rank
        self._learn(rank, bool(host), message if own or not host else f"{self._process(rank)} on {host}: {message}", code)
        self.store.add("heard", 1)
        if self.info.rank == 0:
            self.store.set("told", "1")

    def _learn(self, rank: int, spoke: bool, message: str, code: int) -> None:
        self.orphaned = rank == 0 and not spoke
        stopped = code in (75, EXIT_INTERRUPTED)
        self.failure = StoppedError(message, code) if stopped else PeerError(message, code)
        self.known.set()

    def _listen_to(self, rank: int) -> None:
        count, looks = self._counts[rank]
        now = self.store.add(f"beat/{rank}", 0)
        self._counts[rank] = (now, looks + 1 if now == count else 0)
        # A process that has finished may end.
        if looks >= (SUSPICIOUS if self._broken else LOOKS) and not self.store.add(f"idle/{rank}", 0):
            message = f"{self._process(rank)} has not answered for {looks * PAUSE:.0f} s. It was killed, or its node is down. {self.remedy}"
            self._post(rank, "", message, 1)

    def _pass_on(self) -> None:
        """Pass a stopping signal on, or note one of theirs. At which step all stop is agreed on in the training loop."""
        if self.stop is None:
            return
        if self.stop.received is not None:
            self.store.set("signal", str(int(self.stop.received)))
        elif self.store.check(["signal"]):
            number = int(self.store.get("signal"))
            self.stop.received = next(known for known in STOPPING if known == number)

    def _process(self, rank: int) -> str:
        return f"Process {rank} of {self.info.size}"

    def _post(self, rank: int, host: str, message: str, code: int) -> None:
        """Post what ends the run. Only the first failure counts."""
        self.store.compare_set("failure", "", json.dumps([rank, host, message, code]))

    def fail(self, message: str, code: int) -> bool:
        """Tell the others why this process ends. Returns whether the first process knows, and so reports it."""
        try:
            self._post(self.info.rank, socket.gethostname(), message, code)
            if self.info.rank == 0:
                # The store is in this process, so it waits until all have read it.
                self._await(lambda: self.store.add("heard", 0) >= self.info.size)
                return False
            return self._await(lambda: self.store.check(["told"]))
        except RuntimeError:
            # The first process has ended, and the store with it. It does so once all know of the failure, and it reports that.
            return self.failure is not None and not self.orphaned

    def leave(self) -> None:
        """End together with the others. The first process says when, and ends last.

        Raises PeerError if the first one fails before that.
        """
        if self.info.rank:
            self.store.add(f"idle/{self.info.rank}", 1)
            while not self.ended.wait(PAUSE / 4):
                self.check()
            self.store.add("left", 1)
        else:
            self.store.set("end", "1")
            self._await(lambda: self.store.add("left", 0) == self.info.size - 1)

    def check(self) -> None:
        """Raises what ended the run in another process, if anything did."""
        if self.known.is_set():
            assert self.failure is not None
            self.aware.set()
            raise self.failure

    @contextlib.contextmanager
    def exchange(self) -> Iterator[None]:
        """The processes exchange something in the block.

        Raises the failure of another process: at once if it is known, or, after a connection broke, once it is.
        """
        self.check()
        try:
            yield
        except RuntimeError as error:
            self._broken = True
            self.known.wait(PAUSE * (LOOKS + 3))
            self.aware.set()
            reason = (str(error).splitlines() or [""])[0]
            lost = f"{self._process(self.info.rank)} lost the connection to another one ({reason}). {self.remedy}"
            raise self.failure or PeerError(lost) from error

    def _await(self, condition: Callable[[], bool]) -> bool:
        pause = threading.Event()
        for _ in range(int(FAREWELL / 0.1)):
            if condition():
                return True
            pause.wait(0.1)
        return False
