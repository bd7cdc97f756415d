"""ctcovid demo: a synthetic data set that the other commands take, and bad wishes in one sentence."""

from __future__ import annotations

import csv
import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from ctcovid.base.console import Console
from ctcovid.base.errors import OutputExistsError, StoppedError, UsageError
from ctcovid.base.signals import StopRequest
from ctcovid.commands import demo, prepare


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


def test_another_wish_does_not_overwrite_the_data(made: Path) -> None:
    with pytest.raises(OutputExistsError):
        demo.run(demo.Options(made, data_only=True), quiet())


def test_a_demo_that_is_stopped_says_how_to_begin_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object) -> None:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            raise stop.error("runs/r3d18/last.pt is written; the same line with --resume continues it.")

    monkeypatch.setattr(demo.train, "run", stopped)
    options = demo.Options(tmp_path / "demo", patients=3, size=32, slices="8-10", workers=1)
    # What the sentence advises is taken at its word.
    for line in (options, replace(options, overwrite=True)):
        with pytest.raises(StoppedError) as caught:
            demo.run(line, quiet())
        assert str(caught.value) == "Stopped by SIGTERM. A demo is not continued: the same line with --overwrite begins it anew."
        assert caught.value.exit_code == 75
        assert json.loads((tmp_path / "demo" / "run.json").read_text())["error"] == str(caught.value)


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({"slices": "many"}, "--slices"),
        ({"slices": "40-20"}, "fewest and most"),
        ({"repeated": 0.6, "masked": 0.6}, "together at most 1"),
    ],
)
def test_a_data_set_that_cannot_be_made_is_a_usage_error(wish: dict[str, object], words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        demo.run(demo.Options(tmp_path / "out", data_only=True, **wish), quiet())
    assert not (tmp_path / "out").exists()
