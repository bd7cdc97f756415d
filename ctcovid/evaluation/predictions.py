"""Predictions of one model on labelled volumes, and their CSV form, which any other system can write too."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ctcovid.base.choices import MOST_CLASSES
from ctcovid.base.errors import InputError
from ctcovid.base.lists import decimal, protected, read_list

COLUMNS, PREFIX = ("patient", "scan", "volume", "label"), "p_"
NEEDED = "It needs the columns patient,scan,volume,label,p_<class>…."
# Refuses, with a sentence, the first row that is not good.
Require = Callable[["np.ndarray | list[bool]", str], None]
# Also as East Asian systems write it.
PER_CENT = ("%", "％")
# Probabilities of unknown precision, as of half floats, may miss the sum by less than this share of it.
MOST_OFF = 0.01


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
        patients, scans = (map(protected, names) for names in (self.patients, self.scans))
        labels = [protected(self.classes[label]) for label in self.labels]
        known = zip(patients, scans, self.volumes.tolist(), labels, self.probabilities.tolist(), strict=True)
        writer.writerows([*row, *probabilities] for *row, probabilities in known)
        return text.getvalue()


def read_predictions(path: Path, say: Callable[[str], None] = lambda sentence: None) -> Predictions:
    """Predictions from a CSV with the columns patient, scan, volume, label and p_<class>.

    Probabilities may be in per cent, and rounded; they are not scaled to sum to 1. `say` is told of either.

    Raises InputError that names the line where something is not as it should be.
    """
    listed = read_list(path, COLUMNS, "predictions file", NEEDED, exact=True)
    heading, rows, lines = listed.headings, listed.rows, listed.lines
    prefix = PREFIX if any(name.startswith(PREFIX) for name in heading) else PREFIX.upper()
    classes = [name.removeprefix(prefix) for name in heading if name.startswith(prefix)]
    missing = [name for name in COLUMNS if name not in heading]
    if missing or len(classes) < 2:
        lacking = ", ".join(missing) or "p_<class> for two classes or more"
        raise InputError(f"{path} lacks {lacking}. {NEEDED}")
    if len(classes) > MOST_CLASSES:
        raise InputError(f"{path} has {len(classes):,} classes; ctcovid evaluates up to {MOST_CLASSES:,}.")
    named = [name for name in heading if name]
    if len(set(named)) < len(named):
        raise InputError(f"{path}: two columns have the same name. {NEEDED}")
    if not rows:
        raise InputError(f"{path} holds no predictions. Write one line per volume.")
    table = dict(zip(heading, map(list, zip(*rows, strict=True)), strict=True))

    def require(good: np.ndarray | list[bool], complaint: str) -> None:
        if not np.all(good):
            raise InputError(f"{path}, line {lines[int(np.argmin(good))]}: {complaint}. Correct the file.")

    require([patient.strip() != "" for patient in table["patient"]], "the patient is missing")
    require([label in classes for label in table["label"]], f"the label is none of {', '.join(classes)}")
    probabilities, note = _probabilities({PREFIX + name: table[prefix + name] for name in classes}, require)
    if note:
        say(f"{path}: {note}")
    volumes = np.array([_number(text.replace(",", "_")) for text in table["volume"]])
    require((np.abs(volumes) < 1 << 53) & (volumes == np.rint(volumes)), "the volume is not a whole number")
    firsts: dict[tuple[str, str, str], int] = {}
    keys = zip(table["patient"], table["scan"], table["volume"], strict=True)
    once = [firsts.setdefault(key, row) == row for row, key in enumerate(keys)]
    require(once, "the same volume of that patient and scan is listed twice")
    labels = np.array([classes.index(label) for label in table["label"]])
    return Predictions(path.stem, classes, table["patient"], table["scan"], volumes.astype(int), labels, probabilities)


def _probabilities(texts: dict[str, list[str]], require: Require) -> tuple[np.ndarray, str]:
    """The probabilities, float64 (N, classes), of these fields by column, and a sentence on how they were read, or none.

    They are per cent if all have the sign, or if every row sums to 100.
    """
    found, signed = _numbers(texts), False
    if np.isnan(found).any():
        signs = np.array([[text.rstrip().endswith(PER_CENT) for text in column] for column in texts.values()]).T
        if signed := bool(signs.any()):
            both = "some probabilities have a per cent sign, and some have none. Write all as per cent, or none"
            require(np.array([row.all() for row in signs]), both)
            texts = {name: [text.rstrip()[:-1] for text in column] for name, column in texts.items()}
            found = _numbers(texts)
    sums = found.sum(1)
    as_shares = np.abs(sums - 1) < MOST_OFF
    if as_shares.all() and not signed:
        _require_range(texts, found, 1, require)
        return found, ""
    digits = max(_decimals(text) for column in texts.values() for text in column)
    as_shares |= np.abs(sums - 1) <= _rounding(len(texts), digits)
    as_per_cent = (np.abs(sums / 100 - 1) < MOST_OFF) | (np.abs(sums / 100 - 1) <= _rounding(len(texts), digits + 2))
    whole = 100 if signed or as_per_cent.sum() > as_shares.sum() else 1
    good, other = (as_per_cent, as_shares) if whole == 100 else (as_shares, as_per_cent)
    if not signed:
        require(good | ~other, f"the probabilities sum to {101 - whole}, but most to {whole}. Write all as per cent, or none")
    _require_range(texts, found, whole, require)
    more = "; export them with at least two digits" if digits + (2 if whole == 100 else 0) < 2 else ""
    require(good, f"the probabilities {' + '.join(texts)} do not sum to {'100 per cent' if whole == 100 else 1}{more}")
    low, high = sums.min(), sums.max()
    said = "are read as per cent" if whole == 100 and not signed else ""
    if max(whole - low, high - whole) > MOST_OFF * whole / 2:
        sum_ = f"{low:g}" if low == high else f"{low:g} to {high:g}"
        said += f"{' and ' if said else ''}are rounded: rows sum to {sum_}, and are used as they are"
    return found / whole, f"the probabilities {said}." if said else ""


def _require_range(texts: dict[str, list[str]], found: np.ndarray, whole: int, require: Require) -> None:
    for name, column in zip(texts, found.T, strict=True):
        # A missing value compares as false, and so is refused too.
        require((column >= 0) & (column <= whole), f"the probability in column {name} is missing or not between 0 and {whole}")


def _rounding(classes: int, digits: int) -> float:
    """By how much probabilities that are rounded to so many digits may miss the sum of 1; not at all below two digits."""
    return classes * 0.5 * 10.0**-digits + 1e-9 if digits >= 2 else 0.0


def _decimals(text: str) -> int:
    """Digits after the decimal point, or comma, of a number as it is written."""
    written = re.fullmatch(r"\d*[.,]?(\d*)(?:[eE]([+-]?\d+))?", text.strip())
    return len(written[1]) - int(written[2] or 0) if written else 0


def _numbers(texts: dict[str, list[str]]) -> np.ndarray:
    return np.array([[_number(text) for text in column] for column in texts.values()]).T.copy()


def _number(text: str) -> float:
    """A field as a number, not-a-number where it is none. Python alone would also take ``1_000`` and the digits of other scripts."""
    try:
        # Most fields are plain, and there are many.
        return float(text) if text.isascii() and "_" not in text and "," not in text else decimal(text)
    except ValueError:
        return math.nan


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
