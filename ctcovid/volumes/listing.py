"""Lists of scans and slices as CSV: scans to exclude, slices with lesions, and the scans of a data set without its pictures."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from ctcovid.base.errors import InputError
from ctcovid.base.faults import raise_machine_fault
from ctcovid.scans.kind import COMPLETE, SEGMENTED
from ctcovid.volumes.layout import ScanRow

if TYPE_CHECKING:
    import pandas as pd

# Names of the columns in the lists that are distributed with CC-CCII.
NAMES = {
    "label": ("label", "class", "cls"),
    "patient": ("patient", "patient_id", "pid"),
    "scan": ("scan", "scan_id"),
    "slices": ("slices", "n_slice", "n_listed"),
}


def read_exclusions(path: Path) -> set[tuple[str, str, str]]:
    """Scans to exclude as (class, patient, scan), with class "" if it is not given.

    The file has a line such as ``NCP/96/1328`` or ``96/1328`` for each, or is a CSV with patient_id, scan_id and perhaps label.

    Raises InputError that names a line which is neither.
    """
    lines = [line.strip() for line in _text(path).splitlines()]
    if lines and "," in lines[0] and _column(lines[0].split(","), "scan"):
        table = _table(path, ("patient", "scan"))
        labels = table["label"] if "label" in table else [""] * len(table)
        return set(zip(labels, table["patient"], table["scan"], strict=True))
    found = set()
    for number, line in enumerate(lines, start=1):
        if not line or line.startswith("#"):
            continue
        words = line.strip("/").split("/")
        if len(words) not in (2, 3) or not all(words):
            raise InputError(f"{path}, line {number}: '{line}' is not a scan. Write one per line, as NCP/96/1328.")
        label, patient, scan = ("", *words) if len(words) == 2 else words
        found.add((label, patient, scan))
    return found


def read_lesions(path: Path) -> dict[str, set[str]]:
    """Names of the slices with lesions, without their endings, by scan, such as ``NCP/96/1328``, from the column imgpath.

    Raises InputError if there is no such column.
    """
    table = _csv(path)
    if "imgpath" not in table:
        raise InputError(f"{path} has the columns {', '.join(table.columns)}; it needs imgpath, with rows such as NCP/96/1328/0032.png.")
    found: dict[str, set[str]] = {}
    for name in table["imgpath"]:
        slice_ = PurePosixPath(str(name).strip().replace("\\", "/"))
        found.setdefault(slice_.parent.as_posix().lstrip("./"), set()).add(slice_.stem)
    return found


def read_plan(listing: Path, defects: Path | None) -> list[ScanRow]:
    """The scans of a listing, as rows without part and pixels.

    Parameters
    ----------
    listing : CSV of class, patient, scan and number of slices, such as CC-CCII's own ``unzip_filenames.csv``
    defects : CSV of class, patient and scan with the columns is_seg (1 for segmented scans) and repeat_ids (slices to drop)
    """
    table = _table(listing, ("label", "patient", "scan", "slices"))
    segmented, repeated = _defects(defects) if defects is not None else (set(), {})
    rows = []
    for label, patient, scan, slices in zip(table["label"], table["patient"], table["scan"], table["slices"], strict=True):
        key = (label, patient, scan)
        if not str(slices).isdigit():
            raise InputError(f"{listing}: scan {'/'.join(key)} has '{slices}' slices, which is not a number. Correct it.")
        count = max(int(slices) - repeated.get(key, 0), 0)
        kind = SEGMENTED if key in segmented else COMPLETE
        rows.append(ScanRow(scan, patient, label, "", 0, count, kind, "/".join(key), "", 0))
    return rows


def _defects(path: Path) -> tuple[set[tuple[str, str, str]], dict[tuple[str, str, str], int]]:
    table = _table(path, ("label", "patient", "scan"))
    keys = list(zip(table["label"], table["patient"], table["scan"], strict=True))
    segmented = {key for key, value in zip(keys, table["is_seg"], strict=True) if value == "1"} if "is_seg" in table else set()
    repeats = table["repeat_ids"] if "repeat_ids" in table else [""] * len(keys)
    return segmented, {key: _count(words) for key, words in zip(keys, repeats, strict=True) if words}


def _count(words: str) -> int:
    """How many slices ``0-30;44`` names."""
    ranges = [[int(number) for number in re.findall(r"\d+", word)] for word in words.split(";")]
    return sum(numbers[-1] - numbers[0] + 1 for numbers in ranges if numbers)


def _table(path: Path, needed: tuple[str, ...]) -> pd.DataFrame:
    """A CSV with its columns under our names."""
    table = _csv(path)
    found = {ours: _column(list(table.columns), ours) for ours in NAMES}
    missing = [" or ".join(NAMES[ours]) for ours in needed if not found[ours]]
    if missing:
        raise InputError(f"{path} has the columns {', '.join(table.columns)}; it also needs {', '.join(missing)}.")
    return table.rename(columns={theirs: ours for ours, theirs in found.items() if theirs})


def _column(columns: list[str], ours: str) -> str:
    return next((name for name in columns if name.strip() in NAMES[ours]), "")


def _csv(path: Path) -> pd.DataFrame:
    import pandas as pd

    _text(path)
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False, skipinitialspace=True)
    except (OSError, ValueError) as error:
        raise_machine_fault(error, path)
        raise InputError(f"{path} cannot be read as CSV: {error}. Correct the file.") from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(f"No such file: {path}. Check the path.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise_machine_fault(error, path)
        raise InputError(f"{path} cannot be read: {error}. Give a text file.") from error
