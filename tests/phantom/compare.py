"""Compare the phantom with real scans in numbers: grey values, lung area over position, likeness of neighbouring slices, noise.

    python tests/phantom/compare.py FOLDER [--phantoms 8]

FOLDER holds real scans as CLASS/patient/scan/slices. For each figure the table has the range over the real scans and over as many
synthetic ones as were asked for, of the same numbers of slices.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from scipy.ndimage import binary_fill_holes, label, median_filter

from ctcovid.phantom.chest import ScanKey, chest
from ctcovid.scans.classes import CLASS_ORDER
from ctcovid.scans.discover import find_dataset
from ctcovid.scans.read import read_slices, square

BANDS = ((0, 50), (50, 70), (70, 130), (130, 200), (200, 225), (225, 250), (250, 256))
POSITIONS = (0.1, 0.3, 0.5, 0.7, 0.9)


def lungs(pixels: np.ndarray) -> np.ndarray:
    """Where a slice, uint8 (H, W), shows lung: dark, within the largest bright thing, in large pieces; bool at a quarter of the size."""
    small = pixels[2::4, 2::4]
    parts, count = label(small > 150)
    if count == 0:
        return np.zeros(small.shape, bool)
    sizes = np.bincount(parts.ravel())[1:]
    body = binary_fill_holes(parts == 1 + int(np.argmax(sizes)))
    parts, count = label(body & (small < 150))
    sizes = np.bincount(parts.ravel())
    large = sizes > 0.002 * small.size
    large[0] = False
    return large[parts]


def noise_of(pixels: np.ndarray) -> tuple[float, float, float]:
    """Standard deviation in soft tissue and in air, and the slope of the spectrum in soft tissue from 0.1 to 0.4 cycles per pixel."""
    picture = pixels.astype(np.float32)
    tissue, air, spectra = [], [], []
    for top in range(0, pixels.shape[0] - 31, 16):
        for left in range(0, pixels.shape[1] - 31, 16):
            patch = picture[top : top + 32, left : left + 32]
            middle, spread = float(np.median(patch)), float(patch.std())
            if 200 < middle < 246 and spread < 9:
                tissue.append(spread)
                spectra.append(np.abs(np.fft.rfft2((patch - patch.mean()) * np.outer(np.hanning(32), np.hanning(32)))) ** 2)
            elif 30 < middle < 66 and 0.3 < spread < 6:
                air.append(spread)
    if not spectra:
        return np.nan, np.nan, np.nan
    f = np.sqrt(np.fft.fftfreq(32)[:, None] ** 2 + np.fft.rfftfreq(32)[None] ** 2)
    band = (f > 0.1) & (f < 0.4)
    slope = np.polyfit(np.log(f[band]), np.log(np.mean(spectra, 0)[band]), 1)[0]
    return float(np.median(tissue)), float(np.median(air)) if air else np.nan, float(slope)


def figures(volume: np.ndarray) -> dict[str, float]:
    """All figures of one scan, uint8 (slices, H, W)."""
    area = np.array([lungs(pixels).mean() for pixels in volume])
    inside = np.flatnonzero(area > 0.01)
    first, last = int(inside[0]), int(inside[-1])
    volume, area = volume[first : last + 1], area[first : last + 1]
    found = {f"share of grey {low}-{high - 1}": float(np.mean((volume >= low) & (volume < high))) for low, high in BANDS}
    found |= {f"percentile {p}": float(np.percentile(volume[::4], p)) for p in (5, 25, 50, 75, 95)}
    found["largest lung area, share of view"] = float(area.max())
    found |= {
        f"lung area at {p}, of largest": float(np.interp(p * (len(area) - 1), np.arange(len(area)), area) / area.max()) for p in POSITIONS
    }
    middle = volume[len(volume) // 4 : 3 * len(volume) // 4]
    dark = [pixels[np.kron(lungs(pixels), np.ones((4, 4), bool))] for pixels in middle[::6]]
    found["lung, median grey"] = float(np.median(np.concatenate(dark)))
    found["lung, share of vessels (> 130)"] = float(np.mean(np.concatenate(dark) > 130))
    pairs = zip(middle[:-1:4], middle[1::4], strict=False)
    found["correlation of neighbours"] = float(np.mean([np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in pairs]))
    noise = np.array([noise_of(pixels) for pixels in middle[::8]])
    for name, value in zip(("noise in tissue", "noise in air", "slope of the noise spectrum"), np.nanmean(noise, 0), strict=True):
        found[name] = float(value)
    rest = [float(np.std(pixels.astype(np.float32) - median_filter(pixels, 3))) for pixels in middle[::16]]
    found["fine structure, all of the picture"] = float(np.mean(rest))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--phantoms", type=int, default=8)
    options = parser.parse_args()
    scans, _ = find_dataset(options.folder)
    real = [figures(np.stack([square(one.pixels, 512) for one in read_slices(scan)])) for scan in scans]
    counts = [len(scan.slices) for scan in scans]
    made = [figures(chest(CLASS_ORDER[i % 3], counts[i % len(counts)], 512, ScanKey(7, i, i))[0]) for i in range(options.phantoms)]
    print(f"{'':36}  real scans ({len(real)})    phantoms ({len(made)})")
    for name in real[0]:
        low, high = min(one[name] for one in real), max(one[name] for one in real)
        values = np.array([one[name] for one in made])
        within = int(np.sum((values >= low) & (values <= high)))
        print(
            f"{name:36}  {low:8.3f} {high:8.3f}  {values.min():8.3f} {values.max():8.3f}  median {np.median(values):8.3f}, {within} within"
        )


if __name__ == "__main__":
    main()
