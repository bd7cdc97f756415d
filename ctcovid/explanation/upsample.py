"""Saliency maps at the resolution of the slices."""

from __future__ import annotations

import numpy as np

from ctcovid.explanation.cells import Cells


def to_slices(native: np.ndarray, cells: Cells, side: int | None = None) -> np.ndarray:
    """Enlarge saliency maps to their volumes (Li et al. 2021, Sec. 2.8), trilinearly between the middles of cells, and evenly beyond.

    Parameters
    ----------
    native : float (N, d, h, w)
    cells : where the cells of the maps lie in volumes (D, H, W)
    side : pixels of a side of the result, if not those of the volume

    Returns
    -------
    float32 (N, D, side, side), or (N, D, H, W)
    """
    depth, height, width = cells.shape
    maps = np.asarray(native, dtype=np.float32)
    for axis, (old, new) in enumerate(((depth, depth), (height, side or height), (width, side or width))):
        # Pixels of another size are boxes that fill the same square.
        middles = (np.arange(new) + 0.5) * old / new - 0.5
        shares = _shares((middles - cells.first[axis]) / cells.step[axis], maps.shape[1 + axis])
        maps = np.moveaxis(np.moveaxis(maps, 1 + axis, -1) @ shares, -1, 1 + axis)
    return np.ascontiguousarray(maps)


def _shares(places: np.ndarray, count: int) -> np.ndarray:
    """What each of `count` cells gives to each place, in cells from the middle of the first: float32 (count, places)."""
    distance = np.abs(np.clip(places, 0, count - 1) - np.arange(count)[:, None])
    return np.maximum(1 - distance, 0).astype(np.float32)


def to_scan(native: np.ndarray, cells: Cells, height: int, width: int) -> np.ndarray:
    """Saliency maps (N, d, h, w) on a scan's own slices, float32 (N * D, height, width).

    Slices that are not square enter a network padded to a square; what lies over the padding is cut off.
    """
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    whole = to_slices(native, cells, side).reshape(-1, side, side)
    return whole[:, top : top + height, left : left + width]


def telling_slices(saliency: np.ndarray, count: int) -> list[int]:
    """The most salient slice of each of `count` equal stretches of the scan, saliency (S, H, W); indices in order."""
    strength = saliency.mean((1, 2))
    stretches = np.array_split(np.arange(len(saliency)), min(count, len(saliency)))
    return [int(stretch[strength[stretch].argmax()]) for stretch in stretches]
