"""Trees of vessels and bronchi: grown once per patient as straight pieces in space, and drawn slice by slice as tubes."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from ctcovid.phantom.anatomy import Anatomy

# A branch's radius grows with this power of the number of ends it supplies; Murray's law has 1/3, the lung's arteries rather more.
MURRAY = 0.42


@dataclass(frozen=True)
class Pieces:
    """Pieces of tubes. start, end : float32 (N, 3), mm. radius : float32 (N,), mm."""

    start: np.ndarray
    end: np.ndarray
    radius: np.ndarray

    def near(self, z: float, reach: float) -> Pieces:
        """The pieces that come within `reach` mm of the plane at `z`."""
        low = np.minimum(self.start[:, 2], self.end[:, 2]) - self.radius - reach
        high = np.maximum(self.start[:, 2], self.end[:, 2]) + self.radius + reach
        return self[(low < z) & (high > z)]

    def __getitem__(self, chosen: Any) -> Pieces:
        return Pieces(self.start[chosen], self.end[chosen], self.radius[chosen])

    def __len__(self) -> int:
        return len(self.radius)


def join(pieces: list[Pieces]) -> Pieces:
    """All pieces of several trees."""
    return Pieces(*(np.concatenate([getattr(one, name) for one in pieces]) for name in ("start", "end", "radius")))


def grow(anatomy: Anatomy, tips: int, generator: np.random.Generator) -> tuple[Pieces, Pieces, Pieces]:
    """The vessels of both lungs, the airways with a wall that shows, and the smaller ones, seen only where the lung around them is dense.

    Arteries and veins spring from the hila and fill the lungs; airways run beside the arteries. `tips` is how many ends the arteries of
    a lung have: the more, the finer, while the large branches stay as wide as they are.
    """
    vessels, airways, small = [], [], []
    tip = 0.37 * (1400 / tips) ** MURRAY
    for side in (-1, 1):
        hilum = np.array([side * 36.0, 8.0, 0.44 * anatomy.length])
        artery = _tree(_inside(anatomy, side, tips, generator), hilum, tip, generator)
        vein = _tree(
            _inside(anatomy, side, round(0.82 * tips), generator), hilum + np.array([0, -4, 0.07 * anatomy.length]), 0.97 * tip, generator
        )
        vessels += [artery, vein]
        # Beside the artery, never inside it.
        shift = np.array([-side * 0.75, -0.6, 0.2]) * (1.75 * artery.radius[:, None] + 0.3)
        beside = Pieces(artery.start + shift.astype(np.float32), artery.end + shift.astype(np.float32), 0.6 * artery.radius)
        airways.append(beside[artery.radius > 2.3])
        small.append(beside[(artery.radius > 0.95) & (artery.radius <= 2.3)])
    airways.append(_windpipe(anatomy))
    return join(vessels), join(airways), join(small)


def _windpipe(anatomy: Anatomy) -> Pieces:
    length = anatomy.length
    points = [(0.0, 8.0, -0.3), (0.0, 10.0, 0.1), (-2.0, 13.0, 0.34), (-3.0, 14.0, 0.375)]
    lines = [(*pair, 7.6) for pair in pairwise(points)]
    lines += [(points[-1], (-22.0, 15.0, 0.43), 5.8), ((-22.0, 15.0, 0.43), (-34.0, 12.0, 0.50), 4.4)]
    lines += [(points[-1], (22.0, 18.0, 0.45), 5.2), ((22.0, 18.0, 0.45), (38.0, 17.0, 0.485), 4.4)]
    lines += [((-24.0, 15.0, 0.435), (-42.0, 8.0, 0.41), 4.0), ((30.0, 16.0, 0.465), (42.0, 4.0, 0.46), 3.8)]
    scale = np.array([1.0, 1.0, length])
    start = np.array([line[0] for line in lines]) * scale
    end = np.array([line[1] for line in lines]) * scale
    return _cut(start, end, np.array([line[2] for line in lines]), 6.0)


def _inside(anatomy: Anatomy, side: int, count: int, generator: np.random.Generator) -> np.ndarray:
    """`count` positions well inside one lung, float (count, 3)."""
    wide, deep = anatomy.half_width, anatomy.half_depth
    points = generator.uniform((0, -deep, 4), (wide, deep, anatomy.length), (5 * count, 3))
    points[:, 0] *= side
    return points[anatomy.lungs(anatomy.level(*points.T)) < -2.5][:count]


def _tree(targets: np.ndarray, root: np.ndarray, tip: float, generator: np.random.Generator) -> Pieces:
    """A tree from `root` to all `targets`: a branch runs some of the way to the middle of its targets, then divides them in two.

    A branch's radius follows from the number of its tips, each of radius `tip` mm.
    """
    starts, ends, radii = [], [], []
    # All branches of one generation at once: the targets of each lie together, `counts` of them.
    points, start, counts = targets, root[None].astype(float), np.array([len(targets)])
    while len(counts):
        first = np.cumsum(counts) - counts
        middle = np.add.reduceat(points, first) / counts[:, None]
        way = np.where(counts > 1, generator.uniform(0.35, 0.55, len(counts)), 1.0)[:, None]
        end = start + (middle - start) * way
        length = np.sqrt(((end - start) ** 2).sum(1, keepdims=True))
        bend = (start + end) / 2 + generator.normal(0, 0.07, start.shape) * length
        radius = tip * counts**MURRAY
        starts += [start, bend]
        ends += [bend, end]
        radii += [radius, radius * 0.96]
        branching = counts > 1
        points = points[np.repeat(branching, counts)]
        middle, end, counts = middle[branching], end[branching], counts[branching]
        if not len(counts):
            break
        group = np.repeat(np.arange(len(counts)), counts)
        spread = points - middle[group]
        along = (spread * _longest(spread, np.cumsum(counts) - counts)[group]).sum(1)
        points = points[np.lexsort((along, group))]
        cut = np.clip((counts * generator.uniform(0.3, 0.7, len(counts))).astype(int), 1, counts - 1)
        start, counts = np.repeat(end, 2, axis=0), np.stack([cut, counts - cut], 1).reshape(-1)
    return _cut(np.concatenate(starts), np.concatenate(ends), np.concatenate(radii), 5.0)


def _longest(spread: np.ndarray, first: np.ndarray) -> np.ndarray:
    """The direction in which each cloud of points is longest, float (groups, 3), by power iteration."""
    scatter = np.add.reduceat((spread[:, :, None] * spread[:, None, :]).reshape(-1, 9), first).reshape(-1, 3, 3)
    axis = scatter[np.arange(len(first)), np.argmax(np.einsum("gii->gi", scatter), 1)]
    for _ in range(3):
        axis = axis / (np.sqrt((axis * axis).sum(1, keepdims=True)) + 1e-12)
        axis = (scatter * axis[:, None, :]).sum(2)
    return axis


def _cut(start: np.ndarray, end: np.ndarray, radius: np.ndarray, longest: float) -> Pieces:
    """Pieces no longer than `longest` mm, so that a small square of pixels holds each."""
    cuts = np.maximum(np.ceil(np.sqrt(((end - start) ** 2).sum(1)) / longest), 1).astype(int)
    which = np.repeat(np.arange(len(cuts)), cuts)
    step = np.arange(len(which)) - np.repeat(np.cumsum(cuts) - cuts, cuts)
    one, two = (step / cuts[which])[:, None], ((step + 1) / cuts[which])[:, None]
    way = (end - start)[which]
    return Pieces(
        (start[which] + one * way).astype(np.float32), (start[which] + two * way).astype(np.float32), radius[which].astype(np.float32)
    )


def draw(pieces: Pieces, z: float, thickness: float, pixel: float, canvas: np.ndarray) -> None:
    """Draw what is inside a slice of the pieces into `canvas`, float32 (H, W), as shares of each pixel from 0 to 1.

    Pieces have x and y in pixels of the canvas already, z and radius in mm. A tube thinner than the slice or the pixel fills only a
    share of it.
    """
    height, width = canvas.shape
    flat = canvas.reshape(-1)
    low, high = z - thickness / 2, z + thickness / 2
    near = pieces.near(z, thickness / 2)
    if len(near) == 0:
        return
    a, b, r = near.start, near.end, near.radius
    rise = b[:, 2] - a[:, 2]
    rise = np.where(np.abs(rise) < 1e-3, np.float32(1e-3), rise)
    # The stretch of the piece that lies in the slice, with as much again as its radius reaches.
    one, two = np.clip((low - r - a[:, 2]) / rise, 0, 1), np.clip((high + r - a[:, 2]) / rise, 0, 1)
    p = a[:, :2] + one[:, None] * (b - a)[:, :2]
    q = a[:, :2] + two[:, None] * (b - a)[:, :2]
    ends = np.stack([a[:, 2] + one * rise, a[:, 2] + two * rise])
    inside = np.minimum(ends.max(0) + r, high) - np.maximum(ends.min(0) - r, low)
    share = np.clip(inside / thickness, 0, 1) * np.minimum(1, 2.2 * r / pixel)
    radius = np.maximum(r / pixel, 0.45)
    middle = np.rint((p + q) / 2).astype(np.int64)
    need = np.ceil(np.sqrt(((q - p) ** 2).sum(1)) / 2 + radius + 1.5).astype(int)
    for reach, smallest in ((4, 0), (7, 5), (11, 8), (18, 12), (40, 19)):
        chosen = (need >= smallest) & ((need <= reach) | (reach == 40)) & (share > 0.02)
        if not chosen.any():
            continue
        step = np.arange(-reach, reach + 1)
        px = (middle[chosen, 0, None] + step)[:, None, :]
        py = (middle[chosen, 1, None] + step)[:, :, None]
        ax, ay = p[chosen, 0, None, None], p[chosen, 1, None, None]
        dx, dy = q[chosen, 0, None, None] - ax, q[chosen, 1, None, None] - ay
        rx, ry = px.astype(np.float32) - ax, py.astype(np.float32) - ay
        t = np.clip((rx * dx + ry * dy) / np.maximum(dx * dx + dy * dy, np.float32(1e-6)), 0, 1)
        distance = np.sqrt((rx - t * dx) ** 2 + (ry - t * dy) ** 2)
        value = share[chosen, None, None] * np.clip(radius[chosen, None, None] + 0.5 - distance, 0, 1)
        hit = (value > 0) & (px >= 0) & (px < width) & (py >= 0) & (py < height)
        np.maximum.at(flat, (py * width + px)[hit], value[hit].astype(np.float32))
