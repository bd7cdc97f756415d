"""How far a trivial model gets: the commonest class, and a logistic regression on what a picture is like as a whole."""

from __future__ import annotations

import numpy as np

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


def logistic_probabilities(features: np.ndarray, labels: np.ndarray, tested: np.ndarray, classes: int) -> np.ndarray:
    """What a multinomial logistic regression on standardised features predicts, float (M, classes).

    It has the least log loss plus half the sum of squared weights; intercepts are not penalised. The probability of a class without a
    training volume is 0.

    features, labels : float (N, features) and int (N,) of the training volumes, of two classes or more
    tested : float (M, features) of the volumes to classify
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # For two classes scikit-learn fits the difference of their two weights. Its square is twice the sum of the two squares.
    inverse_penalty = 1.0 if len(np.unique(labels)) > 2 else 2.0
    model = make_pipeline(StandardScaler(), LogisticRegression(C=inverse_penalty, solver="lbfgs", tol=1e-8, max_iter=10_000))
    model.fit(features, labels)
    found = np.zeros((len(tested), classes))
    found[:, model.classes_] = model.predict_proba(tested)
    return found


def majority_probabilities(train_labels: np.ndarray, count: int, classes: int) -> np.ndarray:
    """The shares of the classes in training as everyone's probabilities, float (count, classes): always the commonest class."""
    shares = np.bincount(train_labels, minlength=classes) / len(train_labels)
    return np.tile(shares, (count, 1))
