"""Organs below the diaphragm: liver, spleen, stomach with its gas, and the fat between them."""

from __future__ import annotations

from typing import Any

import numpy as np

from ctcovid.phantom.anatomy import Anatomy
from ctcovid.phantom.shapes import common, ellipse, ellipsoid, ramp


def organs(anatomy: Anatomy, x: Any, y: Any, z: float, cavity: Any, below: Any) -> Any:
    """Distance from liver, spleen and stomach wall, mm; `below` is the distance above the diaphragm."""
    u = z / anatomy.length
    reach = 55.0 - 60.0 * float(ramp(u, 0.9, 1.4))
    liver = ellipse(x + 0.55 * anatomy.half_width, y + 12.0 + 0.15 * x, reach + 0.55 * anatomy.half_width, 78.0, 2.3)
    spleen = ellipsoid(x - 0.62 * anatomy.half_width, y - 34.0, z - 1.02 * anatomy.length, 30.0, 46.0, 62.0)
    d = np.minimum(np.minimum(liver, spleen), stomach(anatomy, x, y, z))
    return common(common(d, cavity + 4.0, 6.0), -below + 2.0, 4.0)


def stomach(anatomy: Anatomy, x: Any, y: Any, z: float) -> Any:
    """Distance from the outer side of the stomach, mm."""
    return ellipsoid(x - 0.48 * anatomy.half_width, y + 24.0, z - 1.05 * anatomy.length, 44.0, 38.0, 66.0)


def gas(anatomy: Anatomy, x: Any, y: Any, z: float) -> Any:
    """Distance from the gas in stomach and bowel: it rises to the front and has a level below."""
    level = y + 56.0 - 34.0 * anatomy.stomach_gas
    bowel = ellipse(x - 0.62 * anatomy.half_width, y + 48.0, 16.0, 9.0) + 20.0 * float(ramp(z / anatomy.length, 1.02, 0.94))
    return np.minimum(np.maximum(stomach(anatomy, x, y, z) + 3.5, level), bowel)
