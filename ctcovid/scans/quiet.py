"""C++ libraries print what they find; all that matters of it is said by an exception."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

_lock = threading.Lock()
# How many threads want quiet, each with the real stderr.
_quiet: list[int] = []


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Turn away what SimpleITK and GDCM print to stderr."""
    import SimpleITK

    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    with _lock:
        # The first of several threads turns stderr away, the last brings it back.
        _quiet.append(_turned_away() if not _quiet else _quiet[0])
    try:
        yield
    finally:
        with _lock:
            kept = _quiet.pop()
            if not _quiet:
                os.dup2(kept, 2)
                os.close(kept)


def _turned_away() -> int:
    kept = os.dup(2)
    with Path(os.devnull).open("wb") as nothing:
        os.dup2(nothing.fileno(), 2)
    return kept
