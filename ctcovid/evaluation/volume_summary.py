"""One look at all volumes of a part: a hash of each slice, and what each volume is like as a whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ctcovid.base.console import Console
from ctcovid.evaluation.baselines import global_features
from ctcovid.models.training_slices import slice_hash

if TYPE_CHECKING:
    from ctcovid.volumes.batches import VolumeSet

# Volumes that are read at a time.
AT_ONCE = 8


@dataclass(frozen=True)
class PartSummary:
    """Of the volumes of a part: global `features` float (N, features), `slices` (a hash of each slice, by volume), labels as names."""

    features: np.ndarray
    slices: list[tuple[bytes, ...]]
    labels: list[str]


def summarise_part(volume_set: VolumeSet, workers: int, console: Console) -> PartSummary:
    """Read all volumes of a part once.

    Raises InputError where one cannot be read.
    """
    # Not at the top: predictions in a CSV are checked without a volume, and without torch.
    from ctcovid.volumes.batches import in_order
    from ctcovid.volumes.limits import naming_limits

    features: list[np.ndarray] = []
    slices: list[tuple[bytes, ...]] = []
    with console.progress(len(volume_set), "Looking for images that are in several parts") as advance, naming_limits(workers):
        for batch in volume_set.batches(in_order(len(volume_set), AT_ONCE), workers):
            for volume in batch.volumes.numpy():
                features.append(global_features(volume))
                slices.append(tuple(map(slice_hash, volume)))
            advance(len(batch.labels))
    return PartSummary(np.array(features), slices, [volume.scan.label for volume in volume_set.volumes])


def repeated(tested: PartSummary, *known_from: PartSummary) -> np.ndarray:
    """The volumes of `tested` whose every slice stands somewhere in the others, bool (N,): whole volumes, however they are cut or ordered.

    Slices of one even grey, such as padding, are the same everywhere, and by themselves show nothing.
    """
    known = {one for other in known_from for volume in other.slices for one in volume}
    spread = tested.features[:, 1]
    return np.array([set(volume) <= known for volume in tested.slices], dtype=bool) & (spread > 0)
