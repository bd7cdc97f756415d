"""Gaussian noise of Smooth Grad-CAM++."""

from __future__ import annotations

import torch
from torch import Tensor

# Noise that takes more memory than this is drawn again for each volume.
KEPT_BYTES = 1 << 28


class Noise:
    """The same noise for every volume, so that a volume's map depends on the seed and not on what else is explained.

    Parameters
    ----------
    samples : copies of a volume, to be requested in order, from 0 to samples - 1, for each volume
    std : standard deviation, as a share of the range of the volume's values
    """

    def __init__(self, shape: tuple[int, ...], samples: int, std: float, seed: int) -> None:
        self.shape, self.std, self.seed = shape, std, seed
        self.generator = torch.Generator()
        self.keep = 4 * samples * torch.Size(shape).numel() <= KEPT_BYTES
        self.kept: list[Tensor] = []

    def added(self, scaled: Tensor, copy: int) -> Tensor:
        """Copy number `copy` of a volume, float (1, D, H, W)."""
        if self.std == 0:
            return scaled
        spread = scaled.amax() - scaled.amin()
        return scaled + self.std * spread * self._draw(copy).to(scaled.device, non_blocking=True)

    def _draw(self, copy: int) -> Tensor:
        if copy < len(self.kept):
            return self.kept[copy]
        if copy == 0:
            self.generator.manual_seed(self.seed)
        drawn = torch.randn(self.shape, generator=self.generator)
        if self.keep:
            self.kept.append(drawn)
        return drawn
