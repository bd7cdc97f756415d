"""The chest of one patient as functions of position: cavity, mediastinum, lungs, chest wall.

Positions are in millimetres: x to the right of the picture (the patient's left), y towards the back, z towards the feet with 0 at the
lung apex. `u` is z over the length of the lungs, 1 at the deepest point behind the diaphragm. Proportions were measured by eye on the
scans that the phantom is compared with (tests/phantom/compare.py), and vary between patients.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ctcovid.phantom.shapes import bump, capsule, common, ellipse, ellipsoid, ramp, union

# Great vessels and gullet as tubes: (x, y, u) of both ends and the radius in mm.
TUBES = (
    ((-16.0, -36.0, 0.36), (-8.0, -22.0, 0.56), 15.0),  # ascending aorta
    ((-15.0, -32.0, 0.29), (-16.0, -36.0, 0.36), 15.0),
    ((-13.0, -30.0, 0.27), (12.0, -2.0, 0.26), 12.5),  # arch
    ((12.0, -2.0, 0.26), (25.0, 34.0, 0.30), 12.5),
    ((25.0, 34.0, 0.30), (20.0, 46.0, 0.60), 11.5),  # descending aorta
    ((20.0, 46.0, 0.60), (8.0, 42.0, 1.40), 10.5),
    ((-27.0, -20.0, 0.16), (-29.0, -16.0, 0.56), 8.5),  # superior vena cava
    ((28.0, -38.0, 0.14), (-24.0, -30.0, 0.18), 6.0),  # left brachiocephalic vein
    ((-13.0, -12.0, -0.15), (-9.0, -18.0, 0.24), 6.0),  # vessels to head and arms
    ((13.0, -2.0, -0.15), (6.0, -10.0, 0.24), 4.5),
    ((22.0, 8.0, -0.15), (18.0, 6.0, 0.25), 5.0),
    ((-24.0, -12.0, -0.15), (-24.0, -20.0, 0.16), 6.5),
    ((20.0, -46.0, 0.50), (24.0, -24.0, 0.40), 14.0),  # pulmonary trunk and its two branches
    ((24.0, -24.0, 0.40), (-38.0, -4.0, 0.43), 10.5),
    ((24.0, -24.0, 0.40), (40.0, 12.0, 0.39), 10.5),
    ((6.0, 28.0, -0.15), (4.0, 34.0, 0.90), 6.5),  # gullet
    ((-6.0, -8.0, 0.70), (-20.0, -2.0, 1.40), 11.0),  # inferior vena cava
    ((-34.0, 10.0, 0.50), (-10.0, 16.0, 0.53), 8.0),  # lower pulmonary veins
    ((42.0, 16.0, 0.50), (14.0, 18.0, 0.53), 8.0),
)


class Level(NamedTuple):
    """Distances at positions x, y, z from which several others are computed."""

    x: Any
    y: Any
    z: Any
    cavity: Any
    heart: Any
    tubes: Any
    below: Any


@dataclass(frozen=True)
class Anatomy:
    """What differs between patients' chests; lengths in mm, the rest relative to the typical chest."""

    length: float
    half_width: float
    half_depth: float
    power: float
    fat: float
    muscle: float
    breast: float
    heart: float
    thymus: float
    dome_right: float
    dome_left: float
    spine: float
    kyphosis: float
    rib_spacing: float
    rib_phase: float
    rib_slope: float
    shoulder: float
    bend: tuple[float, float, float, float]
    stomach_gas: float

    @staticmethod
    def draw(generator: np.random.Generator) -> Anatomy:
        """A patient, independent of the class."""

        def normal(mean: float, spread: float) -> float:
            return float(mean + spread * np.clip(generator.normal(), -2.2, 2.2))

        right = normal(0.725, 0.035)
        return Anatomy(
            length=normal(255, 20),
            half_width=normal(135, 8),
            half_depth=normal(93, 7),
            power=normal(2.12, 0.1),
            fat=float(np.clip(generator.lognormal(2.4, 0.65), 3, 40)),
            muscle=normal(1.0, 0.14),
            breast=float(max(0.0, generator.uniform(-1.0, 1.0))),
            heart=normal(1.0, 0.07),
            thymus=float(generator.uniform(2, 17)),
            dome_right=right,
            dome_left=right + normal(0.035, 0.02),
            spine=normal(1.0, 0.07),
            kyphosis=normal(10, 4),
            rib_spacing=normal(25, 1.5),
            rib_phase=float(generator.uniform(0, 25)),
            rib_slope=normal(92, 14),
            shoulder=normal(1.0, 0.08),
            bend=(normal(0, 3), normal(0, 2.5), float(generator.uniform(0, 6)), float(generator.uniform(0, 6))),
            stomach_gas=float(generator.uniform(0, 1)),
        )

    def axes(self, z: Any) -> tuple[Any, Any, Any]:
        """Half width, half depth and centre in y of the chest cavity."""
        u = z / self.length
        grown = np.sqrt(np.clip(1 - (1 - np.clip(u / 0.48, 0, 1)) ** 2.2, 0, 1))
        wide = self.half_width * (0.42 + 0.58 * grown + 0.03 * ramp(u, 0.6, 0.9))
        deep = self.half_depth * (0.46 + 0.54 * grown)
        return wide, deep, 12.0 * (1 - grown)

    def spine_y(self, z: Any) -> Any:
        """y of the middle of the vertebral bodies, further back in the middle of the chest."""
        u = z / self.length
        return self.half_depth * 0.50 + self.kyphosis * np.sin(np.pi * np.clip(u, -0.2, 1.2)) + 2.0

    def cavity(self, x: Any, y: Any, z: Any) -> Any:
        """Distance from the inner side of the rib cage."""
        wide, deep, middle = self.axes(z)
        # Two halves beside each other, so that spine and sternum protrude inwards; broader at the back.
        taper = 1 + 0.0009 * (y - middle)
        out = 0.33 * wide
        return ellipse(np.sqrt(x * x + 9.0) / taper - out, y - middle, wide - out, deep, self.power)

    def level(self, x: Any, y: Any, z: Any) -> Level:
        """The distances that are needed more than once at the same positions."""
        return Level(x, y, z, self.cavity(x, y, z), self.heart_wall(x, y, z), self.tubes(x, y, z), self.diaphragm(x, y, z))

    def mediastinum(self, level: Level) -> Any:
        """Distance from all that lies between the lungs: heart, great vessels and the fat around them, spine."""
        x, y, z = level[:3]
        u = z / self.length
        d = np.abs(x - 3.0 - 5.0 * ramp(u, 0.3, 0.6)) - 1.8
        core_x = 23.0 + 7.0 * bump(u, 0.27, 0.12) - 5.0 * ramp(u, 0.5, 0.8)
        thymus = ellipse(x - 3.0, y + 44.0, 3.0 + self.thymus * bump(u, 0.38, 0.25), 50.0)
        d = union(d, thymus, 16.0)
        core = ellipse(x - 2.0, y - 8.0 - 12.0 * ramp(u, 0.35, 0.6), core_x, 44.0 - 12.0 * ramp(u, 0.4, 0.7))
        d = union(d, core, 14.0)
        d = union(d, level.heart - 3.5, 9.0)
        d = union(d, level.tubes - 2.0, 6.0)
        # The middle of the diaphragm, on which the heart lies, and the fat in front of it.
        d = union(d, ellipsoid(x - 4.0, y + 34.0, z - 0.86 * self.length, 66.0, 52.0, 46.0), 10.0)
        spine = ellipse(x, y - self.spine_y(z) - 16.0, 21.0 * self.spine, 33.0)
        return union(d, spine, 10.0)

    def heart_wall(self, x: Any, y: Any, z: Any) -> Any:
        """Distance from the heart: two chambers' worth of ellipsoids, apex to the patient's left and front."""
        k = self.heart
        h = z - 0.63 * self.length
        c, s = np.cos(0.55), np.sin(0.55)
        left_x, left_y = x - 30.0 * k, y + 26.0
        a = ellipsoid(c * left_x - s * left_y, s * left_x + c * left_y, h - 6.0 - 0.25 * left_x, 52.0 * k, 37.0 * k, 54.0 * k)
        b = ellipsoid(x + 14.0 * k, y + 22.0, h, 36.0 * k, 36.0 * k, 54.0 * k)
        atrium = ellipsoid(x - 2.0, y - 10.0, h + 18.0, 34.0 * k, 19.0 * k, 24.0 * k)
        return union(union(a, b, 14.0), atrium, 8.0)

    def tubes(self, x: Any, y: Any, z: Any) -> Any:
        """Distance from the nearest great vessel or the gullet."""
        d: Any = 1e3
        u = float(z) / self.length if np.ndim(z) == 0 else None
        for start, end, radius in TUBES:
            if u is not None and not min(start[2], end[2]) - 0.1 < u < max(start[2], end[2]) + 0.1:
                continue
            a = (start[0], start[1], start[2] * self.length)
            b = (end[0], end[1], end[2] * self.length)
            d = np.minimum(d, capsule(x, y, z, a, b, radius * (0.75 + 0.25 * self.heart)))
        return d + 0 * x

    def diaphragm(self, x: Any, y: Any, z: Any) -> Any:
        """Distance below the diaphragm's domes: negative above, where the lungs are."""
        d: Any = -1e3
        for side, top in ((-1, self.dome_right), (1, self.dome_left)):
            px = (x - side * 0.48 * self.half_width) / (0.58 * self.half_width)
            py = (y + 14.0) / (0.98 * self.half_depth)
            # It hangs down at the ribs, hardly towards the heart, and in front less than behind.
            px = np.where(px * side > 0, px, 0.35 * px)
            py = np.where(py > 0, py, 0.82 * py)
            rho2 = px * px + py * py
            drop = 0.23 + 0.10 * ramp(y, -20.0, 70.0)
            dome = (top + drop * rho2 / (1 + 0.12 * rho2)) * self.length
            slope = 2 * drop * self.length * np.sqrt(rho2) / (0.7 * self.half_width)
            half = (np.minimum(z - dome, 300.0)) / np.sqrt(1 + slope * slope)
            d = np.where((x < 0) == (side < 0), half, d)
        return np.maximum(d, z - self.length)

    def lungs(self, level: Level) -> Any:
        """Distance from the pleura of either lung."""
        x, y, z = level[:3]
        radius = 50.0
        ax, ay = 1.2 * (np.abs(x) - 0.36 * self.half_width), 0.85 * (y - 14.0)
        rho2 = ax * ax + ay * ay
        apex = (rho2 / (2 * radius) - z) / np.sqrt(1 + rho2 / radius**2)
        d = common(level.cavity, -self.mediastinum(level), 9.0)
        return common(common(d, level.below, 5.0), apex, 5.0)

    def angle(self, x: Any, y: Any, z: Any) -> Any:
        """0 at the back, 1 at the front."""
        return np.arctan2(np.abs(x), y - self.axes(z)[2] * 0.5) / np.pi

    def wall(self, x: Any, y: Any, z: float, cavity: Any, angle: Any) -> Any:
        """Distance from the outer side of the muscles of chest wall and shoulders."""
        u = z / self.length
        high = float(ramp(u, 0.62, 0.30))
        thick = 8.0 + 20.0 * high * bump(angle, 0.30, 0.13) + 14.0 * high * bump(angle, 0.80, 0.10)
        thick = thick + 20.0 * bump(angle, 0.04, 0.10) + (9.0 + 4.0 * high) * bump(angle, 0.44, 0.10)
        d = cavity - thick * self.muscle
        up = float(ramp(u, 0.24, -0.12))
        if up > 0:
            wide = (self.half_width + 22.0) * (0.76 + 0.46 * up) * self.shoulder
            d = union(d, ellipse(x, y - 14.0 - 0.06 * np.abs(x), wide, 60.0 + 22.0 * up, 2.3), 30.0)
        return d

    def body(self, x: Any, y: Any, z: float, wall: Any, angle: Any) -> Any:
        """Distance from the skin."""
        u = z / self.length
        thick = self.fat * (0.75 + 0.45 * bump(angle, 0.85, 0.25) + 0.2 * bump(angle, 0.3, 0.15) + 0.5 * float(ramp(u, 0.6, 1.2)))
        thick = thick + 6.0 * bump(angle, 0.0, 0.035)
        d = wall - 2.0 - thick
        if self.breast > 0 and 0.1 < u < 0.95:
            side = np.abs(x) - 0.58 * self.half_width
            front = y + self.half_depth * 0.98 + 12.0
            size = 18.0 + 30.0 * self.breast
            d = union(d, ellipsoid(side, front, z - 0.52 * self.length, size * 1.25, size * 0.75, size * 1.35), 22.0)
        return d
