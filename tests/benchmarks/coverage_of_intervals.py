"""How often 95 % intervals hold the truth, in simulated studies whose truth is known.

    python tests/benchmarks/coverage_of_intervals.py               # 1,000 studies of each kind

A study has 800 volumes. In the first kind they are independent: 800 patients with a volume each. In the second, 80 patients have ten
volumes each that share an effect of the patient, and are drawn by volume and by patient. The truth is the figure of a million volumes.
"""

from __future__ import annotations

import argparse

import numpy as np

from ctcovid.base.choices import INTERVALS
from ctcovid.evaluation.bootstrap import resampled, summarised
from ctcovid.evaluation.metrics import Sample

METRICS = ("accuracy", "recall", "precision", "f1", "macro_auroc")
# The standard deviation of a patient's effect, where that of a volume is 1.
OF_PATIENTS = 1.0


def draw(generator: np.random.Generator, patients: int, each: int, separation: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, probabilities and the number of the patient of each volume. Patients have one class.

    separation : how far the logit of the true class lies above the others, in standard deviations of a volume
    """
    patient = np.arange(patients).repeat(each)
    labels = generator.integers(0, 3, patients)[patient]
    noise = generator.normal(size=(len(patient), 3))
    if each > 1:
        noise += OF_PATIENTS * generator.normal(size=(patients, 3))[patient]
    logits = noise + separation * np.eye(3)[labels]
    shares = np.exp(logits - logits.max(1, keepdims=True))
    return labels, shares / shares.sum(1, keepdims=True), patient


def truth(each: int, separation: float, volumes: int = 1_000_000) -> dict[str, float]:
    labels, probabilities, _ = draw(np.random.default_rng(99), volumes // each, each, separation)
    return Sample(labels, probabilities, 0).point()


def coverage(
    studies: int,
    volumes: int,
    resamples: int,
    each: int,
    units: tuple[str, ...],
    kinds: tuple[str, ...],
    separation: float = 1.5,
) -> dict[tuple[str, str, str], float]:
    """The share of studies whose interval holds the truth, by unit ("volume" or "patient"), kind of interval and metric."""
    real = truth(each, separation)
    hits: dict[tuple[str, str, str], int] = {}
    for number in range(studies):
        labels, probabilities, patient = draw(np.random.default_rng([7, number]), volumes // each, each, separation)
        sample = Sample(labels, probabilities, 0)
        for unit in units:
            drawn_units = patient if unit == "patient" else np.arange(volumes)
            drawn = resampled(sample, drawn_units, resamples, number)
            for kind in kinds:
                found = summarised(sample, drawn_units, drawn, kind)
                for metric in METRICS:
                    low, high = found[metric].low, found[metric].high
                    inside = low is not None and high is not None and low <= real[metric] <= high
                    hits[unit, kind, metric] = hits.get((unit, kind, metric), 0) + inside
    return {key: count / studies for key, count in hits.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=1000)
    parser.add_argument("--volumes", type=int, default=800)
    parser.add_argument("--resamples", type=int, default=500)
    parser.add_argument("--separation", type=float, default=1.5, help="of the classes; with 2.5 the macro-AUROC is 0.99")
    asked = parser.parse_args()
    print(f"| volumes | resampled by | interval | {' | '.join(METRICS)} |\n| --- | --- | --- |{' ---: |' * len(METRICS)}")
    designs = [
        ("independent", 1, ("volume",), INTERVALS),
        ("10 of each patient", 10, ("volume", "patient"), ("percentile", "normal")),
    ]
    for name, each, units, kinds in designs:
        found = coverage(asked.studies, asked.volumes, asked.resamples, each, units, kinds, asked.separation)
        for unit in units:
            for kind in kinds:
                shares = " | ".join(f"{found[unit, kind, metric]:.1%}" for metric in METRICS)
                print(f"| {name} | {unit} | {kind} | {shares} |", flush=True)


if __name__ == "__main__":
    main()
