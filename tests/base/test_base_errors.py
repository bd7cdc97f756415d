"""Errors that a user can act on."""

from __future__ import annotations

import pytest

from ctcovid.base import errors


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.UsageError("x"), 2),
        (errors.InputError("x"), 3),
        (errors.OutputExistsError("x"), 5),
        (errors.ModelRefusedError("x"), 6),
        (errors.StoppedError("x"), 75),
        (errors.StoppedError("x", 130), 130),
    ],
)
def test_exit_codes_are_the_documented_ones(error: errors.CtcovidError | errors.StoppedError, code: int) -> None:
    assert error.exit_code == code
    assert (errors.EXIT_UNEXPECTED, errors.EXIT_PARTIAL, errors.EXIT_INTERRUPTED) == (1, 4, 130)


def test_near_word_is_offered_and_a_far_one_is_not() -> None:
    assert errors.did_you_mean("r3d81", ["r3d18", "r2plus1d18"]) == " Did you mean 'r3d18'?"
    assert errors.did_you_mean("densenet", ["r3d18", "r2plus1d18"]) == ""


def test_long_listing_counts_what_it_does_not_show() -> None:
    problems = [f"scan {number}" for number in range(1025)]
    lines = errors.listing(problems).splitlines()
    assert lines[0] == "  scan 0"
    assert lines[19:] == ["  scan 19", "  … and 1,005 more"]
    assert errors.listing(problems[:20]).splitlines() == [f"  scan {number}" for number in range(20)]
