"""ctcovid train: exact continuation, refusals, and the run directory it leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file

from ctcovid.base.console import Console
from ctcovid.commands import prepare, train
from ctcovid.models.registry import load
from ctcovid.training.checkpoint import read_checkpoint

Finish = Callable[..., Path]


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared file of 32×32 slices; classes differ in brightness."""
    import numpy as np

    root = tmp_path_factory.mktemp("data")
    for position, label in enumerate(("NCP", "CP", "Normal")):
        for number in range(5):
            folder = root / label / str(100 * position + number) / "1"
            folder.mkdir(parents=True)
            generator = np.random.default_rng([position, number])
            for index in range(8):
                pixels = np.clip(generator.normal(60 + 60 * position, 20, (32, 32)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    file = root / "volumes.h5"
    prepare.run(prepare.Options(root, depth=4, size=32, output=file, workers=1), Console(quiet=True, results=False))
    return file


def _train(volumes: Path, runs: Path, *arguments: object) -> subprocess.Popen[str]:
    line = [sys.executable, "-m", "ctcovid", "train", "--data", str(volumes), "--runs", str(runs), "--batch", "4", "--workers", "1"]
    return subprocess.Popen(
        [*line, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def _end(process: subprocess.Popen[str], code: int) -> str:
    _, talk = process.communicate(timeout=300)
    assert process.returncode == code, talk
    return talk


@pytest.fixture(scope="module")
def undisturbed(volumes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("undisturbed")
    _end(_train(volumes, runs, "--epochs", 4, "--name", "run"), 0)
    return runs / "run"


def _assert_same(run: Path, other: Path) -> None:
    assert (run / "metrics.csv").read_bytes() == (other / "metrics.csv").read_bytes()
    weights, expected = load_file(run / "model.safetensors"), load_file(other / "model.safetensors")
    assert weights.keys() == expected.keys()
    assert all(weights[name].equal(expected[name]) for name in expected)


def _lines(process: subprocess.Popen[str]) -> Iterator[str]:
    assert process.stderr is not None
    return iter(process.stderr.readline, "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_run_stopped_by_a_signal_to_its_group_and_resumed_equals_an_undisturbed_one(
    volumes: Path, undisturbed: Path, tmp_path: Path, number: signal.Signals
) -> None:
    process = _train(volumes, tmp_path, "--epochs", 4, "--name", "run")
    # The line of the second epoch is out while the third is under way, its workers reading.
    next(line for line in _lines(process) if line.startswith("Epoch 2 of 4: training"))
    os.killpg(process.pid, number)
    talk = _end(process, 75)
    assert "--resume" in talk and "Traceback" not in talk
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "stopped"
    _end(_train(volumes, tmp_path, "--epochs", 4, "--name", "run", "--resume"), 0)
    _assert_same(tmp_path / "run", undisturbed)


def test_two_epochs_and_two_more_equal_four(volumes: Path, undisturbed: Path, tmp_path: Path) -> None:
    _end(_train(volumes, tmp_path, "--epochs", 2, "--name", "run"), 0)
    _end(_train(volumes, tmp_path, "--epochs", 4, "--name", "run", "--resume"), 0)
    _assert_same(tmp_path / "run", undisturbed)


def test_a_killed_run_resumes_from_its_last_epoch(volumes: Path, undisturbed: Path, tmp_path: Path) -> None:
    process = _train(volumes, tmp_path, "--epochs", 4, "--name", "run")
    next(line for line in _lines(process) if line.startswith("Epoch 2 of 4: training"))
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    _end(_train(volumes, tmp_path, "--epochs", 4, "--name", "run", "--resume"), 0)
    _assert_same(tmp_path / "run", undisturbed)


def test_a_run_killed_within_an_epoch_resumes_from_within_it(volumes: Path, undisturbed: Path, tmp_path: Path) -> None:
    process = _train(volumes, tmp_path, "--epochs", 4, "--name", "run", "--checkpoint-every", 1e-6)
    next(line for line in _lines(process) if line.startswith("Epoch 2 of 4: training"))
    checkpoint = tmp_path / "run" / "last.pt"
    written = checkpoint.stat().st_mtime_ns
    while checkpoint.stat().st_mtime_ns == written and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert read_checkpoint(checkpoint)["progress"]["step"] > 0
    talk = _end(_train(volumes, tmp_path, "--epochs", 4, "--name", "run", "--resume"), 0)
    assert "Resuming after 2 epochs and " in talk
    _assert_same(tmp_path / "run", undisturbed)


def test_ctrl_c_is_kept_like_a_signal_and_ends_with_130(volumes: Path, tmp_path: Path) -> None:
    process = _train(volumes, tmp_path, "--epochs", 4, "--name", "run")
    next(line for line in _lines(process) if line.startswith("Epoch 1 of 4: training"))
    os.killpg(process.pid, signal.SIGINT)
    talk = _end(process, 130)
    assert "--resume" in talk and "Traceback" not in talk
    assert (tmp_path / "run" / "last.pt").is_file()


def test_the_run_directory_is_a_registered_model(volumes: Path, undisturbed: Path) -> None:
    names = {path.name for path in undisturbed.iterdir()}
    assert names == {"model.safetensors", "model.json", "metrics.csv", "loss.png", "accuracy.png", "last.pt", "run.json"}
    model = load("run", runs=undisturbed.parent)
    assert model.classes == ["NCP", "CP", "Normal"]
    assert (model.depth, model.size, model.card["positive"]) == (4, 32, "NCP")
    for figure in ("loss.png", "accuracy.png"):
        assert min(Image.open(undisturbed / figure).size) > 300
    card = json.loads((undisturbed / "run.json").read_text())
    assert card["status"] == "done"
    assert card["settings"]["epochs"] == {"value": 4, "source": "option"}
    assert card["settings"]["arch"] == {"value": "r3d18", "source": "default"}


def test_an_existing_run_is_not_touched(volumes: Path, undisturbed: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in undisturbed.iterdir()}
    talk = _end(_train(volumes, undisturbed.parent, "--name", "run"), 5)
    assert "--resume" in talk
    assert {path: path.stat().st_mtime_ns for path in undisturbed.iterdir()} == before


def test_resuming_with_other_settings_is_refused(volumes: Path, undisturbed: Path) -> None:
    talk = _end(_train(volumes, undisturbed.parent, "--name", "run", "--resume", "--seed", 7), 2)
    assert "--seed was 0 and is 7" in talk


def test_another_depth_restacks_the_same_file(volumes: Path, tmp_path: Path) -> None:
    options = train.Options(volumes, depth=2, epochs=1, batch=4, runs=tmp_path, workers=1)
    summary = train.run(options, Console(quiet=True, results=False))
    assert summary.folder.name == "r3d18-d2-b4"
    assert load("r3d18-d2-b4", runs=tmp_path).depth == 2


@pytest.mark.parametrize("name", ["..", "a/b"])
def test_a_name_that_is_a_path_is_refused(volumes: Path, tmp_path: Path, name: str) -> None:
    assert "--name" in _end(_train(volumes, tmp_path / "runs", "--name", name), 2)


def test_a_damaged_volumes_file_ends_the_run_at_once(volumes: Path, tmp_path: Path) -> None:
    import h5py

    damaged = tmp_path / "damaged.h5"
    damaged.write_bytes(volumes.read_bytes())
    with h5py.File(damaged) as file:
        places = [file["slices"].id.get_chunk_info(index).byte_offset for index in range(file["slices"].shape[0])]
    content = bytearray(damaged.read_bytes())
    for place in places:
        content[place + 20] ^= 255
    damaged.write_bytes(content)
    process = _train(damaged, tmp_path, "--epochs", 1, "--workers", 2)
    _, talk = process.communicate(timeout=60)
    assert process.returncode == 3
    assert "damaged.h5 is damaged" in talk and "Traceback" not in talk
