"""Choose patients so that classes are balanced (Li et al. 2021, Table 1), or a file is as large as another (Table 4)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from ctcovid.scans.contents import natural_key
from ctcovid.volumes.layout import ScanRow
from ctcovid.volumes.split import split_patients

# The small parts first: the training part gets the rest.
FILLED = ("test", "valid", "train")
# Patients that a class must have before a part gets one of them.
NEEDED = {"train": 1, "test": 2, "valid": 3}

Sizes = dict[tuple[str, str], int]


@dataclass(frozen=True)
class Split:
    """How patients are assigned to parts.

    Attributes
    ----------
    shares, seed : of train, valid and test; the seed of the draw
    parts : part by patient, in place of a draw
    sizes : slices by class and part to reach, in place of shares
    balance : whether to choose so many patients that the classes are balanced
    known : part by patient, of those who keep the part that they have
    """

    shares: tuple[float, float, float]
    seed: int
    parts: dict[str, str] | None = None
    sizes: Sizes | None = None
    balance: bool = False
    known: dict[str, str] = field(default_factory=dict)


def slices_by_part(rows: Iterable[ScanRow]) -> Sizes:
    """Number of slices by class and part."""
    sizes: Sizes = {}
    for row in rows:
        sizes[row.label, row.split] = sizes.get((row.label, row.split), 0) + row.slice_count
    return sizes


def balanced(patients: dict[str, str], slices: dict[str, int], shares: tuple[float, float, float], seed: int) -> dict[str, str]:
    """Part by patient, of so many patients that all classes have about as many slices as the smallest, in each part.

    Parameters
    ----------
    patients : class by patient
    slices : number of slices by patient
    shares : of train, valid and test, summing to 1
    seed : the same seed and patients give the same choice, whatever the order of `patients`

    Returns
    -------
    part by patient; absent patients are left out
    """
    of_class: dict[str, int] = {}
    for patient, label in patients.items():
        of_class[label] = of_class.get(label, 0) + slices[patient]
    smallest = min(of_class.values())
    wanted = dict(zip(("train", "valid", "test"), shares, strict=True))
    parts: dict[str, str] = {}
    for label in sorted(of_class):
        members = _members(patients, label, seed)
        for part in FILLED:
            aim = round(wanted[part] * smallest)
            first = bool(aim) and len(members) + sum(patients[one] == label for one in parts) >= NEEDED[part]
            taken = _fill(members, slices, aim, nearest=True, first=first)
            parts |= dict.fromkeys(taken, part)
            members = [patient for patient in members if patient not in parts]
    return parts


def matched(patients: dict[str, str], slices: dict[str, int], sizes: Sizes, seed: int) -> dict[str, str]:
    """Part by patient, of so many patients that each class has at least as many slices in each part as `sizes` says."""
    parts: dict[str, str] = {}
    for label in sorted(set(patients.values())):
        members = _members(patients, label, seed)
        for part in FILLED:
            aim = sizes.get((label, part), 0)
            taken = _fill(members, slices, aim, nearest=False, first=False)
            parts |= dict.fromkeys(taken, part)
            members = [patient for patient in members if patient not in parts]
    return parts


def cut_to(rows: Iterable[ScanRow], sizes: Sizes) -> list[ScanRow]:
    """Rows, with their parts, of no more slices by class and part than `sizes` says. Of the last scan the middle slices are kept."""
    left = dict(sizes)
    kept = []
    for row in rows:
        count = min(row.slice_count, left.get((row.label, row.split), 0))
        if count:
            left[row.label, row.split] -= count
            kept.append(replace(row, first_slice=row.first_slice + (row.slice_count - count) // 2, slice_count=count))
    return kept


def choose(rows: list[ScanRow], classes: list[str], depth: int, split: Split) -> list[ScanRow]:
    """The chosen rows, each with its part. One id is one patient, even in several class folders."""
    if split.parts is not None:
        given = split.parts | split.known
        return [replace(row, split=given[row.patient]) for row in rows]
    labels, slices = patients_of(rows, classes, depth)
    if split.sizes is not None:
        parts = matched(labels, slices, split.sizes, split.seed)
    elif split.balance:
        parts = balanced(labels, slices, split.shares, split.seed)
    else:
        # Patients without a volume must not displace others; they go to the training part.
        parts = dict.fromkeys((row.patient for row in rows), "train") | split_patients(labels, split.shares, split.seed, split.known)
        parts |= split.known
    chosen = [replace(row, split=parts[row.patient]) for row in rows if row.patient in parts]
    return cut_to(chosen, split.sizes) if split.sizes is not None else chosen


def choose_awaiting(
    rows: list[ScanRow], awaited: list[ScanRow], classes: list[str], depth: int, split: Split
) -> tuple[list[ScanRow], dict[str, str]]:
    """`choose`, and the parts of patients all of whose scans are `awaited`: they could not be read so far, and are taken for one volume.

    So a patient is in the same part whether or not a scan is read by a later run only.
    """
    if split.sizes is not None or split.balance:
        return choose(rows, classes, depth, split), {}
    chosen = choose([*rows, *(replace(row, slice_count=depth) for row in awaited)], classes, depth, split)
    parts = {row.patient: row.split for row in chosen}
    waiting = {row.patient for row in awaited} - {row.patient for row in rows}
    return chosen[: len(rows)], {patient: parts[patient] for patient in sorted(waiting)}


def patients_of(rows: Iterable[ScanRow], classes: list[str], depth: int) -> tuple[dict[str, str], dict[str, int]]:
    """Class and number of slices by patient, of patients with a volume. A patient in several classes has the first of them."""
    labels: dict[str, str] = {}
    slices: dict[str, int] = {}
    for row in sorted(rows, key=lambda row: classes.index(row.label)):
        if row.volume_count(depth):
            labels.setdefault(row.patient, row.label)
        slices[row.patient] = slices.get(row.patient, 0) + row.slice_count
    return labels, slices


def _members(patients: dict[str, str], label: str, seed: int) -> list[str]:
    members = sorted((patient for patient, of in patients.items() if of == label), key=natural_key)
    np.random.default_rng([seed, *label.encode()]).shuffle(members)
    return members


def _fill(members: list[str], slices: dict[str, int], aim: int, nearest: bool, first: bool) -> list[str]:
    """Members in turn until their slices reach the aim, or come `nearest` to it; the first member anyway if `first`."""
    taken: list[str] = []
    total = 0
    for patient in members:
        if (first and not taken) or (total + slices[patient] <= aim if nearest else total < aim):
            taken.append(patient)
            total += slices[patient]
    rest = [patient for patient in members if patient not in set(taken)]
    if nearest and rest:
        last = min(rest, key=lambda patient: abs(total + slices[patient] - aim))
        if abs(total + slices[last] - aim) < abs(total - aim):
            taken.append(last)
    return taken
