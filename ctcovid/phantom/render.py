"""Draw one level of a chest: smooth structures on a coarse grid that is enlarged, sharp ones pixel by pixel."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from ctcovid.phantom import lesions, organs, trees
from ctcovid.phantom.anatomy import Anatomy, Level
from ctcovid.phantom.bones import bones
from ctcovid.phantom.scanner import Protocol, coordinates, pixels, table, view_mask
from ctcovid.phantom.shapes import ramp
from ctcovid.phantom.texture import Field, Reticulation, ScannerNoise

# Hounsfield units.
AIR, FAT, TISSUE, BLOOD, MARROW, CORTEX = -1000.0, -104.0, 48.0, 42.0, 90.0, 420.0


class Generators(NamedTuple):
    """Random generators: of what scans of a patient share, and of the scan itself."""

    patient: np.random.Generator
    scan: np.random.Generator


class Renderer:
    """Draws the slices of one scan."""

    def __init__(self, anatomy: Anatomy, protocol: Protocol, blobs: list[lesions.Blob], size: int, generators: Generators) -> None:
        self.anatomy, self.protocol, self.blobs, self.size = anatomy, protocol, blobs, size
        self.pixel = protocol.view / size
        # About 3 mm, or two pixels of a small picture: finer than any bone, coarser than vessels, which are drawn separately.
        coarse = int(np.clip(size // 2, 32, 128))
        self.x, self.y = coordinates(protocol, anatomy, coarse)
        self.vessels, self.airways, self.small = (
            self._to_pixels(pieces) for pieces in trees.grow(anatomy, 1400 if size >= 256 else 350, generators.patient)
        )
        # Walls are a tenth of a bronchus' diameter, and no thinner than half a millimetre.
        self.walls = replace(self.airways, radius=self.airways.radius * np.float32(1.18) + np.float32(0.55))
        self.field = Field(generators.patient)
        self.reticulation = Reticulation(self.pixel, generators.patient) if blobs else None
        self.noise = ScannerNoise(size, protocol.cut_off, generators.scan)
        self.table = table(protocol, anatomy, size)
        self.outside = view_mask(size) if protocol.round_view else None
        self.enlarge = _Enlarge(coarse, size)

    def _to_pixels(self, pieces: trees.Pieces) -> trees.Pieces:
        start, end = (pixels(self.protocol, self.size, points) for points in (pieces.start, pieces.end))
        return trees.Pieces(start, end, pieces.radius)

    def slice(self, z: float, factor: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pixels, lesions and lungs at the level z mm, each smaller by `factor`."""
        hu, lesion, lung = self._patient(z)
        self._motion(hu, z)
        grey = self._scanned(hu, z)
        if factor > 1:
            grey, lesion, lung = (_smaller(item, factor) for item in (grey, lesion, lung))
        lungs = lung > 0.5
        return np.clip(np.rint(grey), 0, 255).astype(np.uint8), (lesion > 0.5) & lungs, lungs

    def _patient(self, z: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """HU without noise, share of lesion, share of lung, float32 (size, size)."""
        a, x, y, p = self.anatomy, self.x, self.y, self.protocol
        level, angle = a.level(x, y, z), a.angle(x, y, z)
        cavity = level.cavity
        wall = a.wall(x, y, z, cavity, angle)
        body = a.body(x, y, z, wall, angle)
        lung = a.lungs(level)
        has_lung = bool((lung < 2).any())
        rough, patches = self.field(x, y, z, 0.55), self.field(x, y, z, 2.0)
        soft = self._soft(level, wall, rough, patches)
        bone = bones(a, x, y, z, cavity, angle)
        fields = [body, soft, bone]
        if has_lung:
            # Where the pleura is flat, as on the dome of the diaphragm, a thick slice shows it blurred.
            edge = np.full_like(lung, 1.5 * self.pixel)
            if z > 0.45 * a.length:
                flat = np.clip(level.below - a.diaphragm(x, y, z - 1.0), 0, 1) * (level.below > lung - 4.0)
                edge += (p.thickness + 0.4 * max(p.motion, 0)) * flat
            fields += [lung, edge, self._parenchyma(z, lung, rough, patches)]
        big = self.enlarge(np.stack(fields).astype(np.float32))
        body, soft, bone = big[:3]
        hu = self._outside(z, body)
        _lay(hu, body, TISSUE, self.pixel)
        _lay(hu, body + np.float32(1.7), FAT, self.pixel)
        _lay(hu, soft, TISSUE, self.pixel)
        lesion = np.zeros_like(hu)
        inside = lesion
        if has_lung:
            lung, edge, parenchyma = big[3:]
            inside = np.clip(np.float32(0.5) - lung / edge, 0, 1)
            lesion = self._lesions(z, parenchyma)
            hu += inside * (parenchyma - hu)
        if z > 0.7 * a.length:
            self._gas(hu, z)
        _lay(hu, bone, CORTEX, self.pixel)
        _lay(hu, bone + np.float32(1.7), MARROW, self.pixel * 1.5)
        self._tubes(hu, z)
        return hu, lesion, inside

    def _soft(self, level: Level, wall: np.ndarray, rough: np.ndarray, patches: np.ndarray) -> np.ndarray:
        """Distance from muscle, heart, vessels and organs; the rest of the body is fat."""
        a, (x, y, z, cavity, heart, tubes, below) = self.anatomy, level
        # Planes of fat between the layers of muscle run along the ribs.
        planes = np.minimum(np.abs(cavity - 13.0 - 6.0 * patches), np.abs(cavity - 29.0 - 11.0 * patches - 5.0 * rough))
        muscle = np.maximum(np.maximum(wall, -cavity + 1.0), 1.1 + 0.5 * rough - planes)
        d = np.minimum(muscle, np.minimum(tubes, heart))
        if z > 0.5 * a.length:
            d = np.minimum(d, organs.organs(a, x, y, z, cavity, below))
            # The diaphragm itself.
            d = np.minimum(d, np.maximum(np.abs(below - 1.5) - 1.5, cavity))
        # Lymph nodes, thymus and small vessels in the fat between; muscles of the neck above the lungs.
        neck = 12.0 * float(ramp(z / a.length, 0.14, -0.04))
        return np.minimum(d, 3.0 - neck - 2.6 * rough + 0.02 * np.maximum(-cavity, 0) + 30.0 * (cavity > 0))

    def _parenchyma(self, z: float, lung: np.ndarray, rough: np.ndarray, patches: np.ndarray) -> np.ndarray:
        """HU of the lung without vessels and lesions: denser at the back, where the blood is, and uneven."""
        p, y = self.protocol, self.y
        hu = p.lung + 0.32 * y + 11.0 * patches + 8.0 * rough
        behind = ramp(y, 20.0, 70.0) * ramp(lung, np.minimum(-22.0 + 8.0 * patches, -5.0), -1.0)
        return hu + p.dependent * behind * ramp(z / self.anatomy.length, 0.15, 0.7)

    def _lesions(self, z: float, parenchyma: np.ndarray) -> np.ndarray:
        """Add the lesions to the lung, HU, in place; returns the share of any lesion."""
        found = lesions.shares(self.blobs, self.x, self.y, z, self.field)
        if found is None or self.reticulation is None or not (found[3] > 0).any():
            return np.zeros_like(parenchyma)
        glass, paving, solid, share = self.enlarge(np.stack(found), 1)
        rows, columns = _box(share > 0)
        net, grain = self.reticulation.at(z, rows, columns)
        here = parenchyma[rows, columns]
        glass, paving, solid = glass[rows, columns], paving[rows, columns], solid[rows, columns]
        here += glass * (1 + np.float32(0.14) * grain + paving * (np.float32(1.1) * net - np.float32(0.5)))
        solid = np.clip(solid * (1 + np.float32(0.10) * grain), 0, 1)
        if (solid > 0.3).any():
            # The air bronchogram: airways too fine to be seen in a clear lung stay dark in a consolidated one.
            canvas = np.zeros_like(parenchyma)
            trees.draw(self.small, z, self.protocol.thickness, self.pixel, canvas)
            solid *= 1 - np.float32(0.85) * canvas[rows, columns]
        here += solid * (np.float32(lesions.CONSOLIDATED) - here)
        np.minimum(here, np.float32(TISSUE), out=here)
        return share

    def _tubes(self, hu: np.ndarray, z: float) -> None:
        """Vessels, then the walls and the air of the airways, which a consolidation does not fill."""
        thickness = self.protocol.thickness
        canvas = np.zeros_like(hu)
        for pieces, value in ((self.vessels, BLOOD), (self.walls, -60.0)):
            canvas[:] = 0
            trees.draw(pieces, z, thickness, self.pixel, canvas)
            hu += canvas * np.maximum(np.float32(value) - hu, 0)
        canvas[:] = 0
        trees.draw(self.airways, z, thickness, self.pixel, canvas)
        hu += canvas * (np.float32(AIR + 20) - hu)

    def _gas(self, hu: np.ndarray, z: float) -> None:
        d = self.enlarge(organs.gas(self.anatomy, self.x, self.y, z).astype(np.float32)[None], 2)[0]
        _lay(hu, np.where(hu > -300, d, 50.0), AIR + 10, self.pixel)

    def _outside(self, z: float, body: np.ndarray) -> np.ndarray:
        """Air, the table, and folds of a blanket over the patient."""
        hu = self.table.copy()
        blanket = self.protocol.blanket
        if blanket > 0:
            # Only in front of the patient.
            rows = int(np.searchsorted(self.y[:, 0], 20.0)) * self.size // len(self.y)
            folds = np.stack([self.field(self.x, self.y, 0.4 * z, 1.4), np.clip((20 - self.y) / 60, 0, 1)])
            fold, upper = self.enlarge(folds, 2)[:, :rows]
            near = np.clip(1 - np.abs(body[:rows] - 16) / 44, 0, 1) * upper
            hu[:rows] += np.float32(150 * blanket) * near * np.clip(1 - np.abs(fold) / np.float32(0.08), 0, 1)
        return hu

    def _motion(self, hu: np.ndarray, z: float) -> None:
        """The heart beats and the diaphragm moves while the tube turns: what lies deep in the chest is seen twice."""
        step = round(self.protocol.motion * float(ramp(z / self.anatomy.length, 0.35, 0.7)) / self.pixel)
        if step <= 0:
            return
        deep = np.clip((-5.0 - self.anatomy.cavity(self.x, self.y, z)) / 15.0, 0, 0.45).astype(np.float32)
        share = self.enlarge(deep[None], 2)[0][step:]
        hu[step:] += share * (hu[:-step] - hu[step:])

    def _scanned(self, hu: np.ndarray, z: float) -> np.ndarray:
        """Grey values with the scanner's blur, motion, noise and window."""
        p = self.protocol
        hu = _three(_three(hu, p.blur), p.blur)
        u = z / self.anatomy.length
        streak = 0.7 * float(ramp(u, 0.10, -0.08)) + 0.08
        sigma = np.float32(p.noise) * (np.float32(0.72) + np.float32(0.28) * np.clip((hu + 1000) / 900, 0, 1))
        hu += sigma * self.noise.slice(streak)
        grey = (hu - np.float32(p.level - p.width / 2)) * np.float32(255 / p.width)
        np.clip(grey, 0, 255, out=grey)
        if self.outside is not None:
            grey[self.outside] = p.outside
        return grey


class _Enlarge:
    """Linear interpolation from the coarse grid to the pixels; numpy only, so that the number of threads changes no bit."""

    def __init__(self, coarse: int, size: int) -> None:
        positions = np.clip((np.arange(size) + 0.5) * coarse / size - 0.5, 0, coarse - 1.001)
        self.low = positions.astype(np.int64)
        self.fraction = (positions - self.low).astype(np.float32)
        # Reused by each call to save allocations: a result is valid until the next call.
        self.kept: dict[int, np.ndarray] = {}

    def __call__(self, fields: np.ndarray, keep: int = 0) -> np.ndarray:
        """float32 (F, coarse, coarse) to (F, size, size), in memory number `keep`."""
        low, fraction, size = self.low, self.fraction, len(self.low)
        # Columns first, while there are few rows: gathering whole rows is fast.
        wide = np.take(np.diff(fields, axis=2), low, axis=2) * fraction + np.take(fields, low, axis=2)
        steps = np.diff(wide, axis=1)
        if keep not in self.kept or len(self.kept[keep]) < len(fields):
            self.kept[keep] = np.empty((len(fields), size, size), np.float32)
        big = self.kept[keep][: len(fields)]
        for out, step, row in zip(big, steps, wide, strict=True):
            np.take(step, low, axis=0, out=out, mode="clip")
            out *= fraction[:, None]
            out += np.take(row, low, axis=0)
        return big


def _lay(hu: np.ndarray, distance: np.ndarray, value: float, edge: float) -> None:
    """Lay a material of `value` HU over what is there, where the distance in mm is below 0."""
    share = distance * np.float32(-1 / edge)
    share += np.float32(0.5)
    np.clip(share, 0, 1, out=share)
    share *= np.float32(value) - hu
    hu += share


def _three(picture: np.ndarray, side: float) -> np.ndarray:
    """Blur (side > 0) or sharpen (side < 0) along the last axis and transpose, so that two calls do both axes.

    side : weight of both neighbours together
    """
    out = picture * np.float32(1 - side)
    out[:, 1:-1] += np.float32(side / 2) * (picture[:, :-2] + picture[:, 2:])
    out[:, 0] += np.float32(side) * picture[:, 1]
    out[:, -1] += np.float32(side) * picture[:, -2]
    return np.ascontiguousarray(out.T)


def _smaller(picture: np.ndarray, factor: int) -> np.ndarray:
    side = picture.shape[0] // factor
    return picture.reshape(side, factor, side, factor).mean((1, 3))


def _box(mask: np.ndarray) -> tuple[slice, slice]:
    """The rows and columns that hold all that is true."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)
