"""Saliency maps at the resolution of the slices."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F


def to_slices(native: np.ndarray, depth: int, size: int) -> np.ndarray:
    """Resize saliency maps to their volumes (Li et al. 2021, Sec. 2.8), trilinearly.

    Parameters
    ----------
    native : float (N, d, h, w)

    Returns
    -------
    float32 (N, depth, size, size)
    """
    maps = torch.from_numpy(np.ascontiguousarray(native, dtype=np.float32))[:, None]
    return F.interpolate(maps, (depth, size, size), mode="trilinear", align_corners=False)[:, 0].numpy()


def to_scan(native: np.ndarray, depth: int, height: int, width: int) -> np.ndarray:
    """Saliency maps (N, d, h, w) on a scan's own slices, float32 (N * depth, height, width).

    Slices that are not square enter a network padded to a square; what lies over the padding is cut off.
    """
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    whole = to_slices(native, depth, side).reshape(-1, side, side)
    return whole[:, top : top + height, left : left + width]


def telling_slices(saliency: np.ndarray, count: int) -> list[int]:
    """The most salient slice of each of `count` equal stretches of the scan, saliency (S, H, W); indices in order."""
    strength = saliency.mean((1, 2))
    stretches = np.array_split(np.arange(len(saliency)), min(count, len(saliency)))
    return [int(stretch[strength[stretch].argmax()]) for stretch in stretches]
