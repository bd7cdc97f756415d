"""What killed processes were writing is removed, and what others may still be writing is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ctcovid.base.files import atomic, fresh_folder, write_text
from ctcovid.base.temporaries import clear_all, temporary

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signal 0 does not ask whether a process is there")
KILLED = """
import os, signal, sys
from pathlib import Path
from ctcovid.base.files import atomic, fresh_folder
path = Path(sys.argv[1])
with atomic(path / "file") as file, fresh_folder(path / "folder") as folder:
    file.write_text("half")
    (folder / "file").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def left_of(name: str, process: int) -> str:
    """The temporary of a process on this system."""
    return f"{temporary(Path(name)).name.rpartition('-')[0]}-{process}.tmp"


def test_what_a_killed_process_was_writing_is_gone_after_the_next_one(tmp_path: Path) -> None:
    for _ in range(2):
        killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
        assert killed.returncode == -signal.SIGKILL
        assert len(names(tmp_path)) == 2, "that of the process before is gone"
    write_text(tmp_path / "file", "whole")
    with fresh_folder(tmp_path / "folder") as folder:
        (folder / "file").write_text("whole")
    assert names(tmp_path) == ["file", "folder"]


def test_what_may_still_be_written_is_left(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    by_another = left_of("file", os.getppid())
    elsewhere = f".file.0123456789ab-{dead.pid}.tmp"
    of_another_file = left_of("file.txt", dead.pid)
    unlike = [f".file.{dead.pid}.tmp", ".file.notes.tmp", "file.tmp"]
    for name in (by_another, elsewhere, of_another_file, *unlike):
        (tmp_path / name).touch()
    write_text(tmp_path / "file", "whole")
    assert names(tmp_path) == sorted(["file", by_another, elsewhere, of_another_file, *unlike])


def test_who_holds_the_lock_removes_what_any_host_has_left_of_his_files(tmp_path: Path) -> None:
    left = [".last.pt.0123456789ab-17.tmp", ".last.pt.17.tmp"]
    others = [".evaluation.0123456789ab-17.tmp", ".last.pt.mine", "last.pt"]
    for name in (*left, *others):
        (tmp_path / name).touch()
    clear_all(tmp_path, ["last.pt", "best.safetensors"])
    assert names(tmp_path) == sorted(others)


def test_two_processes_write_one_file_under_names_of_their_own(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from ctcovid.base.temporaries import temporary; print(temporary(Path(sys.argv[1])))"
    other = subprocess.run([sys.executable, "-c", code, str(tmp_path / "file")], capture_output=True, text=True, check=True)
    with atomic(tmp_path / "file") as own:
        own.touch()
        assert own.parent == Path(other.stdout.strip()).parent and own.name != Path(other.stdout.strip()).name
