"""Names of files and folders that are being written, and removal of those whose writer was killed."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

from ctcovid.base.names import shortened


def temporary(path: Path, what: str = "") -> Path:
    """The temporary path to which this process writes what becomes `path`; with `what` another one, such as for the "old" content."""
    return path.with_name(f".{shortened(path.name)}.{realm()}-{os.getpid()}{what and f'-{what}'}.tmp")


@contextlib.contextmanager
def scratch_file() -> Iterator[Path]:
    """A file for a library that reads only files: in memory where the system allows it, so that a full TMPDIR matters to nobody."""
    if not hasattr(os, "memfd_create") or not Path("/proc/self/fd").is_dir():
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder) / "scratch"
        return
    handle = os.memfd_create("ctcovid")
    try:
        yield Path(f"/proc/self/fd/{handle}")
    finally:
        os.close(handle)


def clear_dead(path: Path) -> None:
    """Remove temporaries of `path` whose process has certainly ended: it ran on this system and no longer exists."""
    for left, system, process in _left(path):
        if system == realm() and is_dead_here(process):
            _remove(left)


def clear_all(folder: Path, names: Iterable[str]) -> None:
    """Remove temporaries of files in `folder` by other processes on any host; the caller knows that none of them is running."""
    for name in names:
        for left, _, _ in _left(folder / name):
            _remove(left)


def _left(path: Path) -> list[tuple[Path, str, int]]:
    """Temporaries of `path`, each with its system and process. Earlier versions did not name the system."""
    form = re.compile(rf"\.{re.escape(shortened(path.name))}\.(?:([0-9a-f]{{12}})-)?(\d+)(?:-old)?\.tmp")
    try:
        names = os.listdir(path.parent)  # noqa: PTH208
    except OSError:
        return []
    found = ((name, form.fullmatch(name)) for name in names if name.endswith(".tmp"))
    return [(path.with_name(name), match[1] or "", int(match[2])) for name, match in found if match]


@functools.cache
def realm() -> str:
    """Identifies the system within which process ids are unique.

    Hosts that share a disk may have the same name, and so may containers, each with its own process ids.
    """
    words = [platform.node()]
    try:
        words += [Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"), os.readlink("/proc/self/ns/pid")]  # noqa: PTH115
    except OSError:
        # Not Linux.
        words.append(str(uuid.getnode()))
    return hashlib.sha256("\n".join(words).encode()).hexdigest()[:12]


def is_dead_here(process: int) -> bool:
    """Whether no process of this system has that id."""
    # On other systems, signal 0 stops processes.
    if os.name != "posix":
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def _remove(path: Path) -> None:
    """Remove as far as possible: what remains only takes space."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return
