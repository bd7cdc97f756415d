"""Libraries that several threads use at once are initialised by one of them."""

from __future__ import annotations

import threading

import pytest

from ctcovid.scans import quiet


def test_the_first_use_of_a_kind_is_over_before_the_second_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quiet, "_initialised", set())
    entered, leave, second = threading.Event(), threading.Event(), threading.Event()

    def first() -> None:
        with quiet.silenced("a"):
            entered.set()
            leave.wait(30)

    def other() -> None:
        with quiet.silenced("a"):
            second.set()

    threads = [threading.Thread(target=first), threading.Thread(target=other)]
    threads[0].start()
    assert entered.wait(30)
    threads[1].start()
    assert not second.wait(0.3)
    leave.set()
    for thread in threads:
        thread.join(30)
    assert second.is_set()


def test_what_is_initialised_runs_in_several_threads_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quiet, "_initialised", {"a"})
    both = threading.Barrier(2, timeout=30)

    def use() -> None:
        with quiet.silenced("a"):
            both.wait()

    threads = [threading.Thread(target=use) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not both.broken


def test_a_kind_whose_first_use_fails_is_not_initialised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quiet, "_initialised", set())
    with pytest.raises(RuntimeError, match="damaged"), quiet.silenced("a"):
        raise RuntimeError("damaged")
    assert not quiet._initialised
