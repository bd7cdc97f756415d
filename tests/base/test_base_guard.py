"""Work on a file from elsewhere is done apart: whatever becomes of it, the command goes on."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from ctcovid.base import guard
from ctcovid.base.errors import InputError
from ctcovid.base.guard import GuardError, guarded

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the work is done in the same process")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "file").write_bytes(b"12345")
    return tmp_path / "file"


def test_what_the_work_returns_or_raises_comes_back(path: Path) -> None:
    assert guarded(path, lambda: path.read_bytes()) == b"12345"
    assert guarded(path, os.getpid) != os.getpid()
    with pytest.raises(InputError, match=r"^no slice in it$"):
        guarded(path, lambda: (_ for _ in ()).throw(InputError("no slice in it")))


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS])
def test_crash_is_named(number: signal.Signals, path: Path) -> None:
    with pytest.raises(GuardError, match=rf"crashed \({number.name}\)"):
        guarded(path, lambda: os.kill(os.getpid(), number))


def test_work_that_does_not_end_is_ended(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "SECONDS", 1)

    def endless() -> None:
        while True:
            pass

    with pytest.raises(GuardError, match="did not end in 1 seconds"):
        guarded(path, endless)


def test_memory_is_bounded(path: Path) -> None:
    with pytest.raises(GuardError, match="more memory than such a file can need"):
        guarded(path, lambda: bytearray(3 << 30))
