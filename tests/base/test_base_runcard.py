"""The run card: what ran, from what, and how it ended."""

from __future__ import annotations

import datetime
import hashlib
import json
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from ctcovid.base.errors import InputError, StoppedError
from ctcovid.base.runcard import RunCard, sha256


def card(folder: Path) -> RunCard:
    return RunCard(folder / "run.json", "prepare", {"depth": 4, "data": Path("a/b"), "seed": 7, "sources": {}}, {"depth": "option"})


def read(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def test_card_is_there_as_running_before_the_work_begins(tmp_path: Path) -> None:
    with card(tmp_path).recording():
        during = read(tmp_path)
        assert (during["status"], during["ended"]) == ("running", None)
    after = read(tmp_path)
    assert after["status"] == "done"
    assert datetime.datetime.fromisoformat(after["began"]) <= datetime.datetime.fromisoformat(after["ended"])
    assert datetime.datetime.fromisoformat(after["ended"]).utcoffset() is not None
    assert "error" not in after


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (InputError("no such folder"), "failed", "no such folder"),
        (ZeroDivisionError(), "failed", "ZeroDivisionError"),
        (StoppedError("Stopped by SIGTERM."), "stopped", "Stopped by SIGTERM."),
        (StoppedError("Stopped by Ctrl-C.", 130), "stopped", "Stopped by Ctrl-C."),
    ],
    ids=["input", "unexpected", "signal", "Ctrl-C"],
)
def test_card_says_how_a_run_ended_and_why(error: Exception, status: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(type(error)), card(tmp_path).recording():
        raise error
    found = read(tmp_path)
    assert (found["status"], found["error"]) == (status, said)
    assert found["ended"] is not None


def test_each_setting_says_its_value_and_where_it_came_from(tmp_path: Path) -> None:
    card(tmp_path).write()
    found = read(tmp_path)
    assert found["settings"] == {
        "depth": {"value": 4, "source": "option"},
        "data": {"value": "a/b", "source": "default"},
        "seed": {"value": 7, "source": "default"},
    }
    assert (found["command"], found["seed"]) == ("prepare", 7)


def test_card_names_the_versions_that_ran_and_the_slurm_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    card(tmp_path).write()
    found = read(tmp_path)
    assert found["versions"]["numpy"] == np.__version__
    assert found["versions"]["h5py"] == metadata.version("h5py")
    assert found["slurm"]["SLURM_JOB_ID"] == "4711"


def test_inputs_have_their_sha256_and_folders_the_hash_that_is_given(tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(3_000_001)
    (tmp_path / "data.bin").write_bytes(content)
    assert sha256(tmp_path / "data.bin") == hashlib.sha256(content).hexdigest()
    record = card(tmp_path)
    with record.recording():
        record.input(tmp_path / "data.bin")
        record.input(tmp_path, "listing:abc")
        record.output(tmp_path / "out.h5")
    found = read(tmp_path)
    assert [item["hash"] for item in found["inputs"]] == [f"sha256:{hashlib.sha256(content).hexdigest()}", "listing:abc"]
    assert found["outputs"] == [str(tmp_path / "out.h5")]
