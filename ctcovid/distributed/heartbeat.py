"""A thread beside the work that tells the processes of a run of each other's death and failure, while the work waits for them."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from ctcovid.base.errors import EXIT_INTERRUPTED, EXIT_UNEXPECTED, CtcovidError, PeerError, StoppedError
from ctcovid.base.process_info import ProcessInfo
from ctcovid.base.signals import STOPPING, StopRequest

if TYPE_CHECKING:
    import torch.distributed as dist

# Seconds between two looks. A process whose counter stood still for so many looks is dead; looks and not seconds, because a batch system
# may suspend all processes and wake them again. Where a connection has broken, fewer will do.
PAUSE, LOOKS, SUSPICIOUS = 1.0, 12, 4
# Seconds that the work has to end by itself, once another process is known to have failed, and that a farewell may take.
GRACE, FAREWELL = 8.0, 5.0


class Heartbeat(threading.Thread):
    """Looks every second whether all processes still count, whether one has failed, and whether one was asked to stop.

    Attributes
    ----------
    failure : what ended the run, once that is known
    orphaned : whether that is the first process's silent death
    again : the sentence that says how to go on after a death
    ended : whether the first process has said that all is done
    writing : a lock that the work holds while a file must not be cut short
    stop : where a stopping signal that another process received is noted
    """

    def __init__(self, place: ProcessInfo, store: dist.Store, again: str) -> None:
        super().__init__(daemon=True, name="heartbeat")
        self.place, self.store, self.again = place, store, again
        self.failure: CtcovidError | StoppedError | None = None
        self.orphaned = self._broken = False
        self.known, self.ended, self.aware, self.closed = (threading.Event() for _ in range(4))
        self.writing = threading.Lock()
        self.stop: StopRequest | None = None
        others = range(1, place.size) if place.rank == 0 else [0]
        self._counts = dict.fromkeys(others, (0, 0))

    def run(self) -> None:
        while not self.closed.wait(PAUSE):
            try:
                self._look()
            except RuntimeError:
                # The first process holds the store, or torchrun does.
                self._learn(0, False, f"{self._process(0)} has gone, or its node has. {self.again}", EXIT_UNEXPECTED)
            if self.known.is_set():
                break
        if self.failure is None or self.closed.wait(GRACE) or (self.aware.is_set() and self.closed.wait(GRACE)):
            return
        # The work waits in a call that nothing interrupts, for a process that will not answer.
        with self.writing:
            if self.tells:
                print(f"Error: {self.failure}", file=sys.stderr, flush=True)
            os._exit(self.failure.exit_code)

    @property
    def tells(self) -> bool:
        """Whether it is for this process to tell the user of another one's failure: the first does, or all where that one has gone."""
        return self.place.rank == 0 or self.orphaned

    def _look(self) -> None:
        self.store.add(f"beat/{self.place.rank}", 1)
        if self.store.check(["failure"]):
            self._hear()
        elif self.store.check(["end"]):
            self.ended.set()
        else:
            for rank in self._counts:
                self._listen_to(rank)
            self._pass_on()

    def _hear(self) -> None:
        """Learn of a failure, and let those know who wait to be heard."""
        rank, host, message, code = json.loads(self.store.get("failure"))
        own = rank == self.place.rank
        self._learn(rank, bool(host), message if own or not host else f"{self._process(rank)} on {host}: {message}", code)
        self.store.add("heard", 1)
        if self.place.rank == 0:
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
        # One that has done its part may go.
        if looks >= (SUSPICIOUS if self._broken else LOOKS) and not self.store.add(f"idle/{rank}", 0):
            self._post(
                rank, "", f"{self._process(rank)} has not answered for {looks * PAUSE:.0f} s: killed, or its node is gone. {self.again}", 1
            )

    def _pass_on(self) -> None:
        """Tell the others of a stopping signal, or hear of theirs; at which step all stop is for the work to agree on."""
        if self.stop is None:
            return
        if self.stop.received is not None:
            self.store.set("signal", str(int(self.stop.received)))
        elif self.store.check(["signal"]):
            number = int(self.store.get("signal"))
            self.stop.received = next(known for known in STOPPING if known == number)

    def _process(self, rank: int) -> str:
        return f"Process {rank} of {self.place.size}"

    def _post(self, rank: int, host: str, message: str, code: int) -> None:
        """Say what ends the run; the first to say something is heard."""
        self.store.compare_set("failure", "", json.dumps([rank, host, message, code]))

    def fail(self, message: str, code: int) -> bool:
        """Tell the others why this process ends; whether the first process has heard it, and so will say it."""
        try:
            self._post(self.place.rank, socket.gethostname(), message, code)
            if self.place.rank == 0:
                # They learn it from the store in this process.
                self._await(lambda: self.store.add("heard", 0) >= self.place.size)
                return False
            return self._await(lambda: self.store.check(["told"]))
        except RuntimeError:
            return False

    def leave(self) -> None:
        """End with the others: the first process says when, and goes last.

        Raises PeerError where the first one fails before that.
        """
        if self.place.rank:
            self.store.add(f"idle/{self.place.rank}", 1)
            while not self.ended.wait(PAUSE / 4):
                self.check()
            self.store.add("left", 1)
        else:
            self.store.set("end", "1")
            self._await(lambda: self.store.add("left", 0) == self.place.size - 1)

    def check(self) -> None:
        """Raises what ended the run in another process."""
        if self.known.is_set():
            assert self.failure is not None
            self.aware.set()
            raise self.failure

    def explained(self, error: RuntimeError) -> CtcovidError | StoppedError:
        """What to raise where a connection to another process broke: what is known of the reason, or soon will be."""
        self._broken = True
        self.known.wait(PAUSE * (LOOKS + 3))
        self.aware.set()
        reason = (str(error).splitlines() or [""])[0]
        return self.failure or PeerError(f"{self._process(self.place.rank)} has lost another one ({reason}). {self.again}")

    def _await(self, condition: Callable[[], bool]) -> bool:
        pause = threading.Event()
        for _ in range(int(FAREWELL / 0.1)):
            if condition():
                return True
            pause.wait(0.1)
        return False
