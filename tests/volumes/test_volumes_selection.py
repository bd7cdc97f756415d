"""Which patients are chosen: as many slices in each class, or as many as in another file."""

from __future__ import annotations

import numpy as np
import pytest

from ctcovid.volumes.layout import ScanRow
from ctcovid.volumes.selection import Split, balanced, choose, slices_by_part

CLASSES = ["NCP", "CP", "Normal"]
SHARES = (0.6, 0.2, 0.2)


def rows(seed: int = 0, patients: tuple[int, int, int] = (200, 150, 80)) -> list[ScanRow]:
    """Scans of 9 to 664 slices, one to three of a patient, one behind the other as a writer has them."""
    generator = np.random.default_rng(seed)
    made: list[ScanRow] = []
    first = 0
    for label, count in zip(CLASSES, patients, strict=True):
        for patient in range(count):
            for scan in range(int(generator.integers(1, 4))):
                slices = int(np.clip(generator.lognormal(4.5, 0.7), 9, 664))
                source = f"{label}/{label}-{patient}/{scan}"
                made.append(ScanRow(str(scan), f"{label}-{patient}", label, "", first, slices, "complete", source, "{}", 0))
                first += slices
    return made


@pytest.mark.parametrize("seed", range(5))
def test_balance_gives_each_class_as_many_slices_in_each_part(seed: int) -> None:
    chosen = choose(rows(seed), CLASSES, 4, Split(SHARES, seed, balance=True))
    sizes = slices_by_part(chosen)
    smallest = sum(row.slice_count for row in rows(seed) if row.label == "Normal")
    for part, share in zip(("train", "valid", "test"), SHARES, strict=True):
        for label in CLASSES:
            assert sizes[label, part] == pytest.approx(share * smallest, rel=0.02)


def test_chosen_patients_come_with_all_their_scans_and_stand_in_one_part() -> None:
    everything = rows()
    chosen = choose(everything, CLASSES, 4, Split(SHARES, 0, balance=True))
    parts: dict[str, set[str]] = {}
    for row in chosen:
        parts.setdefault(row.patient, set()).add(row.split)
    assert all(len(among) == 1 and among <= {"train", "valid", "test"} for among in parts.values())
    assert {row.source for row in chosen} == {row.source for row in everything if row.patient in parts}


def test_choice_is_that_of_its_seed_whatever_the_order() -> None:
    everything = rows()
    labels = {row.patient: row.label for row in everything}
    slices = {row.patient: row.slice_count for row in everything}
    one = balanced(labels, slices, SHARES, 3)
    assert one == balanced(dict(reversed(labels.items())), slices, SHARES, 3)
    assert one != balanced(labels, slices, SHARES, 4)


def test_few_patients_fill_train_then_test_then_valid() -> None:
    for count, expected in ((1, {"train"}), (2, {"train", "test"}), (3, {"train", "test", "valid"})):
        labels = {f"{label}{number}": label for label in CLASSES for number in range(count)}
        parts = balanced(labels, dict.fromkeys(labels, 100), SHARES, 0)
        assert {part for patient, part in parts.items() if patient.startswith("CP")} == expected


def test_same_number_of_slices_is_taken_to_the_slice() -> None:
    """Table 2's numbers, of which the 66 test slices of CP are less than most scans have."""
    sizes = {
        **{("NCP", "train"): 3648, ("NCP", "valid"): 904, ("NCP", "test"): 1456},
        **{("CP", "train"): 222, ("CP", "valid"): 77, ("CP", "test"): 66},
        **{("Normal", "train"): 4144, ("Normal", "valid"): 1736, ("Normal", "test"): 1608},
    }
    everything = {row.source: row for row in rows()}
    chosen = choose(list(everything.values()), CLASSES, 4, Split(SHARES, 0, sizes=sizes))
    assert slices_by_part(chosen) == sizes
    for row in chosen:
        whole = everything[row.source]
        assert whole.first_slice <= row.first_slice
        assert row.first_slice + row.slice_count <= whole.first_slice + whole.slice_count
        # What is cut off is as long at both ends.
        before, after = row.first_slice - whole.first_slice, whole.slice_count - row.slice_count
        assert before == after // 2


def test_classes_that_the_other_file_lacks_are_left_out_and_what_is_short_is_all_taken() -> None:
    sizes = {("NCP", "train"): 10**9, ("CP", "test"): 50}
    chosen = choose(rows(), CLASSES, 4, Split(SHARES, 0, sizes=sizes))
    assert slices_by_part(chosen) == {("NCP", "train"): sum(row.slice_count for row in rows() if row.label == "NCP"), ("CP", "test"): 50}


def test_without_wishes_everyone_takes_part() -> None:
    chosen = choose(rows(), CLASSES, 4, Split(SHARES, 0))
    assert [row.source for row in chosen] == [row.source for row in rows()]
    assert {row.split for row in chosen} == {"train", "valid", "test"}
