"""How one scan shows a patient: pose, field of view, slices, kernel, window, table; drawn per scan, independent of the class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ctcovid.phantom.anatomy import Anatomy


@dataclass(frozen=True)
class Protocol:
    """The settings of one scan. Lengths in mm, angles in radians, noise in HU."""

    view: float
    shift_x: float
    shift_y: float
    turn: float
    top: float
    bottom: float
    thickness: float
    noise: float
    cut_off: float
    blur: float
    level: float
    width: float
    round_view: bool
    outside: float
    table: int
    table_y: float
    blanket: float
    lung: float
    dependent: float
    motion: float

    @staticmethod
    def draw(anatomy: Anatomy, slices: int, generator: np.random.Generator) -> Protocol:
        """A scan of a patient with so many slices."""
        uniform = generator.uniform
        body = 2 * (anatomy.half_width + 24 + anatomy.fat)
        usual_window = generator.random() < 0.7
        top, bottom = -uniform(2, 30), anatomy.length + uniform(-12, 60)
        spacing = (bottom - top) / slices
        # Three kernels in four are soft to medium; a sharp one is noisier.
        cut_off = uniform(0.30, 0.36) if generator.random() < 0.7 else uniform(0.36, 0.50)
        sharp = (cut_off - 0.30) / 0.20
        round_view = generator.random() < 0.3
        return Protocol(
            view=float(body * uniform(0.9, 1.1)),
            shift_x=float(generator.normal(0, 7)),
            shift_y=float(uniform(0, 26)),
            turn=float(generator.normal(0, 0.035)),
            top=float(top),
            bottom=float(bottom),
            thickness=float(min(spacing * 1.1, uniform(1.0, 4.5))),
            noise=float(uniform(15, 24) * (1 + 0.6 * sharp)),
            cut_off=float(cut_off),
            blur=float(0.44 - 0.50 * sharp * uniform(0.3, 1)),
            level=-600.0 if usual_window else float(uniform(-640, -520)),
            width=1500.0 if usual_window else float(uniform(1350, 1600)),
            round_view=bool(round_view),
            outside=0.0 if generator.random() < 0.5 else 255 * 0.15,
            table=int(generator.integers(0, 3)),
            table_y=float(uniform(1, 9)),
            blanket=float(max(0.0, uniform(-0.5, 1.0))),
            lung=float(generator.normal(-848, 24)),
            dependent=float(max(0.0, uniform(-60, 190))),
            motion=float(max(0.0, uniform(-4.0, 4.0))),
        )


def coordinates(protocol: Protocol, anatomy: Anatomy, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions in the patient of a grid over the field of view, x and y in mm, float32 (count, count)."""
    line = ((np.arange(count, dtype=np.float32) + 0.5) / count - 0.5) * np.float32(protocol.view)
    x, y = line[None, :] + np.float32(protocol.shift_x), line[:, None] - np.float32(protocol.shift_y) + np.float32(16)
    c, s = np.float32(np.cos(protocol.turn)), np.float32(np.sin(protocol.turn))
    x, y = c * x - s * y, s * x + c * y
    # Nobody is as symmetrical as an ellipse. The trees of vessels are not bent with the rest, which is a difference of millimetres.
    sideways, backwards, one, two = (np.float32(value) for value in anatomy.bend)
    return x + sideways * np.sin(y / 55 + one), y + backwards * np.sin(x / 60 + two)


def pixels(protocol: Protocol, size: int, points: np.ndarray) -> np.ndarray:
    """Positions in the patient, float (N, 3) in mm, as pixel coordinates x and y, z as it is; the reverse of `coordinates`."""
    c, s = np.cos(protocol.turn), np.sin(protocol.turn)
    x = c * points[:, 0] + s * points[:, 1] - protocol.shift_x
    y = -s * points[:, 0] + c * points[:, 1] + protocol.shift_y - 16
    scale = size / protocol.view
    return np.stack([(x / protocol.view + 0.5) * size - 0.5, y * scale + size / 2 - 0.5, points[:, 2]], 1).astype(np.float32)


def table(protocol: Protocol, anatomy: Anatomy, size: int) -> np.ndarray:
    """The table under the patient, HU, float32 (size, size), -1000 elsewhere; the same in every slice."""
    line = ((np.arange(size, dtype=np.float32) + 0.5) / size - 0.5) * np.float32(protocol.view)
    x, y = line[None, :], line[:, None]
    back = anatomy.half_depth + 26 * anatomy.muscle + 0.9 * anatomy.fat + protocol.shift_y - 16 + protocol.table_y
    pixel = protocol.view / size
    if protocol.table == 0:
        # A curved carbon shell: two bright skins around foam.
        radius = 420.0
        d = np.sqrt(x**2 + (y - back + radius) ** 2) - radius
        inner, outer = np.abs(d - 2.0) - 0.8, np.abs(d - 24.0 - 0.0004 * x * x) - 1.1
        foam = np.maximum(-(d - 2.0), d - 24.0)
    elif protocol.table == 1:
        d = y - back - 8.0
        inner = np.maximum(np.abs(d) - 0.9, np.abs(x) - 120.0)
        outer = np.maximum(np.abs(d - 12.0) - 0.9, np.abs(x) - 105.0)
        foam = np.maximum(np.maximum(-d, d - 12.0), np.abs(x) - 112.0)
    else:
        radius = 260.0
        d = np.sqrt(x**2 + (y - back + radius) ** 2) - radius
        inner, outer = np.abs(d - 1.0) - 0.7, np.abs(d - 15.0) - 1.4
        foam = np.maximum(-(d - 1.0), d - 15.0)
    hu = np.full((size, size), -1000, np.float32)
    for distance, value in ((foam, -935.0), (inner, -150.0), (outer, 260.0)):
        hu += np.clip(0.5 - distance / pixel, 0, 1) * (np.float32(value) - hu)
    return hu


def view_mask(size: int) -> np.ndarray:
    """True outside the round field of view, bool (size, size)."""
    line = (np.arange(size) + 0.5) / size - 0.5
    return line[None, :] ** 2 + line[:, None] ** 2 > 0.25
