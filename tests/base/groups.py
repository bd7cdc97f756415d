"""Made-up trees of control groups, as /proc and /sys show them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

NONE: Mapping[str, str] = {}


def write_groups(
    system: Path, version: int, controller: str, path: str, own: Mapping[str, str] = NONE, above: Mapping[str, str] = NONE, root: str = "/"
) -> None:
    """Put a process into the group `path` of a tree whose visible root is `root`; files of its group, and of the one that contains it."""
    folder = system / "sys/fs/cgroup" / (controller if version == 1 else "")
    (system / "proc/self").mkdir(parents=True, exist_ok=True)
    kind = f"cgroup cgroup rw,{controller}" if version == 1 else "cgroup2 cgroup2 rw"
    place = f"/sys/fs/cgroup/{controller}" if version == 1 else "/sys/fs/cgroup"
    (system / "proc/self/mountinfo").write_text(f"1 0 0:5 / / rw - ext4 disk rw\n31 1 0:28 {root} {place} rw,relatime shared:9 - {kind}\n")
    (system / "proc/self/cgroup").write_text(f"{f'4:{controller}' if version == 1 else '0:'}:{path}\n9:name=systemd:/other\n")
    inner = folder / path.removeprefix(root).strip("/")
    for group, files in ((inner, own), (inner.parent, above)):
        group.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (group / name).write_text(text)
