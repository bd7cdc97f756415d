"""Rows of a result that grow as the work goes on: CSV or JSON Lines, each row written at once, or JSON, whole when the work ends."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from ctcovid.base.errors import InputError
from ctcovid.base.faults import raise_machine_fault
from ctcovid.base.files import json_line, json_text, write_text
from ctcovid.base.lists import protected, unprotected
from ctcovid.base.streams import stdout_takes_all
from ctcovid.options.predict import STDOUT

# Lists, as of flags, in one field of a CSV.
LONGEST_SHOWN = 400
BETWEEN = ";"

Row = dict[str, Any]


class RowFile:
    """A file of rows at `path`: JSON Lines on stdout where that is "-", else by its ending .json, .jsonl, or CSV.

    A killed run leaves all rows that it has written; the last line may be cut.

    Parameters
    ----------
    columns : names of the fields, in order
    kept : rows of an earlier run that stand first
    document : what a JSON file holds, made of all rows
    """

    def __init__(
        self, path: Path, columns: Sequence[str], kept: Sequence[Row] = (), document: Callable[[list[Row]], Any] = lambda rows: rows
    ) -> None:
        self.path, self.columns, self.document = path, list(columns), document
        self.kind = "jsonl" if path == STDOUT else kind_of(path)
        # Only JSON has to hold them.
        self.rows: list[Row] = list(kept) if self.kind == "json" else []
        self.kept = kept
        self.file: TextIO | None = None

    def __enter__(self) -> RowFile:
        if self.path == STDOUT:
            self.file = sys.stdout
        elif self.kind != "json":
            heading = _csv([self.columns]) if self.kind == "csv" else ""
            with self._named():
                write_text(self.path, heading + "".join(map(self._line, self.kept)))
                self.file = self.path.open("a", encoding="utf-8", newline="")
        return self

    def add(self, row: Row) -> None:
        """Write one row, so that it is there even if the program ends now."""
        if self.file is None:
            self.rows.append(row)
        else:
            with self._named():
                self.file.write(self._line(row))
                self.file.flush()

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if self.file is None:
            # Whatever ends the run, what is done is kept, as in the other forms.
            text = json_text(self.document(self.rows)) + "\n"
            try:
                write_text(self.path, text)
            except OSError:
                # All rows are lost unless a second try succeeds.
                with self._named():
                    write_text(self.path, text)
        elif self.path != STDOUT:
            # What a full disk did not take is tried once more.
            with self._named():
                self.file.close()

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """An error of the disk is told by its file."""
        try:
            yield
        except OSError as error:
            raise_machine_fault(error, self.path)
            raise

    def _line(self, row: Row) -> str:
        if self.kind == "csv":
            return _csv([[_cell(row[name]) for name in self.columns]])
        to_ascii = self.path == STDOUT and not stdout_takes_all()
        return json_line({name: row[name] for name in self.columns}, to_ascii) + "\n"


def kind_of(path: Path) -> str:
    """ "json", "jsonl" or "csv", by the ending of a name."""
    return {".json": "json", ".jsonl": "jsonl"}.get(path.suffix.lower(), "csv")


def read_rows(path: Path, columns: Sequence[str], rows_in: Callable[[Any], list[Row]] = lambda document: document) -> list[Row]:
    """The rows that an earlier run has written, without a last line that was cut; none if the file does not exist.

    Fields of a CSV are read as text, empty ones as None.

    Parameters
    ----------
    rows_in : finds the rows in what a JSON file holds

    Raises InputError where the file has other columns, or is damaged.
    """
    if not path.is_file():
        return []
    try:
        text = path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        rows: list[Row]
        if kind_of(path) == "json":
            rows = rows_in(json.loads(text))
        elif kind_of(path) == "jsonl":
            # No other sign ends a line, though names may hold some that splitlines would cut at.
            rows = [json.loads(line) for line in whole.split("\n")[:-1]]
        else:
            read = csv.reader(io.StringIO(whole, newline=""), strict=True)
            heading, *table = [list(map(unprotected, row)) for row in read if row] or [list(columns)]
            if heading != list(columns):
                raise ValueError(f"its columns are {','.join(heading)[:LONGEST_SHOWN]}")
            rows = [{name: value or None for name, value in zip(columns, row, strict=True)} for row in table]
        if any(list(row) != list(columns) for row in rows):
            raise ValueError(f"not all rows have the columns {','.join(columns)}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, csv.Error) as error:
        raise_machine_fault(error, path)
        raise InputError(f"{path} cannot be continued: {error}. Name another output, or pass --overwrite without --resume.") from error
    return rows


def _cell(value: Any) -> str | int | float:
    if value is None:
        return ""
    return BETWEEN.join(value) if isinstance(value, list) else value


def _csv(rows: list[list[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([protected(cell) for cell in row] for row in rows)
    return text.getvalue()
