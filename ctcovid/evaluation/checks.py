"""What a reader of a test result has to know before believing it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ctcovid.base.errors import agreeing, counted
from ctcovid.evaluation.baselines import logistic_probabilities, majority_probabilities
from ctcovid.evaluation.predictions import Predictions
from ctcovid.evaluation.volume_summary import PartSummary, repeated

if TYPE_CHECKING:
    from ctcovid.evaluation.inference import EvaluationSet

WORDS = {"train": "training", "valid": "validation"}
MAJORITY, LOGISTIC = "majority class", "logistic regression"


@dataclass(frozen=True)
class Checks:
    """What was looked into, for one model.

    Attributes
    ----------
    balance : rows and patients of each class in the test set
    population : "internal", "external" or "unknown", and why, in words
    repeated_volumes : test volumes whose every slice the model was trained or chosen on; None where that could not be looked into
    notes : a sentence for each finding
    """

    name: str
    balance: dict[str, tuple[int, int]]
    population: str
    repeated_volumes: int | None
    notes: list[str]

    def document(self) -> dict[str, Any]:
        return asdict(self)


def check(
    predictions: Predictions, part: EvaluationSet | None, tested: PartSummary | None, learnt: dict[str, PartSummary], name: str = "test"
) -> Checks:
    """Look into the test set of a model.

    Parameters
    ----------
    part : what a run was scored on, None for predictions of another system
    tested : its volumes, where they are to be compared
    learnt : those that the model was trained and chosen on, by part ("train", "valid"), where they can be read
    name : of the part that is scored
    """
    balance = _balance(predictions)
    shares = [count for count, _ in balance.values()]
    what = "Test set" if part is None or name == "test" else f"The {WORDS[name]} part"
    sizes = (f"{label} {counted(rows, 'volume')} of {counted(patients, 'patient')}" for label, (rows, patients) in balance.items())
    notes = [f"{what}: " + ", ".join(sizes)]
    if min(shares) * 3 < max(shares):
        notes[0] += "; the classes are far from balanced, so accuracy mostly reflects the largest"
    notes[0] += "."
    if part is None:
        notes.append(
            "Internal or external test, repeated images and a regression on global image features: unknown, because "
            "predictions come without images."
        )
        return Checks(predictions.name, balance, "unknown", None, notes)
    if part.same_file and name != "test":
        notes.append("Not a test: the model was trained or selected on these patients.")
        return Checks(predictions.name, balance, "none", None, notes)
    population, why = _population(part)
    notes.append(f"{population.capitalize()} test: {why}")
    count = None
    if tested is None or not learnt:
        notes.append(f"Repeated images: unknown, {part.missing or 'there is no other part to compare with'}.")
    else:
        count = int(repeated(tested, *learnt.values()).sum())
        where = " or ".join(WORDS[name] for name in learnt)
        found = f"{count:,} of {len(tested.slices):,} volumes" if count else "none of the volumes"
        notes.append(
            f"Repeated images: {found} of this part, by their content, {agreeing(count, 'is', 'are')} in the {where} part as well."
        )
    return Checks(predictions.name, balance, population, count, notes)


def baselines(predictions: Predictions, tested: PartSummary | None, trained: PartSummary | None) -> list[Predictions]:
    """What models that have learnt nothing of lungs predict for the same volumes.

    Where the training part cannot be read, the commonest class of the test set itself, the most that such a model can reach.
    """
    classes = predictions.classes
    labels = predictions.labels
    if trained is not None and trained.labels:
        labels = _numbers(trained.labels, classes)
    majority = majority_probabilities(labels, len(predictions.labels), len(classes))
    found = [replace(predictions, name=MAJORITY, probabilities=majority)]
    if tested is not None and trained is not None and len(set(trained.labels)) > 1:
        regression = logistic_probabilities(trained.features, _numbers(trained.labels, classes), tested.features, len(classes))
        found.append(replace(predictions, name=LOGISTIC, probabilities=regression))
    return found


def _population(part: EvaluationSet) -> tuple[str, str]:
    if part.same_file:
        return "internal", "other patients of the file that the model was trained with, so from the same archive."
    if part.alike and part.same is not False:
        by = "images" if part.same else "ids"
        return (
            "internal",
            f"another file, but {part.alike:,} of its patients {agreeing(part.alike, 'is', 'are')} in the one that the model was "
            f"trained with, by their {by}.",
        )
    common = f"{counted(part.alike, 'patient id')} in common but no image" if part.alike else "no patient id in common"
    return (
        "external",
        f"another file than the model was trained with, and {common}; whether it comes from another hospital is for you to say.",
    )


def _balance(predictions: Predictions) -> dict[str, tuple[int, int]]:
    patients = np.array(predictions.patients, dtype=object)
    found = {}
    for number, name in enumerate(predictions.classes):
        mine = predictions.labels == number
        found[name] = (int(mine.sum()), len(set(patients[mine])))
    return found


def _numbers(labels: Sequence[str], classes: list[str]) -> np.ndarray:
    return np.array([classes.index(label) for label in labels], dtype=np.int64)
