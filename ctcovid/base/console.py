"""Results on stdout, talk on stderr."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from ctcovid.base.files import json_text


class Printable(Protocol):
    """What `result` can show: a table that knows how to look on a terminal and off it."""

    def terminal(self) -> Any: ...

    def text(self) -> str: ...


class Advance(Protocol):
    """What `progress` gives: call it with the number of items just done, and what there is to say of the work so far."""

    def __call__(self, count: int, note: str = "") -> None: ...


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
    def progress(self, total: int, what: str, unit: str = "", tenths: bool = True) -> Iterator[Advance]:
        """Progress over `total` items, with how many `unit` a second there are if it has a name.

        A bar on a terminal. Off a terminal a plain line at each tenth, or each minute where a tenth takes longer; work that is over
        in seconds needs none. Without `tenths`, as for work that ends with a line of its own, only each minute.
        """
        if self.quiet or total == 0:
            yield lambda count, note="": None
        elif sys.stderr.isatty():
            yield from self._bar(total, what, unit)
        else:
            yield _Lines(total, what, unit, tenths, self.say).advance

    @contextlib.contextmanager
    def busy(self, what: str) -> Iterator[None]:
        """A sign of life during work of unknown length: a wheel on a terminal, a line each minute off it."""
        if self.quiet:
            yield
        elif sys.stderr.isatty():
            from rich.console import Console as RichConsole

            with RichConsole(stderr=True).status(f"{what} …"):
                yield
        else:
            over, began = threading.Event(), time.monotonic()

            def speak() -> None:
                while not over.wait(_Lines.LONGEST):
                    self.say(f"{what}, for {duration(time.monotonic() - began)}")

            speaker = threading.Thread(target=speak, daemon=True)
            speaker.start()
            try:
                yield
            finally:
                over.set()
                speaker.join()

    def _bar(self, total: int, what: str, unit: str) -> Iterator[Advance]:
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        counted = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        columns = (*counted, TextColumn("{task.fields[note]}"))
        with Progress(*columns, console=RichConsole(stderr=True), transient=True) as bar:
            task = bar.add_task(what, total=total, note="")

            def advance(count: int, note: str = "") -> None:
                speed = bar.tasks[0].speed
                said = [note] if note else []
                if unit and speed:
                    said.append(f"{speed:,.1f} {unit}/s")
                bar.update(task, advance=count, note=", ".join(said))

            yield advance


class _Lines:
    """A plain line each minute, or at each tenth, but not more often than the log can bear, where `tenths` are wanted."""

    SHORTEST, LONGEST = 5.0, 60.0

    def __init__(self, total: int, what: str, unit: str, tenths: bool, say: Callable[[str], None]) -> None:
        self.total, self.what, self.unit, self.say = total, what, unit, say
        self.done = 0
        self.tenths = 0 if tenths else 10
        self.began = self.spoke = time.monotonic()

    def advance(self, count: int, note: str = "") -> None:
        self.done += count
        tenths = self.done * 10 // self.total
        now = time.monotonic()
        silence = now - self.spoke
        if self.done < self.total and (silence >= self.LONGEST or (tenths > self.tenths and silence >= self.SHORTEST)):
            each = (now - self.began) / self.done
            said = [f"{self.done:,} of {self.total:,}{' ' if self.unit else ''}{self.unit}"]
            if note:
                said.append(note)
            if self.unit:
                said.append(f"{1 / each:,.1f} {self.unit}/s")
            said.append(f"about {duration(each * (self.total - self.done))} left")
            self.say(f"{self.what}: {', '.join(said)}")
            self.tenths, self.spoke = max(tenths, self.tenths), now


def duration(seconds: float) -> str:
    """Some time in words."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
