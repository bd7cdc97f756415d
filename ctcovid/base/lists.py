"""A list that a user hands over as CSV, as Excel, R, pandas and other systems write it: its headings and rows.

What is written in one way only is read. What can be read in two ways is refused, with the way to save it.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Collection
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ctcovid.base.errors import InputError, counted
from ctcovid.base.faults import raise_machine_fault
from ctcovid.base.files import read_small

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
SIGNS = "commas, semicolons, tabs and bars"
# Headings that are not among the first lines are not looked for.
HEAD = 10
# A file with longer fields is not a list.
LONGEST_FIELD = 1 << 16
# More than a list of any archive has.
MOST_BYTES, MOST_COLUMNS, MOST_ROWS = 64 << 20, 10_000, 1_000_000
# Of them in a message.
MOST_SHOWN, LONGEST_SHOWN = 20, 40
# UTF-32's mark begins with that of UTF-16.
MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
# Beginning of a formula, or of a text that already begins with the apostrophe. A hyphen alone stands for nothing.
FORMULA = re.compile(r"'*(?:[=+@\t]|-.)", re.DOTALL)
# How files begin that have a list's name, but are something else.
OTHERS = {
    b"PK\x03\x04": "a spreadsheet or an archive",
    b"\xd0\xcf\x11\xe0": "an Excel file",
    b"\x1f\x8b": "compressed",
    b"%PDF": "a PDF",
    b"\x89HDF": "an HDF5 file",
    b"<": "HTML or XML",
    b"{": "JSON",
}
SAVE_AS_CSV = "Open it in the program that made it, and save as CSV with the encoding UTF-8 (in Excel: CSV UTF-8)."
SAVE_AS_UTF8 = "Save it with the encoding UTF-8 (in Excel: Save as, CSV UTF-8)."


@dataclass(frozen=True)
class UserList:
    """A list as it stands in its file.

    Attributes
    ----------
    headings : without blanks around them; names that the reader knows in its own spelling
    rows : as many fields each as there are headings
    lines : the line of the file that each row ends on, from 1, as editors count
    separator : between the fields
    """

    headings: list[str]
    rows: list[list[str]]
    lines: list[int]
    separator: str

    @property
    def named(self) -> str:
        """The headings in words, as far as they fit into a message."""
        shown = ", ".join(heading[:LONGEST_SHOWN] for heading in self.headings[:MOST_SHOWN])
        return shown if len(self.headings) <= MOST_SHOWN else f"{shown} and {len(self.headings) - MOST_SHOWN:,} more"

    def column(self, name: str) -> list[str]:
        place = self.headings.index(name)
        return [row[place] for row in self.rows]


def read_list(path: Path, known: Collection[str], what: str = "file", needs: str = "", exact: bool = False) -> UserList:
    """Read a list.

    Separators are commas, semicolons, tabs or bars, as Excel's first line ``sep=;`` or the headings say; the encoding is UTF-8 or UTF-16.
    Blank lines, and empty columns at the right end, are not part of it. Fields that a row lacks at its end are empty: Excel omits them.

    Parameters
    ----------
    known : names of columns that the caller looks for, in lower case; they tell the separator, and are found in any case
    what : what the file is called if it is not there
    needs : a sentence that ends a refusal, with the columns that are needed
    exact : keep blanks around fields

    Raises InputError, with the remedy, if the file is absent, not text, or can be read in two ways.
    """
    return parse_list(path, list_text(path, what, needs), known, needs, exact)


def list_text(path: Path, what: str = "file", needs: str = "") -> str:
    """The text of a list, whatever its encoding.

    Raises InputError as `read_list`.
    """
    try:
        content = read_small(path, MOST_BYTES)
    except ValueError as error:
        raise _refusal(path, f"it is {error}", needs) from error
    except FileNotFoundError as error:
        raise InputError(f"No such {what}: {path}. Check the path.") from error
    except OSError as error:
        raise_machine_fault(error, path)
        raise _refusal(path, error.strerror or str(error), needs) from error
    begin = content[:64].lstrip()
    for magic, kind in OTHERS.items():
        if begin.startswith(magic):
            raise _refusal(path, f"it is {kind}. {SAVE_AS_CSV}", needs)
    mark = next((mark for mark in MARKS if content.startswith(mark)), b"")
    content = content[len(mark) :]
    encoding = MARKS[mark] if mark else _encoding(content)
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        where = f"byte 0x{content[error.start]:02X} in line {line}" if encoding == "utf-8" else "it is cut short, or damaged"
        raise _refusal(path, f"its encoding is not {encoding.upper()} ({where}). {SAVE_AS_UTF8}", needs) from error
    if "\0" in text:
        raise _refusal(path, f"its encoding cannot be told (NUL characters). {SAVE_AS_UTF8}", needs)
    # Programs that join files may leave a mark in front of another.
    return text.lstrip("\ufeff")


def _refusal(path: Path, why: str, needs: str) -> InputError:
    return InputError(f"{path} cannot be read as CSV: {why.rstrip('.')}. {needs}".rstrip())


def _encoding(content: bytes) -> str:
    """The encoding of a text without a mark. Every second byte of headings in UTF-16 is NUL, and in UTF-8 none is."""
    sample = content[:200]
    even, odd = sample[0::2].count(0), sample[1::2].count(0)
    if len(content) % 2 == 0 and max(even, odd) > len(sample) // 4 and min(even, odd) == 0:
        return "utf-16-be" if even else "utf-16-le"
    return "utf-8"


def parse_list(path: Path, text: str, known: Collection[str], needs: str = "", exact: bool = False) -> UserList:
    """The list in a text; see `read_list`."""
    skipped, separator, text = _declared(path, text, needs)
    _require_headings_first(path, text, known, needs, skipped)
    separator = separator or _separator(path, text, known, needs)
    csv.field_size_limit(LONGEST_FIELD)
    # Strict: a quote that is never closed would swallow the rows after it.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True, skipinitialspace=not exact)
    rows, lines = [], []
    try:
        for row in reader:
            if any(field and not field.isspace() for field in row):
                rows.append([unprotected(field if exact else field.strip()) for field in row])
                lines.append(reader.line_num + skipped)
            if len(rows) > MOST_ROWS:
                raise _refusal(path, f"it has more than {MOST_ROWS:,} rows", needs)
    except csv.Error as error:
        open_ = "a quote is opened and never closed" if "end of data" in str(error) else str(error)
        raise _refusal(path, f"line {reader.line_num + skipped}: {open_}", needs) from error
    if not rows:
        raise _refusal(path, "it is empty", needs)
    headings, rows, lines = [heading.strip() for heading in rows[0]], rows[1:], lines[1:]
    while headings and not headings[-1]:
        headings.pop()
    count = len(headings)
    if count > MOST_COLUMNS:
        raise _refusal(path, f"it has {count:,} columns", needs)
    for number, (row, line) in enumerate(zip(rows, lines, strict=True)):
        if len(row) != count:
            rows[number] = _fitted(row, count, separator, f"{path}, line {line}")
    plain = list(map(_plain, headings))
    if double := next((name for name in known if plain.count(name) > 1), ""):
        raise InputError(f"{path}: two columns have the same name, {double}. Remove one. {needs}".rstrip())
    return UserList([name if name in known else heading for name, heading in zip(plain, headings, strict=True)], rows, lines, separator)


def _declared(path: Path, text: str, needs: str) -> tuple[int, str, str]:
    """How many lines say how to read the list, the separator that they declare, and the text after them.

    Raises InputError if it is none that can be read.
    """
    first, end, rest = text.partition("\n")
    if not end:
        first, end, rest = text.partition("\r")
    word = first.strip("\r\" '")
    if not word.lower().startswith("sep="):
        return 0, "", text
    # Excel adds separators at the end if the line is as long as the table.
    separator = word[4:5] if len(set(word[4:])) == 1 else word[4:]
    if separator not in SEPARATORS:
        raise _refusal(path, f"its first line declares the separator '{separator}', not one of {SIGNS}", needs)
    return 1, separator, rest


def _require_headings_first(path: Path, text: str, known: Collection[str], needs: str, skipped: int) -> None:
    """Raises InputError if headings stand below other lines, as below a title or merged cells."""
    lines = list(islice(io.StringIO(text, newline=None), HEAD))
    found = [max(len(set(_names(line, separator)) & set(known)) for separator in SEPARATORS) for line in lines]
    filled = [number for number, line in enumerate(lines) if line.strip(' \n,;|\t"')]
    headings = next((number for number in filled if found[number] >= min(2, len(known))), None)
    if filled and headings is not None and headings > filled[0] and not found[filled[0]]:
        raise _refusal(path, f"its headings are in line {headings + skipped + 1}; remove the lines above them", needs)


def _separator(path: Path, text: str, known: Collection[str], needs: str) -> str:
    """The separator that splits the headings into the most of the known names.

    Raises InputError if two do equally well.
    """
    heading = next((line for line in io.StringIO(text, newline=None) if line.strip(" \n,;|\t")), "")
    names = {separator: _names(heading, separator) for separator in SEPARATORS}
    some = [separator for separator in SEPARATORS if len(names[separator]) > 1]
    if not some and len(set(re.split(r"\W+", heading.lower())) & set(known)) > 1:
        raise _refusal(path, f"the separator is none of {SIGNS}", needs)
    if not some:
        return ","
    found = {separator: len(set(names[separator]) & set(known)) for separator in some}
    best = [separator for separator in some if found[separator] == max(found.values())]
    if len(best) > 1:
        signs = " or ".join(SEPARATORS[separator] for separator in best)
        raise _refusal(path, f"the separator may be {signs}. Separate the headings by one of them only", needs)
    return best[0]


def _plain(heading: str) -> str:
    """A heading as names are known: ``Patient ID`` as patient_id."""
    return "_".join(heading.lower().split())


def _names(heading: str, separator: str) -> list[str]:
    """The headings, as names are known, if this is the separator."""
    try:
        return [_plain(name) for name in next(csv.reader([heading], delimiter=separator, skipinitialspace=True), [])]
    except csv.Error:
        return []


def _fitted(row: list[str], count: int, separator: str, where: str) -> list[str]:
    """A row with as many fields as there are headings."""
    others = [sign for sign in SEPARATORS if sign != separator and sign in row[0]]
    if len(row) < count and not (len(row) == 1 and others):
        return row + [""] * (count - len(row))
    if len(row) > count and not any(row[count:]):
        return row[:count]
    remedy = "Quote fields that contain the separator, such as decimal commas." if len(row) > count else "Use one separator throughout."
    raise InputError(
        f"{where}: {counted(len(row), 'field')}, but the heading has {count}, with {SEPARATORS[separator]} as the separator. {remedy}"
    )


def protected(cell: Any) -> Any:
    """A cell as it is written into a CSV: text that a spreadsheet would take for a formula gets an apostrophe, which shows it as text."""
    return f"'{cell}" if isinstance(cell, str) and FORMULA.match(cell) else cell


def unprotected(text: str) -> str:
    """The text of a cell that `protected` has written."""
    return text[1:] if text.startswith("'") and FORMULA.match(text) else text


def decimal(text: str) -> float:
    """A number with a decimal point or a decimal comma; blanks around it do not matter.

    Raises ValueError for anything else, such as ``1_000``, ``1.000,5`` or the digits of other scripts.
    """
    plain = text.strip()
    if plain.count(",") == 1 and "." not in plain:
        plain = plain.replace(",", ".")
    if not plain.isascii() or "_" in plain:
        raise ValueError(f"not a number: {text}")
    return float(plain)
