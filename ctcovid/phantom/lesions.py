"""Lesions as ellipsoids in space.

COVID-19 (NCP): several patches of ground glass under the pleura, more often in both lungs, in the lower lobes and at the back, with
vessels visible through them, some with a net of fine lines (crazy paving). Common pneumonia (CP): one or few denser blocks of
consolidation, more central or filling a segment, in which the bronchi stay dark (air bronchogram), with some ground glass at their
rims and elsewhere. Li et al. 2021, Sec. 3.4: "COVID-19 is more related to GGO located in the subpleural area, and CP is more related
to the block of CL"; early lesions are "small GGO areas along the bronchovascular bundle or located in the subpleural area". The
same in the paper's sources: Chung et al., Radiology 295(1), 202, 2020 (bilateral ground glass, peripheral, crazy paving) and Zu et
al., Radiology 296(2), E15, 2020. Terms after Hansell et al., Fleischner Society glossary, Radiology 246(3), 697, 2008.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ctcovid.phantom.anatomy import Anatomy

# A random field over the positions of one level, as texture.Field.
Rough = Callable[[Any, Any, float, float], np.ndarray]
# HU of a consolidated lung.
CONSOLIDATED = 33.0
# From 0 to 1: a network learns the classes from some hundred patients, but not perfectly.
DIFFICULTY = 0.2


@dataclass(frozen=True)
class Blob:
    """One lesion: an ellipsoid with a ragged border.

    centre : mm. frame : float (3, 3), rows are the axes. radii : mm. opacity : what it adds to the lung at its middle, HU for ground
    glass and a share of the way to soft tissue for consolidation.
    """

    centre: np.ndarray
    frame: np.ndarray
    radii: np.ndarray
    opacity: float
    solid: bool
    paving: float
    ragged: float
    softness: float

    def reach(self) -> float:
        return float(self.radii.max()) * (1.3 + self.ragged)

    def share(self, x: np.ndarray, y: np.ndarray, z: float, rough: np.ndarray) -> np.ndarray:
        """0 outside to 1 inside, 0.5 at the border."""
        cx, cy, cz = (float(value) for value in self.centre)
        rows = self.frame / self.radii[:, None]
        q2: Any = 0.0
        for a, b, c in rows.tolist():
            q2 = q2 + (a * (x - cx) + b * (y - cy) + c * (z - cz)) ** 2
        edge = 1 - np.sqrt(q2) + self.ragged * rough
        return np.clip(0.5 + edge / self.softness, 0, 1)


def draw_lesions(label: str, anatomy: Anatomy, difficulty: float, generator: np.random.Generator) -> list[Blob]:
    """The lesions of a patient: none for Normal.

    difficulty : 0 (many, large and dense) to 1 (few, small and faint)
    """
    ease = 1 - difficulty
    contrast, size, many = 0.55 + 0.9 * ease, 0.7 + 1.05 * ease, 0.7 + 1.3 * ease
    if label == "NCP":
        blobs = _covid(anatomy, contrast, size, many, generator)
    elif label == "CP":
        blobs = _pneumonia(anatomy, contrast, size, many, generator)
    else:
        blobs = []
    return blobs


def _count(fewest: int, most: int, many: float, generator: np.random.Generator) -> int:
    return max(1, round(many * int(generator.integers(fewest, most + 1))))


def _covid(anatomy: Anatomy, contrast: float, size: float, many: float, generator: np.random.Generator) -> list[Blob]:
    both = generator.random() < 0.85
    only = int(generator.choice((-1, 1)))
    paving = generator.random() < 0.45
    blobs = []
    for number in range(_count(6, 13, many, generator)):
        side = (-1) ** number if both else only
        centre, inwards = _position(anatomy, side, (1.0, 9.0), True, generator)
        radius = size * generator.uniform(11, 24)
        radii = radius * np.array([0.72, generator.uniform(0.9, 1.45), generator.uniform(0.9, 1.3)])
        opacity = min(contrast * generator.uniform(230, 400), 640)
        net = generator.uniform(0.5, 1.0) if paving else 0.0
        blobs.append(Blob(centre, _frame(inwards), radii, opacity, False, net, generator.uniform(0.18, 0.3), 0.5))
        if generator.random() < 0.2:
            # Patchy consolidation within ground glass.
            small = 0.4 * radii
            blobs.append(Blob(centre, _frame(inwards), small, min(0.75 * contrast, 0.9), True, 0.0, 0.35, 0.5))
    return blobs


def _pneumonia(anatomy: Anatomy, contrast: float, size: float, many: float, generator: np.random.Generator) -> list[Blob]:
    blobs = []
    for _ in range(_count(2, 4, many, generator)):
        side = int(generator.choice((-1, 1)))
        centre, inwards = _position(anatomy, side, (9.0, 34.0), False, generator)
        radius = size * generator.uniform(11, 20)
        radii = radius * generator.uniform(0.75, 1.35, 3)
        opacity = min(contrast * generator.uniform(0.65, 0.95), 1.0)
        frame = _frame(inwards)
        blobs.append(Blob(centre, frame, radii, opacity, True, 0.0, generator.uniform(0.2, 0.34), 0.32))
        blobs.append(Blob(centre, frame, radii * 1.3, min(contrast * generator.uniform(120, 260), 500), False, 0.0, 0.25, 0.7))
        for _ in range(int(generator.integers(0, 9))):
            # Nodules in the middle of lobules around it.
            near = centre + generator.normal(0, 1.6, 3) * radius
            if anatomy.lungs(anatomy.level(*near)) < -5:
                blobs.append(Blob(near, np.eye(3), np.full(3, generator.uniform(2.5, 5.0)), opacity * 0.8, True, 0.0, 0.25, 0.7))
    for _ in range(round(many * int(generator.integers(0, 4)))):
        centre, inwards = _position(anatomy, int(generator.choice((-1, 1))), (4.0, 34.0), False, generator)
        radii = size * generator.uniform(8, 18) * generator.uniform(0.7, 1.2, 3)
        blobs.append(Blob(centre, _frame(inwards), radii, min(contrast * generator.uniform(150, 320), 600), False, 0.0, 0.25, 0.6))
    return blobs


def _position(
    anatomy: Anatomy, side: int, depth: tuple[float, float], low: bool, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A position in the lung of one side at a depth below the pleura in mm, and the direction inwards.

    low : more often at the back and in the lower half
    """
    wide, deep = anatomy.half_width, anatomy.half_depth
    points = generator.uniform((8, -deep, 0.08 * anatomy.length), (wide, deep, 0.97 * anatomy.length), (1500, 3))
    points[:, 0] *= side
    level = anatomy.level(*points.T)
    d = anatomy.lungs(level)
    good = (d < -depth[0]) & (d > -depth[1])
    if low:
        # Under the ribs and the diaphragm, not along the heart.
        good &= anatomy.mediastinum(level) > 16
    points = points[good]
    weight = np.ones(len(points))
    if low:
        weight = (0.25 + (points[:, 2] / anatomy.length) ** 2) * (0.35 + (points[:, 1] > 0))
    centre = points[generator.choice(len(points), p=weight / weight.sum())]
    around = anatomy.lungs(anatomy.level(*(centre + 1.5 * np.concatenate([-np.eye(3), np.eye(3)])).T))
    slope = around[:3] - around[3:]
    return centre, slope / (np.sqrt(slope @ slope) + 1e-9)


