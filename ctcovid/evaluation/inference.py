"""A trained model's predictions on a part of a volumes file."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ctcovid.base.console import Console
from ctcovid.base.errors import InputError
from ctcovid.evaluation.predictions import Predictions
from ctcovid.models.device import device_name
from ctcovid.models.ranks import Ranks
from ctcovid.models.registry import TrainedModel
from ctcovid.volumes.batches import VolumeSet, in_order
from ctcovid.volumes.limits import naming_limits
from ctcovid.volumes.reader import Volume, VolumesFile

# Volumes that are read at a time.
AT_ONCE = 32


@dataclass(frozen=True)
class Part:
    """The volumes of one part of a file at a model's depth, and the path and the file that the model was trained with."""

    volume_set: VolumeSet
    trained_on: Path
    same_file: bool

    @property
    def volumes(self) -> list[Volume]:
        return self.volume_set.volumes

    def own_set(self, part: str) -> VolumeSet | None:
        """A part of what the model was trained with, at its depth; None where the file is not there any more."""
        file = self.volume_set.file
        if not self.same_file:
            if not self.trained_on.is_file():
                return None
            file = VolumesFile(self.trained_on)
        return VolumeSet(file, part, self.volume_set.depth)


def open_part(model: TrainedModel, data: Path | None, part: str, console: Console) -> Part:
    """The volumes to score a model on: of `data`, or of the file that it was trained with.

    Raises InputError where the part is empty, has other classes or sizes, or, to test on, has patients that the model was trained on.
    """
    trained_on = Path(model.card["data"]["path"])
    path = data or (trained_on if trained_on.is_file() else Path("volumes.h5"))
    file = VolumesFile(path)
    same_file = file.fingerprint == model.card["data"].get("fingerprint")
    if not same_file:
        console.warn(f"{path} is not the file that {model.name} was trained with.")
    if sorted(file.classes) != sorted(model.classes):
        raise InputError(f"{path} has the classes {', '.join(file.classes)}, {model.name} {', '.join(model.classes)}. Give other --data.")
    if file.size != model.size:
        raise InputError(
            f"{path} has slices of {file.size}×{file.size}, {model.name} was trained on {model.size}×{model.size}. "
            f"Make a file with ctcovid prepare --size {model.size}."
        )
    volume_set = VolumeSet(file, part, model.depth)
    if not len(volume_set):
        raise InputError(
            f"The {part} part of {path} has no volumes of depth {model.depth}. Assign patients to it with "
            "ctcovid prepare --split-file, or evaluate another --part."
        )
    _refuse_seen_patients(model, volume_set, part, console)
    return Part(volume_set, trained_on, same_file)


def predict(model: TrainedModel, volume_set: VolumeSet, part: str, workers: int, ranks: Ranks, console: Console) -> Predictions:
    """The model's predictions on all volumes of a part, each made by one of the processes; the same in all of them."""
    console.say(f"Evaluating {model.name} on the {part} part of {volume_set.file.path}, {device_name(model.network.device)}.")
    probabilities = _probabilities(model, volume_set, workers or ranks.readers, ranks, console)
    volumes = volume_set.volumes
    return Predictions(
        model.name,
        model.classes,
        [volume.scan.patient for volume in volumes],
        _scan_names(volumes),
        np.array([volume.number for volume in volumes]),
        np.array([model.classes.index(volume.scan.label) for volume in volumes]),
        probabilities,
    )


def _probabilities(model: TrainedModel, volume_set: VolumeSet, workers: int, ranks: Ranks, console: Console) -> np.ndarray:
    """Softmax probabilities, float64 (N, classes)."""
    order = ranks.share(in_order(len(volume_set), ranks.at_most(AT_ONCE, len(volume_set))))
    own: list[tuple[np.ndarray, np.ndarray]] = []
    with console.progress(sum(map(len, order)), f"Predicting with {model.name}") as advance, naming_limits(workers):
        for batch in volume_set.batches(order, workers) if order else ():
            own.append((batch.indices.numpy(), model.network.probabilities(batch.volumes)))
            advance(len(batch.labels))
            ranks.check()
    found = np.full((len(volume_set), len(model.classes)), np.nan)
    times = np.zeros(len(volume_set), dtype=int)
    for some in ranks.gather(own):
        for indices, probabilities in some:
            found[indices] = probabilities
            times[indices] += 1
    assert (times == 1).all(), "a volume was left out, or classified twice"
    return found


def _refuse_seen_patients(model: TrainedModel, volume_set: VolumeSet, part: str, console: Console) -> None:
    """A model scored on patients that it has learnt from looks better than it is."""
    learnt = {patient for name in ("train", "valid") for patient in model.card.get("split", {}).get(name, [])}
    seen = learnt & {volume.scan.patient for volume in volume_set.volumes}
    if seen and part == "test":
        raise InputError(
            f"{len(seen)} of the patients to test on were in the training or validation part of {model.name} "
            f"({', '.join(sorted(seen)[:5])}). Evaluate on the file that it was trained with, or on other patients."
        )
    if seen:
        console.warn(f"{model.name} was trained or chosen on {len(seen)} of these patients; the result says nothing about new ones.")


def _scan_names(volumes: list[Volume]) -> list[str]:
    """Ids of the volumes' scans; the whole path where a patient has one id in two class folders."""
    rows = {id(volume.scan): volume.scan for volume in volumes}.values()
    ids = Counter((row.patient, row.id) for row in rows)
    return [volume.scan.id if ids[volume.scan.patient, volume.scan.id] == 1 else volume.scan.source for volume in volumes]
