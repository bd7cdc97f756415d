"""Stopping between two steps."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from ctcovid.base.signals import STOPPING, StopRequest, ignore_stopping


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
def test_first_signal_is_noted_and_the_second_acts_as_usual(number: signal.Signals, usual: list[int]) -> None:
    with StopRequest() as stop:
        assert stop.received is None
        signal.raise_signal(number)
        assert stop.received is number
        assert usual == []
        signal.raise_signal(number)
        assert usual == [number]


def test_second_signal_of_another_kind_acts_as_usual_too(usual: list[int]) -> None:
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
    assert usual == [signal.SIGINT]
    assert stop.received is signal.SIGTERM


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
