"""A trained model's predictions on a part of a volumes file."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ctcovid.base.console import Console
from ctcovid.base.errors import InputError, agreeing
from ctcovid.distributed.session import Session
from ctcovid.evaluation.overlap import share_images
from ctcovid.evaluation.predictions import Predictions
from ctcovid.models.device import announced
from ctcovid.models.registry import TrainedModel
from ctcovid.volumes.batches import VolumeSet, in_order
from ctcovid.volumes.limits import naming_limits
from ctcovid.volumes.reader import Volume, VolumesFile

# Volumes that are read at a time.
AT_ONCE = 32


@dataclass(frozen=True)
class EvaluationSet:
    """The volumes of one part of a file at a model's depth, and the file that the model was trained on.

    Attributes
    ----------
    own : the file that the model was trained on; None if it cannot be read, for the reason in `missing`
    alike : how many patient ids also occur in the data of the model
    same : whether they are the same people, by their images; None if the images cannot be compared
    """

    volume_set: VolumeSet
    own: VolumesFile | None
    missing: str
    alike: int
    same: bool | None

    @property
    def same_file(self) -> bool:
        return self.own is self.volume_set.file

    @property
    def volumes(self) -> list[Volume]:
        return self.volume_set.volumes

    def own_set(self, part: str) -> VolumeSet | None:
        """A part of the file that the model was trained on, at its depth; None if that file is missing or has changed."""
        return None if self.own is None else VolumeSet(self.own, part, self.volume_set.depth)


def open_evaluation_set(model: TrainedModel, data: Path | None, part: str, console: Console) -> EvaluationSet:
    """The volumes to score a model on: a part of `data`, or of the file that it was trained on.

    Raises InputError if the part is empty, has other classes or sizes, or is the test part and has patients that the model was trained on.
    """
    trained_on = Path(model.card["data"]["path"])
    path = data or (trained_on if trained_on.is_file() else Path("volumes.h5"))
    file = VolumesFile(path)
    own, missing = _own_file(model, file, trained_on)
    if own is not file:
        console.warn(f"{path} is not the file that {model.name} was trained on.")
    if own is None:
        console.warn(f"{model.name}: {missing}. The test images cannot be compared with its training data.")
    if sorted(file.classes) != sorted(model.classes):
        raise InputError(
            f"{path} has the classes {', '.join(file.classes)}, but {model.name} has {', '.join(model.classes)}. Give another --data."
        )
    if file.size != model.size:
        raise InputError(
            f"{path} has slices of {file.size}×{file.size}, but {model.name} was trained on {model.size}×{model.size}. "
            f"Make a file with ctcovid prepare --size {model.size}."
        )
    volume_set = VolumeSet(file, part, model.depth)
    if not len(volume_set):
        raise InputError(
            f"The {part} part of {path} has no volumes of depth {model.depth}. Assign patients to it with "
            "ctcovid prepare --split-file, or evaluate another --part."
        )
    alike, same = _shared_patients(model, volume_set, own, missing, part, console)
    return EvaluationSet(volume_set, own, missing, alike, same)


def _own_file(model: TrainedModel, file: VolumesFile, trained_on: Path) -> tuple[VolumesFile | None, str]:
    """The file that the model was trained on, which may be `file`; or None and the reason, such as that the path now has another file."""
    fingerprint = model.card["data"].get("fingerprint")
    if file.fingerprint == fingerprint:
        return file, ""
    if not trained_on.is_file():
        return None, f"{trained_on} no longer exists"
    try:
        found = VolumesFile(trained_on)
    except InputError as error:
        return None, f"{trained_on} can no longer be read ({str(error).rstrip('.')})"
    if found.fingerprint != fingerprint:
        return None, f"{trained_on} has changed since the training"
    return found, ""


def predict(model: TrainedModel, volume_set: VolumeSet, part: str, session: Session) -> Predictions:
    """The model's predictions on all volumes of a part. The processes share the volumes, and each gets all predictions."""
    session.console.say(f"Evaluating {model.name} on the {part} part of {volume_set.file.path}, {announced(model.network.device)}.")
    probabilities = _probabilities(model, volume_set, session)
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


def _probabilities(model: TrainedModel, volume_set: VolumeSet, session: Session) -> np.ndarray:
    """Softmax probabilities, float64 (N, classes)."""
    ranks, workers = session.ranks, session.workers
    order = ranks.share(in_order(len(volume_set), ranks.at_most(AT_ONCE, len(volume_set))))
    own: list[tuple[np.ndarray, np.ndarray]] = []
    with session.console.progress(sum(map(len, order)), f"Predicting with {model.name}") as advance, naming_limits(workers):
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
    assert (times == 1).all(), "a volume was omitted or classified twice"
    return found


def _shared_patients(
    model: TrainedModel, volume_set: VolumeSet, own: VolumesFile | None, missing: str, part: str, console: Console
) -> tuple[int, bool | None]:
    """How many patient ids also occur in the model's data, and whether they are the same people; None if that is unknown.

    A model that is scored on its training patients looks better than it is, so a test on them is refused. Equal ids in another file mean
    little, since many archives count from 0. If one id has an image in common in both files, all ids are taken for the same people.

    Raises InputError for a test on training patients, or on patients with their ids whose images cannot be compared.
    """
    split, file = model.card.get("split", {}), volume_set.file
    patients = {volume.scan.patient for volume in volume_set.volumes}
    alike = patients & {patient for members in split.values() for patient in members}
    seen = alike & {patient for name in ("train", "valid") for patient in split.get(name, [])}
    if not alike:
        return 0, False
    same = None
    if own is file:
        same = True
    elif own is not None and own.window == file.window:
        # Patients of all parts: one that is in another part also shows what the ids mean.
        same = share_images(file, own, {row.patient for row in own.rows} & {row.patient for row in file.rows}, console)
    if same is False:
        console.warn(
            f"{file.path}: {len(alike):,} of its patient ids also {agreeing(len(alike), 'occurs', 'occur')} in the data of {model.name}, "
            "but without an image in common. "
            f"{agreeing(len(alike), 'It is', 'They are')} taken for {agreeing(len(alike), 'another person', 'other people')}."
        )
    elif seen and part != "test":
        console.warn(f"{model.name} was trained or selected on {len(seen)} of these patients. The result says nothing about new patients.")
    elif seen:
        named = ", ".join(sorted(seen)[:5])
        some = f"{len(seen)} of the test patients {{}} in the training or validation part of {model.name} ({named})"
        if same:
            by = "" if own is file else ", by their ids and by images that are the same in both files"
            raise InputError(
                f"{some.format(agreeing(len(seen), 'was', 'were'))}{by}. Evaluate on the file that it was trained on, or on other patients."
            )
        why = missing or f"the window of {file.path} ({file.window}) differs from that of the training file ({model.window})"
        remedy = "Restore that file" if missing else "Prepare both files with the same --window"
        raise InputError(
            f"{some.format(agreeing(len(seen), 'has an id that occurs', 'have ids that occur'))}. "
            f"Their images cannot be compared to tell whether they are the same people: {why}. "
            f"{remedy}, or test on patients with other ids."
        )
    return len(alike), same


def _scan_names(volumes: list[Volume]) -> list[str]:
    """Ids of the volumes' scans; the whole path if a patient has the same scan id in two class folders."""
    rows = {id(volume.scan): volume.scan for volume in volumes}.values()
    ids = Counter((row.patient, row.id) for row in rows)
    return [volume.scan.id if ids[volume.scan.patient, volume.scan.id] == 1 else volume.scan.source for volume in volumes]
