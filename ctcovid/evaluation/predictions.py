"""Predictions of one model on labelled volumes, and their CSV form, which any other system can write too."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ctcovid.base.errors import InputError

PREFIX = "p_"


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

    def csv(self) -> str:
        """As CSV with the columns patient, scan, volume, label and p_<class>."""
        table = pd.DataFrame(
            {"patient": self.patients, "scan": self.scans, "volume": self.volumes, "label": [self.classes[i] for i in self.labels]}
        )
        for number, name in enumerate(self.classes):
            table[PREFIX + name] = self.probabilities[:, number]
        return str(table.to_csv(index=False, lineterminator="\n"))


def read_predictions(path: Path) -> Predictions:
    """Predictions from a CSV with the columns patient, scan, volume, label and p_<class>.

    Raises InputError that names the line where something is not as it should be.
    """
    try:
        table = pd.read_csv(path, dtype={"patient": str, "scan": str, "label": str}, keep_default_na=False, na_values={"volume": [""]})
    except FileNotFoundError as error:
        raise InputError(f"No such predictions file: {path}. Check the path.") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as CSV: {error}. It needs the columns patient,scan,volume,label,p_<class>….") from error
    classes = [str(name).removeprefix(PREFIX) for name in table.columns if str(name).startswith(PREFIX)]
    missing = [name for name in ("patient", "scan", "volume", "label") if name not in table.columns]
    if missing or len(classes) < 2:
        lacking = ", ".join(missing) or "p_<class> for two classes or more"
        raise InputError(f"{path} lacks {lacking}. It needs the columns patient,scan,volume,label,p_<class>….")
    if table.empty:
        raise InputError(f"{path} holds no predictions. Write one line per volume.")
    probabilities = table[[PREFIX + name for name in classes]].apply(pd.to_numeric, errors="coerce").to_numpy(float)
    _require(path, np.isin(table["label"], classes), f"the label is none of {', '.join(classes)}")
    # A missing value compares as false, and so is refused too.
    _require(path, ((probabilities >= 0) & (probabilities <= 1)).all(1), "a probability is missing or not between 0 and 1")
    _require(path, np.abs(probabilities.sum(1) - 1) < 0.01, "the probabilities do not sum to 1")
    volumes = pd.to_numeric(table["volume"], errors="coerce")
    _require(path, volumes.notna().to_numpy(), "the volume is not a number")
    _require(path, ~table.duplicated(["patient", "scan", "volume"]).to_numpy(), "the volume of that patient and scan stands there twice")
    labels = np.array([classes.index(label) for label in table["label"]])
    return Predictions(path.stem, classes, table["patient"].tolist(), table["scan"].tolist(), volumes.to_numpy(int), labels, probabilities)


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


def _require(path: Path, good: np.ndarray, complaint: str) -> None:
    if not good.all():
        # The heading is line 1.
        raise InputError(f"{path}, line {int(np.argmin(good)) + 2}: {complaint}. Mend the file.")
