"""Results on stdout, messages on stderr."""

from __future__ import annotations

import io
import json
import re
import time

import pytest

from ctcovid.base import console as module
from ctcovid.base.console import Console


class OneLine:
    def terminal(self, width: int) -> str:
        return "for a terminal"

    def text(self) -> str:
        return "| a |"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in its only item, for the test to move."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_result_goes_to_stdout_and_messages_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    console.say("talk")
    console.warn("careful")
    console.result(OneLine(), {"a": 1})
    found = capsys.readouterr()
    assert found.out == "| a |\n"
    assert found.err == "talk\nWarning: careful\n"


def test_json_is_exactly_one_document_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(json=True)
    console.say("talk")
    with console.progress(10, "Working") as advance:
        advance(10)
    console.result(OneLine(), {"a": float("nan")})
    assert json.loads(capsys.readouterr().out) == {"a": None}


def test_quiet_keeps_results_and_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(quiet=True)
    console.say("talk")
    console.notice()
    with console.progress(10, "Working") as advance:
        advance(10)
    console.warn("careful")
    console.result(OneLine(), {})
    found = capsys.readouterr()
    assert (found.out, found.err) == ("| a |\n", "Warning: careful\n")


def test_long_work_off_a_terminal_speaks_at_each_tenth_and_no_more(capsys: pytest.CaptureFixture[str], clock: list[float]) -> None:
    with Console().progress(1000, "Packing slices") as advance:
        for _ in range(1000):
            clock[0] += 1
            advance(1)
    # A tenth takes 100 s here, so there is a sign of life at each minute as well.
    lines = capsys.readouterr().err.splitlines()
    counts = [int(line.split(": ")[1].split(" of ")[0].replace(",", "")) for line in lines]
    assert set(range(100, 1000, 100)) <= set(counts)
    assert len(counts) <= 20
    assert all(later - earlier <= 60 for earlier, later in zip([0, *counts], counts, strict=False))
    assert all(line.startswith("Packing slices: ") for line in lines)


def test_work_of_many_hours_does_not_flood_the_log(capsys: pytest.CaptureFixture[str], clock: list[float]) -> None:
    with Console().progress(400_000, "Packing slices") as advance:
        for _ in range(4000):
            clock[0] += 0.5
            advance(100)
    assert 10 <= len(capsys.readouterr().err.splitlines()) <= 45


def test_work_with_a_line_of_its_own_at_the_end_gives_a_sign_of_life_each_minute(
    capsys: pytest.CaptureFixture[str], clock: list[float]
) -> None:
    with Console().progress(1000, "Epoch 1 of 20", "volumes", tenths=False) as advance:
        for _ in range(50):
            clock[0] += 5
            advance(20, "loss 0.5000, accuracy 0.7500")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4
    said = "Epoch 1 of 20: 240 of 1,000 volumes, loss 0.5000, accuracy 0.7500, 4.0 volumes/s, about 3 min 10 s left"
    assert lines[0] == said


def test_work_with_a_line_of_its_own_is_silent_while_it_is_short(capsys: pytest.CaptureFixture[str], clock: list[float]) -> None:
    with Console().progress(100, "Epoch 1 of 20", "volumes", tenths=False) as advance:
        for _ in range(100):
            clock[0] += 0.5
            advance(1)
    assert capsys.readouterr().err == ""


def test_work_of_unknown_length_gives_a_sign_of_life(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(module._Lines, "LONGEST", 0.01)
    for console, expected in ((Console(), True), (Console(quiet=True), False)):
        said = ""
        with console.busy("Looking for scans"):
            deadline = time.monotonic() + (30 if expected else 0.1)
            while not said and time.monotonic() < deadline:
                said = capsys.readouterr().err
        assert bool(re.match(r"(Looking for scans, for \d+ s\n)+$", said)) == expected
        assert capsys.readouterr().err == "" or expected


def test_a_bar_shows_loss_and_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    screen.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TERM", "xterm")
    with Console().progress(100, "Epoch 1 of 20", "volumes") as advance:
        advance(10, "loss 0.5000, accuracy 0.7500")
        advance(10, "loss 0.5000, accuracy 0.7500")
    assert "loss 0.5000, accuracy 0.7500" in screen.getvalue()


def test_time_left_is_right_for_steady_work(capsys: pytest.CaptureFixture[str], clock: list[float]) -> None:
    with Console().progress(8, "Working") as advance:
        clock[0] += 3600
        advance(1)
    assert capsys.readouterr().err == "Working: 1 of 8, about 7 h 00 min left\n"
