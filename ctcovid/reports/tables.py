"""Tables that look right on a terminal, in a log, in Markdown and as CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.cells import cell_len

from ctcovid.base.files import printable
from ctcovid.base.lists import protected
from ctcovid.base.names import shortened

if TYPE_CHECKING:
    from rich.console import Group

Cell = str | int | float

# Spaces between columns on a terminal, the letters after which a narrow one wraps text, and the most rows that become columns.
GAP, TEXT, FEW = 2, 24, 4


@dataclass
class Table:
    """A table with one line of headings.

    `text_columns` are those to set flush left; the others hold numbers. `bold` are cells, as (row, column), that stand out.
    `optional` are columns that a narrow terminal omits, the least important first.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    title: str = ""
    text_columns: int = 1
    notes: Sequence[str] = field(default_factory=tuple)
    bold: frozenset[tuple[int, int]] = frozenset()
    optional: Sequence[str] = ()

    def terminal(self, width: int) -> Group:
        """The table for a terminal of `width` columns.

        If it is too wide, rows and columns change places, or else columns are omitted and named below. No number is broken.
        """
        if self._width(range(len(self.columns))) <= width:
            return self._rich(self.columns, range(len(self.columns)))
        turned = self._turned()
        if turned is not None and turned._width(range(len(turned.columns))) <= width:
            return turned._rich(turned.columns, range(len(turned.columns)))
        kept = self._kept(width)
        omitted = [name for number, name in enumerate(self.columns) if number not in kept]
        return self._rich(self.columns, kept, [f"Not shown, for lack of width: {', '.join(omitted)}."] if omitted else [])

    def _turned(self) -> Table | None:
        """The same with a row for each column, if it is of numbers and has a few rows."""
        if self.text_columns != 1 or len(self.rows) > FEW:
            return None
        rows = [[name, *(row[number] for row in self.rows)] for number, name in enumerate(self.columns) if number]
        bold = frozenset((column - 1, row + 1) for row, column in self.bold)
        return Table((self.columns[0], *(shown(row[0]) for row in self.rows)), rows, self.title, 1, self.notes, bold)

    def _kept(self, width: int) -> list[int]:
        """Numbers of the columns that fit, two at least: text wraps, then optional columns go, then those from the right."""
        kept = list(range(len(self.columns)))
        names = {name: number for number, name in enumerate(self.columns)}
        going = [*(names[name] for name in self.optional if name in names), *reversed(kept[1:])]
        for number in dict.fromkeys(going):
            if len(kept) == 2 or self._width(kept, TEXT) <= width:
                break
            kept.remove(number)
        return kept

    def _width(self, columns: Iterable[int], text: int = 1 << 20) -> int:
        """Width of these columns beside each other, text wrapped after so many letters."""
        widths = [max(cell_len(shown(row[number])) for row in (self.columns, *self.rows)) for number in columns]
        widths = [min(width, text) if number < self.text_columns else width for number, width in zip(columns, widths, strict=True)]
        return sum(widths) + GAP * (len(widths) - 1)

    def _rich(self, names: Sequence[str], columns: Sequence[int], notes: Sequence[str] = ()) -> Group:
        from rich.box import SIMPLE_HEAD
        from rich.console import Group
        from rich.table import Table as RichTable
        from rich.text import Text

        # Text objects, because rich would read what stands in brackets in a plain string as its markup.
        title = Text(printable(self.title), style="italic") if self.title else None
        table = RichTable(title=title, title_justify="left", box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0))
        for number in columns:
            text = number < self.text_columns
            table.add_column(Text(printable(names[number])), justify="left" if text else "right", overflow="fold", no_wrap=not text)
        for row, cells in enumerate(self.rows):
            table.add_row(*(Text(printable(shown(cells[number])), "bold" if (row, number) in self.bold else "") for number in columns))
        return Group(table, *(Text(printable(note), style="dim") for note in (*self.notes, *notes)), Text())

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
