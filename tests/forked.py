"""Processes of ctcovid that start in a tenth of a second: forks of one server that has imported torch and the commands already.

A test that is about how Python starts, or about what a command imports, starts a Python of its own.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TextIO

import pytest
from thin import WIDTHS

from ctcovid.options.commands import COMMANDS

# What commands import when they run.
HEAVY = ["h5py", "matplotlib.backends.backend_agg", "pandas", "scipy.stats", "sklearn.linear_model", "SimpleITK", "torch.distributed"]

_CONTEXT = multiprocessing.get_context("forkserver")
if multiprocessing.parent_process() is None:
    # Before Python 3.13 the server knows no path but its own, so that no module of the tests can be among them.
    _CONTEXT.set_forkserver_preload(["ctcovid.cli", *(f"ctcovid.commands.{name}" for name in COMMANDS), *HEAVY])


class Forked:
    """A process that runs `target` in a session of its own, with the methods of subprocess.Popen that tests use."""

    def __init__(
        self, target: Callable[..., object], *arguments: object, cwd: Path | None = None, environment: Mapping[str, str] | None = None
    ) -> None:
        _ensure_server()
        (out, out_end), (error, error_end) = _CONTEXT.Pipe(duplex=False), _CONTEXT.Pipe(duplex=False)
        settings = dict(os.environ if environment is None else environment), str(cwd or Path.cwd())
        self.process = _CONTEXT.Process(target=_run, args=(out_end, error_end, *settings, target, arguments))
        self.process.start()
        out_end.close()
        error_end.close()
        self.stdout, self.stderr = _reader(out), _reader(error)

    @property
    def pid(self) -> int:
        """Process id, which is that of its group as well."""
        assert self.process.pid is not None
        return self.process.pid

    @property
    def returncode(self) -> int | None:
        """Exit code, negative for a signal; None while it runs."""
        return self.process.exitcode

    def poll(self) -> int | None:
        """Exit code, or None while it runs."""
        return self.process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Exit code, once it has ended. Raises subprocess.TimeoutExpired."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired(self.process.name, timeout or 0)
        return self.process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """What is left of stdout and stderr, once it has ended."""
        said: dict[str, str] = {}
        readers = [
            threading.Thread(target=lambda name, stream: said.update({name: stream.read()}), args=pair)
            for pair in (("out", self.stdout), ("error", self.stderr))
        ]
        for reader in readers:
            reader.start()
        self.wait(timeout)
        for reader in readers:
            reader.join(timeout)
        return said["out"], said["error"]

    def send_signal(self, number: int) -> None:
        """Send a signal to this process alone."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """End it, if it has not ended."""
        if self.process.exitcode is None:
            self.send_signal(signal.SIGKILL)


def _ensure_server() -> None:
    """Start the server as a process of several of one run would start, in which torch's own messages of lost connections are off."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_CPP_LOG_LEVEL", "FATAL")
        forkserver.ensure_running()


def start(*line: object, thin: bool = True, cwd: Path | None = None, environment: Mapping[str, str] | None = None) -> Forked:
    """``ctcovid`` with the arguments `line`, in the folder `cwd`, with thin networks or with those of the paper."""
    return Forked(command, [str(word) for word in line], thin, cwd=cwd, environment=environment)


def run(
    *line: object, thin: bool = True, cwd: Path | None = None, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """The same, ended."""
    process = start(*line, thin=thin, cwd=cwd, environment=environment)
    out, error = process.communicate()
    return subprocess.CompletedProcess(line, process.wait(), out, error)


def start_code(code: str, *arguments: object, environment: Mapping[str, str] | None = None) -> Forked:
    """As ``python -c code arguments``."""
    return Forked(execute, code, [str(word) for word in arguments], environment=environment)


def execute(code: str, arguments: list[str]) -> None:
    """Run a program in this process."""
    sys.argv = ["-c", *arguments]
    exec(code, {"__name__": "__main__"})


def command(line: list[str], thin: bool) -> None:
    """Run ctcovid in this process."""
    from ctcovid import cli
    from ctcovid.models import resnet3d

    if thin:
        resnet3d.WIDTHS = WIDTHS
    sys.argv = ["ctcovid", *line]
    cli.main()


def _reader(connection: Connection) -> TextIO:
    """The end of a pipe as a file of text."""
    descriptor = os.dup(connection.fileno())
    connection.close()
    return os.fdopen(descriptor, encoding="utf-8")


def _run(out: Connection, error: Connection, environment: dict[str, str], folder: str, target: Callable[..., Any], arguments: Any) -> None:
    # What it starts, it starts as a Python of its own would, and not by this server.
    multiprocessing.set_start_method(None, force=True)
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for connection, number in ((out, 1), (error, 2)):
        os.dup2(connection.fileno(), number)
        connection.close()
    sys.stdout = io.TextIOWrapper(os.fdopen(1, "wb"), encoding="utf-8")
    sys.stderr = io.TextIOWrapper(os.fdopen(2, "wb", 0), encoding="utf-8", errors="backslashreplace", write_through=True)
    target(*arguments)
