"""Whether saliency maps point to known lesions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Pointing:
    """Pointing games over all slices that have a lesion.

    hits : share of slices whose most salient pixel lies in a lesion (the pointing game, Zhang et al. 2018, Sec. 4.2, without tolerance)
    energy : share of the saliency that lies in lesions (the energy-based pointing game, Wang et al. 2020, Sec. 4.3)
    chance : chance level of both, the share of pixels that lie in lesions
    slices : how many slices have a lesion
    """

    hits: float
    energy: float
    chance: float
    slices: int


def pointing(saliency: np.ndarray, lesions: np.ndarray) -> Pointing | None:
    """How well maps point into lesions; None if no slice has a lesion.

    Parameters
    ----------
    saliency : float (S, H, W), not negative
    lesions : bool (S, H, W)

    A slice without any saliency is not a hit, and has an energy of 0.
    """
    with_lesion = lesions.any((1, 2))
    if not with_lesion.any():
        return None
    maps, masks = saliency[with_lesion].astype(np.float64), lesions[with_lesion]
    flat, inside = maps.reshape(len(maps), -1), masks.reshape(len(masks), -1)
    most = flat.argmax(1)
    hits = inside[np.arange(len(flat)), most] & (flat.max(1) > 0)
    total = flat.sum(1)
    energy = np.divide((flat * inside).sum(1), total, out=np.zeros(len(flat)), where=total > 0)
    return Pointing(float(hits.mean()), float(energy.mean()), float(inside.mean()), len(flat))
