"""Subgroups from a CSV like CC-CCII's metadata.csv, with its several and missing rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import accuracy_score

from ctcovid.base.errors import InputError
from ctcovid.evaluation.bootstrap import Drawing
from ctcovid.evaluation.predictions import Predictions
from ctcovid.evaluation.scoring import score_groups
from ctcovid.evaluation.subgroups import MISSING, SEVERAL, Grouping, by_number, by_patient, read_attributes

METADATA = """patient_id, Age, Sex(Male1/Female2), Critical_illness,Progression (Days)
1, 34, 1, 0, 3
2, 61, 2, 1, 5
2, 61, 2, 1, 9
4, , 1, , 2
"""


def write(folder: Path, text: str = METADATA) -> Path:
    path = folder / "metadata.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_patients_with_several_rows_or_none_are_groups_of_their_own(tmp_path: Path) -> None:
    columns = read_attributes(write(tmp_path))
    assert list(columns) == ["Age", "Sex(Male1/Female2)", "Critical_illness", "Progression (Days)"]
    patients = ["1", "1", "2", "3", "4"]
    days = by_patient("days", columns["Progression (Days)"], patients)
    assert days is not None and days.groups == ["3", "3", SEVERAL, MISSING, "2"]
    age = by_patient("age", columns["Age"], patients)
    assert age is not None and age.groups == ["34", "34", "61", MISSING, MISSING]
    assert list(age.members()) == ["34", "61", MISSING]


def test_many_numbers_are_cut_at_their_quartiles() -> None:
    values = {str(patient): [str(20 + patient)] for patient in range(40)}
    grouping = by_patient("age", values, [str(patient) for patient in range(40)])
    assert grouping is not None
    sizes = {name: int(mine.sum()) for name, mine in grouping.members().items()}
    assert list(sizes.values()) == [10, 10, 10, 10]
    assert list(sizes) == ["≤ 29.75", "29.75 – 39.5", "39.5 – 49.25", "> 49.25"]
    assert by_number("slices", list(range(20, 60))).groups == grouping.groups


def test_many_words_and_columns_about_others_make_no_groups() -> None:
    patients = [str(patient) for patient in range(9)]
    assert by_patient("note", {patient: [f"word {patient}"] for patient in patients}, patients) is None
    assert by_patient("age", {"77": ["30"]}, patients) is None


def test_numbers_with_decimal_commas_are_numbers_unless_they_may_be_thousands(tmp_path: Path) -> None:
    columns = read_attributes(write(tmp_path, "Patient ID;age;dose\n1;61,5;1,250\n2;70;2,500\n"))
    assert columns == {"age": {"1": ["61.5"], "2": ["70"]}, "dose": {"1": ["1,250"], "2": ["2,500"]}}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("age,sex\n1,2\n", "patient_id"),
        ("patient,patient_id,age\n1,1,2\n", "patient_id"),
        ("patient\n1\n", "others"),
        ("patient,age\n1,2,3\n", "line 2"),
        ("", "patient_id"),
    ],
)
def test_a_file_that_cannot_group_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        read_attributes(write(tmp_path, text))
    with pytest.raises(InputError, match="absent"):
        read_attributes(tmp_path / "absent.csv")


def test_each_group_is_scored_alone_and_small_ones_are_marked() -> None:
    labels = np.repeat([0, 1, 2], 20)
    probabilities = np.random.default_rng(0).dirichlet([1, 1, 1], 60) + 0.4 * np.eye(3)[labels]
    probabilities /= probabilities.sum(1, keepdims=True)
    patients = [str(row // 2) for row in range(60)]
    predictions = Predictions("m", ["NCP", "CP", "Normal"], patients, ["s"] * 60, np.arange(60) % 2, labels, probabilities)
    groups = Grouping("half", ["first"] * 10 + ["second"] * 50)
    whole = Grouping("all", ["one"] * 60)
    first, second = score_groups(predictions, [groups, whole], 0, Drawing("patient", 50))
    assert (first.rows, first.patients, first.small) == (10, 5, True)
    assert (second.rows, second.patients, second.small) == (50, 25, False)
    assert second.estimates["accuracy"].value == accuracy_score(labels[10:], probabilities[10:].argmax(1))
    assert first.estimates["macro_auroc"].value is None
