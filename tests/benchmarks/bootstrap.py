"""How long 1000 resamples of every figure take, beside the loop over scikit-learn that gives the same numbers.

    OMP_NUM_THREADS=1 python tests/benchmarks/bootstrap.py                # 6,709 volumes, the paper's test part at depth 4

Both give the figures of metrics.py, overall and by class, of the same samples. The loop takes long, so it runs for a few resamples, and its
time for all is computed. Processor time, of all threads together.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    cohen_kappa_score,
    f1_score,
    log_loss,
    precision_score,
    recall_score,
    roc_auc_score,
)

from ctcovid.evaluation.bootstrap import resampled
from ctcovid.evaluation.metrics import Sample, of_class
from ctcovid.evaluation.reliability import BINS


def study(volumes: int, seed: int = 0, strength: float = 0.8) -> tuple[np.ndarray, np.ndarray]:
    """Labels and probabilities of a good model of three classes."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, volumes)
    probabilities = generator.dirichlet([1, 1, 1], volumes) + strength * np.eye(3)[labels]
    return labels, probabilities / probabilities.sum(1, keepdims=True)


def by_scikit_learn(labels: np.ndarray, probabilities: np.ndarray, positive: int) -> dict[str, float]:
    """Every figure of one sample, as one would write it with scikit-learn."""
    predicted = probabilities.argmax(1)
    confidence, right = probabilities.max(1), predicted == labels
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
    gaps = [abs((right[bins == one] - confidence[bins == one]).sum()) for one in range(BINS)]
    found = {
        "accuracy": accuracy_score(labels, predicted),
        "binary_accuracy": accuracy_score(labels == positive, predicted == positive),
        "kappa": cohen_kappa_score(labels, predicted),
        "brier": float(((probabilities - np.eye(probabilities.shape[1])[labels]) ** 2).sum(1).mean()),
        "log_loss": log_loss(labels, probabilities),
        "ece": sum(gaps) / len(labels),
        "macro_auroc": roc_auc_score(labels, probabilities, multi_class="ovr"),
    }
    for number in range(probabilities.shape[1]):
        truth, called = labels == number, predicted == number
        rates = {
            "precision": precision_score(truth, called),
            "recall": recall_score(truth, called),
            "f1": f1_score(truth, called),
            "specificity": recall_score(~truth, ~called),
            "npv": precision_score(~truth, ~called),
        }
        if number == positive:
            found |= rates
        found |= {of_class(name, number): value for name, value in rates.items()}
        found[of_class("auroc", number)] = roc_auc_score(truth, probabilities[:, number])
        found[of_class("average_precision", number)] = average_precision_score(truth, probabilities[:, number])
    return found


def loop(labels: np.ndarray, probabilities: np.ndarray, positive: int, resamples: int, seed: int) -> list[dict[str, float]]:
    """The figures of each resample, one after another."""
    generator = np.random.default_rng(seed)
    rows = (generator.integers(0, len(labels), len(labels)) for _ in range(resamples))
    return [by_scikit_learn(labels[chosen], probabilities[chosen], positive) for chosen in rows]


def seconds(volumes: int, resamples: int, looped: int, rounds: int = 3) -> tuple[float, float]:
    """Processor seconds of all resamples: ours (the fastest of some rounds), and the loop's, from fewer."""
    labels, probabilities = study(volumes)
    ours = []
    for seed in range(rounds):
        # A seed of its own, as draws of the same one are kept.
        began = time.process_time()
        resampled(Sample(labels, probabilities, 0), np.arange(volumes), resamples, seed)
        ours.append(time.process_time() - began)
    began = time.process_time()
    loop(labels, probabilities, 0, looped, 0)
    return min(ours), (time.process_time() - began) / looped * resamples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volumes", type=int, default=6709)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--looped", type=int, default=20, help="resamples that the loop does")
    asked = parser.parse_args()
    ours, theirs = seconds(asked.volumes, asked.resamples, asked.looped)
    print("| volumes | resamples | figures | ctcovid s | loop over scikit-learn s | ratio |\n| ---: | ---: | ---: | ---: | ---: | ---: |")
    figures = len(Sample(*study(30), 0).point())
    print(f"| {asked.volumes:,} | {asked.resamples:,} | {figures} | {ours:.2f} | {theirs:.1f} | {theirs / ours:.0f} |")


if __name__ == "__main__":
    main()
