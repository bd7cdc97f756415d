"""Slices that a scan holds twice: bit for bit, or nearly, as after another JPEG compression."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# A near-repeat is nearer than FEWER of the next most similar slice, and its thumbnail differs by at most MOST grey levels.
FEWER, MOST = 0.22, 2.0
# Copies of one slice that are searched for, besides itself.
COPIES = 3


def exact_repeats(digests: Sequence[int]) -> list[list[int]]:
    """Groups of indices whose slices are equal bit for bit, each in order."""
    groups: dict[int, list[int]] = {}
    for index, digest in enumerate(digests):
        groups.setdefault(digest, []).append(index)
    return [group for group in groups.values() if len(group) > 1]


def near_repeats(apart: np.ndarray) -> list[list[int]]:
    """Groups of indices whose slices differ far less than neighbours in this scan do.

    Parameters
    ----------
    apart : float (S, S), root mean square differences of thumbnails in grey levels
    """
    count = len(apart)
    if count < 4:
        return []
    others = apart + np.where(np.eye(count, dtype=bool), np.inf, 0)
    ranks = np.sort(others, axis=1)
    alike: list[set[int]] = []
    for index in range(count):
        found: set[int] = set()
        for copies in range(1, min(COPIES, count - 2) + 1):
            if ranks[index, copies - 1] <= MOST and ranks[index, copies - 1] < FEWER * ranks[index, copies]:
                found = set(np.argsort(others[index], kind="stable")[:copies].tolist())
                break
        alike.append(found)
    groups: list[list[int]] = []
    seen: set[int] = set()
    for index in range(count):
        # The relation must be mutual.
        group = [index, *sorted(other for other in alike[index] if index in alike[other])]
        if len(group) > 1 and not seen & set(group):
            groups.append(group)
            seen |= set(group)
    return groups


def chosen(groups: list[list[int]], apart: np.ndarray) -> tuple[int, ...]:
    """Indices to drop, so that one slice of each group remains: the first or the last, whichever gives the smoother stack."""

    def kept(chosen: int) -> list[int]:
        drop = {index for group in groups for index in group if index != group[chosen]}
        return [index for index in range(len(apart)) if index not in drop]

    ways = [kept(0), kept(-1)]
    best = min(ways, key=lambda way: float(apart[way[:-1], way[1:]].sum()))
    return tuple(sorted(set(range(len(apart))) - set(best)))


def is_whole_stack(dropped: Sequence[int], count: int) -> bool:
    """Whether the dropped of `count` slices are one half of the stack."""
    return len(dropped) * 2 >= count - 1 and list(dropped) in (
        list(range(count - len(dropped), count)),
        list(range(len(dropped))),
    )
