"""The data set's table, by the paper's Tables 1 and 2."""

from __future__ import annotations

import pytest

from ctcovid.reports.dataset_table import COLUMNS, dataset_table, missing_classes
from ctcovid.volumes.layout import ScanRow

CLASSES = ["NCP", "CP", "Normal"]
# Li et al. 2021: patients, scans and slices by part and class.
COMPLETE = {
    "train": [(149, 270, 28088), (112, 146, 27252), (140, 308, 27456)],
    "valid": [(53, 92, 9364), (45, 52, 9108), (54, 85, 9152)],
    "test": [(44, 87, 9236), (44, 44, 8520), (50, 102, 9080)],
}
SEGMENTED = {
    "train": [(79, 98, 11648), (2, 3, 222), (175, 175, 14144)],
    "valid": [(26, 26, 3904), (1, 1, 77), (56, 56, 4736)],
    "test": [(25, 32, 3456), (1, 1, 66), (56, 56, 4608)],
}


def rows(table: dict[str, list[tuple[int, int, int]]], multiple: int) -> list[ScanRow]:
    """Scans that add up to the table, each with a multiple of that many slices, but for the first, which takes the rest."""
    found = []
    for part, counts in table.items():
        for label, (patients, scans, slices) in zip(CLASSES, counts, strict=True):
            each = slices // scans // multiple * multiple
            lengths = [slices - each * (scans - 1), *[each] * (scans - 1)]
            for number, length in enumerate(lengths):
                patient = f"{part}-{label}-{number % patients}"
                found.append(ScanRow(f"{patient}-{number}", patient, label, part, 0, length, "complete", "", "{}", 0))
    return found


@pytest.mark.parametrize("table", [COMPLETE, SEGMENTED], ids=["Table 1", "Table 2"])
def test_patients_scans_and_slices_are_those_of_the_paper(table: dict[str, list[tuple[int, int, int]]]) -> None:
    found = {(line[0], line[1]): tuple(line[2:5]) for line in dataset_table(rows(table, 1), CLASSES, 1).rows}
    assert len(found) == 16
    for part, counts in table.items():
        for label, expected in zip(CLASSES, counts, strict=True):
            assert found[label, part] == expected
        assert found["all", part] == tuple(map(sum, zip(*counts, strict=True)))
    totals = [tuple(sum(table[part][place][column] for part in table) for column in range(3)) for place in range(3)]
    assert [found[label, "all"] for label in CLASSES] == totals
    assert found["all", "all"] == tuple(map(sum, zip(*totals, strict=True)))


def test_the_papers_totals_come_out() -> None:
    """Table 1's last line, and Sec. 2.1: 137,256 slices of 691 patients."""
    found = {(line[0], line[1]): tuple(line[2:5]) for line in dataset_table(rows(COMPLETE, 1), CLASSES, 1).rows}
    assert [found[label, "all"] for label in CLASSES] == [(246, 449, 46688), (201, 242, 44880), (244, 495, 45688)]
    assert found["all", "all"] == (691, 1186, 137256)


def test_at_depth_4_the_papers_test_part_has_6709_volumes() -> None:
    found = {(line[0], line[1]): line[5] for line in dataset_table(rows(COMPLETE, 4), CLASSES, 4).rows}
    assert found["all", "test"] == 6709
    assert [found[label, "test"] for label in CLASSES] == [2309, 2130, 2270]


def test_tails_that_do_not_fill_a_volume_are_not_counted() -> None:
    scans = [ScanRow(str(n), str(n), "NCP", "train", 0, n, "complete", "", "{}", 0) for n in (3, 4, 7, 8)]
    table = dataset_table(scans, ["NCP"], 4)
    assert tuple(table.columns) == COLUMNS
    assert list(table.rows[0]) == ["NCP", "train", 4, 4, 22, 0 + 1 + 1 + 2]


def test_classes_without_a_single_volume_are_named_by_part() -> None:
    scans = [row for row in rows(COMPLETE, 4) if (row.split, row.label) != ("valid", "CP")]
    assert missing_classes(scans, CLASSES, 4) == {"valid": ["CP"]}
    short = [ScanRow("s", "p", "NCP", "train", 0, 3, "complete", "", "{}", 0)]
    assert missing_classes(short, ["NCP"], 4) == {"train": ["NCP"], "valid": ["NCP"], "test": ["NCP"]}
    assert missing_classes(rows(COMPLETE, 4), CLASSES, 4) == {}
