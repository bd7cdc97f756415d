"""ctcovid demo: a synthetic data set that the other commands take, and refusals in one sentence."""

from __future__ import annotations

import csv
import json
import os
import signal
from dataclasses import asdict, replace
from pathlib import Path

import h5py
import pytest

from ctcovid.base.console import Console
from ctcovid.base.errors import OutputExistsError, StoppedError, UsageError
from ctcovid.base.signals import StopRequest
from ctcovid.commands import demo, prepare, train
from ctcovid.commands.demo_presets import PRESETS, Machine, choose


def quiet() -> Console:
    return Console(quiet=True, results=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "synthetic"
    options = demo.Options(folder, data_only=True, patients=3, size=32, slices="8-10", corrupt=0.1, repeated=0.2, workers=1)
    summary = demo.run(options, quiet())
    assert [row["class"] for row in summary.document()["classes"]] == ["NCP", "CP", "Normal"]
    return folder


def test_the_data_set_alone_is_what_prepare_takes(made: Path, tmp_path: Path) -> None:
    """With lesion masks beside the class folders that are no class, and damaged files that are named and left out."""
    options = prepare.Options(made, 4, 32, tmp_path / "volumes.h5", on_problem="drop", workers=1)
    summary = prepare.run(options, quiet())
    assert {row[0] for row in summary.table.rows} == {"NCP", "CP", "Normal", "all"}
    with (made / "defects.csv").open(newline="") as file:
        defects = list(csv.DictReader(file))
    # Repeats are dropped as well, to the bit as they are.
    corrupt = [f"{row['class']}/{row['patient']}/{row['scan']}" for row in defects if row["kind"] in ("corrupt", "repeated")]
    assert corrupt and len(summary.failed) == len(corrupt)
    assert all(any(name in sentence for sentence in summary.failed) for name in corrupt)


def test_other_options_do_not_overwrite_the_data(made: Path) -> None:
    with pytest.raises(OutputExistsError):
        demo.run(demo.Options(made, data_only=True), quiet())


def test_a_demo_that_is_stopped_says_how_to_begin_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object) -> None:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            raise stop.error("runs/r3d18/last.pt is written; the same command with --resume resumes it.")

    monkeypatch.setattr(demo.train, "run", stopped)
    options = demo.Options(tmp_path / "demo", patients=3, size=32, slices="8-10", workers=1)
    # The second run does what the message of the first advises.
    for line in (options, replace(options, overwrite=True)):
        with pytest.raises(StoppedError) as caught:
            demo.run(line, quiet())
        assert str(caught.value) == "Stopped by SIGTERM. A demo cannot be resumed. Start it again with the same command and --overwrite."
        assert caught.value.exit_code == 75
        assert json.loads((tmp_path / "demo" / "run.json").read_text())["error"] == str(caught.value)


@pytest.mark.parametrize(
    ("machine", "name"),
    [
        (Machine(gpu=False, bfloat16=False, cpus=2), "small"),
        (Machine(gpu=False, bfloat16=True, cpus=4), "full"),
        (Machine(gpu=False, bfloat16=True, cpus=2), "medium"),
        (Machine(gpu=False, bfloat16=True, cpus=1), "small"),
        (Machine(gpu=False, bfloat16=False, cpus=7), "medium"),
        (Machine(gpu=False, bfloat16=False, cpus=8), "full"),
        (Machine(gpu=True, bfloat16=False, cpus=1), "full"),
    ],
)
def test_the_preset_is_chosen_by_the_machine(machine: Machine, name: str) -> None:
    chosen, reason = choose("auto", machine)
    assert chosen.name == name
    assert reason == "there is a GPU" if machine.gpu else reason.startswith(f"{machine.cpus} CPU")
    for wanted, preset in PRESETS.items():
        assert choose(wanted, machine) == (preset, "as asked for")


def test_the_full_preset_is_the_demo_as_it_was() -> None:
    full = PRESETS["full"]
    assert (full.patients, full.size, full.slices) == (72, 96, "16-18")
    assert full.recipe() == {"epochs": 9, "batch": 16, "learning_rate": 3e-4, "schedule": "cosine", "augment": True}


@pytest.mark.parametrize(("bfloat16", "wanted", "name"), [(False, "auto", "small"), (True, "auto", "medium"), (True, "small", "small")])
def test_the_preset_is_recorded_and_its_values_are_used(
    bfloat16: bool, wanted: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is given beside a preset goes before its values."""
    trained: list[train.Options] = []

    def stopped(options: train.Options, _: Console) -> None:
        trained.append(options)
        raise UsageError("far enough")

    monkeypatch.setattr(demo, "multiplies_bfloat16", lambda: bfloat16)
    monkeypatch.setattr(demo.cpus, "allowed", lambda: 2)
    monkeypatch.setattr(demo.train, "run", stopped)
    options = demo.Options(tmp_path / "demo", preset=wanted, patients=3, size=32, slices="8-10", device="cpu", workers=1)
    with pytest.raises(UsageError, match="far enough"):
        demo.run(options, Console(results=False))
    card = json.loads((tmp_path / "demo" / "run.json").read_text())
    reason = "as asked for" if wanted == name else f"2 CPUs {'with' if bfloat16 else 'without'} fast bfloat16"
    preset = PRESETS[name]
    assert card["preset"] == asdict(preset) | {"reason": reason}
    assert card["settings"]["preset"]["value"] == wanted and card["settings"]["patients"]["value"] == 3
    assert f"Preset {name} ({reason})" in capsys.readouterr().err
    assert {key: getattr(trained[0], key) for key in preset.recipe()} == preset.recipe() and trained[0].augment == preset.augment
    with h5py.File(trained[0].data) as file:
        assert file["slices"].shape[1:] == (32, 32) and len(set(file["scans/patient"].asstr())) == 9


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"preset": "small"}, "--preset small is for all five commands"),
        ({"preset": "tiny", "data_only": False}, "no such preset"),
        ({"slices": "many"}, "--slices"),
        ({"slices": "40-20"}, "fewest and most"),
        ({"repeated": 0.6, "masked": 0.6}, "together at most 1"),
    ],
)
def test_a_data_set_that_cannot_be_made_is_a_usage_error(options: dict[str, object], words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        demo.run(demo.Options(tmp_path / "out", **{"data_only": True, **options}), quiet())  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()
