"""Kinds of scans that are no defects, or no axial chests in a lung window: the second table of defect_rates.py."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from defect_rates import variant, verdict
from PIL import Image
from scipy import ndimage

from ctcovid.scans.discover import find_scans
from ctcovid.scans.kind import in_colour
from ctcovid.scans.quality import Verdict
from ctcovid.scans.read import read_slices, square
from ctcovid.scans.slice_summary import summarise
from ctcovid.scans.window import LUNG, Window

# Scans with Hounsfield units, and windows in which they are no lung window's pictures.
HOUNSFIELD = ("dicom/jpeg-lossless-series", "dicom/two-series-study", "nifti/chest-cap001-128.nii.gz")
# Edges at which a chest may be cut: left, right, below, above.
CUTS = ("l", "r", "lr", "lb", "t", "rt")
OTHER_WINDOWS = (Window(40, 400), Window(50, 350), Window(300, 1500), Window(400, 2000), Window(0, 2000))


def windowed(folder: Path, window: Window, names: tuple[str, ...] = HOUNSFIELD) -> dict[str, tuple[np.ndarray, float]]:
    """By name, the scans with Hounsfield units in a window, uint8 (S, H, W), and how much farther apart slices are than pixels."""
    found = {}
    for name in names:
        scan = find_scans([folder / name])[0]
        assert scan.geometry is not None
        found[name] = (
            np.stack([one.pixels for one in read_slices(scan, window=window)]),
            scan.geometry.spacing[2] / scan.geometry.spacing[1],
        )
    return found


def resliced(volume: np.ndarray, ratio: float, axis: int, generator: np.random.Generator) -> np.ndarray:
    """Coronal (`axis` 1) or sagittal (2) pictures with square pixels, from 12 to 80 of them, in either direction."""
    stack = np.moveaxis(volume, axis, 0)
    size = int(generator.choice([96, 128, 256]))
    height = max(64, round(size * volume.shape[0] * ratio / stack.shape[2]))
    places = np.linspace(0, len(stack) - 1, int(generator.integers(12, min(len(stack), 80)))).round().astype(int)
    pictures = [np.asarray(Image.fromarray(stack[place]).resize((size, height), Image.Resampling.BILINEAR)) for place in places]
    return np.stack(pictures)[:: int(generator.choice([1, -1]))]


def cut_at(volume: np.ndarray, sides: str, share: float) -> np.ndarray:
    """Cut into the lungs, by a share of their width or height, at the left, right, lower or upper edge."""
    small = np.stack([summarise(pixels).thumbnail for pixels in volume])
    lungs = np.stack([ndimage.binary_fill_holes(one >= 150) & (one < 150) for one in small]).any(0)
    labels, count = ndimage.label(lungs)
    lungs = np.isin(labels, 1 + np.argsort(np.bincount(labels.ravel(), minlength=count + 1)[1:])[-2:])
    scale = volume.shape[1] / len(lungs)
    rows, columns = (np.flatnonzero(lungs.any(axis)) * scale for axis in (1, 0))
    down, across = (share * (ends[-1] - ends[0] + scale) for ends in (rows, columns))
    top, bottom = int(rows[0] + down) if "t" in sides else 0, int(rows[-1] + scale - down) if "b" in sides else None
    left, right = int(columns[0] + across) if "l" in sides else 0, int(columns[-1] + scale - across) if "r" in sides else None
    return volume[:, top:bottom, left:right]


def cut_to_lungs(volume: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The rectangle around what is darker than the body and enclosed by it, or a little less or more."""
    small = np.stack([summarise(pixels).thumbnail for pixels in volume])
    lungs = np.stack([ndimage.binary_fill_holes(one >= 150) & (one < 150) for one in small]).any(0)
    rows, columns = np.flatnonzero(lungs.any(1)), np.flatnonzero(lungs.any(0))
    scale, margin = volume.shape[1] / small.shape[1], int(generator.integers(-3, 2))
    top, left = (max(0, int((where[0] - margin) * scale)) for where in (rows, columns))
    bottom, right = (int((where[-1] + 1 + margin) * scale) for where in (rows, columns))
    return volume[:, top:bottom, left:right]


