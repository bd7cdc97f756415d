"""Results on stdout, talk on stderr."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from ctcovid.base.files import json_text


class Printable(Protocol):
    """What `result` can show: a table that knows how to look on a terminal and off it."""

    def terminal(self) -> Any: ...

    def text(self) -> str: ...


class Console:
    """Where a command speaks.

    Parameters
    ----------
    quiet : only results, warnings and errors
    verbose : also the place in the code of an unexpected fault
    json : `result` prints its JSON document in place of its table
    results : off for a command that is a step of another one, which prints a single result
    """

    def __init__(self, quiet: bool = False, verbose: bool = False, json: bool = False, results: bool = True) -> None:
        self.quiet, self.verbose, self.json, self.results = quiet, verbose, json, results
        self.hushed = False
        self.terminal = sys.stdout.isatty()

    def hush(self) -> None:
        """Say nothing any more: another process of the same run speaks for all."""
        self.quiet, self.results, self.hushed = True, False, True

    def say(self, text: str) -> None:
        """Tell on stderr what is going on."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        """Tell on stderr what the user must know, --quiet or not."""
        if not self.hushed:
            print(f"Warning: {text}", file=sys.stderr, flush=True)

    def notice(self) -> None:
        """The quiet last line of every command that speaks about a patient."""
        self.say("For research use only. Not a medical device.")

    def result(self, table: Printable, document: Any) -> None:
        """Print the result on stdout: `document` as JSON with --json, `table` otherwise."""
        if not self.results:
            return
        if self.json:
            print(json_text(document), flush=True)
        elif self.terminal:
            from rich.console import Console as RichConsole

            RichConsole(highlight=False).print(table.terminal())
        else:
            print(table.text(), flush=True)

    @contextlib.contextmanager
    def progress(self, total: int, what: str) -> Iterator[Callable[[int], None]]:
        """Progress over `total` items; call what it gives with the number of items just done.

        A bar on a terminal. Off a terminal a plain line at each tenth, or each minute where a tenth takes longer; work that is over
        in seconds needs none.
        """
        if self.quiet or total == 0:
            yield lambda count: None
        elif sys.stderr.isatty():
            yield from self._bar(total, what)
        else:
            yield _Lines(total, what, self.say).advance

    def _bar(self, total: int, what: str) -> Iterator[Callable[[int], None]]:
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=RichConsole(stderr=True), transient=True) as bar:
            task = bar.add_task(what, total=total)
            yield lambda count: bar.advance(task, count)


class _Lines:
    """A plain line at each tenth, but not more often than the log can bear, and at least each minute."""

    SHORTEST, LONGEST = 5.0, 60.0

    def __init__(self, total: int, what: str, say: Callable[[str], None]) -> None:
        self.total, self.what, self.say = total, what, say
        self.done = 0
        self.tenths = 0
        self.began = self.spoke = time.monotonic()

    def advance(self, count: int) -> None:
        self.done += count
        tenths = self.done * 10 // self.total
        now = time.monotonic()
        silence = now - self.spoke
        if self.done < self.total and (silence >= self.LONGEST or (tenths > self.tenths and silence >= self.SHORTEST)):
            left = (now - self.began) / self.done * (self.total - self.done)
            self.say(f"{self.what}: {self.done:,} of {self.total:,}, about {_duration(left)} left")
            self.tenths, self.spoke = tenths, now


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
