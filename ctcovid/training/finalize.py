"""Training's last step: what the finished model's own data say of how to use it, for model.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file

from ctcovid.base.console import Console
from ctcovid.base.errors import counted
from ctcovid.base.signals import StopRequest
from ctcovid.inference.temperature import calibrated
from ctcovid.models.network import Network
from ctcovid.models.reference import QUANTILE, ReferenceFeatures, distances, fit_reference, probabilities_and_features
from ctcovid.training.temperature import LEAST, MOST, fit_temperature, of_scans, scan_losses, trusted_temperature
from ctcovid.volumes.batches import VolumeSet, in_order
from ctcovid.volumes.layout import ScanRow

# So many training volumes, evenly spread over the scans, show what features look like.
MOST_TRAINING_VOLUMES = 2048
AT_ONCE = 32


def close(
    weights: Path, network: Network, train_set: VolumeSet, valid_set: VolumeSet, workers: int, stop: StopRequest, console: Console
) -> tuple[dict[str, Any], ReferenceFeatures | None]:
    """What model.json shall say about use: the temperature from the validation scans, and kind of image and spacing of the training
    scans; and what these look like, with the distance in feature space from which on a scan is unlike them. Nothing is written.

    Parameters
    ----------
    weights : the file of the final weights
    network : another one of the same architecture, on its device; it takes the weights over

    Raises StoppedError where a signal comes before the end.
    """
    about = learnt_from([volume.scan for volume in train_set.volumes])
    if not len(valid_set):
        return about, None
    network.module.load_state_dict(load_file(weights))
    network.module.requires_grad_(False)
    chosen = np.unique(np.linspace(0, len(train_set) - 1, min(len(train_set), MOST_TRAINING_VOLUMES)).round().astype(int))
    with console.progress(len(valid_set) + len(chosen), "Calibrating") as advance:
        probabilities, features = _through(network, valid_set, range(len(valid_set)), workers, stop, advance)
        learnt = _through(network, train_set, chosen.tolist(), workers, stop, advance)[1] if features is not None else None
    scans, patients = ([getattr(volume.scan, key) for volume in valid_set.volumes] for key in ("first_slice", "patient"))
    fitted = fit_temperature(probabilities, valid_set.labels, scans)
    temperature = trusted_temperature(probabilities, valid_set.labels, scans, patients, fitted)
    if temperature != fitted:
        who = counted(len(set(patients)), "validation patient")
        console.say(f"Probabilities stay as the softmax gives them: {who} do not show that a temperature makes them better.")
    elif not 1.01 * LEAST < temperature < 0.99 * MOST:
        console.warn(
            f"no temperature from {LEAST:g} to {MOST:g} makes the probabilities as sure as they are right, so {temperature:.3g} was taken: "
            f"do not rely on them. Train longer, or validate on more than {counted(len(set(scans)), 'scan')}."
        )
    before, after = (float(scan_losses(calibrated(probabilities, used), valid_set.labels, scans).mean()) for used in (1.0, temperature))
    about["calibration"] = {
        "temperature": temperature,
        "fitted": fitted,
        "volumes": len(valid_set),
        "scans": len(set(scans)),
        "patients": len(set(patients)),
        "log_loss": before,
        "log_loss_calibrated": after,
    }
    statistics = None if learnt is None else fit_reference(learnt, train_set.labels[chosen])
    if statistics is None or features is None:
        return about, None
    each = distances(features, *statistics)
    return about, ReferenceFeatures(*statistics, float(np.quantile(of_scans(each, scans), QUANTILE)))


def learnt_from(rows: Sequence[ScanRow]) -> dict[str, Any]:
    """Kind of image of the scans, "mixed" where it differs, and least and most millimetres between slices, None where no file says."""
    kinds = {row.image_kind for row in rows}
    known = {row.first_slice: json.loads(row.checks or "{}").get("slice_spacing") for row in rows}
    spacings = [float(spacing) for spacing in known.values() if spacing is not None]
    return {
        "image_kind": kinds.pop() if len(kinds) == 1 else "mixed",
        "slice_spacing": [min(spacings), max(spacings)] if spacings else None,
    }


def _through(
    network: Network, volume_set: VolumeSet, chosen: Sequence[int], workers: int, stop: StopRequest, advance: Any
) -> tuple[np.ndarray, np.ndarray | None]:
    """Probabilities and features of volumes, in the order of `chosen`."""
    probabilities, features = [], []
    order = [[chosen[place] for place in places] for places in in_order(len(chosen), AT_ONCE)]
    for batch in volume_set.batches(order, workers):
        if stop.received:
            raise stop.error("The weights are final; the same line with --resume finishes the model.")
        shares, found = probabilities_and_features(network, batch.volumes.numpy())
        probabilities.append(shares)
        if found is not None:
            features.append(found)
        advance(len(batch.labels))
    return np.concatenate(probabilities), np.concatenate(features) if features else None
