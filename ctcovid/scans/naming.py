"""Unique names of scans, even if a folder and files beside it differ only in their endings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace

from ctcovid.base.files import printable
from ctcovid.scans.found import stem
from ctcovid.scans.scan import Scan


def with_unique_names(scans: Sequence[Scan], name: Callable[[Scan], Hashable]) -> list[Scan]:
    """The scans, in their order, with ids changed so that `name`, which is or holds the id, is unique.

    Where names are equal, files keep their ending in the id; those that are still equal get a number.
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
    folder = scan.folder
    ending = printable(folder.name.removeprefix(stem(folder))) if folder.is_file() else ""
    return scan if scan.id.endswith(ending) else replace(scan, id=scan.id + ending)
