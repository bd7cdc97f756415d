"""The values that the paper published in its Tables 4 to 7, by row and metric, as they stand there."""

from __future__ import annotations

import csv
import functools
import re
from dataclasses import dataclass
from importlib import resources

# Mean, stars, and the interval in brackets.
FORM = re.compile(r"(\d\.\d{4})(\**) \((\d\.\d{4}), (\d\.\d{4})\)")
METRICS = {"accuracy": "Accuracy", "f1": "F1-score", "precision": "Precision", "recall": "Recall"}
# Of the best model: the paper has two values of it.
MACRO_AUROC = {"0.9998": "Abstract and Sec. 3.3", "0.9986": "Sec. 5"}


@dataclass(frozen=True)
class Published:
    """A value of the paper: its mean over bootstrap samples, the 95 % interval, and the stars of Fisher's test against the first row."""

    mean: float
    low: float
    high: float
    stars: str
    text: str


@functools.cache
def published() -> dict[str, dict[str, Published]]:
    """The values of each row, such as ``t6-d4-b32``, by metric."""
    text = resources.files("ctcovid").joinpath("experiments", "published.csv").read_text(encoding="utf-8")
    return {line["row"]: {metric: _value(line[metric]) for metric in METRICS} for line in csv.DictReader(text.splitlines())}


def _value(text: str) -> Published:
    found = FORM.fullmatch(text)
    if found is None:
        raise ValueError(f"published.csv: {text}")
    return Published(float(found[1]), float(found[3]), float(found[4]), found[2], text)
