"""Lists of scans and slices as CSV, as they go round with CC-CCII."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from ctcovid.base.errors import InputError
from ctcovid.volumes.listing import read_exclusions, read_lesions, read_plan
from ctcovid.volumes.selection import Split, choose

# Li et al. 2021, Table 1: slices for train, valid and test.
TABLE_1 = {"NCP": (28088, 9364, 9236), "CP": (27252, 9108, 8520), "Normal": (27456, 9152, 9080)}


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_exclusions_are_lines_or_columns(tmp_path: Path) -> None:
    lines = write(tmp_path / "bad.txt", "# known to be bad\nNCP/96/1328\n\n16/1164\n")
    assert read_exclusions(lines) == {("NCP", "96", "1328"), ("", "16", "1164")}
    columns = write(tmp_path / "bad.csv", "cls,pid,scan_id\nNCP,96,1328\n")
    assert read_exclusions(columns) == {("NCP", "96", "1328")}
    columns = write(tmp_path / "bad2.csv", "patient_id,scan_id\n96,1328\n")
    assert read_exclusions(columns) == {("", "96", "1328")}
    with pytest.raises(InputError, match="line 2: '1328' is not a scan"):
        read_exclusions(write(tmp_path / "wrong.txt", "NCP/96/1328\n1328\n"))
    with pytest.raises(InputError, match="No such file"):
        read_exclusions(tmp_path / "absent.txt")


def test_lesions_are_slices_by_scan(tmp_path: Path) -> None:
    path = write(tmp_path / "lesions.csv", "imgpath\nNCP/96/1328/0032.png\nNCP/96/1328/0033.png\nCP/1/2/0000.jpg\n")
    assert read_lesions(path) == {"NCP/96/1328": {"0032", "0033"}, "CP/1/2": {"0000"}}
    with pytest.raises(InputError, match="it needs imgpath"):
        read_lesions(write(tmp_path / "wrong.csv", "path\nNCP/96/1328/0032.png\n"))


def test_listing_becomes_rows_less_the_repeats(tmp_path: Path) -> None:
    listing = write(tmp_path / "l.csv", "zip_file,label,patient_id,scan_id,n_slice\nx,NCP,0,12,100\nx,Normal,7,13,60\n")
    defects = write(tmp_path / "d.csv", "cls,pid,scan_id,is_seg,is_repeat,repeat_ids,re_order\nNCP,0,12,0,1,0-30;44;,\nNormal,7,13,1,0,,\n")
    found = [(row.label, row.patient, row.id, row.slice_count, row.image_kind) for row in read_plan(listing, defects)]
    assert found == [("NCP", "0", "12", 68, "complete"), ("Normal", "7", "13", 60, "segmented")]
    with pytest.raises(InputError, match="it also needs slices or n_slice or n_listed"):
        read_plan(defects, None)


def test_lists_may_come_from_excel_in_any_country(tmp_path: Path) -> None:
    """Semicolons, tabs, UTF-16, capitals, a line that declares the separator, and what Excel adds to lines of one field."""
    listing, defects = tmp_path / "l.csv", tmp_path / "d.csv"
    listing.write_text("sep=;\nLabel;Patient_ID;scan_id;n_slice;\nNCP;0;12;100;\n", encoding="utf-16")
    defects.write_text('cls\tpid\tscan_id\tis_seg\trepeat_ids\nNCP\t0\t12\t0\t"0-30;44;"\n', encoding="utf-16")
    assert [(row.label, row.patient, row.id, row.slice_count) for row in read_plan(listing, defects)] == [("NCP", "0", "12", 68)]
    for text in ("cls;pid;scan_id\nNCP;96;1328\n", "NCP/96/1328;;\n", '"NCP/96/1328"\n', "sep=;\nNCP/96/1328\n"):
        listing.write_text(text, encoding="utf-16")
        assert read_exclusions(listing) == {("NCP", "96", "1328")}
    listing.write_text("id;ImgPath\n7;NCP/96/1328/0032.png\n", encoding="utf-8-sig")
    assert read_lesions(listing) == {"NCP/96/1328": {"0032"}}


def test_real_listing_in_balance_has_the_proportions_of_table_1_within_2_percent(sample_data: Path) -> None:
    rows = read_plan(sample_data / "ccccii-scan-listing.csv", sample_data / "ccccii-known-defects.csv")
    complete = [row for row in rows if row.image_kind == "complete" and row.slice_count]
    chosen = choose(complete, list(TABLE_1), 4, Split((0.6, 0.2, 0.2), 0, balance=True))
    counts = pd.DataFrame([(row.label, row.split, row.slice_count) for row in chosen], columns=["label", "split", "slices"])
    total, paper = counts["slices"].sum(), sum(map(sum, TABLE_1.values()))
    for label, of_parts in TABLE_1.items():
        for part, count in zip(("train", "valid", "test"), of_parts, strict=True):
            ours = counts[(counts["label"] == label) & (counts["split"] == part)]["slices"].sum()
            assert abs(ours / total - count / paper) < 0.02
    by_part = counts.groupby(["split", "label"])["slices"].sum().unstack()
    # No part is further from balance than Table 1's, whose smallest class is 0.92 of its largest in the test part.
    assert (by_part.min(axis=1) / by_part.max(axis=1) > 0.98).all()
