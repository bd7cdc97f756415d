"""Stopping between two steps: SIGTERM, SIGUSR1 and Ctrl-C raise a flag; a second signal acts as usual."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType

from ctcovid.base.errors import EXIT_INTERRUPTED, StoppedError

# Windows has no SIGUSR1.
STOPPING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name))


class StopRequest:
    """Context manager that notes the first stopping signal in `received` and restores the usual handlers for the second."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._usual: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopRequest:
        for number in STOPPING:
            self._usual[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._restore()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self._restore()

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
    """Let SIGTERM and SIGUSR1 end a command as an error does, so that temporary files go and the run card says what happened."""

    def stop(number: int, frame: FrameType | None) -> None:
        _send_again.number = number
        raise StoppedError(f"Stopped by {signal.Signals(number).name}. Nothing was left half written; run the line again.")

    for number in STOPPING:
        # Ctrl-C raises KeyboardInterrupt already.
        if number != signal.SIGINT:
            signal.signal(number, stop)
    if sys.unraisablehook is not _send_again:
        _send_again.usual = sys.unraisablehook
        sys.unraisablehook = _send_again


class _SendAgain:
    """Python drops what is raised while an object is being removed. A signal that comes just then is sent again, a moment later."""

    usual = staticmethod(sys.__unraisablehook__)
    number: int = signal.SIGTERM

    def __call__(self, dropped: sys.UnraisableHookArgs) -> None:
        if not isinstance(dropped.exc_value, StoppedError):
            self.usual(dropped)
            return
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
