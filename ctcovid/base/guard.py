"""Work on a file from elsewhere in a process of its own, with bounded time and memory.

A library in C that is given a damaged file can crash, never end, or ask for any amount of memory. Then this process ends, not the command.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import pickle
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from ctcovid.base.faults import machine_fault
from ctcovid.base.memory import address_space

T = TypeVar("T")
# What any file may take, and what a larger file may take besides, per byte of it: seconds of CPU time, and bytes of memory.
SECONDS, SECONDS_EACH = 3, 2e-9
MEMORY, MEMORY_EACH = 1 << 30, 1 / 256


class GuardError(ValueError):
    """What reading a file came to in its own process, in words without its path."""


def guarded(path: Path, work: Callable[[], T], times: float = MEMORY_EACH) -> T:
    """What `work` returns, or raises, when it reads the file at `path`. Both must be plain data.

    It may take so many `times` the memory of the file, besides what it may take for any file.

    Only Linux can set such limits without risk; elsewhere `work` is done in this process.

    Raises GuardError if the process crashed, or reached a limit.
    """
    if sys.platform != "linux":
        return work()
    state = path.stat()
    size = min(state.st_size, state.st_blocks * 512)
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        # Python warns of threads, whose locks a forked process could wait for. It takes none of them: it only reads the file.
        warnings.simplefilter("ignore", DeprecationWarning)
        process = os.fork()
    if not process:
        os.close(reading)
        _answer(work, writing, size, times)
    os.close(writing)
    with os.fdopen(reading, "rb") as answers:
        said = answers.read()
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    if status:
        raise GuardError(_ended_by(-status, size))
    good, found = pickle.loads(said)
    if not good:
        raise found
    result: T = found
    return result


def _answer(work: Callable[[], Any], writing: int, size: int, times: float) -> NoReturn:
    """In the new process: do the work within the limits, and send what it returned or raised."""
    try:
        own_limit = _limit(size, times)
        try:
            said: tuple[bool, Any] = True, work()
        except Exception as error:
            said = False, _plain(error, own_limit)
        with os.fdopen(writing, "wb") as answers:
            pickle.dump(said, answers)
    finally:
        # Nothing that the parent has begun is finished here.
        os._exit(0)


def _limit(size: int, times: float) -> bool:
    """Set the limits; whether that of memory is ours and not the user's own."""
    import resource

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGXCPU):
        signal.signal(number, signal.SIG_DFL)
    # What the C library says when it ends a process that has damaged its own memory.
    faulthandler.disable()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    seconds = int(SECONDS + SECONDS_EACH * size)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    most = address_space() + MEMORY + int(times * size)
    before, highest = resource.getrlimit(resource.RLIMIT_AS)
    if before != resource.RLIM_INFINITY and before <= most:
        return False
    resource.setrlimit(resource.RLIMIT_AS, (most, highest))
    return True


def _plain(error: Exception, own_limit: bool) -> Exception:
    """The error without what cannot be sent; if it came from our limit of memory, what that means."""
    fault = machine_fault(error)
    if own_limit and fault is not None and fault.is_memory:
        return GuardError("it takes more memory than such a file can need")
    with contextlib.suppress(Exception):
        pickle.loads(pickle.dumps(error))
        return error
    return GuardError(f"{type(error).__name__}: {error}")


def _ended_by(number: int, size: int) -> str:
    if number in (signal.SIGXCPU, signal.SIGKILL):
        return f"reading it did not end in {SECONDS + SECONDS_EACH * size:.0f} seconds"
    return f"the library that reads it crashed ({signal.Signals(number).name})" if number > 0 else "the library that reads it ended"
