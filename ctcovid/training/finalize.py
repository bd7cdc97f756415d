"""The last step of training: temperature, reference features and ranges of the training data, for model.json."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file

from ctcovid.base.console import Advance, Console
from ctcovid.base.errors import agreeing, counted
from ctcovid.base.signals import StopAwaitedError
from ctcovid.distributed.session import Session
from ctcovid.inference.temperature import LEAST, MOST, calibrated, fit_temperature, of_scans, scan_losses, trusted_temperature
from ctcovid.models.network import Network
from ctcovid.models.reference_features import QUANTILE, ReferenceFeatures, distances, fit_reference, probabilities_and_features
from ctcovid.models.training_slices import TrainingSlices, slice_hash
from ctcovid.training.data import TrainingData
from ctcovid.volumes.batches import Batch, VolumeSet, in_order
from ctcovid.volumes.layout import ScanRow

# At most so many training volumes, evenly spread over the scans, give the reference features.
MOST_TRAINING_VOLUMES = 2048
AT_ONCE = 32


def finalize(weights: Path, network: Network, data: TrainingData, session: Session) -> tuple[dict[str, Any], ReferenceFeatures | None]:
    """What model.json says about the use of the model, and the reference features. Nothing is written.

    The temperature comes from the validation scans; kind of image, slice spacing and reference features come from the training scans, and
    the threshold of the distance to these again from the validation scans.

    Parameters
    ----------
    weights : the file of the final weights
    network : another one of the same architecture, on its device, into which the weights are loaded

    Raises StoppedError if a signal comes before the end.
    """
    about = learnt_from([volume.scan for volume in data.train.volumes])
    if not len(data.valid):
        return about, None
    network.module.load_state_dict(load_file(weights))
    network.module.requires_grad_(False)
    train_set, valid_set = data.train, data.valid
    chosen = np.unique(np.linspace(0, len(train_set) - 1, min(len(train_set), MOST_TRAINING_VOLUMES)).round().astype(int))
    with session.console.progress(len(valid_set) + len(chosen), "Calibrating") as advance:
        probabilities, features = _through(network, valid_set, range(len(valid_set)), session, advance)
        learnt = _through(network, train_set, chosen.tolist(), session, advance)[1] if features is not None else None
    about["calibration"] = _calibration(probabilities, valid_set, session.console)
    statistics = None if learnt is None else fit_reference(learnt, train_set.labels[chosen])
    if statistics is None or features is None:
        return about, None
    each = distances(features, *statistics)
    return about, ReferenceFeatures(*statistics, float(np.quantile(of_scans(each, _scans(valid_set)), QUANTILE)))


def training_slices(train_set: VolumeSet, session: Session) -> TrainingSlices:
    """Hashes of all slices that a model is trained on, without those of one even grey, which are the same everywhere.

    Raises StoppedError if a signal comes before the end.
    """
    hashes: list[bytes] = []
    with session.console.progress(len(train_set), "Recording the training slices") as advance:
        for batch in _read(train_set, in_order(len(train_set), AT_ONCE), session):
            hashes += [slice_hash(one) for volume in batch.volumes.numpy() for one in volume if one.min() != one.max()]
            advance(len(batch.labels))
    return TrainingSlices.of(hashes)


def _read(volume_set: VolumeSet, order: list[list[int]], session: Session) -> Iterator[Batch]:
    """The batches; raises StoppedError if a signal comes before their end."""
    read = volume_set.batches(order, session.workers, stop=session.stop)
    with contextlib.suppress(StopAwaitedError), contextlib.closing(read):
        for batch in read:
            if session.stop.received:
                break
            yield batch
    if session.stop.received:
        raise session.stop.error("The weights are final. The same command with --resume finishes the model.")


def _calibration(probabilities: np.ndarray, valid_set: VolumeSet, console: Console) -> dict[str, Any]:
    """The temperature for validation volumes with these probabilities, float (N, classes), and what it was fitted on."""
    labels, scans = valid_set.labels, _scans(valid_set)
    patients = [volume.scan.patient for volume in valid_set.volumes]
    fitted = fit_temperature(probabilities, labels, scans)
    temperature = trusted_temperature(probabilities, labels, scans, patients, fitted)
    if temperature != fitted:
        count = len(set(patients))
        who = f"{counted(count, 'validation patient')} {agreeing(count, 'does', 'do')}"
        console.say(f"Probabilities are not calibrated: {who} not show that a temperature improves them.")
    elif not 1.01 * LEAST < temperature < 0.99 * MOST:
        console.warn(
            f"no temperature from {LEAST:g} to {MOST:g} calibrates the probabilities, so {temperature:.3g} is used. Do not rely on them. "
            f"Train longer, or validate on more than {counted(len(set(scans)), 'scan')}."
        )
    before, after = (float(scan_losses(calibrated(probabilities, used), labels, scans).mean()) for used in (1.0, temperature))
    return {
        "temperature": temperature,
        "fitted": fitted,
        "volumes": len(valid_set),
        "scans": len(set(scans)),
        "patients": len(set(patients)),
        "log_loss": before,
        "log_loss_calibrated": after,
    }


def _scans(volume_set: VolumeSet) -> list[int]:
    """Which scan each volume is of."""
    return [volume.scan.first_slice for volume in volume_set.volumes]


def learnt_from(rows: Sequence[ScanRow]) -> dict[str, Any]:
    """Kind of image of the scans, "mixed" if it differs, and smallest and largest slice spacing in mm, None if no file has it."""
    kinds = {row.image_kind for row in rows}
    known = {row.first_slice: json.loads(row.checks or "{}").get("slice_spacing") for row in rows}
    spacings = [float(spacing) for spacing in known.values() if spacing is not None]
    return {
        "image_kind": kinds.pop() if len(kinds) == 1 else "mixed",
        "slice_spacing": [min(spacings), max(spacings)] if spacings else None,
    }


def _through(
    network: Network, volume_set: VolumeSet, chosen: Sequence[int], session: Session, advance: Advance
) -> tuple[np.ndarray, np.ndarray | None]:
    """Probabilities and features of volumes, in the order of `chosen`."""
    probabilities, features = [], []
    order = [[chosen[number] for number in numbers] for numbers in in_order(len(chosen), AT_ONCE)]
    for batch in _read(volume_set, order, session):
        shares, found = probabilities_and_features(network, batch.volumes.numpy())
        probabilities.append(shares)
        if found is not None:
            features.append(found)
        advance(len(batch.labels))
    return np.concatenate(probabilities), np.concatenate(features) if features else None
