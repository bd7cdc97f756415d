"""Windows, which map Hounsfield units to grey."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ctcovid.base.errors import UsageError


@dataclass(frozen=True)
class Window:
    """Maps Hounsfield units to grey: black at level − width/2 and below, white at level + width/2 and above.

    The default is the lung window of CC-CCII's pictures.
    """

    level: float = -600.0
    width: float = 1500.0

    def grey(self, values: np.ndarray) -> np.ndarray:
        """Hounsfield units of any shape to uint8, rounded to the nearest grey; NaN is black."""
        # In this order and precision, integers halfway between two greys are rounded alike, whatever their type.
        scaled: np.ndarray = values.astype(np.float64)
        np.subtract(scaled, self.level - self.width / 2, out=scaled)
        np.multiply(scaled, 255, out=scaled)
        np.divide(scaled, self.width, out=scaled)
        np.clip(scaled, 0, 255, out=scaled)
        if values.dtype.kind == "f":
            np.nan_to_num(scaled, copy=False, nan=0.0)
        return np.rint(scaled, out=scaled).astype(np.uint8)

    def __str__(self) -> str:
        return f"{self.level:g}/{self.width:g}"


LUNG = Window()


def parse_window(text: str) -> Window:
    """A window from text such as ``-600/1500``.

    Raises UsageError unless there are two finite numbers, the second above zero.
    """
    try:
        level, width = (float(word) for word in text.split("/"))
    except ValueError as error:
        raise UsageError(f"--window {text}: give level and width in Hounsfield units, like -600/1500.") from error
    if not (math.isfinite(level) and math.isfinite(width) and width > 0):
        raise UsageError(f"--window {text}: the width must be above zero and both must be finite, as in -600/1500.")
    return Window(level, width)
