"""A chest CT in the lung window, slice by slice, whose lesions are known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from ctcovid.phantom.anatomy import Anatomy
from ctcovid.phantom.lesions import DIFFICULTY, draw_lesions, mean_added
from ctcovid.phantom.render import Renderer
from ctcovid.phantom.scanner import Protocol
from ctcovid.scans.classes import CLASS_ORDER

# HU of the emptiest lung, before unevenness, as in emphysema; and how many HU denser lungs are at difficulty 0.
EMPTIEST, SHALLOW = -975.0, 70.0


@dataclass(frozen=True)
class Slice:
    """One slice. pixels : uint8 (size, size). lesion, lung : bool (size, size); lesions lie inside the lungs."""

    pixels: np.ndarray
    lesion: np.ndarray
    lung: np.ndarray


def chest(
    label: str, slices: int, size: int, seed: int = 0, patient: int = 0, scan: int = 0, difficulty: float = DIFFICULTY
) -> tuple[np.ndarray, np.ndarray]:
    """A scan, head to feet: pixels uint8 (slices, size, size), and where lesions are, bool of the same shape.

    Parameters
    ----------
    label : "NCP", "CP" or "Normal"
    seed, patient, scan : the same three numbers give the same scan; scans of one patient share anatomy and lesions
    difficulty : 0 (many large, dense lesions) to 1 (few small, faint ones)
    """
    stack = list(slices_of_chest(label, slices, size, seed, patient, scan, difficulty))
    return np.stack([item.pixels for item in stack]), np.stack([item.lesion for item in stack])


def slices_of_chest(label: str, slices: int, size: int, seed: int, patient: int, scan: int, difficulty: float) -> Iterator[Slice]:
    """The slices of `chest` one after the other, so that a long scan needs little memory.

    Raises ValueError for another label, and for a size below 16.
    """
    if label not in CLASS_ORDER:
        raise ValueError(f"label {label!r}: one of {', '.join(CLASS_ORDER)}")
    if size < 16:
        raise ValueError(f"size {size}: at least 16")
    # Anatomy and lesions draw from generators of their own, so that another class is the same patient with other lesions.
    anatomy = Anatomy.draw(np.random.default_rng([seed, patient, 0]))
    blobs = draw_lesions(label, anatomy, difficulty, np.random.default_rng([seed, patient, 1]))
    of_scan = np.random.default_rng([seed, patient, 2, scan])
    protocol = Protocol.draw(anatomy, slices, of_scan)
    # What the lesions add to the mean of the lungs is taken from the rest of them, lest the mean tell the class. Where they are so many
    # that a lung has not as much to lose, those of all classes begin denser, as in a shallow breath.
    breath = SHALLOW * max(0.0, 1 - difficulty / DIFFICULTY)
    added = mean_added(blobs, anatomy, protocol.lung)
    protocol = replace(protocol, lung=max(protocol.lung + breath - added, EMPTIEST))
    # Small pictures are drawn larger and averaged, as a real slice is made smaller.
    factor = max(1, -(-180 // size))
    renderer = Renderer(anatomy, protocol, blobs, size * factor, np.random.default_rng([seed, patient, 3]), of_scan)
    spacing = (protocol.bottom - protocol.top) / slices
    for number in range(slices):
        yield Slice(*renderer.slice(protocol.top + (number + 0.5) * spacing, factor))
