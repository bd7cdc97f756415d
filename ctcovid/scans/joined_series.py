"""Files of a series, or study, of their own that are slices of one scan, as some exports and anonymisers make them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from ctcovid.scans.dicom import Header
from ctcovid.scans.frames import Plane
from ctcovid.scans.stacks import FEWEST, Slice, along, choose, is_even, rounded

# Slices of one scan agree in these.
ALIKE = ("image type", "echo", "kernel", "tube voltage", "slice thickness", "pixel spacing", "frame of reference", "description")
# Largest angle in degrees between the rows, or columns, of one series.
ONE_DIRECTION = 5.0


def joined(lone: Sequence[Slice]) -> list[list[Slice]]:
    """Of slices that each have a series of their own, those that continue each other: alike, evenly spaced, each position once."""
    alike: dict[tuple[object, ...], list[Slice]] = defaultdict(list)
    directions: list[Plane] = []
    for one in lone:
        plane, marks = one.frame.plane, one.frame.marks
        if plane is not None:
            direction = direction_number(plane, directions)
            alike[(one.header.rows, one.header.columns, direction, *(marks.get(mark, "") for mark in ALIKE))].append(one)
    return [members for members in alike.values() if len(members) >= FEWEST and _continue(members)]


def _continue(slices: Sequence[Slice]) -> bool:
    chosen = choose(slices)
    places, measured = along(chosen.slices)
    return measured and not chosen.problem and is_even(places, rounded(places))


def with_joined_studies(studies: Sequence[list[Header]]) -> list[list[Header]]:
    """Studies, with those of a single slice that are one scan as one study.

    They are of one patient, and name one frame of reference, or lie in one folder and continue each other.
    """
    alone: dict[tuple[str, str], list[Header]] = defaultdict(list)
    for study in studies:
        first = study[0]
        if len(study) == 1 and first.frames == 1 and first.study and first.rows:
            reference = first.frame(0).marks.get("frame of reference", "")
            alone[(first.patient, reference or str(first.path.parent))].append(first)
    merged: dict[int, list[Header]] = {}
    for members in alone.values():
        given = members[0].frame(0).marks.get("frame of reference")
        stacks = [[Slice(header, 0) for header in members]] if given else joined([Slice(header, 0) for header in members])
        for stack in stacks:
            if len(stack) >= FEWEST:
                merged |= {id(one.header): [other.header for other in stack] for one in stack}
    found = [merged.get(id(study[0]), study) for study in studies]
    return list({id(study[0]): study for study in found}.values())


def missing_parts(headers: Sequence[Header]) -> str:
    """Why files of a concatenation are not all there (PS3.3 C.7.6.16.2.2.4); empty if they are."""
    parts: dict[str, set[tuple[int, int]]] = defaultdict(set)
    for header in headers:
        if header.concatenation:
            parts[header.concatenation].add(header.part)
    for found in parts.values():
        numbers = {number for number, _ in found}
        total = max(*(total for _, total in found), *numbers)
        if len(numbers) < total:
            return f"only {len(numbers):,} of the {total:,} files of its concatenation are there"
    return ""


def direction_number(plane: Plane, known: list[Plane]) -> int:
    """The index of the `known` plane with the same direction; if there is none, `plane` is added."""
    axes = np.reshape(plane.orientation, (2, 3))
    for number, other in enumerate(known):
        if np.einsum("ij,ij->i", axes, np.reshape(other.orientation, (2, 3))).min() >= np.cos(np.radians(ONE_DIRECTION)):
            return number
    known.append(plane)
    return len(known) - 1
