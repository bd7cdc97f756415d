"""The standard streams of a process, of which some may be closed, and in an encoding that lacks letters."""

from __future__ import annotations

import contextlib
import os
import sys

# Streams that were closed when the process began.
_closed: set[str] = set()


def settle_streams() -> None:
    """Make all three streams usable. What an encoding lacks becomes an escape, such as ``\\u4e2d``.

    A closed stream is opened on the null device. Otherwise its number would go to the next file that is opened, and what a library prints
    would be written into that file.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            _closed.add(name)
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115 - for the life of the process
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def stdout_is_closed() -> bool:
    """Whether stdout was closed when the process began."""
    return "stdout" in _closed


def stdout_takes_all() -> bool:
    """Whether the encoding of stdout has all letters."""
    return (sys.stdout.encoding or "").lower().replace("-", "").startswith("utf")


def abandon_stdout() -> None:
    """Drop what stdout has not taken, for example because the reader of a pipe has ended: Python would complain of it at exit."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        return
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
