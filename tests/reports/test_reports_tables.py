"""Tables hold the same content for people, logs and programs."""

from __future__ import annotations

import csv
import io

import pytest
from rich.console import Console as RichConsole

from ctcovid.reports.tables import CsvText, Table, csv_text, shown

TABLE = Table(
    ("model", "volumes", "accuracy"),
    [["r3d18", 6709, 0.99238], ["(2+1)D, 18", 13418, 1 / 3]],
    title="Table 7",
    notes=["Bootstrap mean.", "Second note."],
)


def on_a_terminal(table: Table, width: int = 100) -> str:
    console = RichConsole(file=io.StringIO(), width=width, highlight=False)
    console.print(table.terminal(width))
    return console.file.getvalue()


def test_text_is_aligned_markdown_with_title_and_notes() -> None:
    assert TABLE.text() == "\n".join(
        [
            "**Table 7**",
            "",
            "| model      | volumes | accuracy |",
            "| ---------- | ------: | -------: |",
            "| r3d18      |   6,709 |   0.9924 |",
            "| (2+1)D, 18 |  13,418 |   0.3333 |",
            "",
            "Bootstrap mean.",
            "",
            "Second note.",
        ]
    )


def test_a_plain_table_has_no_title_and_no_notes() -> None:
    table = Table(("class", "split", "slices"), [["NCP", "train", 28088]], text_columns=2)
    assert table.text() == "| class | split | slices |\n| ----- | ----- | -----: |\n| NCP   | train | 28,088 |"


def test_csv_has_full_numbers_and_comes_back() -> None:
    text = TABLE.csv()
    assert "\r" not in text
    rows = list(csv.reader(io.StringIO(text)))
    assert rows[0] == ["model", "volumes", "accuracy"]
    assert rows[2][0] == "(2+1)D, 18"
    assert [float(row[2]) for row in rows[1:]] == [0.99238, 1 / 3]
    assert [int(row[1]) for row in rows[1:]] == [6709, 13418]


@pytest.mark.parametrize("cell", ["a,b", 'say "x"', "two\nlines", "", "Łódź", " lead"])
def test_any_text_survives_csv(cell: str) -> None:
    assert list(csv.reader(io.StringIO(csv_text(("scan", "n"), [[cell, 1]])))) == [["scan", "n"], [cell, "1"]]


def test_results_for_other_programs_are_csv_off_a_terminal() -> None:
    table = CsvText(("scan", "p_NCP"), [["NCP/16/1164", 0.123456789]])
    assert table.text() == "scan,p_NCP\nNCP/16/1164,0.123456789"
    assert "0.1235" in on_a_terminal(table)


def test_the_terminal_shows_every_cell_and_note() -> None:
    text = on_a_terminal(TABLE)
    for part in ("Table 7", "model", "volumes", "r3d18", "6,709", "0.9924", "(2+1)D, 18", "0.3333", "Bootstrap mean.", "Second note."):
        assert part in text


def test_a_narrow_terminal_folds_text_and_loses_nothing() -> None:
    text = on_a_terminal(Table(("scan",), [["NCP-16-1164-with-a-long-name"]]), width=14)
    assert "NCP-16-1164-with-a-long-name" in "".join(line.strip() for line in text.splitlines())


INTERVALS = Table(
    ("model", "depth", "batch", "Accuracy", "Precision", "macro-AUROC"),
    [[name, 4, 16, *["0.9124 (0.8596, 0.9568)"] * 3] for name in ("r3d18-d4-b16", "logistic regression")],
    bold=frozenset({(1, 3)}),
    optional=("batch", "depth", "Precision"),
)


@pytest.mark.parametrize("width", [120, 80, 72, 50, 40])
def test_no_number_is_broken_at_any_width_and_what_is_omitted_is_named(width: int) -> None:
    text = on_a_terminal(INTERVALS, width)
    assert max(map(len, text.splitlines())) <= width
    said = " ".join(text.split())
    shown = [name for name in INTERVALS.columns if name not in said.partition("Not shown, for lack of width: ")[2]]
    assert said.count("0.9124 (0.8596, 0.9568)") == 2 * sum(name in shown for name in ("Accuracy", "Precision", "macro-AUROC"))
    assert "Accuracy" in shown, "the first figure stays"


def test_a_few_rows_become_columns_before_anything_is_omitted() -> None:
    lines = on_a_terminal(INTERVALS, 70).splitlines()
    assert lines[0].split() == ["model", "r3d18-d4-b16", "logistic", "regression"]
    assert [line.split()[0] for line in lines[2:7]] == ["depth", "batch", "Accuracy", "Precision", "macro-AUROC"]


def test_the_least_important_columns_are_omitted_first() -> None:
    many = Table(INTERVALS.columns, [*INTERVALS.rows] * 3, optional=INTERVALS.optional)
    assert "Not shown, for lack of width: depth, batch, Precision." in " ".join(on_a_terminal(many, 80).split())


@pytest.mark.parametrize("cell", ["[left] lung", "[bold]x", "[/x] y", "a[1]", "\\[x]"])
def test_the_terminal_shows_brackets_as_they_are(cell: str) -> None:
    """Scan identifiers are folder names, and a folder may be called anything."""
    assert cell in on_a_terminal(Table(("scan", "n"), [[cell, 1]], title=cell, notes=[cell]))


@pytest.mark.parametrize(
    ("cell", "text"), [(0, "0"), (137256, "137,256"), (0.99964, "0.9996"), (1.0, "1.0000"), ("0.99", "0.99"), ("", "")]
)
def test_numbers_are_shown_as_in_the_papers_tables(cell: str | int | float, text: str) -> None:
    assert shown(cell) == text


def test_bold_cells_stand_out_in_markdown_and_not_in_csv() -> None:
    table = Table(("model", "Accuracy"), [["a", "0.9"], ["b", "0.8"]], bold=frozenset({(0, 1)}))
    assert " __0.9__ |" in table.text() and "__0.8__" not in table.text()
    assert len({len(line) for line in table.text().splitlines()}) == 1
    assert "__" not in table.csv()
