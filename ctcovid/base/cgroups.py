"""The control groups that this process is in, by which batch systems and containers limit CPUs and memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

SYSTEM = Path("/")


def groups(controller: str, system: Path = SYSTEM) -> Iterator[Path]:
    """Folders of the groups of version 1 and 2 with this controller that this process is in, each before the one that contains it.

    `system` is where /proc and /sys are.
    """
    mounts = list(_mounts(system))
    for line in _lines(system / "proc/self/cgroup"):
        number, controllers, path = line.split(":", 2)
        second = number == "0" and not controllers
        if not second and controller not in controllers.split(","):
            continue
        for kind, root, folder, has in mounts:
            if kind == ("cgroup2" if second else "cgroup") and (second or controller in has):
                # A container may see a part of the tree only; what lies above its root is not visible.
                below = path.removeprefix(root.rstrip("/")) if path.startswith(root) else ""
                own = folder / below.strip("/")
                yield from (group for group in (own, *own.parents) if group.is_relative_to(folder))
                break


def _mounts(system: Path) -> Iterator[tuple[str, str, Path, list[str]]]:
    """Kind, root within the tree, folder, and controllers of each mounted tree of groups."""
    for line in _lines(system / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        words, kind = before.split(" "), after.split(" ")
        if kind[0] in ("cgroup", "cgroup2"):
            yield kind[0], words[3], system / words[4].strip("/"), kind[-1].split(",")


def number(file: Path, name: str = "") -> int | None:
    """The number in a file of a group, or after `name` in one with several; None if there is none, as with ``max``."""
    for line in _lines(file):
        first, _, rest = line.partition(" ")
        with contextlib.suppress(ValueError):
            if not name:
                return int(first)
            if first == name:
                return int(rest)
    return None


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return []
