"""A manifest: a CSV that says where scans lie, in whatever layout, and whose they are."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from ctcovid.base.choices import PARTS
from ctcovid.base.errors import InputError, listing
from ctcovid.scans.places import found_at, stem
from ctcovid.scans.scan import Scan

COLUMNS = "path,label,patient[,scan,split]"
# No CSV of paths has longer lines; what has is another file.
LONGEST_FIELD = 1 << 16


@dataclass(frozen=True)
class Row:
    """One line of a manifest; `line` counts as an editor does."""

    line: int
    path: str
    label: str
    patient: str
    scan: str
    split: str


def is_manifest(path: Path) -> bool:
    return path.suffix.lower() == ".csv"


def manifest_scans(path: Path, series: str | None = None, labelled: bool = True) -> list[Scan]:
    """The scans that a manifest lists, in its order. Paths are relative to its folder.

    Without `labelled` neither label nor patient is asked for, and a scan's id is ``patient/scan``, as far as it has them, or its path. Of
    several scans without a name that a patient has, the path is the name.

    Raises InputError that names every line that is wrong.
    """
    rows = read_manifest(path, labelled)
    scans: list[Scan] = []
    problems: list[str] = []
    first_of: dict[str, int] = {}
    first_named: dict[tuple[str, str, str], int] = {}
    unnamed = Counter(_own_name(row, labelled) for row in rows if not row.scan)
    listed = {(path.parent / row.path).resolve() for row in rows}
    for row in rows:
        problem, scan = "", None
        try:
            found = found_at(path.parent / row.path, series)
        except InputError as error:
            problem = str(error)
        else:
            # A file in the folder that has a line of its own, such as a NIfTI beside DICOM, is not what the folder's line means.
            others = [one for one in found if not one.scan.folder.is_file() or one.scan.folder.resolve() not in listed]
            found = others if len(others) == 1 else found
            if len(found) == 1:
                scan = _scan(found[0].scan, row, labelled, unnamed[_own_name(row, labelled)] > 1)
                name = (scan.label, scan.patient, scan.id)
                if first_of.setdefault(scan.source, row.line) != row.line:
                    problem = f"{row.path} is also in line {first_of[scan.source]}"
                elif row.scan and first_named.setdefault(name, row.line) != row.line:
                    problem = f"scan {row.scan} of patient {row.patient} is also in line {first_named[name]}, with another path"
            else:
                problem = f"{row.path} holds {len(found) or 'no'} scans; give a line for each" if found else f"{row.path} holds no scan"
        if problem:
            problems.append(f"line {row.line}: {problem.rstrip('.')}")
        elif scan is not None:
            scans.append(scan)
    if problems:
        raise InputError(f"{path}: {len(problems):,} lines cannot be used:\n{listing(problems)}\nMend them.")
    return scans


def manifest_parts(path: Path) -> dict[str, str] | None:
    """Part by patient as a manifest gives it, None where it has no split.

    Raises InputError that names every line whose split is absent, unknown, or differs from that of the patient's other scans.
    """
    rows = read_manifest(path)
    if not any(row.split for row in rows):
        return None
    parts: dict[str, str] = {}
    problems = []
    for row in rows:
        if row.split not in PARTS:
            problems.append(f"line {row.line}: split '{row.split}' is none of {', '.join(PARTS)}")
        elif parts.setdefault(row.patient, row.split) != row.split:
            problems.append(f"line {row.line}: patient {row.patient} is in {row.split} here and in {parts[row.patient]} above")
    if problems:
        raise InputError(f"{path} does not give every patient one part:\n{listing(problems)}\nGive all scans a split, or none.")
    return parts


def read_manifest(path: Path, labelled: bool = True) -> list[Row]:
    """The lines of a manifest.

    Raises InputError where it cannot be read, lacks a column, or has lines that lack a value.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(_rows(file.read()))
    except FileNotFoundError as error:
        raise InputError(f"No such manifest: {path}. Check the path.") from error
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as CSV: {error}. It needs the columns {COLUMNS}.") from error
    needed = ("path", "label", "patient") if labelled else ("path",)
    if not rows:
        raise InputError(f"{path} lists no scans. It needs the columns {COLUMNS}, and a line for each scan.")
    if missing := [name for name in needed if name not in rows[0][1]]:
        raise InputError(f"{path} has no column {', '.join(missing)}. It needs {COLUMNS}.")
    problems = [
        f"line {line}: no {', no '.join(empty)}" for line, values in rows if (empty := [name for name in needed if not values[name]])
    ]
    if problems:
        raise InputError(f"{path}: {len(problems):,} lines lack a value:\n{listing(problems)}\nMend them.")
    return [Row(line, *(values.get(name, "") for name in ("path", "label", "patient", "scan", "split"))) for line, values in rows]


def _rows(text: str) -> Iterator[tuple[int, dict[str, str]]]:
    csv.field_size_limit(LONGEST_FIELD)
    reader = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
    for values in reader:
        if any(values.values()):
            yield reader.line_num, {str(name).strip().lower(): str(value or "").strip() for name, value in values.items()}


def _own_name(row: Row, labelled: bool) -> tuple[str, str, str]:
    """Label, patient and the name of a scan that the manifest gives none, as far as they tell it from others."""
    return (row.label, row.patient, stem(Path(row.path))) if labelled else ("", row.patient, "")


def _scan(scan: Scan, row: Row, labelled: bool, alike: bool) -> Scan:
    name = row.scan or (row.path if alike else stem(Path(row.path)))
    if not labelled:
        name = "/".join(part for part in (row.patient, row.scan or (row.path if alike else "")) if part) or row.path
    return replace(scan, id=name, patient=row.patient, label=row.label, source=row.path)