def by_turns(one: np.ndarray, other: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Two scans by turns, both from head to feet, at one size."""
    count, size = int(generator.integers(10, 40)), int(generator.choice([96, 128, 256]))
    stack = np.empty((2 * count, size, size), np.uint8)
    for first, volume in enumerate((one, other)):
        places = np.linspace(0, len(volume) - 1, count).round().astype(int)
        stack[first::2] = [square(volume[place], size) for place in places]
    return stack


def spaced(volume: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Every slice to every twelfth, perhaps of thick slices or with a gap."""
    step = int(generator.integers(1, min(12, len(volume) // 8) + 1))
    thick = ndimage.uniform_filter1d(volume, int(generator.choice([1, 3, 5])), axis=0)[::step]
    gap = int(generator.integers(2, len(thick) - 2))
    return np.delete(thick, slice(gap, gap + int(generator.integers(0, 3))), axis=0)


def is_grey(pixels: np.ndarray, tint: np.ndarray) -> bool:
    """Whether a picture with a tint, written as PNG and as JPEG, is not in colour."""
    tinted = np.clip(np.rint(pixels[:, :, None] * tint), 0, 255).astype(np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("0.png", "0.jpg")]
        for path in paths:
            Image.fromarray(tinted).save(path)
        return not any(in_colour(path) for path in paths)


def measured_kinds(volumes: dict[str, np.ndarray], folder: Path, seeds: int) -> dict[str, list[tuple[bool, bool]]]:
    """By kind of scan, for each case, whether what it is was found, and whether nothing wrong was said or done."""
    table: dict[str, list[tuple[bool, bool]]] = {}

    def add(name: str, found: Verdict, code: str, allowed: tuple[str, ...] = (), dropped: bool = False) -> None:
        seen = {finding.code for finding in found.findings} - {"not-square"}
        whole = not found.kept if dropped else found.kept == tuple(sorted(found.kept)) and bool(found.kept)
        if os.environ.get("SHOW") and not (whole and seen <= {code, *allowed} and (not code or code in seen)):
            print("  ", name, seen, len(found.kept), file=sys.stderr)
        table.setdefault(name, []).append((code in seen if code else not seen, whole and seen <= {code, *allowed}))

    complete = [volume for name, volume in volumes.items() if "segmented" not in name]
    repeats = ("repeated-slices", "near-repeated-slices", "constant")
    for seed in range(seeds):
        for number, (name, volume) in enumerate(volumes.items()):
            generator = np.random.default_rng([seed, number])
            kind = "segmented" if "segmented" in name else ""
            add("sound, by position", verdict(spaced(volume, generator), ordered=True), kind)
            for pixels in variant(volume, generator)[:: 1 + len(volume) // 30]:
                add(f"single slices, {kind or 'complete'}", verdict(pixels[None]), kind, ("unknown-window",))
        for number, volume in enumerate(complete):
            generator = np.random.default_rng([seed, number])
            add("cut to the lungs", verdict(cut_to_lungs(variant(volume, generator), generator)), "cut-off", ("feet-first-doubtful",))
            for sides in CUTS:
                part = cut_at(variant(volume, generator), sides, generator.uniform(0.05, 0.2))
                add("cut into the lungs", verdict(part), "cut-off", ("feet-first-doubtful", "order-doubtful"))
            tints = ([1, 0.89, 0.69], [0.8, 0.9, 1.1], [1.35, 1.2, 0.94])
            grey = is_grey(variant(volume, generator)[0], np.array(tints[seed % 3]))
            table.setdefault("sepia and other tints", []).append((grey, grey))
            other = complete[number - 1]
            add("alternating, by position", verdict(by_turns(volume, other, generator), ordered=True), "inconsistent-stack", dropped=True)
            add("alternating, pictures", verdict(by_turns(volume, other, generator)), "inconsistent-stack", dropped=True)
    for number, window in enumerate((LUNG, *OTHER_WINDOWS)):
        for scan, (volume, ratio) in enumerate(windowed(folder, window).values()):
            for seed in range(seeds):
                generator = np.random.default_rng([seed, number, scan])
                name, code = ("lung window", "") if window == LUNG else ("other windows", "unknown-window")
                add(name, verdict(variant(volume, generator)), code)
                add("negatives", verdict(255 - variant(volume, generator)), "not-hounsfield", dropped=True)
                for axis, view in ((1, "coronal"), (2, "sagittal")):
                    add(view, verdict(resliced(volume, ratio, axis, generator)), "not-axial", ("segmented", *repeats), dropped=True)
    return table
