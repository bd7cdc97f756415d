"""A chest CT in the lung window, slice by slice, with known lesions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from ctcovid.phantom.anatomy import Anatomy
from ctcovid.phantom.lesions import DIFFICULTY, draw_lesions, mean_added
from ctcovid.phantom.render import Generators, Renderer
from ctcovid.phantom.scanner import Protocol
from ctcovid.scans.classes import CLASS_ORDER

# HU of the emptiest lung, as in emphysema, without texture; and by how many HU lungs are denser at difficulty 0.
EMPTIEST, SHALLOW = -975.0, 70.0


@dataclass(frozen=True)
class Slice:
    """One slice. pixels : uint8 (size, size). lesion, lung : bool (size, size); lesions lie inside the lungs."""

    pixels: np.ndarray
    lesion: np.ndarray
    lung: np.ndarray


@dataclass(frozen=True)
class ScanKey:
    """The same three numbers give the same scan; scans of one patient share anatomy and lesions."""

    seed: int = 0
    patient: int = 0
    scan: int = 0


def chest(label: str, slices: int, size: int, key: ScanKey = ScanKey(), difficulty: float = DIFFICULTY) -> tuple[np.ndarray, np.ndarray]:
    """A scan, head to feet: pixels uint8 (slices, size, size), and where lesions are, bool of the same shape.

    Parameters
    ----------
    label : "NCP", "CP" or "Normal"
    difficulty : 0 (many large, dense lesions) to 1 (few small, faint ones)
    """
    stack = list(slices_of_chest(label, slices, size, key, difficulty))
    return np.stack([item.pixels for item in stack]), np.stack([item.lesion for item in stack])


def slices_of_chest(label: str, slices: int, size: int, key: ScanKey = ScanKey(), difficulty: float = DIFFICULTY) -> Iterator[Slice]:
    """The slices of `chest` one after the other, so that a long scan needs little memory.

    Raises ValueError for another label, and for a size below 16.
    """
    if label not in CLASS_ORDER:
        raise ValueError(f"label {label!r}: one of {', '.join(CLASS_ORDER)}")
    if size < 16:
        raise ValueError(f"size {size}: at least 16")
    # Anatomy and lesions have separate generators, so that another class is the same patient with other lesions.
    seed, patient = key.seed, key.patient
    anatomy = Anatomy.draw(np.random.default_rng([seed, patient, 0]))
    blobs = draw_lesions(label, anatomy, difficulty, np.random.default_rng([seed, patient, 1]))
    of_scan = np.random.default_rng([seed, patient, 2, key.scan])
    protocol = Protocol.draw(anatomy, slices, of_scan)
    # What the lesions add to the mean of the lungs is subtracted from the lungs, so that the mean does not tell the class. For many
    # lesions there would be too little to subtract; lungs of all classes then start denser, as in a shallow breath.
    breath = SHALLOW * max(0.0, 1 - difficulty / DIFFICULTY)
    added = mean_added(blobs, anatomy, protocol.lung)
    protocol = replace(protocol, lung=max(protocol.lung + breath - added, EMPTIEST))
    # Small pictures are drawn larger and averaged, as a real slice is made smaller.
    factor = max(1, -(-180 // size))
    renderer = Renderer(anatomy, protocol, blobs, size * factor, Generators(np.random.default_rng([seed, patient, 3]), of_scan))
    spacing = (protocol.bottom - protocol.top) / slices
    for number in range(slices):
        yield Slice(*renderer.slice(protocol.top + (number + 0.5) * spacing, factor))
