"""How far a trivial model gets: the commonest class, and a logistic regression on what a picture is like as a whole."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

FEATURES = ("mean", "s.d.", "5 %", "25 %", "50 %", "75 %", "95 %", "black", "white", "roughness")


def global_features(volume: np.ndarray) -> np.ndarray:
    """What a volume is like as a whole, without a look at any place in it, float (10,), see FEATURES.

    volume : uint8 (D, H, W)

    Mean and standard deviation of the grey values, their percentiles, the shares of nearly black (< 8) and nearly white (> 247) pixels,
    and the mean step between neighbours in a row.
    """
    counts = np.bincount(volume.ravel(), minlength=256)
    share = np.cumsum(counts) / counts.sum()
    grey = np.arange(256)
    mean = counts @ grey / counts.sum()
    spread = np.sqrt(counts @ (grey - mean) ** 2 / counts.sum())
    percentiles = np.searchsorted(share, [0.05, 0.25, 0.5, 0.75, 0.95])
    every_other = volume[:, ::2].astype(np.int16)
    rough = np.abs(np.diff(every_other, axis=2)).mean()
    return np.array([mean, spread, *percentiles, share[7], 1 - share[247], rough], dtype=float)


@dataclass(frozen=True)
class Logistic:
    """Multinomial logistic regression on standardised features: `weights` (features + 1, classes), the last row the intercepts."""

    mean: np.ndarray
    spread: np.ndarray
    weights: np.ndarray

    def probabilities(self, features: np.ndarray) -> np.ndarray:
        """float (N, classes) from float (N, features)."""
        return np.asarray(softmax(_with_ones((features - self.mean) / self.spread) @ self.weights, axis=1))


def fit_logistic(features: np.ndarray, labels: np.ndarray, classes: int, penalty: float = 1.0) -> Logistic:
    """The multinomial logistic regression with the least log loss plus penalty / 2 times the sum of squared weights.

    Intercepts are not penalised, as in scikit-learn with C = 1 / penalty.

    features : float (N, features)
    labels : int (N,); a class that is absent is never likely
    """
    mean, spread = features.mean(0), features.std(0)
    spread = np.where(spread > 0, spread, 1.0)
    inputs, truth = _with_ones((features - mean) / spread), np.eye(classes)[labels]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(-1, classes)
        logits = inputs @ weights
        penalised = np.vstack([weights[:-1], np.zeros((1, classes))])
        value = -(truth * log_softmax(logits, axis=1)).sum() + penalty / 2 * (penalised**2).sum()
        return float(value), (inputs.T @ (softmax(logits, axis=1) - truth) + penalty * penalised).ravel()

    found = minimize(loss, np.zeros(inputs.shape[1] * classes), jac=True, method="L-BFGS-B", options={"maxiter": 1000, "ftol": 1e-12})
    return Logistic(mean, spread, found.x.reshape(-1, classes))


def majority_probabilities(train_labels: np.ndarray, count: int, classes: int) -> np.ndarray:
    """The shares of the classes in training as everyone's probabilities, float (count, classes): always the commonest class."""
    shares = np.bincount(train_labels, minlength=classes) / len(train_labels)
    return np.tile(shares, (count, 1))


def _with_ones(features: np.ndarray) -> np.ndarray:
    return np.column_stack([features, np.ones(len(features))])
