"""Areas under the ROC and the precision-recall curve, for many weighted samples at once: scores are sorted a single time."""

from __future__ import annotations

import numpy as np


class Ranking:
    """Scores of positives and negatives, sorted.

    Parameters
    ----------
    positive : bool (N,)
    scores : float (N,), the higher the more positive
    """

    def __init__(self, positive: np.ndarray, scores: np.ndarray) -> None:
        self.order = np.argsort(-scores, kind="stable")
        arranged = scores[self.order]
        self.of_positives = np.flatnonzero(positive[self.order])
        # Volumes of one score are one step of both curves. Steps without a positive add nothing to either area.
        begins = np.flatnonzero(np.diff(arranged, prepend=np.nan) != 0)
        ends = np.append(begins[1:], len(arranged)) - 1
        step = np.searchsorted(begins, self.of_positives, side="right") - 1
        last = np.flatnonzero(np.diff(step, append=-1) != 0)
        self.last_positives, self.starts, self.ends = last, begins[step[last]], ends[step[last]]
        self.tied = bool((self.ends - self.starts).any())

    def areas(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """AUROC and average precision, float (R,) each; not-a-number for samples that lack what they need.

        AUROC is the probability that a positive scores above a negative, ties counting half (Hanley and McNeil 1982); average
        precision is the sum of the precisions at each step, weighted with its gain in recall, as in scikit-learn.

        weights : float (R, N), whole numbers: how often each volume stands in each of R samples
        """
        # Integers in row order are summed five times as fast as floats. `take` returns row order, indexing would return column order.
        arranged = np.take(weights.astype(np.int32), self.order, axis=1)
        # How many score at least as high.
        above = np.cumsum(arranged, axis=1, dtype=np.int32)
        total = above[:, -1].astype(float)
        hits = np.cumsum(np.take(arranged, self.of_positives, axis=1), axis=1, dtype=np.int32)
        positives = hits[:, -1].astype(float) if len(self.of_positives) else np.zeros(len(weights))
        # Column order from here on: the sums over steps below then round as they always did.
        hits = hits[:, self.last_positives]
        gained = np.diff(hits, axis=1, prepend=0)
        reached = above[:, self.ends]
        misses = reached - hits
        if self.tied:
            before = above[:, self.starts] - arranged[:, self.starts] - (hits - gained)
            misses_halved = (misses + before) / 2
        else:
            misses_halved = misses.astype(float)
        negatives = total - positives
        lost = (gained * misses_halved).sum(1)
        with np.errstate(invalid="ignore", divide="ignore"):
            auroc = 1 - lost / (positives * negatives)
            # As precise as the weights are given.
            precision = hits.astype(weights.dtype) / reached.astype(weights.dtype)
            precision[reached == 0] = 0
            average = (gained * precision).sum(1) / positives
        auroc[(positives == 0) | (negatives == 0)] = np.nan
        average[positives == 0] = np.nan
        return auroc, average
