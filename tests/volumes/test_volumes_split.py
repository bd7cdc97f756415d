"""Split into train, valid and test."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctcovid.base.errors import InputError, UsageError
from ctcovid.volumes.layout import ScanRow
from ctcovid.volumes.split import parse_shares, patients_in_two_parts, read_split_file, split_patients

SIXTY = (0.6, 0.2, 0.2)
CLASSES = ("NCP", "CP", "Normal")
patients = st.dictionaries(st.integers(0, 3000).map(str), st.sampled_from(CLASSES), min_size=1, max_size=80)
shares = st.tuples(st.integers(1, 98), st.integers(0, 98), st.integers(0, 98)).map(lambda three: tuple(part / sum(three) for part in three))


def counts(parts: dict[str, str], of: dict[str, str], label: str) -> tuple[int, int, int]:
    """Patients of a class in train, valid and test."""
    found = Counter(parts[patient] for patient, its in of.items() if its == label)
    return found["train"], found["valid"], found["test"]


@settings(deadline=None)
@given(patients, shares, st.integers(0, 2**31))
def test_every_patient_is_in_exactly_one_part(of: dict[str, str], three: tuple[float, float, float], seed: int) -> None:
    parts = split_patients(of, three, seed)
    assert parts.keys() == of.keys()
    assert set(parts.values()) <= {"train", "valid", "test"}


@settings(deadline=None)
@given(patients, shares, st.integers(0, 2**31), st.randoms())
def test_split_does_not_depend_on_the_order_of_the_patients(
    of: dict[str, str], three: tuple[float, float, float], seed: int, shuffler: random.Random
) -> None:
    mixed = list(of.items())
    shuffler.shuffle(mixed)
    assert split_patients(dict(mixed), three, seed) == split_patients(of, three, seed)


@settings(deadline=None)
@given(patients, st.tuples(st.integers(50, 98), st.integers(1, 25), st.integers(1, 25)), st.integers(0, 2**31))
def test_each_class_has_its_shares_to_within_a_patient_and_no_empty_part(
    of: dict[str, str], percent: tuple[int, int, int], seed: int
) -> None:
    three = tuple(part / sum(percent) for part in percent)
    parts = split_patients(of, three, seed)
    for label in set(of.values()):
        found = counts(parts, of, label)
        members = sum(found)
        assert found[0] >= 1
        assert abs(found[1] - three[1] * members) <= 1 and abs(found[2] - three[2] * members) <= 1
        if members >= 3:
            assert min(found) >= 1


@settings(deadline=None)
@given(patients, shares, st.integers(0, 2**31))
def test_whatever_the_shares_each_class_has_somebody_to_train_with(
    of: dict[str, str], three: tuple[float, float, float], seed: int
) -> None:
    parts = split_patients(of, three, seed)
    for label in set(of.values()):
        train, valid, test = counts(parts, of, label)
        assert train >= 1
        assert valid == 0 or three[1] > 0
        assert test == 0 or three[2] > 0


@pytest.mark.parametrize("members", [10, 25, 100, 1000])
def test_shares_come_out_exactly_where_they_divide(members: int) -> None:
    of = {f"{label}{number}": label for label in CLASSES for number in range(members)}
    parts = split_patients(of, SIXTY, seed=3)
    for label in CLASSES:
        assert counts(parts, of, label) == (members * 3 // 5, members // 5, members // 5)


@pytest.mark.parametrize(("members", "expected"), [(1, (1, 0, 0)), (2, (1, 0, 1)), (3, (1, 1, 1)), (4, (2, 1, 1))])
@pytest.mark.parametrize("three", [SIXTY, (0.98, 0.01, 0.01), (0.34, 0.33, 0.33)])
def test_small_class_fills_train_then_test_then_valid(
    members: int, expected: tuple[int, int, int], three: tuple[float, float, float]
) -> None:
    of = {str(number): "CP" for number in range(members)}
    assert counts(split_patients(of, three, seed=0), of, "CP") == expected


def test_share_of_zero_leaves_the_part_empty() -> None:
    of = {str(number): "CP" for number in range(20)}
    assert counts(split_patients(of, (0.8, 0.0, 0.2), seed=0), of, "CP") == (16, 0, 4)
    assert counts(split_patients(of, (1.0, 0.0, 0.0), seed=0), of, "CP") == (20, 0, 0)


def test_seed_decides_and_the_same_seed_decides_the_same() -> None:
    of = {str(number): "CP" for number in range(50)}
    tests = [frozenset(patient for patient, part in split_patients(of, SIXTY, seed).items() if part == "test") for seed in range(10)]
    again = [frozenset(patient for patient, part in split_patients(of, SIXTY, seed).items() if part == "test") for seed in range(10)]
    assert tests == again
    assert len(set(tests)) == 10
    # Each patient is drawn now and then: no order of the ids decides for them.
    assert len(frozenset.union(*tests)) > 35


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("60/20/20", (0.6, 0.2, 0.2)),
        ("33/33/33", (1 / 3, 1 / 3, 1 / 3)),
        ("80/0/20", (0.8, 0.0, 0.2)),
        ("62.5/12.5/25", (0.625, 0.125, 0.25)),
    ],
)
def test_shares_are_per_cent(text: str, expected: tuple[float, float, float]) -> None:
    assert parse_shares(text) == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize(("text", "total"), [("60/20/30", "110"), ("3/1/1", "5"), ("0.8/0/0.2", "1"), ("60/20/18", "98")])
def test_shares_that_do_not_sum_to_100_are_refused_and_not_scaled(text: str, total: str) -> None:
    with pytest.raises(
        UsageError, match=rf"^--split {text}: the three sum to {total}\. Give percentages that sum to 100, like 60/20/20\.$"
    ):
        parse_shares(text)
    # A volumes file of an earlier version may have been split by them, and still takes further scans.
    assert sum(parse_shares(text, recorded=True)) == pytest.approx(1)


@pytest.mark.parametrize("text", ["60/40", "60/20/20/0", "0/50/50", "60/-20/60", "a/b/c", "", "inf/1/1", "nan/1/1"])
def test_shares_that_make_no_sense_are_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match=r"give the shares of train, valid and test like 60/20/20") as caught:
        parse_shares(text)
    assert caught.value.exit_code == 2


def test_split_file_is_obeyed_and_ids_stay_text(tmp_path: Path) -> None:
    path = tmp_path / "split.csv"
    path.write_text("patient,note,split\n0,,test\n007,x, train \n16,,valid\n999,not in the data,test\n")
    assert read_split_file(path, ["16", "0", "007"]) == {"16": "valid", "0": "test", "007": "train"}


def test_all_that_is_wrong_in_a_split_file_is_said_at_once(tmp_path: Path) -> None:
    path = tmp_path / "split.csv"
    path.write_text("patient,split\n0,train\n0,test\n1,training\n2,valid\n3\n")
    with pytest.raises(InputError) as caught:
        read_split_file(path, ["0", "1", "2", "3", "4", "007"])
    said = str(caught.value)
    assert said.startswith(f"{path} does not assign every patient to one part:")
    assert "patient 0: both in train and in test" in said
    assert "patient 1: split 'training' is not one of train, valid, test" in said
    assert "patient 3: split" in said
    assert "patient 4: not in the file" in said and "patient 007: not in the file" in said
    assert "patient 2" not in said


def test_patient_named_twice_in_one_part_is_no_mistake(tmp_path: Path) -> None:
    (tmp_path / "split.csv").write_text("patient,split\n0,train\n0,train\n")
    assert read_split_file(tmp_path / "split.csv", ["0"]) == {"0": "train"}


def test_split_file_from_excel_is_read(tmp_path: Path) -> None:
    (tmp_path / "split.csv").write_text("sep=;\nPatient;Split\n007;train\n8;test\n", encoding="utf-16")
    assert read_split_file(tmp_path / "split.csv", ["007", "8"]) == {"007": "train", "8": "test"}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such split file"),
        (b"", "cannot be read as CSV"),
        (b"id,part\n1,train\n", "has the columns id, part; it needs patient,split"),
        (b"patient,split\n\xff\xfe\x00\n", "cannot be read as CSV"),
    ],
    ids=["absent", "empty", "other columns", "not text"],
)
def test_split_file_that_cannot_be_used_is_named(content: bytes | None, said: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "split.csv").write_bytes(content)
    with pytest.raises(InputError, match=said) as caught:
        read_split_file(tmp_path / "split.csv", ["1"])
    assert str(tmp_path / "split.csv") in str(caught.value)


def test_patients_in_two_parts_are_found() -> None:
    rows = [
        ScanRow(str(number), patient, "CP", part, 0, 4, "complete", "", "{}", 0)
        for number, (patient, part) in enumerate(
            [("10", "train"), ("9", "test"), ("9", "valid"), ("10", "train"), ("2", "train"), ("2", "test")]
        )
    ]
    assert patients_in_two_parts(rows) == ["2", "9"]


@pytest.mark.parametrize("seed", range(5))
def test_patients_who_join_bring_the_shares_nearer_and_move_nobody(seed: int) -> None:
    """However uneven the parts are that they find, and a class that finds nobody is dealt as in a new file."""
    generator = random.Random(seed)
    of = {f"{label}{number}": label for label, size in (("CP", 40), ("NCP", 23)) for number in range(size)}
    known = {f"CP{number}": generator.choice(["train", "valid", "test"]) for number in range(15)}
    parts = split_patients(of, SIXTY, seed, known)
    assert parts.keys() == of.keys() and known.items() <= parts.items()
    held = Counter(known.values())
    found = Counter(part for patient, part in parts.items() if of[patient] == "CP")
    aims = dict(zip(("train", "valid", "test"), (24, 8, 8), strict=True))
    assert all(found[part] <= max(held[part], aim + 1) for part, aim in aims.items())
    if all(held[part] <= aim for part, aim in aims.items()):
        assert all(abs(found[part] - aim) <= 1 for part, aim in aims.items())
    alone = {patient: label for patient, label in of.items() if label == "NCP"}
    assert split_patients(alone, SIXTY, seed).items() <= parts.items()
    assert split_patients(dict(sorted(of.items(), reverse=True)), SIXTY, seed, known) == parts
