"""Predictions as CSV: what is written is read back exactly, and what is wrong is named by its line."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from ctcovid.base.errors import InputError
from ctcovid.evaluation.predictions import Predictions, read_predictions, reordered

HEADING = "patient,scan,volume,label,p_NCP,p_CP,p_Normal"


def predictions(volumes: int = 2000) -> Predictions:
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet([0.2, 0.2, 0.2], volumes)
    probabilities[0] = [1e-300, 1 - 1e-16, 5e-324]
    patients = [f"{number:03d}" for number in range(volumes)]
    patients[:5] = ["NA", "nan", "None", 'O\'Hara, "M"', "Łódź"]
    scans = [f"NCP/{number}/1164" for number in range(volumes)]
    labels = generator.integers(0, 3, volumes)
    return Predictions("model", ["NCP", "CP", "Normal"], patients, scans, np.arange(volumes) % 7, labels, probabilities)


def refused(tmp_path: Path, *lines: str, heading: str = HEADING) -> str:
    path = tmp_path / "bad.csv"
    path.write_text("\n".join((heading, *lines)) + "\n", encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_predictions(path)
    assert caught.value.exit_code == 3
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_predictions_come_back_exactly(tmp_path: Path) -> None:
    """Every bit of every probability, and identifiers that look like numbers or like nothing."""
    written = predictions()
    path = tmp_path / "model.csv"
    path.write_text(written.csv(), encoding="utf-8")
    read = read_predictions(path)
    assert (read.name, read.classes, read.patients, read.scans) == ("model", written.classes, written.patients, written.scans)
    assert np.array_equal(read.volumes, written.volumes)
    assert np.array_equal(read.labels, written.labels)
    assert np.array_equal(read.probabilities, written.probabilities)
    assert read.probabilities.dtype == np.float64
    assert read.csv() == written.csv()


def test_identifiers_that_look_like_numbers_keep_their_zeros(tmp_path: Path) -> None:
    path = tmp_path / "numbers.csv"
    path.write_text(f"{HEADING}\n007,0100,0,NCP,1,0,0\n7,1e2,0,CP,0,1,0\n")
    read = read_predictions(path)
    assert (read.patients, read.scans) == (["007", "7"], ["0100", "1e2"])


def test_the_heading_is_the_documented_one() -> None:
    assert predictions().csv().splitlines()[0] == HEADING


def test_other_columns_and_any_order_of_them_are_fine(tmp_path: Path) -> None:
    path = tmp_path / "other.csv"
    path.write_text("p_Normal,label,note,scan,p_NCP,patient,volume\n0.25,NCP,x,s,0.75,1,0\n", encoding="utf-8-sig")
    read = read_predictions(path)
    assert read.classes == ["Normal", "NCP"]
    assert read.labels.tolist() == [1]
    assert read.probabilities.tolist() == [[0.25, 0.75]]


def test_class_columns_in_another_order_are_reordered_with_their_labels() -> None:
    mine = predictions(50)
    order = [2, 0, 1]
    theirs = Predictions(
        "other",
        [mine.classes[place] for place in order],
        mine.patients,
        mine.scans,
        mine.volumes,
        np.array([order.index(label) for label in mine.labels]),
        mine.probabilities[:, order],
    )
    found = reordered(theirs, mine.classes)
    assert found.classes == mine.classes
    assert np.array_equal(found.labels, mine.labels)
    assert np.array_equal(found.probabilities, mine.probabilities)
    assert np.array_equal(found.predicted, mine.predicted)


def test_models_of_other_classes_are_not_compared() -> None:
    with pytest.raises(InputError, match=r"NCP, CP, Normal.*NCP, Normal"):
        reordered(predictions(5), ["NCP", "Normal"])


GOOD = "1,a,0,NCP,0.5,0.25,0.25"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (",a,1,NCP,0.5,0.25,0.25", "the patient is missing"),
        ("1,a,1,COVID,0.5,0.25,0.25", "label"),
        ("1,a,1, NCP,0.5,0.25,0.25", "label"),
        ("1,a,1,,0.5,0.25,0.25", "label"),
        ("1,a,1,NCP,,0.5,0.5", "column p_NCP"),
        ("1,a,1,NCP,0.5,nan,0.5", "column p_CP"),
        ("1,a,1,NCP,much,0.5,0.5", "probability"),
        ("1,a,1,NCP,0.2_5,0.5,0.25", "probability"),
        ("1,a,1,NCP,\u0660.5,0.25,0.25", "probability"),
        ("1,a,1,NCP,0.5,0.75,-0.25", "column p_Normal"),
        ("1,a,1,NCP,inf,0,0", "probability"),
        ("1,a,1,NCP,0.5,0.5", "column p_Normal is missing"),
        ("1,a,1,NCP,0.5,0.25,0.5", "p_NCP + p_CP + p_Normal do not sum to 1"),
        ("1,a,one,NCP,0.5,0.25,0.25", "volume"),
        ("1,a,,NCP,0.5,0.25,0.25", "volume"),
        (GOOD, "twice"),
        ("1,a,1,NCP,0.5,0.25,0.25,0.1", ""),
    ],
)
def test_what_is_wrong_is_named_by_its_line(tmp_path: Path, line: str, said: str) -> None:
    message = refused(tmp_path, GOOD, "2,a,0,CP,0.1,0.8,0.1", line, "3,a,0,CP,0.1,0.8,0.1")
    assert "line 4" in message
    assert said in message


@pytest.mark.parametrize("line", ["1,a,inf,NCP,0.5,0.25,0.25", "1,a,0.5,NCP,0.5,0.25,0.25", "1,a,1e30,NCP,0.5,0.25,0.25"])
def test_a_volume_that_is_no_whole_number_is_refused(tmp_path: Path, line: str) -> None:
    assert "line 3" in refused(tmp_path, GOOD, line)


def test_blank_lines_count_as_lines(tmp_path: Path) -> None:
    assert "line 5" in refused(tmp_path, GOOD, "", "", "1,a,1,COVID,0.5,0.25,0.25")


@pytest.mark.parametrize("missing", ["patient", "scan", "volume", "label"])
def test_a_missing_column_is_named(tmp_path: Path, missing: str) -> None:
    assert f"lacks {missing}." in refused(tmp_path, GOOD, heading=HEADING.replace(missing, "other"))


def test_two_classes_are_needed(tmp_path: Path) -> None:
    assert "p_<class>" in refused(tmp_path, "1,a,0,NCP,1", heading="patient,scan,volume,label,p_NCP")


def test_a_class_column_that_stands_there_twice_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, "1,a,0,NCP,0.5,0.5", heading="patient,scan,volume,label,p_NCP,p_NCP")


def test_a_heading_alone_is_no_predictions(tmp_path: Path) -> None:
    assert "no predictions" in refused(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00\x01", b"patient/scan/volume/label/p_NCP/p_CP\n1/a/0/NCP/1/0\n"])
def test_a_file_that_is_no_such_csv_is_refused_with_what_it_needs(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"patient,scan,volume,label,p_<class>") as caught:
        read_predictions(path)
    assert str(path) in str(caught.value)


def test_an_absent_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.csv"):
        read_predictions(tmp_path / "absent.csv")


@pytest.mark.parametrize("rows", [("0,33;0,33;0,33", "0,1;0,8;0,11"), ("0.33;0.33;0.33", "1E-01;8.0E-01;0.11")])
def test_probabilities_rounded_to_two_digits_are_used_as_they_are_and_said_once(rows: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "given.csv"
    path.write_text("\n".join((HEADING.replace(",", ";"), *(f"{number};a;0;NCP;{row}" for number, row in enumerate(rows)))))
    said: list[str] = []
    assert np.allclose(read_predictions(path, said.append).probabilities, [[0.33, 0.33, 0.33], [0.1, 0.8, 0.11]])
    assert said == [f"{path}: the probabilities are rounded: rows sum to 0.99 to 1.01, and are used as they are."]


@pytest.mark.parametrize(
    "rows",
    [("33;33;34", "1;99;0"), ("33%;33 %;34\u00a0％", "1%;99%;0%"), ("33,0;33,0;34,0", "1,0;99,0;0,0"), ("33.0;33;34", "1;99;0")],
    ids=["sums", "signs", "decimal commas", "digits"],
)
def test_probabilities_in_per_cent_are_read_as_such(rows: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "given.csv"
    lines = (f"{number};a;0;NCP;{row}" for number, row in enumerate(rows))
    path.write_text("\n".join((HEADING.replace(",", ";"), *lines)), encoding="utf-8")
    said: list[str] = []
    assert np.allclose(read_predictions(path, said.append).probabilities, [[0.33, 0.33, 0.34], [0.01, 0.99, 0]])
    assert said == ([] if "%" in rows[0] else [f"{path}: the probabilities are read as per cent."])


@pytest.mark.parametrize(
    ("rows", "line", "said"),
    [
        (("1,a,0,NCP,33,33,34", "2,a,0,NCP,0.33,0.33,0.34", "3,a,0,NCP,1,0,0"), 2, "sum to 100, but most to 1.*per cent"),
        (("1,a,0,NCP,33,33,34", "2,a,0,NCP,0,1,0", "3,a,0,NCP,98,1,1"), 3, "sum to 1, but most to 100.*per cent"),
        (("1,a,0,NCP,33%,33%,34%", "2,a,0,NCP,1,0,99%"), 3, "per cent sign"),
        (("1,a,0,NCP,33,33,34", "2,a,0,NCP,33,33,4"), 3, "do not sum to 100 per cent"),
        (("1,a,0,NCP,0.3,0.3,0.3",), 2, "do not sum to 1; export them with at least two digits"),
        (("1,a,0,NCP,0.33,0.33,0.31",), 2, "do not sum to 1"),
        (("1,a,0,NCP,1,1,0",), 2, "do not sum to 1"),
        (("1,a,0,NCP,120,-20,0",), 2, "not between 0 and 100"),
    ],
)
def test_probabilities_that_may_be_either_or_do_not_sum_are_refused(tmp_path: Path, rows: tuple[str, ...], line: int, said: str) -> None:
    message = refused(tmp_path, *rows)
    assert f"line {line}:" in message
    assert re.search(said, message)
