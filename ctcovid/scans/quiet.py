"""Silence C++ libraries, whose exceptions say all that matters, and initialise them in one thread at a time."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

_lock = threading.Lock()
# ITK registers what it creates on first use in a table without a lock. Two threads at once corrupt it, and the process never ends.
_initialising = threading.Lock()
_initialised: set[str] = set()
# One entry per thread in a silenced block, each the real stderr.
_quiet: list[int] = []


@contextlib.contextmanager
def silenced(kind: str) -> Iterator[None]:
    """Discard what SimpleITK and GDCM print to stderr. Until a block of that `kind` has succeeded, such blocks run one after another."""
    import SimpleITK

    with contextlib.nullcontext() if kind in _initialised else _initialising:
        SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
        with _lock:
            # The first of several threads redirects stderr, the last restores it.
            _quiet.append(_redirected() if not _quiet else _quiet[0])
        try:
            yield
        finally:
            with _lock:
                kept = _quiet.pop()
                if not _quiet:
                    os.dup2(kept, 2)
                    os.close(kept)
        _initialised.add(kind)


def _redirected() -> int:
    kept = os.dup(2)
    with Path(os.devnull).open("wb") as nothing:
        os.dup2(nothing.fileno(), 2)
    return kept
