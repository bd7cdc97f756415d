"""Slices that a scan has twice: to the bit, or nearly, as after another JPEG compression."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# A near-repeat is so much more alike than the next most similar slices, and in thumbnails differs by no more grey levels than this.
FEWER, MOST = 0.22, 2.0
# Copies of one slice that are looked for, beside itself.
COPIES = 3


def exact_repeats(digests: Sequence[int]) -> list[list[int]]:
    """Groups of places whose slices are equal to the bit, each in order."""
    groups: dict[int, list[int]] = {}
    for place, digest in enumerate(digests):
        groups.setdefault(digest, []).append(place)
    return [group for group in groups.values() if len(group) > 1]


def near_repeats(apart: np.ndarray) -> list[list[int]]:
    """Groups of places whose slices differ far less than neighbours in this scan do.

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
    for place in range(count):
        found: set[int] = set()
        for copies in range(1, min(COPIES, count - 2) + 1):
            if ranks[place, copies - 1] <= MOST and ranks[place, copies - 1] < FEWER * ranks[place, copies]:
                found = set(np.argsort(others[place], kind="stable")[:copies].tolist())
                break
        alike.append(found)
    groups: list[list[int]] = []
    seen: set[int] = set()
    for place in range(count):
        # Both must say so of each other.
        group = [place, *sorted(other for other in alike[place] if place in alike[other])]
        if len(group) > 1 and not seen & set(group):
            groups.append(group)
            seen |= set(group)
    return groups


def chosen(groups: list[list[int]], apart: np.ndarray) -> tuple[int, ...]:
    """Places to drop, one slice of each group remaining: its first, its last, or the smoother of both ways through the stack."""

    def kept(position: int) -> list[int]:
        drop = {place for group in groups for place in group if place != group[position]}
        return [place for place in range(len(apart)) if place not in drop]

    ways = [kept(0), kept(-1)]
    best = min(ways, key=lambda way: float(apart[way[:-1], way[1:]].sum()))
    return tuple(sorted(set(range(len(apart))) - set(best)))


def is_whole_stack(dropped: Sequence[int], count: int) -> bool:
    """Whether what is dropped of `count` slices is one half of the stack after the other."""
    return len(dropped) * 2 >= count - 1 and list(dropped) in (
        list(range(count - len(dropped), count)),
        list(range(len(dropped))),
    )
