"""A manifest: a CSV of paths of scans in any layout, with their labels and patients."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from ctcovid.base.choices import PARTS
from ctcovid.base.errors import InputError, counted, listing
from ctcovid.base.files import resolved
from ctcovid.base.lists import read_list
from ctcovid.scans.found import found_at, stem
from ctcovid.scans.scan import Scan

NAMES = ("path", "label", "patient", "scan", "split")
COLUMNS = "path,label,patient[,scan,split]"


@dataclass(frozen=True)
class Row:
    """One line of a manifest; `line` counts from 1, as editors do."""

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

    Unless `labelled`, label and patient are optional, and a scan's id is ``patient/scan``, as far as these are given, or its path. If a
    patient has several scans without a name, their paths are the names.

    Raises InputError that names every wrong line.
    """
    rows = read_manifest(path, labelled)
    scans: list[Scan] = []
    problems: list[str] = []
    first_of: dict[str, int] = {}
    first_named: dict[tuple[str, str, str], int] = {}
    unnamed = Counter(_own_name(row, labelled) for row in rows if not row.scan)
    listed = {resolved(path.parent / row.path) for row in rows}
    for row in rows:
        problem, scan = "", None
        try:
            found = found_at(path.parent / row.path, series)
        except InputError as error:
            problem = str(error)
        else:
            # The line of a folder does not mean a file in it that has its own line, such as a NIfTI beside DICOM.
            others = [one for one in found if not one.scan.folder.is_file() or resolved(one.scan.folder) not in listed]
            found = others if len(others) == 1 else found
            if len(found) == 1:
                scan = _scan(found[0].scan, row, labelled, unnamed[_own_name(row, labelled)] > 1)
                name = (scan.label, scan.patient, scan.id)
                if first_of.setdefault(scan.source, row.line) != row.line:
                    problem = f"{row.path} is also in line {first_of[scan.source]}"
                elif row.scan and first_named.setdefault(name, row.line) != row.line:
                    problem = f"scan {row.scan} of patient {row.patient} is also in line {first_named[name]}, with another path"
            else:
                problem = f"{row.path} holds {counted(len(found), 'scan')}; give a line for each" if found else f"{row.path} holds no scan"
        if problem:
            problems.append(f"line {row.line}: {problem.rstrip('.')}")
        elif scan is not None:
            scans.append(scan)
    if problems:
        raise InputError(f"{path}: {counted(len(problems), 'line')} cannot be used:\n{listing(problems)}\nFix them.")
    return scans


def manifest_parts(path: Path) -> dict[str, str] | None:
    """Part by patient, or None if the manifest has no split.

    Raises InputError that names every line whose split is absent, unknown, or differs from that of the patient's other scans.
    """
    rows = read_manifest(path)
    if not any(row.split for row in rows):
        return None
    parts: dict[str, str] = {}
    problems = []
    for row in rows:
        if row.split not in PARTS:
            problems.append(f"line {row.line}: split '{row.split}' is not one of {', '.join(PARTS)}")
        elif parts.setdefault(row.patient, row.split) != row.split:
            problems.append(f"line {row.line}: patient {row.patient} is in {row.split} here, but in {parts[row.patient]} above")
    if problems:
        raise InputError(f"{path} does not assign every patient to one part:\n{listing(problems)}\nGive all scans a split, or none.")
    return parts


def read_manifest(path: Path, labelled: bool = True) -> list[Row]:
    """The lines of a manifest.

    Raises InputError if it cannot be read, lacks a column, or has lines that lack a value.
    """
    table = read_list(path, NAMES, "manifest", f"It needs the columns {COLUMNS}.")
    needed = NAMES[:3] if labelled else NAMES[:1]
    if missing := [name for name in needed if name not in table.headings]:
        raise InputError(f"{path} has no column {', '.join(missing)}. It needs {COLUMNS}.")
    if not table.rows:
        raise InputError(f"{path} lists no scans. It needs the columns {COLUMNS}, and one line per scan.")
    columns = [table.column(name) if name in table.headings else [""] * len(table.rows) for name in NAMES]
    rows = [Row(line, *values) for line, *values in zip(table.lines, *columns, strict=True)]
    problems = [
        f"line {row.line}: no {', no '.join(empty)}" for row in rows if (empty := [name for name in needed if not getattr(row, name)])
    ]
    if problems:
        lack = "lacks" if len(problems) == 1 else "lack"
        raise InputError(f"{path}: {counted(len(problems), 'line')} {lack} a value:\n{listing(problems)}\nFill them in.")
    return rows


def _own_name(row: Row, labelled: bool) -> tuple[str, str, str]:
    """Label, patient and file name of a scan that has no name in the manifest, as far as they tell scans apart."""
    return (row.label, row.patient, stem(Path(row.path))) if labelled else ("", row.patient, "")


def _scan(scan: Scan, row: Row, labelled: bool, alike: bool) -> Scan:
    name = row.scan or (row.path if alike else stem(Path(row.path)))
    if not labelled:
        name = "/".join(word for word in (row.patient, row.scan or (row.path if alike else "")) if word) or row.path
    return replace(scan, id=name, patient=row.patient, label=row.label, source=row.path)
