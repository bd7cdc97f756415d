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
