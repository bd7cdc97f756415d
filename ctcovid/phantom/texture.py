"""Random fields: smooth ones in the patient, fine ones in the picture, and the noise of the scanner."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.fft import irfftn, rfftn
from scipy.ndimage import gaussian_filter1d, map_coordinates


def coloured(shape: tuple[int, ...], response: Any, generator: np.random.Generator) -> np.ndarray:
    """Gaussian noise of standard deviation 1 that repeats at its borders, float32.

    response : function of the frequency in cycles per sample, the amplitude there.
    """
    spectrum = rfftn(generator.standard_normal(shape, dtype=np.float32))
    axes = [np.fft.fftfreq(n).astype(np.float32) for n in shape[:-1]] + [np.fft.rfftfreq(shape[-1]).astype(np.float32)]
    grid = np.meshgrid(*axes, indexing="ij", sparse=True)
    spectrum *= response(np.sqrt(sum(axis * axis for axis in grid)))
    field = irfftn(spectrum, s=shape).astype(np.float32)
    return field / np.float32(field.std())


class Field:
    """A smooth random field in the patient's space, of standard deviation 1, that repeats after 192 mm."""

    SPACING = 6.0

    def __init__(self, generator: np.random.Generator) -> None:
        self.lattice = coloured((32, 32, 32), lambda f: np.exp(-((f / 0.16) ** 2)), generator)

    def __call__(self, x: np.ndarray, y: np.ndarray, z: float, scale: float = 1.0) -> np.ndarray:
        """Values at positions of one level, mm; a larger `scale` makes larger patches."""
        step = self.SPACING * scale
        plane, fraction = int(z // step), np.float32(z / step % 1)
        level = (1 - fraction) * self.lattice[plane % 32] + fraction * self.lattice[(plane + 1) % 32]
        index = np.stack([y, x]) / np.float32(step)
        return map_coordinates(level, index, order=1, mode="grid-wrap", output=np.float32)


class Reticulation:
    """A fine net of lines as of thickened septa, 0 to 1, in pixels of the picture; it changes slowly from slice to slice."""

    def __init__(self, pixel: float, generator: np.random.Generator) -> None:
        # Secondary lobules are 10 to 25 mm wide, intralobular lines lie closer; the net has meshes of about 6 mm.
        wanted = pixel / 11.0
        band = coloured((8, 192, 192), lambda f: np.exp(-(((f - wanted) / (0.4 * wanted)) ** 2)), generator)
        self.net = np.exp(-((band / 0.28) ** 2)).astype(np.float32)
        self.grain = coloured((8, 192, 192), lambda f: np.exp(-((f / (pixel / 5.0)) ** 2)), generator)

    def at(self, z: float, rows: slice, columns: slice) -> tuple[np.ndarray, np.ndarray]:
        """Net and grain, float32 (rows, columns), at the level `z` mm."""
        position = (z / 2.5) % 8
        plane, fraction = int(position), np.float32(position % 1)
        index = np.ix_(np.arange(rows.start, rows.stop) % 192, np.arange(columns.start, columns.stop) % 192)
        following = (plane + 1) % 8
        net = (1 - fraction) * self.net[plane][index] + fraction * self.net[following][index]
        grain = (1 - fraction) * self.grain[plane][index] + fraction * self.grain[following][index]
        return net, grain


class ScannerNoise:
    """Noise as after reconstruction: little at low frequencies, with a maximum at a frequency that is low for soft kernels, high for sharp.

    The spectrum is that of filtered back projection, a ramp times the kernel's window (Riederer, Pelc, Chesler, Phys Med Biol 23,
    1978). A few tiles are made per scan, and cropped at random for each slice.
    """

    TILES = 3

    def __init__(self, size: int, cut_off: float, generator: np.random.Generator) -> None:
        """cut_off : cycles per pixel at which the kernel has fallen to 1/e, about 0.3 (soft) to 0.5 (sharp)."""
        side = size + 64
        tiles = [coloured((side, side), lambda f: (f + 0.02) ** 0.6 * np.exp(-((f / cut_off) ** 2)), generator) for _ in range(self.TILES)]
        self.tiles, self.size, self.generator = np.stack(tiles), size, generator
        # Through the shoulders the beam is weak: streaks from side to side.
        band = coloured((side, side), lambda f: np.exp(-((f / 0.12) ** 2)), generator)
        band = gaussian_filter1d(band, size / 7, axis=1, mode="wrap")
        self.streaks = (band / band.std()).astype(np.float32)

    def slice(self, streak: float) -> np.ndarray:
        """Noise of standard deviation 1, float32 (size, size), and horizontal streaks of strength `streak`."""
        which = int(self.generator.integers(self.TILES))
        top, left = (int(value) for value in self.generator.integers(0, 64, 2))
        noise = self.tiles[which, top : top + self.size, left : left + self.size]
        if streak > 0:
            noise = noise + np.float32(streak) * self.streaks[top : top + self.size, left : left + self.size]
        return noise
