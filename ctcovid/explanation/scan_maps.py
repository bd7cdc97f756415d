"""The saliency maps of one scan."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ctcovid.explanation.cells import Cells
from ctcovid.explanation.upsample import to_scan, to_slices


@dataclass(frozen=True)
class ScanMaps:
    """Saliency maps of a scan's volumes for every class, and the class that is explained.

    Attributes
    ----------
    native : float32 (N, K, d, h, w), not negative
    cells : where the cells of the maps lie in a volume (D, H, W)
    target : index of the explained class
    """

    native: np.ndarray
    cells: Cells
    target: int

    @property
    def of_target(self) -> np.ndarray:
        """Maps of the explained class, float32 (N, d, h, w)."""
        return self.native[:, self.target]

    @cached_property
    def saliency(self) -> np.ndarray:
        """Saliency of the explained class on the slices, float32 (N * D, H, W)."""
        return to_slices(self.of_target, self.cells).reshape(-1, *self.cells.shape[1:])

    @property
    def flat(self) -> bool:
        """Whether the saliency is the same everywhere, so that measures of the map would say nothing."""
        return not self.saliency.max() > self.saliency.min()

    def unit_slices(self, side: int) -> np.ndarray:
        """Maps of every class on slices of `side` pixels, float32 (N * D, K, side, side), each class from 0 to 1 over the scan."""
        enlarged = (to_slices(self.native[:, number], self.cells, side) for number in range(self.native.shape[1]))
        return np.stack([unit_range(one.reshape(-1, side, side)) for one in enlarged], 1)

    def on_scan(self, height: int, width: int) -> np.ndarray:
        """Saliency of the explained class on slices of the scan's own size, float32 (N * D, height, width)."""
        return to_scan(self.of_target, self.cells, height, width)


def unit_range(saliency: np.ndarray) -> np.ndarray:
    """Saliency scaled to 0..1 over the scan; 0 if it is the same everywhere."""
    lowest, highest = saliency.min(), saliency.max()
    found: np.ndarray = (saliency - lowest) / (highest - lowest) if highest > lowest else np.zeros_like(saliency)
    return found
