"""How the learning rate goes over the steps of a training."""

from __future__ import annotations

import math


def warm_up(step: int, steps: int) -> float:
    """A factor that rises evenly over the first `steps` steps, from 1 / `steps`, and then is 1 (Goyal et al. 2017, Sec. 2.2)."""
    return min(1.0, (step + 1) / steps) if steps else 1.0


def cosine(step: int, steps: int) -> float:
    """A factor that falls from 1 along half a cosine and would be 0 at step number `steps` (Loshchilov and Hutter 2017, Eq. (5))."""
    return (1 + math.cos(math.pi * min(1.0, step / steps))) / 2
