"""Predictions of one model on labelled volumes, and their CSV form, which any other system can write too."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ctcovid.base.errors import InputError
from ctcovid.base.faults import raise_machine_fault

COLUMNS, PREFIX = ("patient", "scan", "volume", "label"), "p_"
NEEDED = "It needs the columns patient,scan,volume,label,p_<class>…."


@dataclass(frozen=True)
class Predictions:
    """One row per volume.

    Attributes
    ----------
    name : what the model is called in tables
    classes : class names in the order of the columns of `probabilities`
    patients, scans : identifiers, length N
    volumes : int (N,), number of the volume within its scan
    labels : int (N,), index of the true class
    probabilities : float64 (N, classes), each row summing to 1
    """

    name: str
    classes: list[str]
    patients: list[str]
    scans: list[str]
    volumes: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray

    @property
    def predicted(self) -> np.ndarray:
        """Index of the class with the highest probability (Li et al. 2021, Sec. 2.2), int (N,)."""
        return self.probabilities.argmax(1)

    @property
    def keys(self) -> list[tuple[str, str, int, int]]:
        """What tells each row from all others, length N: patient, scan, number within it, and label.

        The label, because a patient who stands in two classes is a row in each once volumes are joined.
        """
        return list(zip(self.patients, self.scans, self.volumes.tolist(), self.labels.tolist(), strict=True))

    def rows(self, chosen: np.ndarray) -> Predictions:
        """The volumes with these indices, int (M,), in that order."""
        patients, scans = ([names[row] for row in chosen] for names in (self.patients, self.scans))
        return Predictions(self.name, self.classes, patients, scans, self.volumes[chosen], self.labels[chosen], self.probabilities[chosen])

    def csv(self) -> str:
        """As CSV with the columns patient, scan, volume, label and p_<class>."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*COLUMNS, *(PREFIX + name for name in self.classes)])
        labels = [self.classes[label] for label in self.labels]
        known = zip(self.patients, self.scans, self.volumes.tolist(), labels, self.probabilities.tolist(), strict=True)
        writer.writerows([*row, *probabilities] for *row, probabilities in known)
        return text.getvalue()


def read_predictions(path: Path) -> Predictions:
    """Predictions from a CSV with the columns patient, scan, volume, label and p_<class>.

    Raises InputError that names the line where something is not as it should be.
    """
    heading, rows, lines = _read_csv(path)
    classes = [name.removeprefix(PREFIX) for name in heading if name.startswith(PREFIX)]
    missing = [name for name in COLUMNS if name not in heading]
    if missing or len(classes) < 2:
        lacking = ", ".join(missing) or "p_<class> for two classes or more"
        raise InputError(f"{path} lacks {lacking}. {NEEDED}")
    if len(set(heading)) < len(heading):
        raise InputError(f"{path}: two columns have the same name. {NEEDED}")
    if not rows:
        raise InputError(f"{path} holds no predictions. Write one line per volume.")
    table = {name: list(column) for name, column in zip(heading, zip(*rows, strict=True), strict=True)}
    numbers = np.array([[_number(text) for text in table[name]] for name in ("volume", *(PREFIX + name for name in classes))])
    volumes, probabilities = numbers[0], numbers[1:].T.copy()

    def require(good: np.ndarray | list[bool], complaint: str) -> None:
        if not np.all(good):
            raise InputError(f"{path}, line {lines[int(np.argmin(good))]}: {complaint}. Correct the file.")

    require([patient.strip() != "" for patient in table["patient"]], "the patient is missing")
    require([label in classes for label in table["label"]], f"the label is none of {', '.join(classes)}")
    for number, name in enumerate(classes):
        column = probabilities[:, number]
        # A missing value compares as false, and so is refused too.
        require((column >= 0) & (column <= 1), f"the probability in column {PREFIX}{name} is missing or not between 0 and 1")
    summed = " + ".join(PREFIX + name for name in classes)
    require(np.abs(probabilities.sum(1) - 1) < 0.01, f"the probabilities {summed} do not sum to 1")
    require((np.abs(volumes) < 1 << 53) & (volumes == np.rint(volumes)), "the volume is not a whole number")
    firsts: dict[tuple[str, str, str], int] = {}
    keys = zip(table["patient"], table["scan"], table["volume"], strict=True)
    once = [firsts.setdefault(key, row) == row for row, key in enumerate(keys)]
    require(once, "the same volume of that patient and scan is listed twice")
    labels = np.array([classes.index(label) for label in table["label"]])
    return Predictions(path.stem, classes, table["patient"], table["scan"], volumes.astype(int), labels, probabilities)


def _number(text: str) -> float:
    """A field as a number, not-a-number where it is none. Python alone would also take ``1_000`` and the digits of other scripts."""
    try:
        return float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        return math.nan


def _read_csv(path: Path) -> tuple[list[str], list[list[str]], list[int]]:
    """Heading, rows that are not blank, and the line that each row ends on."""
    rows, lines = [], []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            heading = next(reader, [])
            for row in reader:
                if any(row):
                    rows.append(row)
                    lines.append(reader.line_num)
    except FileNotFoundError as error:
        raise InputError(f"No such predictions file: {path}. Check the path.") from error
    except (OSError, ValueError, csv.Error) as error:
        raise_machine_fault(error, path)
        raise InputError(f"{path} cannot be read as CSV: {error}. {NEEDED}") from error
    for row, line in zip(rows, lines, strict=True):
        if len(row) != len(heading):
            raise InputError(f"{path}, line {line}: {len(row)} fields, but the heading has {len(heading)}. Correct the file.")
    return heading, rows, lines


def reordered(predictions: Predictions, classes: list[str]) -> Predictions:
    """The same predictions with the classes in another order.

    Raises InputError where the classes are not the same.
    """
    if sorted(predictions.classes) != sorted(classes):
        raise InputError(
            f"{predictions.name} has the classes {', '.join(predictions.classes)}, the reference {', '.join(classes)}. "
            "Only models of the same classes can be compared."
        )
    places = [predictions.classes.index(name) for name in classes]
    labels = np.array([classes.index(predictions.classes[label]) for label in predictions.labels], dtype=np.int64)
    rest = (predictions.patients, predictions.scans, predictions.volumes)
    return Predictions(predictions.name, classes, *rest, labels, predictions.probabilities[:, places])


def aligned(predictions: Predictions, reference: Predictions) -> Predictions | None:
    """The same predictions in the order of the reference's volumes; None unless both have the same volumes with the same labels."""
    places = {key: row for row, key in enumerate(predictions.keys)}
    if places.keys() != set(reference.keys):
        return None
    return predictions.rows(np.array([places[key] for key in reference.keys]))
