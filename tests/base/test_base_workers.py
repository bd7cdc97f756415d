"""Worker processes: order, memory, and an end without a hang."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from ctcovid.base.errors import CtcovidError
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
