"""Classes of unequal size: weights for the loss, or a draw in which all are equally frequent."""

from __future__ import annotations

import numpy as np


def class_weights(labels: np.ndarray, classes: int) -> np.ndarray:
    """A weight per class in inverse proportion to its frequency, 1 in the mean over all volumes; 0 for a class without any.

    labels : int (N,); returns float64 (classes,)
    """
    # Not at the top: most training does without it, and it takes a second to import.
    from sklearn.utils.class_weight import compute_class_weight

    present = np.unique(labels)
    weights = np.zeros(classes)
    weights[present] = compute_class_weight("balanced", classes=present, y=labels)
    return weights


def balanced_draw(labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """As many indices as there are volumes, in random order, an equal number (or one more) of each class.

    No volume of a class is drawn n + 1 times unless all of that class are drawn n times.

    labels : int (N,); returns int (N,)
    """
    present = np.unique(labels)
    share, left = divmod(len(labels), len(present))
    # Which classes have one more is drawn too, or over the epochs the first ones would be seen more often.
    more = set(generator.permutation(present)[:left].tolist())
    drawn: list[np.ndarray] = []
    for label in present.tolist():
        of_class = np.flatnonzero(labels == label)
        whole, rest = divmod(share + (label in more), len(of_class))
        drawn += [np.tile(of_class, whole), generator.permutation(of_class)[:rest]]
    return generator.permutation(np.concatenate(drawn))
