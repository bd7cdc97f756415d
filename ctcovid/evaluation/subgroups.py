"""Groups of patients and scans that a model may serve unequally."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from ctcovid.base.errors import InputError
from ctcovid.base.faults import raise_machine_fault
from ctcovid.evaluation.levels import row_keys
from ctcovid.evaluation.predictions import Predictions

PATIENT_COLUMNS = ("patient", "patient_id", "patientid")
MISSING, SEVERAL = "missing", "several values"
# Groupings that the volumes file itself knows.
KIND, SLICES = "kind of image", "slices of the scan"
# A numeric column with more values than this is cut at its quartiles; a column of so many words is no grouping.
MOST_VALUES = 6
# Fewer patients than this say next to nothing.
SMALL = 10


@dataclass(frozen=True)
class Grouping:
    """What divides the volumes: its `name`, and the group of each, length N."""

    name: str
    groups: list[str]

    def members(self) -> dict[str, np.ndarray]:
        """Volumes of each group, bool (N,) by name, what is missing last."""
        found = np.array(self.groups, dtype=object)
        return {name: found == name for name in sorted(set(self.groups), key=_place)}


def read_attributes(path: Path) -> dict[str, dict[str, list[str]]]:
    """The values that a CSV gives for each patient, by column: some have none, some several, as in CC-CCII's metadata.csv.

    Raises InputError where the file cannot be read, or has no column of patients.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = [[field.strip() for field in line] for line in csv.reader(file) if any(line)]
    except FileNotFoundError as error:
        raise InputError(f"No such file of subgroups: {path}. Check the path.") from error
    except (OSError, ValueError, csv.Error) as error:
        raise_machine_fault(error, path)
        raise InputError(f"{path} cannot be read as CSV: {error}. It needs a column patient and others to group by.") from error
    heading = lines[0] if lines else []
    found = [number for number, name in enumerate(heading) if name.lower() in PATIENT_COLUMNS]
    if len(found) != 1 or len(heading) < 2 or len(set(heading)) < len(heading):
        raise InputError(
            f"{path} needs one column patient or patient_id, and others, each with its own name, to group by. Correct the heading."
        )
    wrong = next((number for number, line in enumerate(lines, 1) if len(line) != len(heading)), None)
    if wrong:
        raise InputError(f"{path}, row {wrong}: {len(lines[wrong - 1])} fields, but the heading has {len(heading)}. Correct the file.")
    columns: dict[str, dict[str, list[str]]] = {name: {} for number, name in enumerate(heading) if number != found[0]}
    for line in lines[1:]:
        for number, name in enumerate(heading):
            if name in columns and line[number]:
                values = columns[name].setdefault(line[found[0]], [])
                if line[number] not in values:
                    values.append(line[number])
    return columns


def by_patient(name: str, values: dict[str, list[str]], patients: Sequence[str]) -> Grouping | None:
    """The volumes by one column; None where it is no grouping: too many different words, or nothing for these patients."""
    mine = {patient: values.get(patient, []) for patient in dict.fromkeys(patients)}
    single = {patient: found[0] for patient, found in mine.items() if len(found) == 1}
    if not single:
        return None
    cut = _cut(single)
    if cut is None:
        return None
    return Grouping(name, [cut.get(patient, SEVERAL if mine[patient] else MISSING) for patient in patients])


def by_number(name: str, numbers: Sequence[int]) -> Grouping:
    """The volumes by a number that each has, such as the slices of its scan."""
    cut = _cut({str(place): str(number) for place, number in enumerate(numbers)})
    assert cut is not None, "numbers can be cut"
    return Grouping(name, list(cut.values()))


def at_level(grouping: Grouping, predictions: Predictions, level: str) -> Grouping:
    """The groups of the rows that `levels.joined` makes of the volumes; what joins volumes of several groups is in none of them."""
    if level == "volume":
        return grouping
    found: dict[tuple[str, str, int], set[str]] = {}
    for key, group in zip(row_keys(predictions, level), grouping.groups, strict=True):
        found.setdefault(key, set()).add(group)
    return Grouping(grouping.name, [next(iter(groups)) if len(groups) == 1 else SEVERAL for groups in found.values()])


def _cut(values: dict[str, str]) -> dict[str, str] | None:
    """A group for each key: its value, or the quartile of it, where there are many numbers."""
    if len(set(values.values())) <= MOST_VALUES:
        return dict(values)
    try:
        numbers = {key: float(value) for key, value in values.items()}
    except ValueError:
        return None
    if not np.isfinite(list(numbers.values())).all():
        return None
    bounds = np.unique(np.percentile(list(numbers.values()), [25, 50, 75]))
    names = [f"≤ {bounds[0]:g}", *(f"{low:g} – {high:g}" for low, high in pairwise(bounds)), f"> {bounds[-1]:g}"]
    return {key: names[int(np.searchsorted(bounds, number, side="left"))] for key, number in numbers.items()}


def _place(name: str) -> tuple[int, float, str]:
    """Numbers by size, words by name, what is not known last."""
    if name in (MISSING, SEVERAL):
        return 2, 0.0, name
    words = name.split()
    try:
        first = float(words[-1] if name[0] in "≤>" else words[0])
    except ValueError:
        return 1, 0.0, name
    return 0, first - (1e-9 if name[0] == "≤" else -1e-9 if name[0] == ">" else 0), name
