"""Results on stdout, messages on stderr."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from ctcovid.base.files import json_text, printable
from ctcovid.base.streams import stdout_takes_all

# How the first word of a message is shown on a terminal.
STYLES = {"Error": "bold red", "Warning": "bold yellow"}


def tell(text: str) -> None:
    """Print a message on stderr; on a terminal it wraps between words. That nobody reads it any more does not end the work."""
    with contextlib.suppress(OSError):
        if not sys.stderr.isatty():
            print(printable(text), file=sys.stderr, flush=True)
            return
        from rich.console import Console as RichConsole
        from rich.text import Text

        message = Text(printable(text))
        word = text.partition(":")[0]
        message.stylize(STYLES.get(word, ""), 0, len(word))
        RichConsole(stderr=True, highlight=False).print(message)


class Printable(Protocol):
    """What `result` can print: a table, on a terminal or as plain text."""

    def terminal(self, width: int) -> Any: ...

    def text(self) -> str: ...


def _on_screen(table: Printable, stderr: bool) -> None:
    """Print a table on a terminal, at its width."""
    from rich.console import Console as RichConsole

    screen = RichConsole(stderr=stderr, highlight=False)
    screen.print(table.terminal(screen.width))


class Advance(Protocol):
    """What `progress` yields: call it with the number of items just done, and a note to show."""

    def __call__(self, count: int, note: str = "") -> None: ...


class Console:
    """Output of a command.

    Parameters
    ----------
    quiet : only results, warnings and errors
    verbose : also details, and the traceback of an unexpected error
    json : `result` prints its JSON document in place of its table
    results : off for a command that is a step of another one
    """

    def __init__(self, quiet: bool = False, verbose: bool = False, json: bool = False, results: bool = True) -> None:
        self.quiet, self.verbose, self.json, self.results = quiet, verbose, json, results
        self.silent = False
        self.terminal = sys.stdout.isatty()

    def hush(self) -> None:
        """Print nothing any more, not even warnings: another process of the same run prints for all."""
        self.quiet, self.results, self.silent = True, False, True

    def say(self, text: str) -> None:
        """Print a message on stderr, unless --quiet."""
        if not self.quiet:
            tell(text)

    def warn(self, text: str) -> None:
        """Print a warning on stderr, even with --quiet."""
        if not self.silent:
            tell(f"Warning: {text}")

    def show(self, table: Printable) -> None:
        """Print a table among the messages on stderr, unless --quiet."""
        if self.quiet:
            return
        if sys.stderr.isatty():
            _on_screen(table, stderr=True)
        else:
            tell(table.text())

    def detailed(self) -> None:
        """From here on also say what the modules of ctcovid log as details."""
        import logging

        say = self.say

        class Saying(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                say(record.getMessage())

        details = logging.getLogger("ctcovid")
        details.setLevel(logging.INFO)
        details.addHandler(Saying())

    def notice(self) -> None:
        """The last line of every command that predicts."""
        self.say("For research use only. Not a medical device.")

    def result(self, table: Printable, document: Any) -> None:
        """Print the result on stdout: `document` as JSON with --json, `table` otherwise."""
        if not self.results:
            return
        if self.json:
            print(json_text(document, not stdout_takes_all()), flush=True)
        elif self.terminal:
            _on_screen(table, stderr=False)
        else:
            print(printable(table.text()), flush=True)

    @contextlib.contextmanager
    def progress(self, total: int, what: str, unit: str = "", tenths: bool = True) -> Iterator[Advance]:
        """Progress over `total` items, with the rate per second if `unit` names them.

        A bar on a terminal. Otherwise a plain line at each tenth, or each minute if a tenth takes longer, and none for work of seconds.
        Without `tenths`, as for work that ends with a line of its own, only each minute.
        """
        what = printable(what)
        if self.quiet or total == 0:
            yield lambda count, note="": None
        elif sys.stderr.isatty():
            yield from self._bar(total, what, unit)
        else:
            yield _Lines(total, what, unit, tenths, self.say).advance

    @contextlib.contextmanager
    def busy(self, what: str) -> Iterator[None]:
        """A sign of life during work of unknown length: a spinner on a terminal, otherwise a line each minute."""
        if self.quiet:
            yield
        elif sys.stderr.isatty():
            from rich.console import Console as RichConsole
            from rich.text import Text

            with RichConsole(stderr=True).status(Text(f"{what} …")):
                yield
        else:
            over, began = threading.Event(), time.monotonic()

            def report() -> None:
                while not over.wait(_Lines.LONGEST):
                    self.say(f"{what}, for {duration(time.monotonic() - began)}")

            reporter = threading.Thread(target=report, daemon=True)
            reporter.start()
            try:
                yield
            finally:
                over.set()
                reporter.join()

    def _bar(self, total: int, what: str, unit: str) -> Iterator[Advance]:
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        counted = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        columns = (*counted, TextColumn("{task.fields[note]}", markup=False))
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
    """A plain line each minute and, with `tenths`, at each tenth, but not too often for a log."""

    SHORTEST, LONGEST = 5.0, 60.0

    def __init__(self, total: int, what: str, unit: str, tenths: bool, say: Callable[[str], None]) -> None:
        self.total, self.what, self.unit, self.say = total, what, unit, say
        self.done = 0
        self.tenths = 0 if tenths else 10
        self.began = self.printed = time.monotonic()

    def advance(self, count: int, note: str = "") -> None:
        self.done += count
        tenths = self.done * 10 // self.total
        now = time.monotonic()
        silence = now - self.printed
        if self.done < self.total and (silence >= self.LONGEST or (tenths > self.tenths and silence >= self.SHORTEST)):
            each = (now - self.began) / self.done
            said = [f"{self.done:,} of {self.total:,}{' ' if self.unit else ''}{self.unit}"]
            if note:
                said.append(note)
            if self.unit:
                said.append(f"{1 / each:,.1f} {self.unit}/s")
            said.append(f"about {duration(each * (self.total - self.done))} left")
            self.say(f"{self.what}: {', '.join(said)}")
            self.tenths, self.printed = max(tenths, self.tenths), now


def duration(seconds: float) -> str:
    """A duration in words."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
