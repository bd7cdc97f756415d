"""ctcovid train: exact resumption, refusals, and the run directory that it writes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import Forked, start
from PIL import Image
from safetensors.torch import load_file, save_file
from thin import WIDTHS

from ctcovid.base.console import Console
from ctcovid.base.errors import CtcovidError, ModelRefusedError, StoppedError, UsageError
from ctcovid.commands import prepare, train
from ctcovid.models.registry import load
from ctcovid.training import memory
from ctcovid.training.checkpoint import read_checkpoint
from ctcovid.training.step import Stepper

Finish = Callable[..., Path]

pytestmark = pytest.mark.usefixtures("thin")


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


def _train(volumes: Path, runs: Path, *arguments: object) -> Forked:
    return start("train", "--data", volumes, "--runs", runs, "--batch", 4, "--workers", 1, *arguments)


def _end(process: Forked, code: int) -> str:
    _, said = process.communicate(timeout=300)
    assert process.returncode == code, said
    return said


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


def _lines(process: Forked) -> Iterator[str]:
    return iter(process.stderr.readline, "")


def test_a_run_stopped_by_a_signal_to_its_group_and_resumed_equals_an_undisturbed_one(
    volumes: Path, undisturbed: Path, tmp_path: Path
) -> None:
    process = _train(volumes, tmp_path, "--epochs", 4, "--name", "run")
    # The line of the second epoch is out while the third is under way, its workers reading.
    next(line for line in _lines(process) if line.startswith("Epoch 2 of 4: training"))
    os.killpg(process.pid, signal.SIGUSR1)
    said = _end(process, 75)
    assert "--resume" in said and "Traceback" not in said
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "stopped"
    _end(_train(volumes, tmp_path, "--epochs", 4, "--name", "run", "--resume"), 0)
    _assert_same(tmp_path / "run", undisturbed)


def test_two_epochs_and_two_more_equal_four(volumes: Path, undisturbed: Path, tmp_path: Path) -> None:
    _end(_train(volumes, tmp_path, "--epochs", 2, "--name", "run"), 0)
    _end(_train(volumes, tmp_path, "--epochs", 4, "--name", "run", "--resume"), 0)
    _assert_same(tmp_path / "run", undisturbed)


@pytest.mark.parametrize(("step", "first"), [("ctcovid.commands.train.finalize", 1), ("ctcovid.models.saved_model.save_card", 3)])
def test_an_extended_run_that_is_stopped_while_it_is_finished_is_finished_by_resume(
    volumes: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, first: int
) -> None:
    """Until then the folder holds the model of the first epochs, or none; never a card that is another one's."""

    def stopped(*_: Any) -> None:
        raise StoppedError("Stopped by SIGTERM.")

    _run(volumes, tmp_path, epochs=first)
    with monkeypatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(step, stopped)
        _run(volumes, tmp_path, epochs=4, resume=True)
    with contextlib.suppress(ModelRefusedError):
        assert load("run", runs=tmp_path).card["trained"] == first
    assert _run(volumes, tmp_path, epochs=4, resume=True).history[-1].epoch == 4
    card = load("run", runs=tmp_path).card
    assert (card["trained"], card["recipe"]["epochs"]) == (4, 4)
    _assert_same(tmp_path / "run", undisturbed)


