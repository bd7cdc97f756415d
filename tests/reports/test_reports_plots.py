"""What the figures of an evaluation show."""

from __future__ import annotations

import numpy as np

from ctcovid.evaluation.curves import roc_and_pr
from ctcovid.evaluation.intervals import Estimate
from ctcovid.evaluation.reliability import reliability
from ctcovid.reports.plots import LINES, Plot, confusion_plot, effect_plot, history_plots, pr_plot, reliability_plot, roc_plot

METRICS = {"accuracy": "Accuracy", "recall": "Recall"}


def estimate(value: float) -> Estimate:
    return Estimate(value, value, value - 0.02, value + 0.02)


def plots() -> list[Plot]:
    labels = np.repeat([0, 1, 2], 20)
    probabilities = np.random.default_rng(0).dirichlet([1, 1, 1], 60) + 0.5 * np.eye(3)[labels]
    probabilities /= probabilities.sum(1, keepdims=True)
    roc, pr = roc_and_pr(labels == 0, probabilities[:, 0], np.arange(60), 20, 0)
    assert roc is not None and pr is not None
    figures = [{"accuracy": estimate(0.9), "recall": Estimate(None, None, None, None)}, {name: estimate(0.95) for name in METRICS}]
    history = {"epoch": [1.0, 2.0], "train_loss": [1.0, 0.5], "valid_loss": [1.1, np.nan], "train_accuracy": [0.5, 0.7]}
    return [
        confusion_plot("m_$1$", np.array([[5, 1], [0, 0]]), ["NCP", "CP"]),
        roc_plot("m", {"NCP": roc}, {"NCP": 0.9}),
        pr_plot("m", {"NCP": pr}, {"NCP": 0.9}),
        reliability_plot("m", reliability(labels, probabilities), 0.1),
        effect_plot("depth", ["2", "4"], figures, METRICS, True, "normal"),
        effect_plot("depth, batch size", ["2, 8", "4, 32"], figures, METRICS, False, "bca"),
        *history_plots("m", {**history, "valid_accuracy": [np.nan, np.nan]}),
    ]


def test_lines_differ_in_grey_and_in_dashes_and_marks() -> None:
    greys = []
    for colour, _, _ in LINES:
        red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
        greys.append(0.299 * red + 0.587 * green + 0.114 * blue)
    # The paper has four metrics, and three classes are usual.
    assert min(np.diff(sorted(greys[:4]))) > 20
    assert len({str(line) for _, line, _ in LINES}) == len({mark for _, _, mark in LINES}) == len(LINES)


def test_curves_of_training_show_what_the_history_says() -> None:
    loss = plots()[-2]
    assert loss.name == "training-loss-m" and [list(row) for row in loss.rows] == [[1, 1.0, 1.1], [2, 0.5, ""]]
