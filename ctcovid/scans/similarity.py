"""The order of slices, from their similarity: neighbours in a chest are more similar than other slices."""

from __future__ import annotations

import numpy as np

# There may be a tear between two slices if one elsewhere in the scan is this much more similar, or if the step between them is this
# much longer than the steps before and after it.
TORN, LONGER = 1.6, 1.8
# Slices this near in the folder are not better neighbours, only different ones.
NEAR = 2
# Another order is used only if it is shorter by SHORTER of the longest tear: sound scans are as short as they can be. One that moves
# whole blocks is preferred to one that moves single slices, unless it is longer by more than STEADIER of a usual step.
SHORTER, STEADIER = 0.3, 0.3
# A stack jumps where going back is shorter than the step by BACK. MOSTLY of the steps of interleaved scans do.
# In the best order of one scan that was stored by turns, steps are shorter than SHORTEST of those within its parts.
BACK, MOSTLY, SHORTEST = 0.9, 0.5, 0.72
# In a masked slice, lung is brighter than LUNG; slices without common lung have a distance of OUTLINE grey levels.
LUNG, OUTLINE = 20, 80.0


def distances(thumbnails: np.ndarray, masked: bool = False) -> np.ndarray:
    """Distances of slices in grey levels, float64 (S, S), from thumbnails, uint8 (S, 64, 64).

    Root mean square differences. For `masked` slices, those of the lung that both show, plus a term for their outlines: the jumps of
    these from slice to slice would otherwise dominate.
    """
    pixels = thumbnails.astype(float)
    # Adding whole pictures takes a seventh of the time of a mean over two axes.
    halves = pixels[:, ::2, ::2] + pixels[:, ::2, 1::2] + pixels[:, 1::2, ::2] + pixels[:, 1::2, 1::2]
    halves = (halves / 4).reshape(len(thumbnails), -1)
    if masked:
        return _of_lungs(halves)
    # Relative to the mean slice, so that rounding loses little.
    halves = halves - halves.mean(0)
    squares = (halves**2).sum(1)
    found = squares[:, None] + squares[None, :] - 2 * (halves @ halves.T)
    np.fill_diagonal(found, 0)
    return np.sqrt(np.maximum(found, 0) / halves.shape[1])


def _of_lungs(pixels: np.ndarray) -> np.ndarray:
    lung = (pixels > LUNG).astype(float)
    grey = pixels * lung
    common = lung @ lung.T
    inside = (grey**2) @ lung.T
    squares = np.maximum(inside + inside.T - 2 * (grey @ grey.T), 0) / np.maximum(common, 1)
    area = lung.sum(1)
    union = area[:, None] + area[None, :] - common
    found = np.sqrt(squares) + OUTLINE * (1 - common / np.maximum(union, 1))
    np.fill_diagonal(found, 0)
    return found


def tears(apart: np.ndarray) -> list[int]:
    """Indices i where slice i + 1 perhaps does not follow slice i, in a stack with these distances."""
    count = len(apart)
    if count < 4:
        return []
    far = np.abs(np.arange(count)[:, None] - np.arange(count)[None, :]) > NEAR
    best = np.where(far, apart, np.inf).min(1)
    step = apart[np.arange(count - 1), np.arange(1, count)]
    # One side of a seam suffices: the other may be an end of the chest, which is similar to nothing.
    unlike = step > TORN * np.maximum(np.minimum(best[:-1], best[1:]), 0.5 * np.median(step))
    around = np.maximum(np.append(step[1:], 0), np.append(0, step[:-1]))
    return [int(index) for index in np.flatnonzero((unlike | (step > LONGER * around)) & (step > 0))]


def jumps(apart: np.ndarray, in_a_row: int = 3) -> float:
    """The share of steps after which the stack comes back, as in two interleaved scans; 0 if there are never so many in a row.

    There a slice is more similar to the second, third or fourth next one than to its neighbour. In a slice of another scan there are
    two such steps in a row. In the real scans there is never more than one, whatever their spacing, thickness and window.
    """
    count = len(apart)
    step = np.diagonal(apart, 1)
    back = np.full(count - 1, np.inf)
    for further in range(2, min(5, count)):
        over = np.diagonal(apart, further)
        back[: len(over)] = np.minimum(back[: len(over)], over)
        back[-len(over) :] = np.minimum(back[-len(over) :], over)
    found = back < BACK * step
    runs = np.split(found, np.flatnonzero(~found))
    return float(found.mean()) if max(run.sum() for run in runs) >= in_a_row else 0.0


def alternates(apart: np.ndarray) -> bool:
    """Whether a stack whose order is not known certainly holds two or more scans by turns: each by itself goes on steadily.

    Slices in no order at all jump as often, but every second, third or fourth of them do, too. One scan whose slices were stored by
    turns has another order with shorter steps than those within its parts; two different scans have not.
    """
    if jumps(apart) < MOSTLY:
        return False
    for turns in (2, 3, 4):
        if len(apart) < 5 * turns or np.median(np.diagonal(apart, turns)) > BACK * np.median(np.diagonal(apart, 1)):
            continue
        each = [apart[first::turns, first::turns] for first in range(turns)]
        if all(jumps(one) == 0 and np.median(np.diagonal(one, 2)) > np.median(np.diagonal(one, 1)) / BACK for one in each):
            order = _chain(apart)
            within = np.concatenate([np.diagonal(one, 1) for one in each])
            return bool(np.median(apart[order[:-1], order[1:]]) > SHORTEST * np.median(within))
    return False


