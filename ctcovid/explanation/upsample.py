"""Saliency maps at the resolution of the slices."""

from __future__ import annotations

import numpy as np

from ctcovid.explanation.cells import Cells


def to_slices(native: np.ndarray, cells: Cells, side: int | None = None) -> np.ndarray:
    """Enlarge saliency maps to their volumes (Li et al. 2021, Sec. 2.8): trilinear between the centres of cells, constant beyond.

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
        # Pixels of another size divide the same square.
        centres = (np.arange(new) + 0.5) * old / new - 0.5
        shares = _shares((centres - cells.first[axis]) / cells.step[axis], maps.shape[1 + axis])
        maps = np.moveaxis(np.moveaxis(maps, 1 + axis, -1) @ shares, -1, 1 + axis)
    return np.ascontiguousarray(maps)


def _shares(positions: np.ndarray, count: int) -> np.ndarray:
    """Weight of each of `count` cells at each position, in cells from the centre of the first: float32 (count, positions)."""
    distance = np.abs(np.clip(positions, 0, count - 1) - np.arange(count)[:, None])
    return np.maximum(1 - distance, 0).astype(np.float32)


def to_scan(native: np.ndarray, cells: Cells, height: int, width: int) -> np.ndarray:
    """Saliency maps (N, d, h, w) on a scan's own slices, float32 (N * D, height, width).

    Slices that are not square are padded to a square for the network; what lies over the padding is cut off.
    """
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    whole = to_slices(native, cells, side).reshape(-1, side, side)
    return whole[:, top : top + height, left : left + width]


def most_salient_slices(saliency: np.ndarray, count: int) -> list[int]:
    """Indices of the most salient slice in each of `count` equal sections of the scan, in order, from saliency (S, H, W)."""
    strength = saliency.mean((1, 2))
    sections = np.array_split(np.arange(len(saliency)), min(count, len(saliency)))
    return [int(section[strength[section].argmax()]) for section in sections]
