"""Lists of scans and slices as CSV: scans to exclude, slices with lesions, and the scans of a data set without its pictures."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from ctcovid.base.errors import InputError
from ctcovid.base.lists import HEAD, SEPARATORS, UserList, list_text, parse_list, read_list
from ctcovid.scans.kind import COMPLETE, SEGMENTED
from ctcovid.volumes.layout import ScanRow

# Names of the columns in the lists that are distributed with CC-CCII.
NAMES = {
    "label": ("label", "class", "cls"),
    "patient": ("patient", "patient_id", "pid"),
    "scan": ("scan", "scan_id"),
    "slices": ("slices", "n_slice", "n_listed"),
}
# What the list of known defects says of a scan.
MARKS = ("is_seg", "repeat_ids")
KNOWN = (*(name for names in NAMES.values() for name in names), *MARKS)
# What programs leave around a line that holds a single field.
ENDS = '" ,;\t'


def read_exclusions(path: Path) -> set[tuple[str, str, str]]:
    """Scans to exclude as (class, patient, scan), with class "" if it is not given.

    The file has a line such as ``NCP/96/1328`` or ``96/1328`` for each, or is a CSV with patient_id, scan_id and perhaps label.

    Raises InputError that names a line which is neither.
    """
    text = list_text(path)
    lines = [line.strip().strip(ENDS) for line in text.splitlines()]
    if any(_names_scan(line) for line in lines[:HEAD]):
        table = _table(path, parse_list(path, text, KNOWN), ("patient", "scan"))
        labels = table["label"] if "label" in table else [""] * len(table["scan"])
        return set(zip(labels, table["patient"], table["scan"], strict=True))
    found = set()
    for number, line in enumerate(lines, start=1):
        if not line or line.startswith(("#", "sep=")):
            continue
        words = line.replace("\\", "/").strip("/").split("/")
        if len(words) not in (2, 3) or not all(words):
            raise InputError(f"{path}, line {number}: '{line}' is not a scan. Write one per line, as NCP/96/1328.")
        label, patient, scan = ("", *words) if len(words) == 2 else words
        found.add((label, patient, scan))
    return found


def _names_scan(line: str) -> bool:
    """Whether a line may be the headings of a list with a column of scans."""
    return any(word.strip(ENDS).lower() in NAMES["scan"] for word in re.split("|".join(map(re.escape, SEPARATORS)), line))


def read_lesions(path: Path) -> dict[str, set[str]]:
    """Names of the slices with lesions, without their endings, by scan, such as ``NCP/96/1328``, from the column imgpath.

    Raises InputError if there is no such column.
    """
    table = read_list(path, ("imgpath",), needs="It needs the column imgpath.")
    if "imgpath" not in table.headings:
        raise InputError(f"{path} has the columns {table.named}; it needs imgpath, with rows such as NCP/96/1328/0032.png.")
    found: dict[str, set[str]] = {}
    for name in table.column("imgpath"):
        slice_ = PurePosixPath(name.replace("\\", "/"))
        found.setdefault(slice_.parent.as_posix().lstrip("./"), set()).add(slice_.stem)
    return found


def read_plan(listing: Path, defects: Path | None) -> list[ScanRow]:
    """The scans of a listing, as rows without part and pixels.

    Parameters
    ----------
    listing : CSV of class, patient, scan and number of slices, such as CC-CCII's own ``unzip_filenames.csv``
    defects : CSV of class, patient and scan with the columns is_seg (1 for segmented scans) and repeat_ids (slices to drop)
    """
    table = _table(listing, read_list(listing, KNOWN), ("label", "patient", "scan", "slices"))
    segmented, repeated = _defects(defects) if defects is not None else (set(), {})
    rows = []
    for label, patient, scan, slices in zip(table["label"], table["patient"], table["scan"], table["slices"], strict=True):
        key = (label, patient, scan)
        if not (slices.isascii() and slices.isdigit()):
            raise InputError(f"{listing}: scan {'/'.join(key)} has '{slices}' slices, which is not a number. Correct it.")
        count = max(int(slices) - repeated.get(key, 0), 0)
        kind = SEGMENTED if key in segmented else COMPLETE
        rows.append(ScanRow(scan, patient, label, "", 0, count, kind, "/".join(key), "", 0))
    return rows


def _defects(path: Path) -> tuple[set[tuple[str, str, str]], dict[tuple[str, str, str], int]]:
    table = _table(path, read_list(path, KNOWN), ("label", "patient", "scan"))
    keys = list(zip(table["label"], table["patient"], table["scan"], strict=True))
    segmented = {key for key, value in zip(keys, table["is_seg"], strict=True) if value == "1"} if "is_seg" in table else set()
    repeats = table["repeat_ids"] if "repeat_ids" in table else [""] * len(keys)
    return segmented, {key: _count(words) for key, words in zip(keys, repeats, strict=True) if words}


def _count(words: str) -> int:
    """How many slices ``0-30;44`` names."""
    ranges = [[int(number) for number in re.findall(r"\d+", word)] for word in words.split(";")]
    return sum(numbers[-1] - numbers[0] + 1 for numbers in ranges if numbers)


def _table(path: Path, table: UserList, needed: tuple[str, ...]) -> dict[str, list[str]]:
    """The columns of a list by our names."""
    found = {ours: [name for name in table.headings if name.lower() in NAMES[ours]] for ours in NAMES}
    missing = [" or ".join(NAMES[ours]) for ours in needed if not found[ours]]
    if missing:
        raise InputError(f"{path} has the columns {table.named}; it also needs {', '.join(missing)}.")
    columns = {ours: table.column(theirs[0]) for ours, theirs in found.items() if theirs}
    return columns | {name: table.column(name) for name in MARKS if name in table.headings}
