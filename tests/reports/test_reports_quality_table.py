"""quality.csv and the summary of what was found."""

from __future__ import annotations

from ctcovid.reports.quality_table import findings_table, ranges, summary_table
from ctcovid.scans.findings import Finding
from ctcovid.volumes.layout import ScanRow


def row(source: str) -> ScanRow:
    label, patient, scan = source.split("/")
    return ScanRow(scan, patient, label, "", 0, 1, "complete", source, "{}", 0)


FOUND = [
    (row("NCP/1/2"), Finding("segmented", "info", "Black outside.", "kept")),
    (row("NCP/1/2"), Finding("truncated", "warning", "Cut, or so.", "slice dropped", (3, 4, 5, 9))),
    (row("CP/7/8"), Finding("truncated", "warning", "Cut.", "slice dropped", (0,))),
    (row("CP/7/9"), Finding("not-a-chest", "error", "No lungs.", "scan dropped")),
]


def test_each_finding_has_a_row_with_its_slices_as_ranges() -> None:
    lines = findings_table(FOUND).csv().splitlines()
    assert lines[0] == "scan,patient,label,code,severity,message,action,slices"
    assert lines[2] == 'NCP/1/2,1,NCP,truncated,warning,"Cut, or so.",slice dropped,3-5;9'
    assert len(lines) == 5
    assert findings_table([]).csv().splitlines() == lines[:1]


def test_summary_counts_scans_and_slices_and_has_the_severest_first() -> None:
    assert [list(line) for line in summary_table(FOUND).rows] == [
        ["not-a-chest", "error", "scan dropped", 1, 0],
        ["truncated", "warning", "slice dropped", 2, 5],
        ["segmented", "info", "kept", 1, 0],
    ]


def test_ranges_name_each_place_once() -> None:
    assert [ranges(places) for places in ((), (5,), (3, 1, 2), (0, 2, 4, 5))] == ["", "5", "1-3", "0;2;4-5"]
