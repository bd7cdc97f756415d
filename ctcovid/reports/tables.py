"""Tables that look right on a terminal, in a log, in Markdown and as CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ctcovid.base.files import printable
from ctcovid.base.lists import protected
from ctcovid.base.names import shortened

if TYPE_CHECKING:
    from rich.table import Table as RichTable

Cell = str | int | float


@dataclass
class Table:
    """A table with one line of headings.

    `text_columns` are those to set flush left; the others hold numbers. `bold` are cells, as (row, column), that stand out.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    title: str = ""
    text_columns: int = 1
    notes: Sequence[str] = field(default_factory=tuple)
    bold: frozenset[tuple[int, int]] = frozenset()

    def terminal(self) -> RichTable:
        """The table for a terminal."""
        from rich.table import Table as RichTable
        from rich.text import Text

        # Text objects, because rich would read what stands in brackets in a plain string as its markup.
        title, notes = (Text(printable(text)) if text else None for text in (self.title, "\n".join(self.notes)))
        table = RichTable(title=title, caption=notes, caption_justify="left", title_justify="left")
        for position, name in enumerate(self.columns):
            table.add_column(Text(printable(name)), justify="left" if position < self.text_columns else "right", overflow="fold")
        for number, row in enumerate(self.rows):
            styles = ["bold" if (number, place) in self.bold else "" for place in range(len(row))]
            table.add_row(*(Text(printable(shown(cell)), style) for cell, style in zip(row, styles, strict=True)))
        return table

    def text(self) -> str:
        """The table as aligned Markdown, with its notes below."""
        cells = [[markdown(shown(cell)).replace("|", "\\|") for cell in row] for row in (self.columns, *self.rows)]
        for row, column in self.bold:
            # Not in stars, of which a cell may have some of its own.
            cells[row + 1][column] = f"__{cells[row + 1][column]}__"
        widths = [max(len(row[position]) for row in cells) for position in range(len(self.columns))]
        lines = [_markdown_line(row, widths, self.text_columns) for row in cells]
        rule = [("-" * width if position < self.text_columns else "-" * (width - 1) + ":") for position, width in enumerate(widths)]
        lines.insert(1, f"| {' | '.join(rule)} |")
        heading = [f"**{markdown(self.title)}**", ""] if self.title else []
        notes = [line for note in self.notes for line in ("", markdown(note))]
        return "\n".join([*heading, *lines, *notes])

    def csv(self) -> str:
        """The table as CSV with full numbers."""
        return csv_text(self.columns, self.rows)


class CsvText(Table):
    """A table that off a terminal is CSV, for results that go into other programs."""

    def text(self) -> str:
        return self.csv().rstrip("\n")


def csv_text(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """CSV with a heading, lines ending in a line feed."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([protected(cell) for cell in row] for row in (columns, *rows))
    return text.getvalue()


def markdown(text: str) -> str:
    """Text for Markdown in which names of classes, scans and models make neither HTML nor links."""
    return re.sub(r"[][]", r"\\\g<0>", re.sub(r"&(?=#?\w+;)", "&amp;", text).replace("<", "&lt;"))


def file_name(title: str) -> str:
    """A title as the name of a file: letters and digits, the rest as single dashes; a long one shortened."""
    words = "".join(sign.lower() if sign.isalnum() else " " for sign in title).split()
    return shortened("-".join(words))


def shown(cell: Cell) -> str:
    """A cell as a person reads it: thousands with commas, fractions to four places as in the paper's tables."""
    if isinstance(cell, str):
        return cell
    return f"{cell:,}" if isinstance(cell, int) else f"{cell:.4f}"


def _markdown_line(cells: Sequence[str], widths: Sequence[int], text_columns: int) -> str:
    padded = [
        cell.ljust(width) if position < text_columns else cell.rjust(width)
        for position, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return f"| {' | '.join(padded)} |"
