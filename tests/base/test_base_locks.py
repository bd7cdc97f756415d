"""One process at a time writes an output, and the second is told which one does."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ctcovid.base.errors import InputError, OutputBusyError
from ctcovid.base.locks import LockedInTurn, OutputLock, alone_at

HOLD = """
import sys
from pathlib import Path
from ctcovid.base.locks import OutputLock
with OutputLock(Path(sys.argv[1]), print):
    print("held", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def held_elsewhere(output: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock until it is killed, or the block ends."""
    with subprocess.Popen([sys.executable, "-c", HOLD, output], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        yield other
        if other.poll() is None:
            other.communicate("\n")


def silent(sentence: str) -> None:
    raise AssertionError(sentence)


def test_the_second_is_told_who_holds_the_lock_until_that_process_ends(tmp_path: Path) -> None:
    output, link = tmp_path / "new" / "volumes.h5", tmp_path / "link.h5"
    link.symlink_to(output)
    with held_elsewhere(output) as other:
        for name in (output, link):
            with pytest.raises(OutputBusyError, match=rf"{name.name} is being written .*process {other.pid} on .*since 20") as refused:
                OutputLock(name, silent).__enter__()
        assert refused.value.exit_code == 5
    assert list(tmp_path.iterdir()) == [link]
    with OutputLock(output, silent):
        assert (output.parent / ".volumes.h5.lock").is_file()
    assert not output.parent.exists()


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    with held_elsewhere(tmp_path / "x") as other:
        other.kill()
        other.wait()
        assert (tmp_path / ".x.lock").is_file()
        with OutputLock(tmp_path / "x", silent):
            pass
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", refuse)


@pytest.mark.usefixtures("without_locks")
def test_without_locks_the_file_is_the_lock_and_that_is_said(tmp_path: Path) -> None:
    said: list[str] = []
    mark = tmp_path / ".x.lock"
    with OutputLock(tmp_path / "x", said.append):
        with pytest.raises(OutputBusyError, match=f"process {os.getpid()} on"):
            OutputLock(tmp_path / "x", silent).__enter__()
        record = json.loads(mark.read_text())
    assert not mark.exists() and len(said) == 1 and "gives no locks" in said[0] and str(mark) in said[0]
    for changed, refused in (({"process": 2**22 + 1}, False), ({"system": "another"}, True)):
        mark.write_text(json.dumps(record | changed))
        if refused:
            with pytest.raises(OutputBusyError, match=f"remove {mark}"):
                OutputLock(tmp_path / "x", silent).__enter__()
        else:
            with OutputLock(tmp_path / "x", said.append):
                pass
    assert [path.name for path in tmp_path.iterdir()] == [".x.lock"]


def test_of_many_outputs_two_are_locked_at_a_time_and_one_always(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = [tmp_path / name for name in "abc"]
    seen = []
    locked: Callable[[OutputLock], OutputLock] = OutputLock.__enter__

    def noted(lock: OutputLock) -> OutputLock:
        entered = locked(lock)
        seen.append(sorted(path.name for path in tmp_path.glob(".*.lock")))
        return entered

    monkeypatch.setattr(OutputLock, "__enter__", noted)
    with LockedInTurn(outputs, silent) as locks:
        for output in outputs:
            locks.turn_to(output)
    assert seen == [[".a.lock"], [".a.lock", ".b.lock"], [".b.lock", ".c.lock"]]
    assert list(tmp_path.iterdir()) == []
    with held_elsewhere(outputs[2]), pytest.raises(OutputBusyError, match="c is being written"), LockedInTurn(outputs, silent):
        pass


def test_what_another_process_has_made_meanwhile_is_seen(tmp_path: Path) -> None:
    answers = iter([None, InputError("made meanwhile")])

    def claim() -> None:
        if error := next(answers):
            raise error

    with pytest.raises(InputError, match="meanwhile"), alone_at(tmp_path / "x", silent, claim):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "x", tmp_path / ("x" * 300) / "x"):
        with pytest.raises(InputError, match="cannot be written"), OutputLock(path, silent):
            pass