def test_a_model_stays_in_use_until_the_epochs_beyond_it_are_finished(
    volumes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finalizing takes minutes, and may be stopped."""

    def finalizing(*arguments: Any) -> Any:
        assert load("run", runs=tmp_path).card["trained"] == 1
        return finalize(*arguments)

    finalize = train.finalize
    _run(volumes, tmp_path)
    monkeypatch.setattr(train, "finalize", finalizing)
    _run(volumes, tmp_path, epochs=4, resume=True)
    assert load("run", runs=tmp_path).card["trained"] == 4


def test_a_run_killed_within_an_epoch_resumes_from_within_it(volumes: Path, undisturbed: Path, tmp_path: Path) -> None:
    process = _train(volumes, tmp_path, "--epochs", 4, "--name", "run", "--checkpoint-every", 1e-6)
    next(line for line in _lines(process) if line.startswith("Epoch 2 of 4: training"))
    checkpoint = tmp_path / "run" / "last.pt"
    # Held still while its checkpoint is looked into, so that the kill comes after one within an epoch.
    os.killpg(process.pid, signal.SIGSTOP)
    while not read_checkpoint(checkpoint)["progress"]["step"]:
        assert process.poll() is None, "it was through before it could be killed"
        os.killpg(process.pid, signal.SIGCONT)
        time.sleep(0.01)
        os.killpg(process.pid, signal.SIGSTOP)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    said = _end(_train(volumes, tmp_path, "--epochs", 4, "--name", "run", "--resume"), 0)
    assert re.search(r"Resuming after [23] epochs and [1-9]", said)
    _assert_same(tmp_path / "run", undisturbed)


def test_what_killed_runs_were_writing_is_gone_after_the_next_one(volumes: Path, undisturbed: Path, tmp_path: Path) -> None:
    run = shutil.copytree(undisturbed, tmp_path / "run")
    for name in (".last.pt.0123456789ab-17.tmp", ".best.safetensors.0123456789ab-17.tmp", ".run.json.17.tmp"):
        (run / name).touch()
    _end(_train(volumes, tmp_path, "--epochs", 5, "--name", "run", "--resume"), 0)
    assert list(run.glob(".*.tmp")) == []


# Starts the line in a child of its own session, once for each of the moments, and once more to its end. The child is a fork, which
# saves it the imports and not the rest of a beginning. A moment counts from the child's start, or from that of its run card.
STOPPED_AGAIN_AND_AGAIN = """
import json, os, pathlib, sys, time
import ctcovid.commands.train
from ctcovid import cli
from ctcovid.models import resnet3d

line, card, moments, resnet3d.WIDTHS = json.loads(sys.argv[1]), pathlib.Path(sys.argv[2]), json.loads(sys.argv[3]), json.loads(sys.argv[4])
sys.argv = ["ctcovid", *line]
for number, at_work, seconds in [*moments, (0, False, 0)]:
    card.unlink(missing_ok=True)
    child = os.fork()
    if not child:
        os.setsid()
        cli.main()
    while at_work and not card.exists() and not os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        time.sleep(0.01)
    if number:
        time.sleep(seconds)
        os.killpg(child, number) if os.getpgid(child) == child else os.kill(child, number)
    print("exit code", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=sys.stderr, flush=True)
"""


def test_stops_at_eight_random_moments_leave_no_trace_in_the_result(volumes: Path, undisturbed: Path, tmp_path: Path) -> None:
    generator = random.Random(0)
    signals = [signal.SIGTERM, signal.SIGUSR1, signal.SIGKILL]
    moments = [(int(generator.choice(signals)), generator.random() < 0.8, generator.uniform(0.1, 0.6)) for _ in range(8)]
    line = ["train", "--data", volumes, "--runs", tmp_path, "--batch", 4, "--workers", 1, "--epochs", 4, "--name", "run"]
    arguments = json.dumps([str(word) for word in [*line, "--checkpoint-every", 0.005, "--resume"]])
    card, widths = str(tmp_path / "run" / "run.json"), json.dumps(WIDTHS)
    run = [sys.executable, "-c", STOPPED_AGAIN_AND_AGAIN, arguments, card, json.dumps(moments), widths]
    finished = subprocess.run(run, capture_output=True, text=True, check=False)
    assert "Traceback" not in finished.stderr, finished.stderr
    codes = [int(code) for code in re.findall(r"exit code (-?\d+)", finished.stderr)]
    # What comes before the command listens ends it as signals do; a fast machine is through before the last of them.
    assert set(codes) <= {0, 75, *(-number for number in signals)} and codes[-1] == 0, codes
    assert 75 in codes and sum(code != 0 for code in codes) >= 4, codes
    _assert_same(tmp_path / "run", undisturbed)


def test_ctrl_c_is_kept_like_a_signal_and_ends_with_130(volumes: Path, tmp_path: Path) -> None:
    process = _train(volumes, tmp_path, "--epochs", 4, "--name", "run")
    next(line for line in _lines(process) if line.startswith("Epoch 1 of 4: training"))
    os.killpg(process.pid, signal.SIGINT)
    said = _end(process, 130)
    assert "--resume" in said and "Traceback" not in said
    assert (tmp_path / "run" / "last.pt").is_file()


def test_a_signal_that_comes_twice_costs_no_step(volumes: Path, tmp_path: Path) -> None:
    """As from torchrun, which hands on what the whole step of SLURM has got already."""
    process = _train(volumes, tmp_path, "--epochs", 40, "--name", "run")
    next(line for line in _lines(process) if line.startswith("Epoch 1 of 40: training"))
    with contextlib.suppress(ProcessLookupError):
        for _ in range(20):
            os.killpg(process.pid, signal.SIGTERM)
            time.sleep(0.02)
    said = _end(process, 75)
    assert "last.pt is written" in said and "Traceback" not in said
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "stopped"


def test_the_run_directory_is_a_registered_model(volumes: Path, undisturbed: Path) -> None:
    names = {path.name for path in undisturbed.iterdir()}
    written = {"metrics.csv", "loss.png", "accuracy.png", "last.pt", "run.json"}
    assert names == written | {"model.safetensors", "model.json", "features.safetensors", "training-slices.safetensors"}
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
    said = _end(_train(volumes, undisturbed.parent, "--name", "run"), 5)
    assert "--resume" in said
    assert {path: path.stat().st_mtime_ns for path in undisturbed.iterdir()} == before


def test_resuming_with_other_settings_is_refused(volumes: Path, undisturbed: Path) -> None:
    said = _end(_train(volumes, undisturbed.parent, "--name", "run", "--resume", "--seed", 7), 2)
    assert "--seed was 0 and is 7" in said


@pytest.mark.parametrize("alone", [{"batch": 1}, {"batch": 4, "micro_batch": 1}])
def test_volumes_that_batch_norm_cannot_learn_from_alone_are_refused_before_anything_is_written(
    volumes: Path, tmp_path: Path, alone: dict[str, int]
) -> None:
    options = train.Options(data=volumes, epochs=1, runs=tmp_path / "runs", workers=1, **alone)
    with pytest.raises(UsageError, match="--micro-batch"):
        train.run(options, Console(quiet=True, results=False))
    assert not (tmp_path / "runs").exists()


@pytest.fixture(scope="module")
def begun(volumes: Path, undisturbed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch that began with the weights of another."""
    runs = tmp_path_factory.mktemp("begun")
    _run(volumes, runs, pretrained=undisturbed)
    return runs / "run"


def _run(volumes: Path, runs: Path, console: Console | None = None, **options: Any) -> train.Summary:
    settings = {"epochs": 1, "batch": 4, "name": "run", "workers": 1, "runs": runs} | options
    return train.run(train.Options(data=volumes, **settings), console or Console(quiet=True, results=False))


def test_what_public_weights_gave_is_on_record(undisturbed: Path, begun: Path) -> None:
    for name in ("run.json", "model.json"):
        record = json.loads((begun / name).read_text())["pretrained"]
        assert record["path"] == str(undisturbed / "model.safetensors")
        assert record["sha256"] == hashlib.sha256((undisturbed / "model.safetensors").read_bytes()).hexdigest()
        assert (record["loaded"], record["wanted"], record["share"]) == (87, 87, 1.0)


@pytest.mark.parametrize("file", ["last.pt", "model.safetensors", ""])
def test_a_run_is_not_cleared_by_one_that_would_start_with_its_weights(volumes: Path, begun: Path, file: str) -> None:
    before = {path: path.read_bytes() for path in begun.iterdir()}
    with pytest.raises(UsageError, match=r"which the new run would clear.*--name"):
        _run(volumes, begun.parent, overwrite=True, pretrained=begun / file)
    assert {path: path.read_bytes() for path in begun.iterdir()} == before


def test_a_run_is_resumed_only_with_the_weights_that_it_started_with(volumes: Path, undisturbed: Path, begun: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    save_file({"conv1.weight": torch.zeros(WIDTHS[0], 3, 7, 7, 7)}, other)
    for run, given in ((undisturbed, tmp_path / "missing.pth"), (undisturbed, other), (begun, tmp_path / "missing.pth"), (begun, other)):
        with pytest.raises(UsageError, match="did not start with"):
            _run(volumes, run.parent, resume=True, pretrained=given)
    for given in (None, undisturbed, undisturbed / "model.safetensors"):
        _run(volumes, begun.parent, resume=True, pretrained=given)


def test_weights_of_another_network_are_warned_about(volumes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"conv1.weight": torch.ones(WIDTHS[0], 3, 7, 7, 7)}, tmp_path / "stem.safetensors")
    _run(volumes, tmp_path, pretrained=tmp_path / "stem.safetensors")
    assert "Warning: only 1 of 87 tensors" in capsys.readouterr().err


def test_statistics_that_fail_in_validation_alone_end_the_run_without_a_model(volumes: Path, undisturbed: Path, tmp_path: Path) -> None:
    """Each value is finite, and the variances grow beyond what is."""
    weights = load_file(undisturbed / "model.safetensors")
    beyond = {"bn1.running_mean": torch.full((WIDTHS[0],), -3e38), "bn1.weight": torch.full((WIDTHS[0],), 1e6)}
    save_file(weights | beyond, tmp_path / "w.safetensors")
    with pytest.raises(CtcovidError, match="validation loss is nan"):
        _run(volumes, tmp_path, pretrained=tmp_path / "w.safetensors", precision="float32")
    assert not (tmp_path / "run" / "model.json").exists()


def _more_than_there_is(*_: Any, **__: Any) -> Any:
    return torch.empty(1 << 46)


def test_a_batch_too_large_for_the_memory_of_a_cpu_is_told_which_piece_fits(
    volumes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under ulimit -v. torch has no error of its own for it on a CPU."""
    monkeypatch.setattr(Stepper, "make", _more_than_there_is)
    with pytest.raises(UsageError, match=r"4 volumes at a time do not fit into the memory of .*\. Add --micro-batch 2, which fits"):
        _run(volumes, tmp_path)
    monkeypatch.setattr(memory, "_step", _more_than_there_is)
    with pytest.raises(UsageError, match="Choose a smaller --depth or --arch"):
        _run(volumes, tmp_path, overwrite=True)


def test_resuming_with_other_pieces_is_warned_about(
    volumes: Path, undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(undisturbed, tmp_path / "run")
    _run(volumes, tmp_path, epochs=4, resume=True, micro_batch=4)
    assert "micro-batch" not in capsys.readouterr().err
    _run(volumes, tmp_path, epochs=4, resume=True, micro_batch=2)
    assert "batch norm saw 4 volumes at a time and now sees 2 (--micro-batch)" in capsys.readouterr().err


def test_resuming_on_another_kind_of_device_is_said_and_not_refused(
    volumes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = _run(volumes, tmp_path).folder
    content = torch.load(run / "last.pt", weights_only=True)
    assert content["settings"]["device"] == "cpu"
    content["settings"]["device"] = "NVIDIA H200"
    torch.save(content, run / "last.pt")
    _run(volumes, tmp_path, epochs=2, resume=True)
    said = capsys.readouterr().err
    assert "the run was on NVIDIA H200 and resumes on cpu" in said and "equal to the bit" in said
    _run(volumes, tmp_path, epochs=3, resume=True)
    assert "resumes on" not in capsys.readouterr().err


def test_precisions_are_told_by_the_words_of_the_option(volumes: Path, undisturbed: Path) -> None:
    was = torch.load(undisturbed / "last.pt")["settings"]["precision"].removeprefix("torch.")
    if was != "bfloat16":
        pytest.skip("this processor does not compute in bfloat16")
    with pytest.raises(UsageError, match="--precision was bfloat16 and is float32"):
        _run(volumes, undisturbed.parent, epochs=4, resume=True, precision="float32")


def test_another_depth_restacks_the_same_file(volumes: Path, tmp_path: Path) -> None:
    options = train.Options(data=volumes, depth=2, epochs=1, batch=4, runs=tmp_path, workers=1)
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
        offsets = [file["slices"].id.get_chunk_info(index).byte_offset for index in range(file["slices"].shape[0])]
    content = bytearray(damaged.read_bytes())
    for offset in offsets:
        content[offset + 20] ^= 255
    damaged.write_bytes(content)
    process = _train(damaged, tmp_path, "--epochs", 1, "--workers", 2)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 3
    assert "damaged.h5 is damaged" in said and "Traceback" not in said
