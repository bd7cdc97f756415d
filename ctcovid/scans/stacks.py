"""One consistent stack out of the slices of a series: evenly spaced, each position once.

A series is divided only if its slices lie between or upon each other, by the first of `frames.MARKS` whose stacks are even. Acquisitions
that follow each other along the patient, such as those of step-and-shoot, are one stack.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from ctcovid.base.errors import counted
from ctcovid.scans.codes import known_mark
from ctcovid.scans.dicom import Header
from ctcovid.scans.frames import Frame, Plane

# As shares of the usual distance: nearer slices have the same position, a larger distance is a gap, and by this much it is uneven.
SAME_POSITION, GAP, UNEVEN = 0.05, 1.5, 0.1
# Of a stack, distances may differ by this share, or as positions are rounded, and so many of them are usual.
LOOSE, MOSTLY = 0.25, 0.7
# A stack that is divided from others has this many slices.
FEWEST = 3
# Of the extent of the longest stack of a series; a shorter one is not used.
MOST_OF_IT = 0.75
# Stacks that follow each other share no more than this part of their extent.
SEAM = 1 / 3
# More slices than this share at the position of another cannot be copies by mistake.
MOST_REPEATED = 0.1
# Marks whose values may be those of slices, in any order, and those that may interleave by intent.
BY_CHANCE = ("acquisition time", "content time", "folder", "order")
BY_INTENT = ("acquisition", *BY_CHANCE)
# By a mark of `BY_CHANCE`, a stack has this share of all positions, unless there are several of `FEWEST`.
NEARLY_ALL = 0.9
# A stack with less than this share of all positions of its series is a chance.
LEAST_SHARE = 0.2
# Marks whose values would tell of a patient or a time.
UNTOLD = ("frame of reference", "description", "acquisition time", "content time", "folder", "order")


@dataclass(frozen=True)
class Slice:
    """One picture of a DICOM file."""

    header: Header
    number: int

    @property
    def frame(self) -> Frame:
        return self.header.frame(self.number)

    @property
    def derived(self) -> bool:
        return "DERIVED" in self.frame.image_type


@dataclass(frozen=True)
class Chosen:
    """The stack to use of a series: its slices in the order of the file list.

    Attributes
    ----------
    said : which stack is used, and which are not; empty if there is only one
    problem : why there is no consistent stack; empty if there is one
    marks : of the slices that are used, if marks tell them from others: their values by mark
    copies : how many copies of slices are left out
    """

    slices: tuple[Slice, ...]
    said: str = ""
    problem: str = ""
    marks: tuple[tuple[str, frozenset[str]], ...] = ()
    copies: int = 0


Groups = dict[tuple[str, ...], np.ndarray]


@dataclass(frozen=True)
class _Division:
    """Groups of slices by some marks, the labels of those used, in order, whether all groups are even, and those used too short."""

    by: tuple[str, ...]
    groups: Groups
    labels: tuple[tuple[str, ...], ...]
    used: np.ndarray
    even: bool
    short: bool


def choose(slices: Sequence[Slice]) -> Chosen:
    """One consistent stack of a series."""
    places, measured = along(slices)
    kept = _without_copies(slices, places) if measured else np.arange(len(slices))
    copies = len(slices) - len(kept)
    said: list[str] = []
    marks: list[tuple[str, frozenset[str]]] = []
    # Of a stack that one mark gives, another mark may still tell parts apart.
    while len(said) < 3 and (division := _division(slices, places, kept)) is not None:
        if division.short:
            text = f"its stacks by {' and '.join(division.by)} lie between each other, and none covers half of the whole"
            return Chosen(tuple(slices), problem=text)
        said.append(_told(division, places))
        for position, mark in enumerate(division.by):
            marks.append((mark, frozenset(label[position] for label in division.labels)))
        kept = division.used
    problem = fault(places[kept]) if measured else ""
    return Chosen(tuple(slices[int(one)] for one in kept), "; ".join(said), problem, tuple(marks), copies)


def along(slices: Sequence[Slice]) -> tuple[np.ndarray, bool]:
    """Place of each slice in mm, from the head, and whether that is known; else the place is its number, or 0 if it has none."""
    planes = planes_of(slices)
    if planes:
        normal = normal_of(planes)
        places = np.array([plane.position for plane in planes]) @ normal
        places = -places if normal[2] > 0 else places
        if np.ptp(places) >= 0.01:
            return places, True
    locations = [one.frame.location for one in slices]
    known = np.array([location for location in locations if location is not None])
    if len(known) == len(slices) and np.ptp(known) >= 0.01:
        return -known, True
    single = all(one.header.frames == 1 for one in slices)
    return np.array([one.header.order[1] if single else 0 for one in slices], float), False


def planes_of(slices: Sequence[Slice]) -> list[Plane]:
    """The planes of all slices, or none if one is missing."""
    planes = [plane for one in slices if (plane := one.frame.plane) is not None]
    return planes if len(planes) == len(slices) else []


def normal_of(planes: Sequence[Plane]) -> np.ndarray:
    """The common normal, of length 1."""
    mean = np.mean([plane.orientation for plane in planes], axis=0)
    normal = np.cross(mean[:3], mean[3:])
    return normal / np.linalg.norm(normal)


def usual(places: np.ndarray) -> float:
    """The usual distance of two slices in mm; infinite if there are no two places."""
    gaps = np.diff(np.sort(places))
    gaps = gaps[gaps > 0.01]
    return float(np.percentile(gaps, 50, method="lower")) if len(gaps) else float("inf")


def repeated(places: np.ndarray) -> int:
    """How many slices lie at the place of another."""
    return int((np.diff(np.sort(places)) < one_place(places)).sum())


def one_place(places: np.ndarray) -> float:
    """The distance in mm below which two slices lie at one place."""
    return min(max(SAME_POSITION * usual(places), 0.01), 1.0)


def fault(places: np.ndarray) -> str:
    """Why slices at these places are not one stack; empty if they can be."""
    if (count := repeated(places)) > MOST_REPEATED * len(places):
        return f"{count:,} of its {counted(len(places), 'slice')} lie at the position of another, and nothing tells which belong together"
    gaps = np.diff(np.sort(places))
    if len(gaps) < 5:
        return ""
    jumps = np.abs(np.diff(gaps)) > max(LOOSE * usual(places), 1.1 * rounded(places))
    if 2 * jumps.sum() <= len(jumps):
        return ""
    return f"its slices are in turn {gaps.min():.4g} to {gaps.max():.4g} mm apart, as of several stacks, and nothing tells these apart"


def rounded(places: np.ndarray) -> float:
    """To what part of a mm positions are rounded; 0 if they are not, or to whole ones."""
    return next((step for step in (0.1, 0.01) if np.allclose(places / step, np.round(places / step), atol=1e-3)), 0.0)


def is_even(places: np.ndarray, step: float) -> bool:
    """Whether slices whose positions are rounded to `step` mm are evenly spaced, each position once; some may be missing."""
    gaps = np.diff(np.sort(places))
    if len(gaps) < 2:
        return not len(gaps) or bool(gaps[0] > 0.01)
    distance = usual(places)
    if not np.isfinite(distance) or repeated(places):
        return False
    near = np.abs(gaps - distance) <= max(LOOSE * distance, 1.1 * step)
    whole = np.abs(gaps / distance - np.round(gaps / distance)) <= LOOSE
    return bool(near.mean() >= MOSTLY and (near | (whole & (gaps > distance))).mean() >= 1 - MOST_REPEATED)


def _without_copies(slices: Sequence[Slice], places: np.ndarray) -> np.ndarray:
    """The first of each picture that is there twice under one UID, as when a file was copied."""
    seen: dict[tuple[str, int, int], int] = {}
    for index, (one, place) in enumerate(zip(slices, places, strict=True)):
        name = one.header.instance or str(index)
        seen.setdefault((name, one.number, round(100 * float(place))), index)
    return np.array(sorted(seen.values()))


def _division(slices: Sequence[Slice], places: np.ndarray, kept: np.ndarray) -> _Division | None:
    """How to divide slices into stacks of which one is used; None if they are one stack, or nothing divides them."""
    if len(kept) < 2 * FEWEST and not repeated(places[kept]):
        return None
    labels: dict[str, list[str]] = {}
    for mark in dict.fromkeys(name for one in kept for name in slices[one].frame.marks):
        labels[mark] = [slices[one].frame.marks.get(mark, "") for one in kept]
    labels = {mark: values for mark, values in labels.items() if 2 <= len(set(values)) <= max(2, len(kept) // 2)}
    step = rounded(places[kept])
    even = is_even(places[kept], step)
    ways: list[tuple[str, ...]] = [(mark,) for mark in labels]
    if not even:
        certain = [mark for mark in labels if mark not in BY_CHANCE]
        ways += [*combinations(certain, 2), *combinations(certain, 3)]
    grouped = [(by, _groups(list(zip(*(labels[mark] for mark in by), strict=True)), kept)) for by in ways]
    folders = [(str(slices[one].header.path.parent),) for one in kept]
    grouped += [(("folder",), _groups(folders, kept))]
    grouped += [(("order",), _groups(order, kept)) for order in _by_order(slices, places, kept)]
    first = None
    for by, groups in grouped:
        division = _judged(slices, places, by, groups, step)
        if division is not None and division.even and not division.short:
            return division
        if by[0] not in BY_CHANCE and division is not None and (len(by) == 1 or not division.short):
            first = first or division
    return None if even else first


def _groups(labels: Sequence[tuple[str, ...]], kept: np.ndarray) -> Groups:
    """Indices by label, in the natural order of labels."""
    found: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for label, one in zip(labels, kept, strict=True):
        found[label].append(int(one))
    return {label: np.array(found[label]) for label in sorted(found, key=lambda label: [_natural(value) for value in label])}


def _natural(value: str) -> tuple[float, str]:
    try:
        return float(value), value
    except ValueError:
        return float("inf"), value


def _by_order(slices: Sequence[Slice], places: np.ndarray, kept: np.ndarray) -> Iterator[list[tuple[str, ...]]]:
    """Labels from the order of numbers: passes along the patient, and the rank among slices at one position."""
    numbers = [(*slices[int(one)].header.order, slices[int(one)].number) for one in kept]
    if len(set(numbers)) < len(numbers):
        return
    in_order = sorted(range(len(kept)), key=numbers.__getitem__)
    along_order = places[kept][in_order]
    steps = np.diff(along_order)
    forth = 1 if (steps > 0.01).sum() >= (steps < -0.01).sum() else -1
    passes = np.concatenate([[0], np.cumsum(forth * steps < 0.01)])
    rank_of = np.argsort(in_order)
    yield [(str(number),) for number in passes[rank_of]]
    if repeated(places[kept]) and (forth * steps > -0.01).all():
        starts = np.flatnonzero(np.concatenate([[True], np.abs(steps) > 0.01]))
        ranks = np.arange(len(kept)) - np.repeat(starts, np.diff(np.append(starts, len(kept))))
        yield [(str(number),) for number in ranks[rank_of]]


def _judged(slices: Sequence[Slice], places: np.ndarray, by: tuple[str, ...], groups: Groups, step: float) -> _Division | None:
    """These groups as a division; None if they do not lie between or upon each other, or none of them is even."""
    every = np.concatenate(list(groups.values()))
    sound = {label: members for label, members in groups.items() if is_even(places[members], step)}
    several = {label: members for label, members in sound.items() if len(members) >= min(FEWEST, len(every))}
    if not several or not any(_intruders(places, members, groups) for members in several.values()):
        return None
    positions = len(every) - repeated(places[every])
    most = max(len(members) for members in several.values())
    if by[0] in BY_CHANCE and len(several) < len(groups) and most < NEARLY_ALL * positions:
        return None
    if is_even(places[every], step):
        intended = by[0] in BY_INTENT and _interleaved_by_intent(slices, places, every, several)
        if intended or len(sound) < len(groups) or not _take_turns(places, every, groups):
            return None
    original = {label: members for label, members in several.items() if not all(slices[one].derived for one in members)} or several
    longest = max(np.ptp(places[members]) for members in original.values())
    wide = {label: members for label, members in original.items() if np.ptp(places[members]) >= MOST_OF_IT * longest}
    # Of several as long, the first that was acquired.
    first = min(wide, key=lambda label: (-len(wide[label]), min(slices[one].header.order for one in wide[label])))
    labels, used = _followed(places, first, original)
    if len(used) < LEAST_SHARE * positions:
        return None
    even = all(label in sound for label, members in groups.items() if len(members) > 1)
    return _Division(by, groups, labels, used, even, bool(np.ptp(places[used]) < np.ptp(places[every]) / 2))


def _take_turns(places: np.ndarray, every: np.ndarray, groups: Groups) -> bool:
    """Whether of evenly spaced slices every second belongs to one of two groups, every third to one of three, and so on."""
    distance = len(groups) * usual(places[every])
    alike = all(abs(usual(places[members]) - distance) <= LOOSE * distance for members in groups.values())
    return alike and min(len(members) for members in groups.values()) >= FEWEST


def _intruders(places: np.ndarray, members: np.ndarray, groups: Groups) -> int:
    """How many slices of other groups lie upon a stack's slices, or between two that are neighbours in it."""
    own = np.sort(places[members])
    others = [other for other in groups.values() if other is not members and len(other) <= len(members)]
    if not others or len(own) < 2:
        return 0
    there = places[np.concatenate(others)]
    distance = usual(own)
    after = np.searchsorted(own, there)
    before = np.clip(after - 1, 0, len(own) - 1)
    after = np.clip(after, 0, len(own) - 1)
    upon = np.minimum(np.abs(there - own[before]), np.abs(there - own[after])) <= SAME_POSITION * distance
    inside = (there > own[0]) & (there < own[-1])
    return int((upon | (inside & (own[after] - own[before] <= GAP * distance))).sum())


