"""Rows that grow: each is there as soon as it is written, and what a kill has left can be read and gone on with."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from ctcovid.base.errors import InputError, PeerError, StoppedError
from ctcovid.base.faults import MachineFaultError
from ctcovid.reports.rows import Row, RowFile, read_rows

COLUMNS = ["scan", "p", "flags"]


def row(name: str) -> Row:
    return {"scan": name, "p": 0.1 + 0.2, "flags": ["gap", "few, or so"]}


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_row_is_there_before_the_next_one(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"rows.{ending}"
    with RowFile(path, COLUMNS) as file:
        for number in range(3):
            file.add(row(f"scan {number}"))
            assert len(read_rows(path, COLUMNS)) == number + 1
    assert [found["scan"] for found in read_rows(path, COLUMNS)] == ["scan 0", "scan 1", "scan 2"]
    if ending == "csv":
        assert next(csv.DictReader(path.open())) == {"scan": "scan 0", "p": str(0.1 + 0.2), "flags": "gap;few, or so"}
    else:
        assert json.loads(path.read_text().splitlines()[0]) == row("scan 0")


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_a_cut_line_is_left_out_and_the_rest_stays_to_the_letter(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"rows.{ending}"
    with RowFile(path, COLUMNS) as file:
        file.add(row("a"))
        whole = path.read_text()
        file.add(row("b"))
    path.write_text(path.read_text()[:-3])
    kept = read_rows(path, COLUMNS)
    with RowFile(path, COLUMNS, kept):
        assert path.read_text() == whole


@pytest.mark.parametrize("ending", ["csv", "jsonl", "json"])
@pytest.mark.parametrize("end", [ValueError, StoppedError, KeyboardInterrupt, PeerError])
def test_whatever_ends_the_work_what_is_done_is_kept(tmp_path: Path, ending: str, end: type[BaseException]) -> None:
    path = tmp_path / f"rows.{ending}"
    with pytest.raises(end), RowFile(path, COLUMNS) as file:
        file.add(row("a"))
        raise end("it ends")
    assert [found["scan"] for found in read_rows(path, COLUMNS)] == ["a"]
    if ending == "json":
        assert json.loads(path.read_text()) == [row("a")]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "json"])
@pytest.mark.parametrize("sign", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\n", '"', ","])
def test_no_sign_in_a_name_parts_a_row(tmp_path: Path, ending: str, sign: str) -> None:
    path = tmp_path / f"rows.{ending}"
    with RowFile(path, COLUMNS) as file:
        file.add(row(f"a{sign}b"))
        file.add(row("c"))
    found = read_rows(path, COLUMNS)
    assert [one["scan"] for one in found] == [f"a{sign}b", "c"]


@pytest.mark.parametrize(("name", "text"), [("a.csv", "other,p\n1,2\n"), ("a.jsonl", '{"x": 1}\n'), ("a.json", "[1]"), ("a.jsonl", "x\n")])
def test_a_file_of_something_else_is_not_gone_on_with(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match="cannot be continued"):
        read_rows(tmp_path / name, COLUMNS)
    assert read_rows(tmp_path / "absent.csv", COLUMNS) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is always full")
def test_a_full_disk_is_told_by_its_file(tmp_path: Path) -> None:
    with pytest.raises(MachineFaultError, match="No space is left") as caught, RowFile(tmp_path / "rows.csv", COLUMNS) as file:
        assert file.file is not None
        file.file.close()
        file.file = Path("/dev/full").open("w", encoding="utf-8")  # noqa: SIM115
        file.add(row("a"))
    assert str(tmp_path / "rows.csv") in str(caught.value)
