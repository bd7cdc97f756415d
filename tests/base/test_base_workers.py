"""Worker processes: order, memory, and an end without a hang."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ctcovid.base import room
from ctcovid.base.errors import CtcovidError
from ctcovid.base.signals import StopAwaitedError, StopRequest
from ctcovid.base.workers import Workers


def test_results_come_in_the_order_of_tasks_and_tasks_are_drawn_only_as_they_are_needed() -> None:
    drawn = []

    def tasks() -> Iterator[int]:
        for number in range(-500, 0):
            drawn.append(number)
            yield number

    with Workers(2) as pool:
        results = pool.map(abs, tasks())
        assert [next(results) for _ in range(3)] == [500, 499, 498]
        assert len(drawn) < 20
        assert list(results) == list(range(497, 0, -1))


def test_worker_that_dies_is_an_error_with_a_remedy_and_not_a_hang() -> None:
    with Workers(1) as pool, pytest.raises(CtcovidError, match=r"worker process died.*--workers"):
        list(pool.map(os._exit, [1]))


def test_without_handles_for_workers_this_process_does_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "free_handles", lambda: 19)
    with Workers(2) as pool:
        assert pool.count == 0
        assert list(pool.map(abs, [-1, -2])) == [1, 2]


def test_a_stop_is_heeded_while_a_result_is_awaited_and_the_worker_ends() -> None:
    stop = StopRequest()
    stop.received = signal.SIGTERM
    began = time.monotonic()
    with pytest.raises(StopAwaitedError), Workers(1) as pool:
        pool.stop = stop
        list(pool.map(time.sleep, [3600]))
    for child in multiprocessing.active_children():
        child.join(20)
    assert not multiprocessing.active_children() and time.monotonic() - began < 60


@pytest.mark.parametrize(
    ("handles", "shared", "expected"), [(1000, 1 << 30, 8), (31, 1 << 30, 3), (10, 1 << 30, 0), (1000, 1 << 16, 1), (1000, 0, 0)]
)
def test_workers_are_as_many_as_handles_and_semaphores_suffice_for(
    handles: int, shared: int, expected: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(room, "SHARED", tmp_path)
    monkeypatch.setattr(room, "free_handles", lambda: handles)
    monkeypatch.setattr(room, "free_shared", lambda: shared)
    assert room.affordable_workers(8) == expected
