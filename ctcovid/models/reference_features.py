"""Reference features: what a model's training data look like to it, and how far other scans are from them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ctcovid.models.network import Network
from ctcovid.models.saved_model import load_arrays, save_arrays

FILE = "features.safetensors"
# Share of the covariance that is replaced by that of independent features of equal variance: there may be fewer volumes than features.
SHRINKAGE = 0.1
# Share of the validation scans that is not flagged.
QUANTILE = 0.99


def last_linear(network: Network) -> nn.Linear | None:
    """The linear layer that makes the logits, or None where something else does."""
    return next((one for name in ("fc", "head") if isinstance(one := getattr(network.module, name, None), nn.Linear)), None)


@torch.inference_mode()
def probabilities_and_features(network: Network, volumes: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Softmax probabilities, float64 (N, classes), and what enters the last linear layer, float32 (N, C); None without such a layer.

    Parameters
    ----------
    volumes : uint8 (N, D, H, W)

    Raises ModelRefusedError if the network returns NaN or Inf.
    """
    head = last_linear(network)
    if head is None:
        return network.probabilities(volumes), None

    def both(some: Tensor) -> tuple[Tensor, Tensor]:
        found: list[Tensor] = []
        handle = head.register_forward_pre_hook(lambda module, inputs: found.append(inputs[0].float()))
        try:
            return network.logits(some), found[0]
        finally:
            handle.remove()

    logits, features = [], [torch.zeros(0, head.in_features)]
    for answer, entering in network.by_passes("a forward pass with features", both, volumes):
        logits.append(answer)
        features.append(entering.cpu())
    return network.softmax(logits), torch.cat(features).numpy()


@dataclass(frozen=True)
class ReferenceFeatures:
    """Statistics of the features of training volumes.

    Attributes
    ----------
    means : float32 (classes, C)
    whitening : float32 (C, C)
    threshold : distance from which a scan is flagged as out of distribution
    """

    means: np.ndarray
    whitening: np.ndarray
    threshold: float

    def distance(self, features: np.ndarray) -> float:
        """How far a scan is from the training scans: the mean over its volumes, float (N, C), of `distances`."""
        return float(distances(features, self.means, self.whitening).mean())


def distances(features: np.ndarray, means: np.ndarray, whitening: np.ndarray) -> np.ndarray:
    """Mahalanobis distance of volumes, float (N, C), to the nearest class mean, over the root of C; float (N,).

    Lee et al. 2018, A simple unified framework for detecting out-of-distribution samples, Eq. (2), with one covariance for all classes.
    """
    turned, centres = features @ whitening, means @ whitening
    squares = ((turned[:, None] - centres[None]) ** 2).mean(2)
    nearest: np.ndarray = np.sqrt(squares.min(1))
    return nearest


def fit_reference(features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Class means and whitening of training volumes, float (N, C) with their classes, int (N,); None where all features are constant."""
    known = np.unique(labels)
    means = np.stack([features[labels == label].mean(0, dtype=np.float64) for label in known])
    centred = features - means[np.searchsorted(known, labels)]
    covariance = centred.T @ centred / len(features)
    usual = float(np.trace(covariance)) / len(covariance)
    if not usual > 0:
        return None
    values, vectors = np.linalg.eigh((1 - SHRINKAGE) * covariance + SHRINKAGE * usual * np.eye(len(covariance)))
    return means.astype(np.float32), (vectors / np.sqrt(values)).astype(np.float32)


def save_reference(folder: Path, reference: ReferenceFeatures) -> dict[str, Any]:
    """Write means and whitening beside the weights, and return their entry for model.json."""
    arrays = {"means": reference.means, "whitening": np.ascontiguousarray(reference.whitening)}
    return {"threshold": reference.threshold, "quantile": QUANTILE, "sha256": save_arrays(folder / FILE, arrays)}


def load_reference(folder: Path, card: dict[str, Any]) -> ReferenceFeatures | None:
    """What `save_reference` wrote; see `saved_model.load_arrays`."""
    said: dict[str, Any] = card.get("features") or {}

    def build(arrays: dict[str, np.ndarray]) -> ReferenceFeatures:
        means, whitening = arrays["means"], arrays["whitening"]
        features = means.shape[-1] if means.ndim == 2 else 0
        if not features or whitening.shape != (features, features) or not 0 < len(means) <= len(card["classes"]):
            raise ValueError(f"not class means and whitening, but of the shapes {means.shape} and {whitening.shape}")
        if not (means.dtype.kind == whitening.dtype.kind == "f" and np.isfinite(means).all() and np.isfinite(whitening).all()):
            raise ValueError("not finite numbers")
        return ReferenceFeatures(means, whitening, float(said["threshold"]))

    return load_arrays(folder / FILE, said, build, "reference features")
