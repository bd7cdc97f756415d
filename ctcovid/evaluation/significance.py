"""Is one model better than another? Fisher's exact test, as the paper has it."""

from __future__ import annotations

import numpy as np

from ctcovid.evaluation.metrics import binary_counts

TESTED = ("accuracy", "precision", "recall", "f1")


def fisher_p_values(reference: np.ndarray, other: np.ndarray, positive: int) -> dict[str, float]:
    """Two-sided p-values of Fisher's exact test between two models (Li et al. 2021, Sec. 2.7, Tables 5 to 7).

    Parameters
    ----------
    reference, other : confusion matrices, int (classes, classes)
    positive : index of the positive class

    The test compares [correct, wrong] volumes for accuracy, [TP, FP] for precision, [TP, FN] for recall and [2 TP, FP + FN] for F1,
    which are the parts of the quotient that each metric is. It takes the two sets of volumes for independent samples; where both
    models were scored on the same ones, it is the paper's test but not the sharpest.
    """
    # Not at the top: scipy.stats takes a second to import, and a single model is compared with none.
    from scipy.stats import fisher_exact

    return {
        metric: float(fisher_exact(np.array([first, second])).pvalue)
        for metric, first, second in zip(TESTED, _quotients(reference, positive), _quotients(other, positive), strict=True)
    }


def stars(p_value: float | None) -> str:
    """The paper's marks: * below 0.05, ** below 0.01, *** below 0.001."""
    if p_value is None:
        return ""
    return "*" * sum(p_value < bound for bound in (0.05, 0.01, 0.001))


def _quotients(confusion: np.ndarray, positive: int) -> list[list[int]]:
    tp, fp, fn, _ = (int(count) for count in binary_counts(confusion, positive))
    correct = int(np.trace(confusion))
    return [[correct, int(confusion.sum()) - correct], [tp, fp], [tp, fn], [2 * tp, fp + fn]]
