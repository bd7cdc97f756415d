"""Files that are whole or absent, and JSON that every reader can read."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from ctcovid.base.errors import InputError, OutputExistsError
from ctcovid.base.files import atomic, claim, fresh_folder, json_text, write_json, write_text


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_written_file_takes_the_place_of_the_old_one_and_leaves_no_other(tmp_path: Path) -> None:
    (tmp_path / "result.txt").write_text("old")
    with atomic(tmp_path / "result.txt") as temporary:
        temporary.write_text("new")
        assert (tmp_path / "result.txt").read_text() == "old"
        assert temporary.parent == tmp_path
    assert contents(tmp_path) == {"result.txt": b"new"}


def test_exception_while_writing_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "result.txt").write_text("old")
    with pytest.raises(ZeroDivisionError), atomic(tmp_path / "result.txt") as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert contents(tmp_path) == {"result.txt": b"old"}


def test_ctrl_c_while_writing_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic(tmp_path / "result.txt") as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_missing_folders_are_made(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b" / "c.txt", "Röntgen\n")
    assert (tmp_path / "a" / "b" / "c.txt").read_bytes() == "Röntgen\n".encode()


def test_folder_that_may_not_be_written_to_is_an_input_error_that_names_the_file(tmp_path: Path) -> None:
    # Root may write anywhere, so the refusal is given, not provoked.
    with pytest.raises(InputError, match=r"result\.txt cannot be written.*permissions"), atomic(tmp_path / "result.txt"):
        raise PermissionError(13, "Permission denied")


@pytest.mark.parametrize(
    "value",
    [float("nan"), float("inf"), float("-inf"), np.float32("nan"), np.float64("inf"), np.array(float("nan"))],
    ids=["nan", "inf", "-inf", "float32 nan", "float64 inf", "array of nan"],
)
def test_what_json_cannot_say_becomes_null(value: object) -> None:
    assert json.loads(json_text({"a": [value, {"b": value}], "c": value})) == {"a": [None, {"b": None}], "c": None}


def test_numpy_numbers_paths_and_tuples_become_plain_json() -> None:
    document = {"count": np.int64(3), "share": np.float32(0.5), "flag": np.bool_(True), "path": Path("a/b"), "pair": (1, 2), 4: "é"}
    assert json.loads(json_text(document)) == {"count": 3, "share": 0.5, "flag": True, "path": "a/b", "pair": [1, 2], "4": "é"}
    assert "é" in json_text(document)


def test_double_precision_survives_the_json_file(tmp_path: Path) -> None:
    write_json(tmp_path / "numbers.json", [0.1 + 0.2, 1e-300, 2**53 + 1])
    assert json.loads((tmp_path / "numbers.json").read_text()) == [0.1 + 0.2, 1e-300, 2**53 + 1]
    assert (tmp_path / "numbers.json").read_text().endswith("]\n")


def test_existing_result_is_claimed_only_with_overwrite(tmp_path: Path) -> None:
    claim(tmp_path / "absent", overwrite=False)
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputExistsError, match=r"file exists already.*--overwrite") as caught:
        claim(tmp_path / "file", overwrite=False)
    assert caught.value.exit_code == 5
    claim(tmp_path / "file", overwrite=True)
    assert (tmp_path / "file").read_text() == "x"


def test_folder_counts_as_a_result_once_something_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    claim(tmp_path / "folder", overwrite=False)
    (tmp_path / "folder" / "x").touch()
    with pytest.raises(OutputExistsError):
        claim(tmp_path / "folder", overwrite=False)


def test_fresh_folder_replaces_the_whole_old_one(tmp_path: Path) -> None:
    (tmp_path / "run" / "sub").mkdir(parents=True)
    (tmp_path / "run" / "sub" / "old").touch()
    with fresh_folder(tmp_path / "run", overwrite=True) as folder:
        (folder / "new").mkdir()
        (folder / "new" / "file").write_text("1")
        assert (tmp_path / "run" / "sub" / "old").exists()
    assert contents(tmp_path) == {"run/new/file": b"1"}


def test_exception_while_filling_a_fresh_folder_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "old").write_text("old")
    with pytest.raises(ZeroDivisionError), fresh_folder(tmp_path / "run", overwrite=True) as folder:
        (folder / "half").touch()
        raise ZeroDivisionError
    assert contents(tmp_path) == {"run/old": b"old"}
    assert os.listdir(tmp_path) == ["run"]  # noqa: PTH208


def test_fresh_folder_refuses_before_anything_is_made(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "old").touch()
    with pytest.raises(OutputExistsError), fresh_folder(tmp_path / "run", overwrite=False):
        pytest.fail("the block ran")
    assert contents(tmp_path) == {"run/old": b""}
