"""Names that tell scans apart, also where a folder and files beside it differ in their endings alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace

from ctcovid.base.files import printable
from ctcovid.scans.places import stem
from ctcovid.scans.scan import Scan


def told_apart(scans: Sequence[Scan], name: Callable[[Scan], Hashable]) -> list[Scan]:
    """The scans, in their order, no two of which have the same `name`, which is or holds the scan's id.

    Of those that have, files keep their ending in the id; what is then still alike gets a number.
    """
    shared = Counter(map(name, scans))
    taken: set[Hashable] = set()
    found = []
    for scan in scans:
        whole = _with_ending(scan) if shared[name(scan)] > 1 else scan
        one, number = whole, 1
        while name(one) in taken:
            number += 1
            one = replace(whole, id=f"{whole.id}#{number}")
        taken.add(name(one))
        found.append(one)
    assert len(taken) == len(scans)
    return found


def _with_ending(scan: Scan) -> Scan:
    place = scan.folder
    ending = printable(place.name.removeprefix(stem(place))) if place.is_file() else ""
    return scan if scan.id.endswith(ending) else replace(scan, id=scan.id + ending)
