"""Stopping between two steps."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from ctcovid.base import signals
from ctcovid.base.errors import StoppedError
from ctcovid.base.signals import STOPPING, StopRequest, ignore_stopping, no_signal_lost


@pytest.fixture
def usual() -> Iterator[list[int]]:
    """Handlers that note what arrives where `StopRequest` does not take it."""
    arrived: list[int] = []
    before = {number: signal.signal(number, lambda number, frame: arrived.append(number)) for number in STOPPING}
    yield arrived
    for number, handler in before.items():
        signal.signal(number, handler)


def test_sigterm_usr1_and_ctrl_c_are_the_ones_that_stop() -> None:
    assert set(STOPPING) == {signal.SIGTERM, signal.SIGUSR1, signal.SIGINT}


@pytest.mark.parametrize("number", STOPPING)
def test_first_signal_is_noted_and_one_much_later_acts_as_usual(
    number: signal.Signals, usual: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals, "REPEATS", 0.0)
    with StopRequest() as stop:
        assert stop.received is None
        signal.raise_signal(number)
        assert stop.received is number
        assert usual == []
        signal.raise_signal(number)
        assert usual == [number]


@pytest.mark.parametrize("first", STOPPING)
def test_what_a_scheduler_sends_again_moments_later_is_the_same_wish(first: signal.Signals, usual: list[int]) -> None:
    """SLURM signals a whole step, torchrun hands on what it gets, and GNU timeout signals its child and then its group."""
    with StopRequest() as stop:
        for number in (first, signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM):
            signal.raise_signal(number)
        assert stop.received is first
    assert usual == []


@pytest.mark.parametrize("first", STOPPING)
def test_ctrl_c_after_any_signal_acts_as_usual_at_once(first: signal.Signals, usual: list[int]) -> None:
    with StopRequest() as stop:
        signal.raise_signal(first)
        signal.raise_signal(signal.SIGINT)
    assert usual == [signal.SIGINT]
    assert stop.received is first


@pytest.mark.parametrize("number", STOPPING)
def test_a_step_that_ends_before_it_acts_on_a_signal_is_the_last(number: signal.Signals, usual: list[int]) -> None:
    with pytest.raises(StoppedError) as stopped, no_signal_lost(), StopRequest():
        signal.raise_signal(number)
    assert stopped.value.exit_code == (130 if number == signal.SIGINT else 75)
    assert str(stopped.value).startswith("Stopped by ")
    with no_signal_lost(), StopRequest() as stop:
        assert stop.received is None


@pytest.mark.parametrize("number", STOPPING)
def test_own_signal_after_that_of_another_process_is_the_first(number: signal.Signals, usual: list[int]) -> None:
    with StopRequest() as stop:
        stop.received = signal.SIGUSR1
        signal.raise_signal(number)
    assert usual == []


def test_a_signal_that_comes_again_does_not_disturb_the_end_of_a_command() -> None:
    """Neither after one that raised nor after one that was noted."""
    code = (
        "import signal, sys\n"
        "from ctcovid.base.errors import StoppedError\n"
        "from ctcovid.base.signals import StopRequest, raise_when_stopped\n"
        "raise_when_stopped()\n"
        "try:\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
        "except StoppedError:\n"
        "    signal.raise_signal(signal.SIGTERM)\n"
        "    print('cleared up')\n"
        "with StopRequest():\n"
        "    signal.raise_signal(signal.SIGUSR1)\n"
        "signal.raise_signal(signal.SIGUSR1)\n"
        "print('written')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=50)
    assert done.stdout == "cleared up\nwritten\n", done.stderr


def test_usual_handlers_are_back_after_the_block_even_after_an_exception(usual: list[int]) -> None:
    with pytest.raises(ZeroDivisionError), StopRequest():
        raise ZeroDivisionError
    for number in STOPPING:
        signal.raise_signal(number)
    assert usual == list(STOPPING)


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGTERM, 75, "SIGTERM"), (signal.SIGUSR1, 75, "SIGUSR1"), (signal.SIGINT, 130, "Ctrl-C")]
)
def test_error_names_the_signal_and_has_its_exit_code(number: signal.Signals, code: int, word: str, usual: list[int]) -> None:
    with StopRequest() as stop:
        signal.raise_signal(number)
    error = stop.error("3 scans are packed.")
    assert error.exit_code == code
    assert str(error) == f"Stopped by {word}. 3 scans are packed."


def test_worker_lives_through_the_signals_that_stop(usual: list[int]) -> None:
    ignore_stopping()
    for number in STOPPING:
        signal.raise_signal(number)
    assert usual == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signal_that_comes_while_an_object_is_removed_is_not_lost(number: signal.Signals) -> None:
    """Python ignores what is raised there, and says so."""
    code = (
        "import signal, sys, time\n"
        "from ctcovid.base.errors import StoppedError\n"
        "from ctcovid.base.signals import raise_when_stopped\n"
        "raise_when_stopped()\n"
        "class Removed:\n"
        f"    def __del__(self): signal.raise_signal({int(number)})\n"
        "Removed()\n"
        "try: time.sleep(60)\n"
        "except StoppedError as error: sys.exit(f'caught: {error}')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=50)
    assert done.stderr.startswith(f"caught: Stopped by {number.name}."), done.stderr


def test_a_signal_that_comes_again_while_python_shuts_down_changes_no_exit_code() -> None:
    """Python takes its handlers away before it removes the last objects."""
    code = (
        "import os, signal, sys\n"
        "from ctcovid import cli\n"
        "class Last:\n"
        "    def __init__(self): self.kill, self.number, self.pid = os.kill, signal.SIGTERM, os.getpid()\n"
        "    def __del__(self): self.kill(self.pid, self.number)\n"
        "sys.modules['last'] = Last()\n"
        "begin = cli.raise_when_stopped\n"
        "cli.raise_when_stopped = lambda: (begin(), signal.raise_signal(signal.SIGTERM))\n"
        "sys.argv = ['ctcovid', 'models']\n"
        "cli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=50)
    assert done.returncode == 75, done.stderr
