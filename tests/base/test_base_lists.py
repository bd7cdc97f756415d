"""Lists as Excel and other systems save them: read where they can be read in one way only, else refused in a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from ctcovid.base.errors import InputError
from ctcovid.base.lists import read_list

KNOWN = ("patient", "split", "note")
TEXT = 'patient,split,note\r\n007,train,"0,85"\r\nŁódź 1,test,"a ""b""; c"\r\n'
ROWS = [["007", "train", "0,85"], ["Łódź 1", "test", 'a "b"; c']]
SEMICOLONS = 'patient;split;note\r\n007;train;0,85\r\nŁódź 1;test;"a ""b""; c"\r\n'
TABS = 'patient\tsplit\tnote\n007\ttrain\t0,85\nŁódź 1\ttest\t"a ""b""; c"\n'


def as_saved(folder: Path, content: bytes) -> Path:
    path = folder / "list.csv"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("text", [TEXT, SEMICOLONS, TABS], ids=["commas", "semicolons", "tabs"])
def test_a_list_is_the_same_in_every_encoding_and_with_every_separator(text: str, encoding: str, tmp_path: Path) -> None:
    found = read_list(as_saved(tmp_path, text.encode(encoding)), KNOWN)
    assert (found.headings, found.rows, found.lines) == (list(KNOWN), ROWS, [2, 3])


def test_utf_16_of_the_other_byte_order_is_read_by_its_mark(tmp_path: Path) -> None:
    assert read_list(as_saved(tmp_path, b"\xfe\xff" + TEXT.encode("utf-16-be")), KNOWN).rows == ROWS


@pytest.mark.parametrize("ends", ["\n", "\r", "\r\n"])
def test_lines_may_end_as_on_any_system(ends: str, tmp_path: Path) -> None:
    found = read_list(as_saved(tmp_path, SEMICOLONS.replace("\r\n", ends).encode()), KNOWN)
    assert (found.rows, found.lines) == (ROWS, [2, 3])


@pytest.mark.parametrize("first", ["sep=;", '"sep=;"', "SEP=;;;", "\ufeffsep=;"])
def test_the_line_that_declares_a_separator_is_no_heading(first: str, tmp_path: Path) -> None:
    found = read_list(as_saved(tmp_path, f"{first}\r\n{SEMICOLONS}".encode()), KNOWN)
    assert (found.headings, found.rows, found.lines) == (list(KNOWN), ROWS, [3, 4])


def test_a_declared_separator_holds_where_the_headings_would_tell_another(tmp_path: Path) -> None:
    found = read_list(as_saved(tmp_path, b"sep=;\npatient,split\n1,train\n"), KNOWN)
    assert (found.headings, found.rows) == (["patient,split"], [["1,train"]])


def test_blank_lines_and_empty_columns_at_the_end_are_no_part_of_a_list(tmp_path: Path) -> None:
    found = read_list(as_saved(tmp_path, b"\n Patient ,SPLIT,Age,,\n\n1,train,30,,\n,,,,\n2,test,,,\n"), KNOWN)
    assert found.headings == ["patient", "split", "Age"]
    assert (found.rows, found.lines) == ([["1", "train", "30"], ["2", "test", ""]], [4, 6])


def test_fields_that_excel_omits_at_the_end_of_a_row_are_empty(tmp_path: Path) -> None:
    assert read_list(as_saved(tmp_path, b"patient,split,note\n1,train\n"), KNOWN).rows == [["1", "train", ""]]


def test_one_column_needs_no_separator(tmp_path: Path) -> None:
    found = read_list(as_saved(tmp_path, b"patient\na;b\nc d\n"), KNOWN)
    assert found.rows == [["a;b"], ["c d"]]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("patient,split\nMüller,train\n".encode("cp1252"), "encoding is not UTF-8 .byte 0xFC in line 2.*CSV UTF-8"),
        ("patient,split\n王,train\n".encode("gbk"), "encoding is not UTF-8"),
        (b"\xff\xfep\x00a\x00t", "encoding is not UTF-16"),
        (b"patient,split\n1\x00,train\n", "encoding cannot be told"),
        (b"patient,id;split\n1,2;train\n", "separator may be commas or semicolons"),
        (b"patient,split\n1;train\n", "line 2: 1 field, but the heading has 2, with commas as the separator"),
        (b"patient,note\n1,0,85\n", "line 2: 3 fields.*decimal commas"),
        (b'patient,split\n"1,train\n2,test\n', "line 3: a quote is opened and never closed"),
        (b"sep=:\npatient:split\n", "declares the separator ':', not one of commas"),
        (b"patient split\n1 train\n", "separator is none of commas, semicolons, tabs and bars"),
        (b"Our patients;;\n;;\npatient;split\n1;train\n", "headings are in line 3; remove the lines above them"),
        (b"patient,Patient\n1,2\n", "two columns have the same name, patient"),
        (b"PK\x03\x04\x14\x00\x06\x00", "spreadsheet.*save as CSV"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "Excel.*save as CSV"),
        (b"<html><table>", "HTML.*save as CSV"),
        (b"", "is empty"),
    ],
)
def test_what_can_be_read_in_two_ways_or_in_none_is_refused(content: bytes, said: str, tmp_path: Path) -> None:
    path = as_saved(tmp_path, content)
    with pytest.raises(InputError, match=said) as caught:
        read_list(path, KNOWN)
    assert str(path) in str(caught.value)


def test_a_folder_is_no_list(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_list(tmp_path, KNOWN)
