"""Names of files and folders that are still being written, and the removal of those whose writer was killed."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import re
import shutil
import uuid
from collections.abc import Iterable
from pathlib import Path


def temporary(path: Path) -> Path:
    """Where this process writes what is to become `path`."""
    return path.with_name(f".{path.name}.{_realm()}-{os.getpid()}.tmp")


def clear_dead(path: Path) -> None:
    """Remove what processes that certainly are no more have left of `path`: those of this system that it does not know any longer."""
    for left, realm, process in _left(path):
        if realm == _realm() and _is_dead(process):
            _remove(left)


def clear_all(folder: Path, names: Iterable[str]) -> None:
    """Remove what other processes, on whatever host, have left of files in `folder`, of which the caller knows that none is at work."""
    for name in names:
        for left, _, _ in _left(folder / name):
            _remove(left)


def _left(path: Path) -> list[tuple[Path, str, int]]:
    """Temporaries of `path`, and by which process of which system. Earlier versions named no system."""
    form = re.compile(rf"\.{re.escape(path.name)}\.(?:([0-9a-f]{{12}})-)?(\d+)\.tmp")
    try:
        names = os.listdir(path.parent)  # noqa: PTH208
    except OSError:
        return []
    found = ((name, form.fullmatch(name)) for name in names if name.endswith(".tmp"))
    return [(path.with_name(name), match[1] or "", int(match[2])) for name, match in found if match]


@functools.cache
def _realm() -> str:
    """A mark of the system within which numbers of processes mean something.

    Hosts that share a disk may bear one name, and so may containers, which count their processes for themselves.
    """
    parts = [platform.node()]
    try:
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii"), os.readlink("/proc/self/ns/pid")]  # noqa: PTH115
    except OSError:
        # There is no Linux under it.
        parts.append(str(uuid.getnode()))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _is_dead(process: int) -> bool:
    # Elsewhere, signal 0 is one that stops processes.
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
    """As far as it can be: what is left takes room, and harms nothing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return
