"""Signed distances of simple shapes, negative inside, in millimetres, from which the anatomy is composed.

All functions take numbers or arrays that broadcast against each other. Distances are accurate close to a surface, where they are
used; far away they may be wrong by a factor.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def ellipse(x: Any, y: Any, a: Any, b: Any, power: float = 2.0) -> Any:
    """Distance from a (super)ellipse with half axes `a` and `b`, measured along the ray from its centre."""
    if power == 2.0:
        r = np.sqrt((x / a) ** 2 + (y / b) ** 2)
    else:
        r = (np.abs(x / a) ** power + np.abs(y / b) ** power) ** (1 / power)
    return np.sqrt(x * x + y * y) * (1 - 1 / np.maximum(r, 1e-3)) - (r < 1e-3) * np.minimum(a, b)


def ellipsoid(x: Any, y: Any, z: Any, a: float, b: float, c: float) -> Any:
    """Distance from an ellipsoid."""
    r = np.sqrt((x / a) ** 2 + (y / b) ** 2 + (z / c) ** 2)
    return (r - 1) * r / np.maximum(np.sqrt((x / a**2) ** 2 + (y / b**2) ** 2 + (z / c**2) ** 2), 1e-4)


def capsule(x: Any, y: Any, z: Any, start: tuple[float, float, float], end: tuple[float, float, float], radius: float) -> Any:
    """Distance from a tube with round ends."""
    ax, ay, az = start
    bx, by, bz = end[0] - ax, end[1] - ay, end[2] - az
    length2 = max(bx * bx + by * by + bz * bz, 1e-6)
    t = np.clip(((x - ax) * bx + (y - ay) * by + (z - az) * bz) / length2, 0, 1)
    return np.sqrt((x - ax - t * bx) ** 2 + (y - ay - t * by) ** 2 + (z - az - t * bz) ** 2) - radius


def union(one: Any, other: Any, rounding: float) -> Any:
    """The smaller distance, with the crease between the two rounded over `rounding` mm."""
    h = np.maximum(rounding - np.abs(one - other), 0) / rounding
    return np.minimum(one, other) - h * h * (rounding / 4)


def common(one: Any, other: Any, rounding: float) -> Any:
    """The larger distance (what lies in both), with the crease rounded over `rounding` mm."""
    return -union(-one, -other, rounding)


def bump(value: Any, centre: float, width: float) -> Any:
    """1 at `centre`, falling like a Gaussian of standard deviation `width`."""
    return np.exp(-0.5 * ((value - centre) / width) ** 2)


def ramp(value: Any, low: Any, high: Any) -> Any:
    """0 below `low`, 1 above `high`, smooth between; `high` may be the smaller."""
    t = np.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)
