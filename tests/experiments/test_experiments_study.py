"""Which cells the paper's experiments have, what they are called, and what the folder of a study records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ctcovid.base.console import Console
from ctcovid.base.errors import CtcovidError, InputError, OutputExistsError, UsageError
from ctcovid.commands import paper
from ctcovid.experiments.study import RECORD, Study, read_study
from ctcovid.options.words import parsed

# Table 4's first row, Tables 5 and 6, and what Table 7 adds; rows that stand in two tables once.
PAPER = [
    *("r3d18-d64-b8", "r3d18-d2-b8", "r3d18-d4-b8", "r3d18-d8-b8", "r3d18-d16-b8", "r3d18-d32-b8"),
    *("r3d18-d2-b32", "r3d18-d2-b64", "r3d18-d4-b32", "r3d18-d4-b64", "r3d18-d8-b32", "r3d18-d16-b32"),
    *("r2plus1d18-d4-b32", "r3d34-d4-b32", "r2plus1d34-d4-b32", "r3d50-d4-b32"),
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with one of scans."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scans").mkdir()
    return tmp_path


def listed(*words: object) -> list[dict[str, Any]]:
    table = paper.run(parsed("paper", ["list", *words]), Console(quiet=True, results=False)).cells  # type: ignore[union-attr]
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


def study_of(*words: object) -> Study:
    return read_study(parsed("paper", words))


def test_the_cells_are_those_of_the_paper() -> None:
    cells = listed()
    assert [cell["run"] for cell in cells] == PAPER
    assert [cell["number"] for cell in cells] == [*range(1, 17)] and {cell["status"] for cell in cells} == {"not begun"}
    for cell in cells:
        assert cell["run"] == f"{cell['architecture']}-d{cell['depth']}-b{cell['batch']}" and cell["images"] == "complete"
    assert cells[0]["cell"] == "t4-complete, t5-d64-b8" and cells[8]["cell"] == "t6-d4-b32, t7-r3d18"
    with_all = {cell["run"] for cell in listed("--segmented", "scans")}
    assert with_all == {*PAPER, "r3d18-d64-b8-same-number", "r3d18-d64-b8-segmented"}


def test_seeds_repeat_every_cell_after_all_of_the_first_seed() -> None:
    cells = listed("--seeds", 3, "--seed", 5)
    assert [cell["run"] for cell in cells] == [name + suffix for suffix in ("", "-s1", "-s2") for name in PAPER]
    assert [cell["seed"] for cell in cells] == [5] * 16 + [6] * 16 + [7] * 16


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--archs", "r3d18 r3d99"], "--archs: 'r3d99' is none of the paper's architectures, which are r3d18 "),
        (["--archs", " "], "--archs: '' is none of the paper's architectures"),
        (["--depths", "2 x"], "--depths: 'x' is not a number from 1 to 1024"),
        (["--depths", "0"], "--depths: '0' is not a number"),
        (["--batches", ""], "--batches: '' is not a number"),
        (["--depths", "2 4", "--batches", "16"], 'no cell of the paper has --depths "2 4", --batches "16" and'),
        (["--batches", "8", "--archs", "r3d50"], "Table 7, the only one of models other than r3d18, is of depth 4 and batch 32"),
        (["--synthetic", "--segmented", "scans"], "--synthetic makes segmented scans of its own"),
        (["--patients", "9"], "--patients is the size of the synthetic data"),
    ],
)
def test_settings_that_leave_nothing_to_train_are_refused_before_any_work(words: list[str], said: str, folder: Path) -> None:
    for line in (["list", *words], ["sbatch", "scans", *words], ["run", "scans", *words]):
        options = parsed("paper", line)
        with pytest.raises(UsageError) as refused:
            options.require_sense()
            paper.run(options, Console(quiet=True))
        assert said.lower() in str(refused.value).lower()
    assert not (folder / "ctcovid-paper").exists()


@pytest.mark.parametrize(
    ("words", "kind", "said"),
    [
        (["run"], UsageError, "Name the folder of complete CT"),
        (["sbatch"], UsageError, "Name the folder of complete CT"),
        (["run", "scan"], InputError, "No such file, folder or cell: "),
        (["run", "scans", "--segmented", "nosuch"], InputError, "No such file, folder or cell: "),
        (["run", "17"], UsageError, "no cell 17: 16 are asked for"),
        (["run", "scans", "--cell", "t6-d4-b3"], UsageError, "Did you mean 't6-d4-b32'?"),
        (["run", "scans", "--cell", "t6-d4-b32", "--depths", "2"], UsageError, "no cell t6-d4-b32 among those asked for"),
        (["run", "7", "--cell", "7"], UsageError, "Both 7 and --cell 7 name a cell"),
        (["list", "--cell", "7"], UsageError, "--cell is for ctcovid paper run"),
        (["run", "scans", "-o", "scans"], OutputExistsError, "ctcovid paper did not make it"),
        (["report"], InputError, "There is no ctcovid-paper to report"),
    ],
)
def test_what_cannot_be_run_is_refused_at_once(words: list[str], kind: type[CtcovidError], said: str, folder: Path) -> None:
    (folder / "scans" / "notes.txt").touch()
    with pytest.raises(CtcovidError) as refused:
        options = parsed("paper", words)
        options.require_sense()
        paper.run(options, Console(quiet=True))
    assert type(refused.value) is kind and said in str(refused.value)
    assert [path.name for path in folder.iterdir()] == ["scans"]


def test_what_was_asked_for_and_no_cell_has_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert [cell["run"] for cell in listed("--batches", 8, "--archs", "r3d18, r3d50")] == PAPER[:6]
    said = capsys.readouterr().err
    assert said.count("no cell has") == 1 and "no cell has r3d50 of --archs. Table 7" in said
    listed()
    assert capsys.readouterr().err == ""


def test_a_cell_has_a_number_and_a_name_in_each_table(folder: Path) -> None:
    for word in ("9", "t6-d4-b32", "t7-r3d18", "r3d18-d4-b32"):
        for line in (["run", word], ["run", "scans", "--cell", word]):
            one = study_of(*line).one
            assert one is not None and one.run == "r3d18-d4-b32"
    repeated = study_of("run", "t7-r3d18-s2", "--seeds", 3).one
    assert repeated is not None and (repeated.run, repeated.repeat) == ("r3d18-d4-b32-s2", 2)
    # Table 4 is of the last depth.
    assert study_of("run", "t4-segmented", "--depths", "4 8", "--segmented", "scans").one.run == "r3d18-d8-b8-segmented"  # type: ignore[union-attr]
    (folder / "9").mkdir()
    assert study_of("run", "./9").scans == folder / "9" and study_of("run", "./9").one is None


def test_the_folder_records_what_later_commands_need_not_repeat(folder: Path) -> None:
    study = study_of("run", "scans", "--size", 64, "--depths", "2 4", "--seeds", 2, "-o", "mine")
    study.record()
    later = study_of("run", "3", "-o", "mine")
    assert later.one == study.cells[2] and later.settings == study.settings and later.scans == folder / "scans"
    # Nothing is prepared yet.
    assert study_of("run", "scans", "--size", 32, "-o", "mine").size == 32
    study.data("complete").touch()
    assert study_of("run", "--epochs", 30, "--depths", "4", "-o", "mine").epochs == 30
    assert study_of("run", "--segmented", "scans", "-o", "mine").segmented == folder / "scans"
    for words, said in (
        (["--size", 32], "mine was prepared with --size 64, not with --size 32"),
        (["--seed", 1], "mine was prepared with --seed 0, not with --seed 1"),
        (["--synthetic"], "name different data"),
        (["."], f"mine was prepared with {folder / 'scans'}, not with {folder}"),
    ):
        with pytest.raises(UsageError, match=r"--output") as refused:
            study_of("run", *words, "-o", "mine")
        assert said in str(refused.value)


@pytest.mark.parametrize("content", ["{", "[]", "{}", None])
def test_a_damaged_record_is_refused(content: str | None, folder: Path) -> None:
    study = study_of("run", "scans")
    study.record()
    path = folder / "ctcovid-paper" / RECORD
    path.write_text(json.dumps(study.settings | {"epochs": "many"}) if content is None else content)
    with pytest.raises(InputError, match=r"Restore it, or name another --output"):
        study_of("list")
