"""Stopping between two steps: SIGTERM, SIGUSR1 and Ctrl-C are noted; a second Ctrl-C, or a signal much later, acts as usual."""

from __future__ import annotations

import atexit
import contextlib
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType, TracebackType

from ctcovid.base.errors import EXIT_INTERRUPTED, StoppedError

# Windows has no SIGUSR1.
STOPPING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name))
# Seconds during which SIGTERM and SIGUSR1 count as repeats of the first signal.
REPEATS = 10.0


class StopAwaitedError(Exception):
    """A stop was requested while something was awaited that does not come. What was done so far is whole."""


class _LastRequest:
    """When this process was last asked to stop: one request may come as several signals."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self.since = -math.inf
        self.number: int | None = None

    def repeated_by(self, number: int) -> bool:
        """Whether a signal repeats the last request; otherwise it is a new one."""
        now = time.monotonic()
        if number != signal.SIGINT and now - self.since < REPEATS:
            return True
        self.since, self.number = now, number
        return False


_last_request = _LastRequest()


class StopRequest:
    """Context manager that notes the first stopping signal in `received`, and lets a second one act as usual.

    SLURM signals a whole step, torchrun forwards its signals to its processes, and GNU ``timeout`` signals its child and then its group,
    so that a process gets the same request twice. SIGTERM and SIGUSR1 within REPEATS seconds of the first signal, of whichever kind, are
    therefore ignored. After that they end the command at once. Ctrl-C after another signal or another Ctrl-C always does. If another
    process sets `received`, that does not count as a signal.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._noted = False
        self._usual: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopRequest:
        _last_request.forget()
        for number in STOPPING:
            self._usual[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if _last_request.repeated_by(number):
            return
        if not self._noted:
            self._noted, self.received = True, signal.Signals(number)
            return
        self._restore()
        _last_request.forget()
        signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._usual.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._usual = {}

    def error(self, done: str) -> StoppedError:
        """The error to raise after work was saved; `done` says what, in a sentence."""
        if self.received == signal.SIGINT:
            return StoppedError(f"Stopped by Ctrl-C. {done}", EXIT_INTERRUPTED, together=True)
        name = self.received.name if self.received else "a signal"
        return StoppedError(f"Stopped by {name}. {done}", together=True)


def raise_when_stopped() -> None:
    """Let SIGTERM and SIGUSR1 end a command as an error does, so that temporary files are removed and the run card is complete.

    Repeats of a signal are ignored, see StopRequest.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        if _last_request.repeated_by(number):
            return
        _send_again.number = number
        raise StoppedError(f"Stopped by {signal.Signals(number).name}. No file is incomplete. Run the same command again.")

    for number in STOPPING:
        # Ctrl-C raises KeyboardInterrupt already.
        if number != signal.SIGINT:
            signal.signal(number, stop)
    atexit.register(_ignore_repeats)
    if sys.unraisablehook is not _send_again:
        _send_again.usual = sys.unraisablehook
        sys.unraisablehook = _send_again


@contextlib.contextmanager
def no_signal_lost() -> Iterator[None]:
    """For a command that is a step of another one: if it notes a signal and ends before it acts on it, the block ends with StoppedError."""
    _last_request.forget()
    yield
    if _last_request.number is not None:
        request = StopRequest()
        request.received = signal.Signals(_last_request.number)
        raise request.error("What is done is kept. Run the same command again.")


def _ignore_repeats() -> None:
    """A repeated signal while Python shuts down must not change the exit code."""
    for number in STOPPING:
        if number != signal.SIGINT:
            signal.signal(number, signal.SIG_IGN)


class _SendAgain:
    """Python drops exceptions raised while an object is finalised. A signal that arrives just then is sent again a moment later."""

    usual = staticmethod(sys.__unraisablehook__)
    number: int = signal.SIGTERM

    def __call__(self, dropped: sys.UnraisableHookArgs) -> None:
        if not isinstance(dropped.exc_value, StoppedError):
            self.usual(dropped)
            return
        _last_request.forget()
        timer = threading.Timer(0.1, os.kill, (os.getpid(), self.number))
        timer.daemon = True
        timer.start()


_send_again = _SendAgain()


@contextlib.contextmanager
def stopping_blocked() -> Iterator[None]:
    """Stopping signals wait until the block ends; in worker processes started in it, until they call `ignore_stopping`.

    Otherwise a signal to the whole process group would kill a worker that is still starting.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPPING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_stopping() -> None:
    """In a worker process: leave signals to the main process.

    SLURM signals the whole process group, and training cannot save if the workers of its data loader die first.
    """
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