def _frame(first: np.ndarray) -> np.ndarray:
    """Three axes at right angles, the first as given."""
    other = np.eye(3)[int(np.argmin(np.abs(first)))]
    second = np.cross(first, other)
    second = second / np.sqrt(second @ second)
    return np.stack([first, second, np.cross(first, second)])


def mean_added(blobs: list[Blob], anatomy: Anatomy, lung: float) -> float:
    """How many HU the lesions add to the mean over lungs of `lung` HU, sampled every few millimetres."""
    across, ahead = (np.linspace(-side, side, 32, dtype=np.float32) for side in (anatomy.half_width, anatomy.half_depth))
    x, y = np.meshgrid(across, ahead)
    added, volume = 0.0, 0
    for z in np.linspace(0.04, 0.96, 12) * anatomy.length:
        inside = anatomy.lungs(anatomy.level(x, y, z)) < 0
        found = shares(blobs, x, y, float(z), lambda x, *_: np.zeros_like(x))
        volume += int(inside.sum())
        if found is not None:
            glass, _, solid, _ = found
            added += float((glass + solid * (CONSOLIDATED - lung - glass))[inside].sum())
    return added / max(volume, 1)


def shares(blobs: list[Blob], x: Any, y: Any, z: float, field: Rough) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None:
    """The lesions in one level: ground glass in HU, its paving, consolidation, and the share of any lesion; None if there is no lesion.

    All float32 of the shape of `x`; shares from 0 to 1, and the last is above 0.5 inside a lesion.
    """
    here = [blob for blob in blobs if abs(blob.centre[2] - z) < blob.reach()]
    if not here:
        return None
    glass, paving, solid, any_lesion = (np.zeros(x.shape, np.float32) for _ in range(4))
    rough = field(x, y, z, 0.8)
    for blob in here:
        share = blob.share(x, y, z, rough)
        if blob.solid:
            np.maximum(solid, share * np.float32(blob.opacity), out=solid)
        else:
            np.maximum(glass, share * np.float32(blob.opacity), out=glass)
            np.maximum(paving, share * np.float32(blob.paving), out=paving)
        np.maximum(any_lesion, share, out=any_lesion)
    return glass, paving, solid, any_lesion
