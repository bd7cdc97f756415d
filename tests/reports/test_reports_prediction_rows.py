"""Predictions on a terminal: a block for each scan where a table would fold, and the same figures in both."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console as RichConsole

from ctcovid.reports.prediction_rows import prediction_table

COMMON = {"scan": "NCP/16/1164", "patient": "16", "source": "/data/NCP/16/1164", "n_slices": 49}
SURE = {**COMMON, "predicted": "NCP", "p_NCP": 0.97, "p_Normal": 0.03, "n_volumes": 12, "agreement": 0.75, "flags": [], "notes": ""}
FLAGGED = {**SURE, "scan": "7", "patient": "", "flags": ["few-slices", "gap"], "notes": "It has 5 slices. Slices are missing."}
REFUSED = {**COMMON, "scan": "bad", "predicted": None, "p_NCP": None, "p_Normal": None, "n_volumes": 0, "agreement": None}
REFUSED |= {"flags": ["refused", "unreadable"], "notes": "bad: 4 of 4 slices cannot be read."}


def shown(rows: list[dict[str, Any]], width: int) -> str:
    console = RichConsole(file=io.StringIO(), width=width, highlight=False)
    console.print(prediction_table(rows, ["NCP", "Normal"], 1).terminal(width))
    return console.file.getvalue()


@pytest.mark.parametrize("width", [40, 80, 119])
def test_under_120_columns_each_scan_is_a_block_with_a_bar_for_each_class(width: int) -> None:
    name, covid, normal, agreement = (line.rstrip() for line in shown([SURE], width).splitlines()[:4])
    assert name == "NCP/16/1164, patient 16: NCP"
    assert covid.startswith("  NCP     █") and covid.endswith(" 97.0%") and normal.endswith("  3.0%")
    assert covid.count("█") > 20 * normal.count("█") and len(covid) == len(normal) <= width
    assert agreement == "  9 of 12 volumes agree, 49 slices"


def test_flags_and_reasons_of_a_refusal_are_said_in_words() -> None:
    said = " ".join(shown([FLAGGED, REFUSED], 60).split())
    assert "few-slices, gap: It has 5 slices. Slices are missing." in said
    assert "bad, patient 16: refused bad: 4 of 4 slices cannot be read." in said


def test_a_wide_terminal_has_a_table_without_empty_columns_and_without_sources() -> None:
    heading = shown([SURE], 140).splitlines()[0].split()
    assert heading == ["scan", "patient", "predicted", "p_NCP", "p_Normal", "n_volumes", "n_slices", "agreement"]
    assert "flags" in shown([SURE, FLAGGED], 140) and "/data/" not in shown([SURE, FLAGGED], 140)


def test_off_a_terminal_the_rows_are_csv_with_all_columns() -> None:
    heading, row, _ = prediction_table([SURE, REFUSED], ["NCP", "Normal"], 1).text().splitlines()
    assert heading == "scan,patient,predicted,p_NCP,p_Normal,n_volumes,n_slices,agreement,flags,notes,source"
    assert row == "NCP/16/1164,16,NCP,0.97,0.03,12,49,0.75,,,/data/NCP/16/1164"
