"""Split into train, valid and test: by patient, stratified by class, seeded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np

from ctcovid.base.choices import PARTS
from ctcovid.base.errors import InputError, UsageError, listing
from ctcovid.base.lists import read_list
from ctcovid.scans.contents import natural_key
from ctcovid.volumes.layout import ScanRow


def split_patients(
    patients: dict[str, str], shares: tuple[float, float, float], seed: int, known: Mapping[str, str] = MappingProxyType({})
) -> dict[str, str]:
    """Assign patients to "train", "valid" and "test".

    Parameters
    ----------
    patients : class by patient
    shares : of train, valid and test, summing to 1 (Table 1 has about 60, 20 and 20 %)
    seed : the same seed and patients give the same split, whatever the order of `patients`
    known : part by patient, of those who keep the part that they have

    Returns
    -------
    part by patient. A class with too few patients for three parts fills them in the order train, test, valid. If a class has patients
    with a part, each further one goes to the part that lacks most of its share.
    """
    parts = {patient: known[patient] for patient in patients if patient in known}
    for label in sorted(set(patients.values())):
        have = Counter(known[patient] for patient, of in patients.items() if of == label and patient in known)
        members = sorted((patient for patient, of in patients.items() if of == label and patient not in known), key=natural_key)
        np.random.default_rng([seed, *label.encode()]).shuffle(members)
        if have:
            parts |= _joining(members, have, shares)
            continue
        test, valid = _count(shares[2], len(members), 2), _count(shares[1], len(members), 3)
        if shares[0] > 0:
            while test + valid >= len(members):
                valid, test = (valid - 1, test) if valid else (valid, test - 1)
        for position, patient in enumerate(members):
            parts[patient] = "test" if position < test else "valid" if position < test + valid else "train"
    return parts


def _joining(members: list[str], have: Counter[str], shares: tuple[float, float, float]) -> dict[str, str]:
    """Part by patient for further `members` of a class, whose parts `have` so many patients."""
    wanted = dict(zip(PARTS, shares, strict=True))
    parts: dict[str, str] = {}
    for patient in members:
        total = have.total() + 1
        part = max(("train", "test", "valid"), key=lambda part: wanted[part] * total - have[part])
        parts[patient] = part
        have[part] += 1
    return parts


def _count(share: float, members: int, needed: int) -> int:
    """Patients of a part: its share, but at least one if the class has at least `needed` patients."""
    if share == 0:
        return 0
    return max(round(share * members), 1 if members >= needed else 0)


def parse_shares(text: str, recorded: bool = False) -> tuple[float, float, float]:
    """Shares of train, valid and test, summing to 1, from percentages such as ``60/20/20``.

    recorded : the text is from a volumes file; earlier versions scaled numbers of any sum

    Raises UsageError unless there are three non-negative numbers, the first above zero, which sum to 100 within rounding.
    """
    try:
        train, valid, test = (float(word) for word in text.split("/"))
        if train <= 0 or valid < 0 or test < 0 or not np.isfinite(train + valid + test):
            raise ValueError
    except ValueError as error:
        raise UsageError(f"--split {text}: give the shares of train, valid and test like 60/20/20.") from error
    total = train + valid + test
    # Three thirds may be written as 33/33/33.
    if abs(total - 100) > 1 and not recorded:
        raise UsageError(f"--split {text}: the three sum to {total:g}. Give percentages that sum to 100, like 60/20/20.")
    return train / total, valid / total, test / total


def read_split_file(path: Path, patients: Iterable[str]) -> dict[str, str]:
    """Part by patient from a CSV with the columns patient and split.

    Raises InputError that lists every patient who is missing, is in two parts, or has an unknown part.
    """
    table = read_list(path, ("patient", "split"), "split file", "It needs the columns patient,split.")
    if not {"patient", "split"} <= set(table.headings):
        raise InputError(f"{path} has the columns {table.named}; it needs patient,split.")
    parts: dict[str, str] = {}
    problems: list[str] = []
    for patient, part in zip(table.column("patient"), table.column("split"), strict=True):
        if part not in PARTS:
            problems.append(f"patient {patient}: split '{part}' is not one of {', '.join(PARTS)}")
        elif parts.setdefault(patient, part) != part:
            problems.append(f"patient {patient}: both in {parts[patient]} and in {part}")
    listed = set(table.column("patient"))
    problems += [f"patient {patient}: not in the file" for patient in patients if patient not in listed]
    if problems:
        raise InputError(f"{path} does not assign every patient to one part:\n{listing(problems)}\nCorrect these lines.")
    return {patient: parts[patient] for patient in patients}


def patients_in_two_parts(rows: Iterable[ScanRow]) -> list[str]:
    """Patients whose scans are in more than one part; there must be none."""
    parts: dict[str, set[str]] = {}
    for row in rows:
        parts.setdefault(row.patient, set()).add(row.split)
    return sorted((patient for patient, among in parts.items() if len(among) > 1), key=natural_key)
