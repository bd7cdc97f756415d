"""Stopping between two steps: SIGTERM, SIGUSR1 and Ctrl-C raise a flag; a second Ctrl-C, or a signal much later, acts as usual."""

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


# Seconds for which SIGTERM and SIGUSR1 after a first signal are taken for the same wish.
REPEATS = 10.0


class _Wish:
    """When this process was last asked to stop, for one wish comes as several signals."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self.since = -math.inf

    def repeated_by(self, number: int) -> bool:
        """Whether a signal that has come says nothing new; otherwise it is a new wish."""
        now = time.monotonic()
        if number != signal.SIGINT and now - self.since < REPEATS:
            return True
        self.since = now
        return False


_wish = _Wish()


class StopRequest:
    """Context manager that notes the first stopping signal in `received`, and lets a second one act as usual.

    SLURM signals a whole step, torchrun hands on to its processes what it gets, and GNU ``timeout`` signals its child and then its group,
    so that a process gets the same wish twice. SIGTERM and SIGUSR1 within REPEATS seconds of the first signal, of whichever kind, are
    therefore ignored, which also forgives an impatient ``kill``. After that they end the command at once, and Ctrl-C does at any time
    when it follows another signal or another Ctrl-C. What `received` was told by another process is not counted.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._heard = False
        self._usual: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopRequest:
        _wish.forget()
        for number in STOPPING:
            self._usual[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if _wish.repeated_by(number):
            return
        if not self._heard:
            self._heard, self.received = True, signal.Signals(number)
            return
        self._restore()
        _wish.forget()
        signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._usual.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._usual = {}

    def error(self, done: str) -> StoppedError:
        """What to raise once `done` has been kept."""
        if self.received == signal.SIGINT:
            return StoppedError(f"Stopped by Ctrl-C. {done}", EXIT_INTERRUPTED, together=True)
        name = self.received.name if self.received else "a signal"
        return StoppedError(f"Stopped by {name}. {done}", together=True)


def raise_when_stopped() -> None:
    """Let SIGTERM and SIGUSR1 end a command as an error does, so that temporary files go and the run card says what happened.

    What repeats one that was raised or noted, see StopRequest, does not disturb that.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        if _wish.repeated_by(number):
            return
        _send_again.number = number
        raise StoppedError(f"Stopped by {signal.Signals(number).name}. Nothing was left half written; run the line again.")

    for number in STOPPING:
        # Ctrl-C raises KeyboardInterrupt already.
        if number != signal.SIGINT:
            signal.signal(number, stop)
    atexit.register(_ignore_repeats)
    if sys.unraisablehook is not _send_again:
        _send_again.usual = sys.unraisablehook
        sys.unraisablehook = _send_again


def _ignore_repeats() -> None:
    """A signal that comes again while Python shuts down, where nothing listens any more, must not change the exit code."""
    for number in STOPPING:
        if number != signal.SIGINT:
            signal.signal(number, signal.SIG_IGN)


class _SendAgain:
    """Python drops what is raised while an object is being removed. A signal that comes just then is sent again, a moment later."""

    usual = staticmethod(sys.__unraisablehook__)
    number: int = signal.SIGTERM

    def __call__(self, dropped: sys.UnraisableHookArgs) -> None:
        if not isinstance(dropped.exc_value, StoppedError):
            self.usual(dropped)
            return
        _wish.forget()
        timer = threading.Timer(0.1, os.kill, (os.getpid(), self.number))
        timer.daemon = True
        timer.start()


_send_again = _SendAgain()


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Stopping signals wait until the block ends, and in worker processes begun in it until they call `ignore_stopping`.

    A worker that is still starting would otherwise die of a signal to the whole process group.
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
    """In a worker process: leave signals to the process that gave it work.

    SLURM signals the whole process group, and a data loader whose workers die takes the training down before it can save.
    """
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
