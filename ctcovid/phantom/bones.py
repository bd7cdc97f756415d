"""Spine, ribs, sternum, shoulder blades, collar bones and upper arms at one level of the chest."""

from __future__ import annotations

from typing import Any

import numpy as np

from ctcovid.phantom.anatomy import Anatomy
from ctcovid.phantom.shapes import bump, capsule, ellipse, ramp


def bones(anatomy: Anatomy, x: Any, y: Any, z: float, cavity: Any, angle: Any) -> Any:
    """Distance from the nearest bone, mm."""
    u = z / anatomy.length
    d = np.minimum(_ribs(anatomy, x, y, z, cavity, angle), _spine(anatomy, x, y, z))
    wide, deep, middle = (float(value) for value in anatomy.axes(z))
    if 0.10 < u < 0.80:
        # Handle broad, body narrow.
        half = (24.0 - 8.0 * float(ramp(u, 0.14, 0.35))) * float(ramp(u, 0.80, 0.72))
        d = np.minimum(d, ellipse(x, y - middle + deep + 7.0, max(half, 2.0), 5.5, 2.6))
    if -0.2 < u < 0.52:
        # A plate outside the ribs, nearer the spine and narrower further down, with its spine as a second plate.
        centre, half = 0.34 - 0.05 * u, 0.105 * float(ramp(u, 0.54, 0.30))
        radius = 0.5 * (wide + deep)
        along = (np.abs(angle - centre) - half) * np.pi * radius
        across = np.abs(cavity - 21.0 - 40.0 * (angle - centre) ** 2) - 2.2
        d = np.minimum(d, np.maximum(along, across))
        if u < 0.12:
            d = np.minimum(d, np.maximum(np.abs(angle - centre - 0.05) * np.pi * radius - 3.5, np.abs(cavity - 32.0) - 14.0))
    if u < 0.10:
        x_abs = np.abs(x)
        level = 0.02 * anatomy.length
        clavicle = capsule(x_abs, y, z, (18.0, middle - deep - 8.0, level + 14.0), (120.0, middle - 10.0, level - 26.0), 6.0)
        humerus = ellipse(x_abs - 172.0 * anatomy.shoulder, y - 12.0, 23.0, 24.0) + 40.0 * float(ramp(u, -0.02, 0.08))
        d = np.minimum(np.minimum(d, clavicle), humerus)
    return d


def _ribs(anatomy: Anatomy, x: Any, y: Any, z: float, cavity: Any, angle: Any) -> Any:
    """Ribs run downwards from the spine to the front, so that a slice cuts several obliquely, each at another point of its arc.

    All ribs of a side are one function: their distance in z repeats with the spacing.
    """
    spacing = anatomy.rib_spacing
    level = z - anatomy.rib_slope * angle + anatomy.rib_phase + 3.0 * np.sign(x)
    off = (level + spacing / 2) % spacing - spacing / 2
    d = (np.sqrt(((cavity - 5.5) / 3.9) ** 2 + (off / 6.3) ** 2) - 1) * 3.9
    # Cartilage in front, no rib above the first, floating ribs short.
    end = 0.84 - 0.30 * float(ramp(z / anatomy.length, 0.85, 1.25))
    return d + 14.0 * ramp(angle, end, end + 0.05) + 14.0 * ramp(level, 0.0, -8.0)


def _spine(anatomy: Anatomy, x: Any, y: Any, z: float) -> Any:
    k = anatomy.spine
    down = y - anatomy.spine_y(z)
    phase = (z / (0.92 * anatomy.rib_spacing)) % 1.0
    body = ellipse(x, down, 17.0 * k, 14.0 * k, 2.4) + 6.0 * float(bump(phase, 0.5, 0.06))
    canal = ellipse(x, down - 22.0 * k, 9.0, 8.0)
    side = np.abs(x)
    laminae = capsule(side, down, 0.0, (13.5, 20.0 * k, 0.0), (1.5, 33.0 * k, 0.0), 2.8)
    pedicles = capsule(side, down, 0.0, (12.5, 9.0 * k, 0.0), (13.5, 20.0 * k, 0.0), 3.4) + 8.0 * float(bump(phase, 0.7, 0.14))
    arch = np.minimum(laminae + 5.0 * float(bump(phase, 0.62, 0.1)), pedicles)
    process = capsule(x, down, 0.0, (0.0, 33.0 * k, 0.0), (0.0, (42.0 + 10.0 * phase) * k, 0.0), 3.2)
    wing = capsule(side, down, 0.0, (13.0, 20.0 * k, 0.0), (30.0 * k, 28.0 * k, 0.0), 4.0) + 7.0 * abs(phase - 0.1)
    return np.minimum(np.minimum(np.maximum(body, -canal - 1.0), arch), np.minimum(process, wing))