def _interleaved_by_intent(slices: Sequence[Slice], places: np.ndarray, every: np.ndarray, several: Groups) -> bool:
    """Whether evenly spaced slices are as thick as they are apart all together, so that only together they cover the patient."""
    thickness = float(np.median([slices[one].frame.thickness for one in every]))
    together = usual(places[every])
    apart = min(usual(places[members]) for members in several.values())
    return abs(thickness - together) <= LOOSE * together and apart >= GAP * thickness


def _followed(places: np.ndarray, first: tuple[str, ...], groups: Groups) -> tuple[tuple[tuple[str, ...], ...], np.ndarray]:
    """A stack and those that continue it, each up to where the next begins: their labels and slices."""
    labels, used = [first], groups[first]
    distance = usual(places[used])
    for _ in groups:
        low, high = places[used].min(), places[used].max()
        for label, members in groups.items():
            own = places[members]
            shared = min(high, own.max()) - max(low, own.min())
            joins = -GAP * distance <= shared <= SEAM * np.ptp(own) and abs(usual(own) - distance) <= UNEVEN * distance
            beyond = members[(own > high + 0.75 * distance) | (own < low - 0.75 * distance)]
            if label not in labels and joins and len(beyond):
                labels.append(label)
                used = np.concatenate([used, beyond])
                break
        else:
            break
    return tuple(sorted(labels, key=lambda label: list(groups).index(label))), np.sort(used)


