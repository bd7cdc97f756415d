"""Errors that a user can act on: one sentence with the path and the remedy, and the exit code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_UNEXPECTED = 1
EXIT_PARTIAL = 4
EXIT_INTERRUPTED = 130
# Of a word that is compared with others.
LONGEST_WORD = 200


class CtcovidError(Exception):
    """Something that the user can fix. Only the message is printed."""

    exit_code = EXIT_UNEXPECTED


class UsageError(CtcovidError):
    """The command line asks for something that does not exist, or its options contradict each other."""

    exit_code = 2


class InputError(CtcovidError):
    """An input file or folder cannot be used."""

    exit_code = 3


class OutputExistsError(CtcovidError):
    """A result is already there and --overwrite was not given."""

    exit_code = 5


class OutputBusyError(CtcovidError):
    """Another process is writing the output."""

    exit_code = 5


class ModelRefusedError(CtcovidError):
    """A model directory or weights file cannot be trusted or does not fit."""

    exit_code = 6


class StoppedError(BaseException):
    """A signal stopped the run; what was done is kept, and --resume continues it.

    Not an Exception: code that catches the errors of a damaged file would also catch a signal that arrives while it reads the file.
    `together` says that all processes of the run have agreed to stop.
    """

    def __init__(self, message: str, exit_code: int = 75, together: bool = False) -> None:
        super().__init__(message)
        self.exit_code, self.together = exit_code, together


class ToldError(CtcovidError):
    """An error that another process of the run prints; there is nothing to print here."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("")
        self.exit_code = exit_code


class PeerError(CtcovidError):
    """Another process of the run has failed or disappeared; the exit code is that of its failure."""

    def __init__(self, message: str, exit_code: int = EXIT_UNEXPECTED) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`` Did you mean 'r3d18'?``, or nothing if no known word is similar."""
    near = [] if len(word) > LONGEST_WORD else difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f" Did you mean '{near[0]}'?" if near else ""


def counted(number: int, noun: str) -> str:
    """``1 scan``, ``1,204 scans``."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def agreeing(number: int, one: str, several: str) -> str:
    """The form of a word that agrees with a number: ``is`` or ``are``."""
    return one if number == 1 else several


def listing(problems: list[str], shown: int = 20) -> str:
    """The first `shown` problems, one per line, and a count of the rest."""
    lines = [f"  {problem}" for problem in problems[:shown]]
    if len(problems) > shown:
        lines.append(f"  … and {len(problems) - shown:,} more")
    return "\n".join(lines)