def reordered(apart: np.ndarray) -> tuple[np.ndarray, bool]:
    """The order in which slices follow each other, and whether it is certain; the stored order if there is no tear.

    Parameters
    ----------
    apart : float (S, S), distances of the slices as stored

    Returns
    -------
    int (S,), the stored indices in the better order, in the direction of most of the stored stack; and whether it is certain
    """
    stored = np.arange(len(apart))
    torn = tears(apart)
    if not torn:
        return stored, True
    best = _chain(apart)
    if 3 * len(torn) < len(stored):
        blocks = np.split(stored, np.array(torn) + 1)
        by_blocks = np.concatenate([blocks[index] for index in _chain_blocks(blocks, apart)])
        if _length(apart, by_blocks) <= _length(apart, best) + STEADIER * np.median(np.diagonal(apart, 1)):
            best = by_blocks
    gain = _length(apart, stored) - _length(apart, best)
    if gain >= SHORTER * max(apart[index, index + 1] for index in torn):
        return best, True
    return stored, gain < 0.2 * _length(apart, stored)


def _length(apart: np.ndarray, order: np.ndarray) -> float:
    return float(apart[order[:-1], order[1:]].sum())


def _chain_blocks(blocks: list[np.ndarray], apart: np.ndarray) -> list[int]:
    """Blocks in the order in which the end of one is similar to the start of the next; none is reversed."""
    ends, starts = [block[-1] for block in blocks], [block[0] for block in blocks]
    seams = apart[np.ix_(ends, starts)].copy()
    np.fill_diagonal(seams, np.inf)
    following: dict[int, int] = {}
    taken: set[int] = set()
    last = list(range(len(blocks)))

    def end_of(block: int) -> int:
        while block in following:
            block = following[block]
        return block

    for index in np.argsort(seams, axis=None, kind="stable"):
        one, other = divmod(int(index), len(blocks))
        if one in following or other in taken or end_of(other) == one:
            continue
        following[one] = other
        taken.add(other)
        if len(following) == len(blocks) - 1:
            break
    chain = [next(block for block in last if block not in taken)]
    while chain[-1] in following:
        chain.append(following[chain[-1]])
    return _moved(chain, seams)


def _moved(chain: list[int], seams: np.ndarray) -> list[int]:
    """The chain, with up to four neighbours at a time moved elsewhere while that makes it shorter."""

    def length(order: list[int]) -> float:
        return float(seams[order[:-1], order[1:]].sum())

    best = length(chain)
    for _ in range(20):
        found = None
        for first in range(len(chain)):
            for stretch in range(1, min(4, len(chain) - first) + 1):
                rest = chain[:first] + chain[first + stretch :]
                for to in range(len(rest) + 1):
                    tried = rest[:to] + chain[first : first + stretch] + rest[to:]
                    if (new := length(tried)) < best - 1e-9:
                        best, found = new, tried
            if len(chain) > 40 and found:
                break
        if found is None:
            return chain
        chain = found
    return chain


def _chain(apart: np.ndarray) -> np.ndarray:
    """A short path through all slices: nearest pairs joined first, then 2-opt; in the direction of most of the stored stack."""
    count = len(apart)
    links: list[list[int]] = [[] for _ in range(count)]
    group = np.arange(count)
    upper = np.triu_indices(count, 1)
    joined = 0
    for index in np.argsort(apart[upper], kind="stable"):
        one, other = int(upper[0][index]), int(upper[1][index])
        if len(links[one]) < 2 and len(links[other]) < 2 and group[one] != group[other]:
            links[one].append(other)
            links[other].append(one)
            group[group == group[other]] = group[one]
            joined += 1
            if joined == count - 1:
                break
    here = next(index for index in range(count) if len(links[index]) < 2)
    path, before = [here], -1
    while len(path) < count:
        before, here = here, next(index for index in links[here] if index != before)
        path.append(here)
    order = _untangled(np.array(path), apart)
    return order if (np.diff(order) > 0).sum() * 2 >= count - 1 else order[::-1].copy()


def _untangled(order: np.ndarray, apart: np.ndarray) -> np.ndarray:
    """2-opt with free ends: stretches are reversed while the path gets shorter."""
    count = len(order)
    for _ in range(2 * count):
        along = apart[np.ix_(order, order)]
        step = along[np.arange(count - 1), np.arange(1, count)]
        # Reversing the stretch first..last replaces the steps into and out of it; there is none beyond the ends.
        into, out = np.append(0, step), np.append(step, 0)
        new_into = np.vstack([np.zeros(count), along[:-1]])
        new_out = np.hstack([along[:, 1:], np.zeros((count, 1))])
        gain = into[:, None] + out[None, :] - new_into - new_out
        gain[np.tril_indices(count)] = 0
        first, last = np.unravel_index(int(gain.argmax()), gain.shape)
        if gain[first, last] < 1e-6:
            break
        order = order.copy()
        order[first : last + 1] = order[first : last + 1][::-1]
    return order
