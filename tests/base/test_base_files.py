"""Files that are whole or absent, and JSON that every reader can read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ctcovid.base.errors import InputError, OutputExistsError
from ctcovid.base.files import RUN_CARD, atomic, claim_file, claim_folder, fresh_folder, json_text, write_json, write_text


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_written_file_replaces_the_old_one_and_leaves_no_other(tmp_path: Path) -> None:
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


def test_existing_file_is_claimed_only_with_overwrite(tmp_path: Path) -> None:
    claim_file(tmp_path / "absent", overwrite=False)
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputExistsError, match=r"file exists already.*--overwrite") as caught:
        claim_file(tmp_path / "file", overwrite=False)
    assert caught.value.exit_code == 5
    claim_file(tmp_path / "file", overwrite=True)
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.parametrize("there", [True, False])
def test_link_is_written_through_and_stays_a_link(there: bool, tmp_path: Path) -> None:
    target, link, second = tmp_path / "other" / "target.csv", tmp_path / "link.csv", tmp_path / "second.csv"
    target.parent.mkdir()
    if there:
        target.write_text("old")
    link.symlink_to("other/target.csv")
    second.symlink_to("link.csv")
    claim_file(second, overwrite=True)
    write_text(second, "new")
    assert second.is_symlink() and link.is_symlink() and not target.is_symlink()
    assert target.read_text() == "new"
    assert contents(tmp_path) == dict.fromkeys(("other/target.csv", "link.csv", "second.csv"), b"new")


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/null", "/dev/fd/1", "/proc/x.csv", "link to /dev/stdout"])
@pytest.mark.parametrize("overwrite", [True, False])
def test_device_is_refused_as_one_wherever_stdout_leads(name: str, overwrite: bool, tmp_path: Path) -> None:
    path = Path(name)
    if name.startswith("link to "):
        path = tmp_path / "link"
        path.symlink_to(name.removeprefix("link to "))
    code = (
        "import sys; from pathlib import Path; from ctcovid.base.files import claim_file; claim_file(Path(sys.argv[1]), bool(sys.argv[2]))"
    )
    with (tmp_path / "redirected").open("w") as stdout:
        line = [sys.executable, "-c", code, str(path), "x" * overwrite]
        done = subprocess.run(line, stdout=stdout, stderr=subprocess.PIPE, text=True, check=False)
    assert f"InputError: {path} is a device" in done.stderr and "-o -" in done.stderr and "--overwrite" not in done.stderr


def test_folder_is_replaced_only_where_the_same_command_made_it(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    claim_folder(folder, False, "evaluate")
    (folder / "scan.png").touch()
    for content in (None, "{", "[]", '{"command": "explain"}'):
        if content:
            (folder / RUN_CARD).write_text(content)
        with pytest.raises(OutputExistsError, match="did not make it"):
            claim_folder(folder, True, "evaluate")
    (folder / RUN_CARD).write_text('{"command": "evaluate"}')
    claim_folder(folder, True, "evaluate")
    with pytest.raises(OutputExistsError, match="--overwrite"):
        claim_folder(folder, False, "evaluate")
    assert (folder / "scan.png").exists()


def test_output_of_the_wrong_kind_or_without_a_folder_is_refused_before_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a folder"):
        claim_file(tmp_path, True)
    with pytest.raises(InputError, match="is a file"):
        claim_folder(tmp_path / "file", True, "explain")
    for claim in (lambda path: claim_file(path, True), lambda path: claim_folder(path, True, "explain")):
        with pytest.raises(InputError, match="cannot be written"):
            claim(tmp_path / "file" / "below" / "it")


def test_fresh_folder_replaces_the_whole_old_one(tmp_path: Path) -> None:
    (tmp_path / "run" / "sub").mkdir(parents=True)
    (tmp_path / "run" / "sub" / "old").touch()
    with fresh_folder(tmp_path / "run") as folder:
        (folder / "new").mkdir()
        (folder / "new" / "file").write_text("1")
        assert (tmp_path / "run" / "sub" / "old").exists()
    assert contents(tmp_path) == {"run/new/file": b"1"}


def test_exception_while_filling_a_fresh_folder_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "old").write_text("old")
    with pytest.raises(ZeroDivisionError), fresh_folder(tmp_path / "run") as folder:
        (folder / "half").touch()
        raise ZeroDivisionError
    assert contents(tmp_path) == {"run/old": b"old"}
    assert os.listdir(tmp_path) == ["run"]  # noqa: PTH208


def test_what_is_no_utf_8_is_written_as_its_bytes_in_words(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    write_text(tmp_path / "a.txt", f"{name}, é\n")
    assert (tmp_path / "a.txt").read_bytes() == "caf\\xe9, é\n".encode()
    write_json(tmp_path / "a.json", {name: [name, Path(name)]})
    assert json.loads((tmp_path / "a.json").read_bytes()) == {r"caf\xe9": [r"caf\xe9", r"caf\xe9"]}
