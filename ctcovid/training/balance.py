"""Classes of unequal size: weights for the loss, or a sampler that draws all classes equally often."""

from __future__ import annotations

import numpy as np


def class_weights(labels: np.ndarray, classes: int) -> np.ndarray:
    """A weight per class, inverse to its frequency, with a mean of 1 over all volumes; 0 for a class without volumes.

    labels : int (N,); returns float64 (classes,)
    """
    # Takes a second to import, and most trainings do not need it.
    from sklearn.utils.class_weight import compute_class_weight

    present = np.unique(labels)
    weights = np.zeros(classes)
    weights[present] = compute_class_weight("balanced", classes=present, y=labels)
    return weights


def balanced_draw(labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """As many indices as there are volumes, in random order, with equally many (or one more) of each class.

    No volume is drawn n + 1 times before all volumes of its class are drawn n times.

    labels : int (N,); returns int (N,)
    """
    present = np.unique(labels)
    share, left = divmod(len(labels), len(present))
    # The classes with one more are drawn too. Otherwise the first classes would be seen more often over the epochs.
    more = set(generator.permutation(present)[:left].tolist())
    drawn: list[np.ndarray] = []
    for label in present.tolist():
        of_class = np.flatnonzero(labels == label)
        whole, rest = divmod(share + (label in more), len(of_class))
        drawn += [np.tile(of_class, whole), generator.permutation(of_class)[:rest]]
    return generator.permutation(np.concatenate(drawn))
