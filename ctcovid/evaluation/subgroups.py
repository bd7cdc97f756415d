"""Groups of patients and scans that a model may serve unequally."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from ctcovid.base.errors import InputError
from ctcovid.base.lists import read_list
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
    table = read_list(path, PATIENT_COLUMNS, "file of subgroups", "It needs one column patient or patient_id, and others to group by.")
    heading = table.headings
    found = [number for number, name in enumerate(heading) if name in PATIENT_COLUMNS]
    named = [name for name in heading if name]
    if len(found) != 1 or len(named) < 2 or len(set(named)) < len(named):
        raise InputError(
            f"{path} needs one column patient or patient_id, and others, each with its own name, to group by. Correct the heading."
        )
    columns: dict[str, dict[str, list[str]]] = {}
    for number, name in enumerate(heading):
        if number == found[0] or not name:
            continue
        values = columns[name] = {}
        texts = _with_points([row[number] for row in table.rows])
        for row, text in zip(table.rows, texts, strict=True):
            mine = values.setdefault(row[found[0]], []) if text else []
            if text and text not in mine:
                mine.append(text)
    return columns


def _with_points(texts: list[str]) -> list[str]:
    """A column of numbers with decimal commas, with points; as it is where the commas may part thousands, or it has other words."""
    with_comma = [text for text in texts if "," in text]
    thousands = all(re.fullmatch(r"-?[1-9]\d{0,2},\d{3}", text) for text in with_comma)
    if thousands or not all(re.fullmatch(r"-?\d+(,\d+)?", text) for text in texts if text):
        return texts
    return [text.replace(",", ".") for text in texts]


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
