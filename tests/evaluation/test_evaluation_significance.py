"""Fisher's exact test gives the stars of the paper's Tables 5 to 7."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import fisher_exact, hypergeom

from ctcovid.evaluation.significance import TESTED, fisher_p_values, stars

# Volumes of the paper's test part (Table 1: 26,836 slices, 9,236 of them COVID-19) by depth, tails dropped.
VOLUMES = {2: 13418, 4: 6709, 8: 3354, 16: 1676, 32: 837, 64: 418}
POSITIVES = {depth: 9236 // depth for depth in VOLUMES}

# Depth, accuracy and stars of the reference (first) and the others, in the order of the tables.
ACCURACIES = {
    "Table 5": [(2, 0.8481, ""), (4, 0.9547, "***"), (8, 0.9683, "***"), (16, 0.9677, "***"), (32, 0.9640, "***"), (64, 0.9298, "***")],
    "Table 6": [(2, 0.9914, ""), (2, 0.9924, ""), (4, 0.9924, ""), (4, 0.9832, "***"), (8, 0.9815, "***"), (16, 0.9790, "***")],
    "Table 7": [(4, 0.9924, ""), (4, 0.9885, "*"), (4, 0.9800, "***"), (4, 0.9719, "***"), (4, 0.9801, "***")],
}
# The same of the recall. The (2+1)D ResNet-18 of Table 7 is not here: the paper gives it two stars, the test none.
RECALLS = {
    "Table 5": [(2, 0.9796, ""), (4, 0.9405, "***"), (8, 0.9477, "***"), (16, 0.9508, "***"), (32, 0.9348, "***"), (64, 0.9082, "***")],
    "Table 6": [(2, 0.9991, ""), (2, 0.9991, ""), (4, 0.9996, ""), (4, 0.9943, "***"), (8, 0.9843, "***"), (16, 0.9608, "***")],
    "Table 7": [(4, 0.9996, ""), (4, 0.9714, "***"), (4, 0.9632, "***"), (4, 0.9723, "***")],
}


def against_the_first(table: dict[str, list[tuple[int, float, str]]]) -> list[object]:
    return [
        pytest.param(rows[0][:2], row[:2], row[2], id=f"{name}, depth {row[0]}, {row[1]}")
        for name, rows in table.items()
        for row in rows[1:]
    ]


def classified(depth: int, accuracy: float) -> np.ndarray:
    right = round(VOLUMES[depth] * accuracy)
    return np.array([[right, 0, 0], [0, 0, VOLUMES[depth] - right], [0, 0, 0]])


def recalled(depth: int, recall: float) -> np.ndarray:
    found = round(POSITIVES[depth] * recall)
    return np.array([[found, POSITIVES[depth] - found, 0], [0, 0, 0], [0, 0, VOLUMES[depth] - POSITIVES[depth]]])


def fisher_by_hand(first: tuple[int, int], second: tuple[int, int]) -> float:
    """All tables with these margins that are no more likely than the one found."""
    good, draws, total = first[0] + second[0], sum(first), sum(first) + sum(second)
    chances = hypergeom.pmf(np.arange(draws + 1), total, good, draws)
    return float(chances[chances <= chances[first[0]] * (1 + 1e-7)].sum())


@pytest.mark.parametrize(("reference", "other", "marks"), against_the_first(ACCURACIES))
def test_accuracies_get_the_papers_stars(reference: tuple[int, float], other: tuple[int, float], marks: str) -> None:
    p_value = fisher_p_values(classified(*reference), classified(*other), 0)["accuracy"]
    counts = [(right, VOLUMES[depth] - right) for depth, accuracy in (reference, other) for right in [round(VOLUMES[depth] * accuracy)]]
    assert p_value == pytest.approx(fisher_by_hand(*counts), rel=1e-6, abs=1e-300)
    assert stars(p_value) == marks


@pytest.mark.parametrize(("reference", "other", "marks"), against_the_first(RECALLS))
def test_recalls_get_the_papers_stars(reference: tuple[int, float], other: tuple[int, float], marks: str) -> None:
    p_value = fisher_p_values(recalled(*reference), recalled(*other), 0)["recall"]
    counts = [(found, POSITIVES[depth] - found) for depth, recall in (reference, other) for found in [round(POSITIVES[depth] * recall)]]
    assert p_value == pytest.approx(fisher_by_hand(*counts), rel=1e-6)
    assert stars(p_value) == marks


@pytest.mark.parametrize("positive", [0, 1, 2])
@pytest.mark.parametrize("seed", range(5))
def test_each_metric_is_tested_on_the_counts_that_make_it_up(seed: int, positive: int) -> None:
    first, second = np.random.default_rng(seed).integers(0, 60, (2, 3, 3))

    def counts(matrix: np.ndarray) -> dict[str, list[int]]:
        tp = matrix[positive, positive]
        fn, fp = matrix[positive].sum() - tp, matrix[:, positive].sum() - tp
        right = np.diag(matrix).sum()
        return {"accuracy": [right, matrix.sum() - right], "precision": [tp, fp], "recall": [tp, fn], "f1": [2 * tp, fp + fn]}

    mine, theirs = counts(first), counts(second)
    expected = {metric: fisher_exact([mine[metric], theirs[metric]]).pvalue for metric in TESTED}
    assert fisher_p_values(first, second, positive) == pytest.approx(expected, rel=1e-12)


def test_a_model_does_not_differ_from_itself() -> None:
    matrix = classified(4, 0.9924)
    assert fisher_p_values(matrix, matrix, 0)["accuracy"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("p_value", "marks"),
    [(None, ""), (1.0, ""), (0.05, ""), (0.0499, "*"), (0.01, "*"), (0.00999, "**"), (0.001, "**"), (0.00099, "***"), (0.0, "***")],
)
def test_stars_begin_below_the_papers_bounds(p_value: float | None, marks: str) -> None:
    assert stars(p_value) == marks