def _told(division: _Division, places: np.ndarray) -> str:
    """Which groups are used, and which are not, for the user."""
    names = {label: _name(division, label, rank) for rank, label in enumerate(division.groups, start=1)}
    others = [
        f"{names[label]} ({counted(len(members), 'slice')})" for label, members in division.groups.items() if label not in division.labels
    ]
    used = [names[label] for label in division.labels]
    shown = " and ".join(used) if len(used) < 4 else f"{used[0]} to {used[-1]}"
    told = f"used {shown} ({counted(len(division.used), 'slice')}, {usual(places[division.used]):.4g} mm)"
    if others:
        told += f"; not used: {', '.join(others[:5])}" + (f" and {len(others) - 5} more" if len(others) > 5 else "")
    lost = sum(len(division.groups[label]) for label in division.labels) - len(division.used)
    return told + (f"; {counted(lost, 'slice')} where they overlap not used" if lost else "")


def _name(division: _Division, label: tuple[str, ...], rank: int) -> str:
    if division.by == ("order",):
        return f"the slices numbered #{rank}" if len(division.groups) > 9 else f"pass {rank} along the patient"
    return ", ".join(_told_value(mark, value, rank) for mark, value in zip(division.by, label, strict=True))


def _told_value(mark: str, value: str, rank: int) -> str:
    """A mark with its value, or with its rank among the values if that could be anything."""
    if mark in UNTOLD or (value and not known_mark(mark, value)):
        return f"{mark} #{rank}"
    return f"{mark} {value.replace(chr(92), '/') or 'unknown'}"
