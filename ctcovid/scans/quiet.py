"""C++ libraries print what they find, though all that matters is said by an exception, and cannot begin in several threads at a time."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

_lock = threading.Lock()
# ITK enters what it makes on first use into a table that no lock guards. Two threads at once spoil it, and the process then never ends.
_beginning = threading.Lock()
_begun: set[str] = set()
# How many threads want quiet, each with the real stderr.
_quiet: list[int] = []


@contextlib.contextmanager
def silenced(kind: str) -> Iterator[None]:
    """Turn away what SimpleITK and GDCM print to stderr. Until a block of that `kind` has succeeded, such blocks run one after another."""
    import SimpleITK

    with contextlib.nullcontext() if kind in _begun else _beginning:
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
        _begun.add(kind)


def _turned_away() -> int:
    kept = os.dup(2)
    with Path(os.devnull).open("wb") as nothing:
        os.dup2(nothing.fileno(), 2)
    return kept
