"""Which commands a study runs, with which words, and in which order; the commands themselves are stubs that leave what they would."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from ctcovid.base.console import Console
from ctcovid.base.errors import InputError, StoppedError
from ctcovid.base.faults import told
from ctcovid.experiments.running import Work, run_cells
from ctcovid.experiments.study import Study, read_study
from ctcovid.options.commands import COMMANDS
from ctcovid.options.words import parsed


class Commands:
    """Stubs of the commands. `calls` are their lines; `failing` has, by a word of a line, the error that the command raises."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.failing: dict[str, BaseException] = {}

    def __call__(self, name: str, words: Sequence[object]) -> None:
        self.calls.append(f"{name} {' '.join(map(str, words))}")
        options = parsed(name, words)
        for word, error in self.failing.items():
            if word in [name, *map(str, words)]:
                raise error
        getattr(self, name)(options)

    def demo(self, options: Any) -> None:
        options.folder.mkdir(parents=True)
        (options.folder / "run.json").write_text(json.dumps({"command": "demo", "status": "done"}))

    def prepare(self, options: Any) -> None:
        options.output.touch()

    def train(self, options: Any) -> None:
        folder = options.folder(options.depth)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.json").write_text(
            json.dumps({"recipe": {"epochs": options.epochs}, "weights_sha256": f"{folder.name} {options.epochs}"})
        )

    def evaluate(self, options: Any) -> None:
        folder = options.runs / options.models[0]
        weights = json.loads((folder / "model.json").read_text())["weights_sha256"]
        (folder / "evaluation").mkdir(exist_ok=True)
        document = {"ci": options.ci, "part": options.part, "inputs": [{"hash": f"sha256:{weights}"}]}
        (folder / "evaluation" / "evaluation.json").write_text(json.dumps(document))


@pytest.fixture
def commands() -> Commands:
    return Commands()


@pytest.fixture
def study_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Study]:
    """A study of these words in the current folder, which holds scans."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scans").mkdir()

    def make(*words: object) -> Study:
        study = read_study(parsed("paper", ["run", *words]))
        study.record()
        return study

    return make


def run(study: Study, commands: Commands) -> list[str]:
    return run_cells(Work(study, commands, Console(quiet=True)), study.cells, told)


def test_segmented_and_as_many_complete_slices_are_prepared_once(
    study_of: Callable[..., Study], commands: Commands, tmp_path: Path
) -> None:
    scans = tmp_path / "scans"
    study = study_of("scans", "--segmented", "scans", "--size", 64, "--epochs", 2, "--depths", 2, "--batches", 8, "--seed", 3)
    assert run(study, commands) == []
    out = Path("ctcovid-paper")
    assert [call for call in commands.calls if call.startswith("prepare")] == [
        f"prepare {scans} --output {out}/complete.h5 --images complete --balance --size 64 --seed 3",
        f"prepare {scans} --output {out}/segmented.h5 --images segmented --size 64 --seed 3",
        f"prepare {scans} --output {out}/same-number.h5 --images complete --same-as {out}/segmented.h5 --size 64 --seed 3",
    ]
    assert [call for call in commands.calls if call.startswith("train")] == [
        f"train --data {out}/{images}.h5 --name r3d18-d2-b8{'' if images == 'complete' else '-' + images} --arch r3d18 --depth 2 --batch 8 "
        f"--epochs 2 --seed 3 --runs {out}/runs --resume"
        for images in ("complete", "same-number", "segmented")
    ]
    assert sum(call.startswith("evaluate") and "--ci normal" in call for call in commands.calls) == 3


def test_synthetic_scans_have_slices_for_the_thickest_volumes_also_where_they_are_segmented(
    study_of: Callable[..., Study], commands: Commands
) -> None:
    for depths, slices in (("2 4", "16-24"), ("4 64", "96-104")):
        study = study_of("--synthetic", "--patients", 7, "--depths", depths, "--size", 64, "-o", f"out-{slices}")
        Work(study, commands, Console(quiet=True)).data("segmented")
        made = f"out-{slices}/synthetic"
        assert commands.calls == [
            f"demo {made} --data-only --patients 7 --size 64 --slices {slices} --masked 0.25 --seed 0 --overwrite",
            f"prepare {made} --output out-{slices}/segmented.h5 --images segmented --size 64 --seed 0",
        ]
        commands.calls.clear()


def test_what_is_done_is_not_done_again(study_of: Callable[..., Study], commands: Commands) -> None:
    words = ("scans", "--depths", 2, "--batches", "8 32", "--seeds", 2)
    study = study_of(*words)
    assert run(study, commands) == [] and len(commands.calls) == 1 + 2 * 4
    assert [call.partition("--name ")[2].split()[0] for call in commands.calls if call.startswith("train")] == [
        *("r3d18-d2-b8", "r3d18-d2-b32", "r3d18-d2-b8-s1", "r3d18-d2-b32-s1")
    ]
    commands.calls.clear()
    assert run(study, commands) == [] and commands.calls == []
    # A cell that was only trained is only evaluated; more epochs concern all.
    (study.runs / "r3d18-d2-b8" / "evaluation" / "evaluation.json").unlink()
    assert run(study, commands) == [] and [call.split()[0] for call in commands.calls] == ["evaluate"]
    commands.calls.clear()
    assert (
        run(study_of(*words, "--epochs", 21), commands) == [] and [call.split()[0] for call in commands.calls] == ["train", "evaluate"] * 4
    )


def test_a_cell_that_fails_is_named_and_the_rest_is_done(
    study_of: Callable[..., Study], commands: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    study = study_of("scans", "--depths", "4 64", "--batches", 8)
    commands.failing["r3d18-d64-b8"] = InputError("no training volumes of depth 64")
    assert run(study, commands) == ["t4-complete: no training volumes of depth 64"]
    assert "1 of 2 cells failed:\n  t4-complete: no training volumes of depth 64" in capsys.readouterr().err
    assert (study.runs / "r3d18-d4-b8" / "evaluation" / "evaluation.json").is_file()


def test_if_every_cell_fails_the_error_is_that_of_the_command(study_of: Callable[..., Study], commands: Commands) -> None:
    study = study_of("scans", "--depths", "4", "--batches", "8 64")
    commands.failing["train"] = InputError("no training volumes")
    with pytest.raises(InputError, match="no training volumes"):
        run(study, commands)
    commands.failing = {"prepare": InputError("no scans")}
    study.data("complete").unlink()
    commands.calls.clear()
    with pytest.raises(InputError, match="no scans"):
        run(study, commands)
    assert len(commands.calls) == 1


def test_data_that_cannot_be_prepared_are_tried_once(study_of: Callable[..., Study], commands: Commands) -> None:
    study = study_of("scans", "--segmented", "scans", "--depths", "4", "--batches", 8)
    commands.failing["segmented"] = InputError("none is segmented")
    failed = run(study, commands)
    assert [sentence.split(":")[0] for sentence in failed] == ["t4-same-number", "t4-segmented"]
    assert sum("--images segmented" in call for call in commands.calls) == 2


def test_a_stop_begins_no_other_cell(study_of: Callable[..., Study], commands: Commands) -> None:
    commands.failing["evaluate"] = StoppedError("Stopped by SIGTERM.")
    with pytest.raises(StoppedError):
        run(study_of("scans", "--depths", "4", "--batches", 8), commands)
    assert [call.split()[0] for call in commands.calls] == ["prepare", "train", "evaluate"]


def test_every_command_that_is_run_exists() -> None:
    assert {"demo", "prepare", "train", "evaluate", "explain"} <= set(COMMANDS)
