"""Several processes are one run: the same steps, each volume once, one end. With Gloo on this machine, started as by torchrun and srun."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forked import Forked, run, start, start_code
from safetensors.torch import load_file, save_file
from thin import THIN, WIDTHS

from ctcovid.base.console import Console
from ctcovid.commands import evaluate, prepare
from ctcovid.models import registry, saved_model
from ctcovid.models.network import SCALING

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.usefixtures("thin")

# Twenty steps of a small network with batch norm; the last batch of each epoch leaves a process without a volume, or with one.
STEPS = """
import json, sys
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from ctcovid.base.console import Console
from ctcovid.models.architectures import architecture
from ctcovid.models.network import Network
from ctcovid.distributed.ranks import together
from ctcovid.distributed.sync_batchnorm import synchronise
from ctcovid.training.checkpoint import TrainingState
from ctcovid.training.ema import Ema
from ctcovid.training.recipe import Recipe
from ctcovid.training.step import Stepper
from ctcovid.volumes.batches import Batch

def steps(ranks, path, micro_batch, beyond):
    torch.manual_seed(0)
    first = (nn.Conv3d(1, 6, 3, padding=1, bias=False), nn.BatchNorm3d(6), nn.ReLU())
    second = (nn.Conv3d(6, 8, 3, bias=False), nn.BatchNorm3d(8), nn.ReLU())
    module = nn.Sequential(*first, *second, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 3))
    network = Network(module, architecture("r3d18"), ["a", "b", "c"], torch.device("cpu"), torch.float32)
    module.train()
    if ranks.size > 1:
        assert synchronise(module, ranks.sum) == 2
    recipe, ema = Recipe(batch=8, micro_batch=micro_batch, **beyond), Ema(module, 0.9)
    stepper = Stepper(TrainingState(network, recipe.optimiser(module), ema), recipe, ranks, True)
    volumes = torch.randint(0, 256, (17, 4, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(17) % 3
    volumes[labels == 1] //= 2
    losses = []
    for number in range(20):
        indices = torch.randperm(17, generator=torch.Generator().manual_seed(number))[: 1 if number % 7 == 6 else 8].tolist()
        # As with the sampler, a volume may be in a batch twice.
        indices[-1] = indices[0] if beyond else indices[-1]
        weights = torch.tensor([0.5, 1.0, 3.0]) if beyond else None
        if beyond and number == 4:
            weights[ranks.rank] = torch.inf
        own = torch.tensor(stepper.share(indices), dtype=torch.int64)
        outcome = stepper.make(Batch(volumes[own], labels[own], own), indices, None, number, weights).read()
        assert outcome.skipped == bool(beyond and number == 4)
        losses += [] if outcome.skipped else [outcome.loss]
    assert ema.state()["updates"] == len(losses)
    if ranks.first:
        torch.save({"losses": losses, "state": module.state_dict(), "average": ema.tensors}, path)

with together(Console(), "cpu", "") as ranks:
    for variant in json.loads(sys.argv[1]):
        steps(ranks, *variant)
"""


def free_port() -> str:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


def srun(size: int, *line: object, own: dict[int, list[object]] | None = None, program: Callable[..., Any] = start) -> list[Any]:
    """The processes that ``srun --ntasks=size`` starts, with the variables that it sets; `own` are arguments of single ones."""
    step = {"SLURM_JOB_ID": "77", "SLURM_STEP_ID": "0", "SLURM_NTASKS": str(size), "SLURM_JOB_NODELIST": socket.gethostname()}
    port = free_port()
    processes = []
    for rank in range(size):
        variables = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        processes.append(program(*line, *(own or {}).get(rank, []), environment={**os.environ, **step, **variables}))
    return processes


def python(*line: object, environment: dict[str, str]) -> subprocess.Popen[str]:
    """The same from a Python of its own, where nothing has been imported."""
    path = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    return subprocess.Popen([*THIN, *map(str, line)], env=environment | path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def end(processes: list[Any]) -> tuple[list[int], list[str], list[str]]:
    """Codes, stdout and stderr of all processes; they are killed where they hang."""
    try:
        said = [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.wait() for process in processes], [out for out, _ in said], [error for _, error in said]


BEYOND = {"augment": True, "label_smoothing": 0.1, "weight_decay": 0.01, "clip_gradient": 0.1}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int, bool], dict[str, Any]]:
    """What STEPS left, by number of processes and micro-batch, and whether beyond the paper's recipe."""
    root = tmp_path_factory.mktemp("made")
    # Pieces see statistics of their own, so that those of one process are another function; only whole batches compare with it.
    variants = {1: [(0, False), (0, True)], 2: [(0, False), (3, False), (0, True), (3, True)]}
    named = {(size, *variant): root / f"{size}-{number}.pt" for size, some in variants.items() for number, variant in enumerate(some)}
    started = [
        srun(
            size,
            STEPS,
            json.dumps([(str(named[(size, micro, more)]), micro, BEYOND if more else {}) for micro, more in some]),
            program=start_code,
        )
        for size, some in variants.items()
    ]
    for processes in started:
        codes, _, errors = end(processes)
        assert set(codes) == {0}, errors
    return {which: torch.load(path, weights_only=True) for which, path in named.items()}


@pytest.mark.parametrize("beyond", [False, True])
@pytest.mark.parametrize("micro_batch", [0, 3])
def test_two_processes_make_the_steps_of_one(made: dict[tuple[int, int, bool], dict[str, Any]], micro_batch: int, beyond: bool) -> None:
    """The one uses torch's own batch norm."""
    two = made[2, micro_batch, beyond]
    assert len(two["losses"]) == 20 - beyond and np.isfinite(two["losses"]).all()
    if not micro_batch:
        one = made[1, micro_batch, beyond]
        assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
        for which in ("state", "average"):
            for name, tensor in one[which].items():
                if not name.endswith("num_batches_tracked"):
                    torch.testing.assert_close(two[which][name], tensor, rtol=1e-3, atol=1e-4)


# Two epochs of three steps, a signal to one process in one of them, and the rest after it. Steps are read late, as on a GPU.
STOPPED_AHEAD = """
import itertools, signal, sys
import torch
from torch import nn
from ctcovid.base.console import Console
from ctcovid.base.signals import StopRequest
from ctcovid.models.architectures import architecture
from ctcovid.models.network import Network
from ctcovid.distributed.ranks import together
from ctcovid.distributed.session import Session
from ctcovid.training.checkpoint import Saving, TrainingState
from ctcovid.training.data import TrainingData
from ctcovid.training.loop import fit
from ctcovid.training.recipe import Recipe
from ctcovid.training.step import Stepper
from ctcovid.volumes.batches import Batch

class Volumes:
    shape, labels = (2, 8, 8), torch.arange(12).numpy() % 3
    def __len__(self): return 12
    def batches(self, order, workers, pin=False, stop=None):
        for indices in map(torch.tensor, order):
            yield Batch((indices[:, None, None, None] * 20).expand(-1, 2, 8, 8).to(torch.uint8), indices % 3, indices)

def train(ranks, ahead, due=False, sender=None, at=None):
    # Weights at the end, and in which epoch and step the signal stopped.
    torch.manual_seed(0)
    below = (nn.Conv3d(1, 4, (1, 3, 3)), nn.BatchNorm3d(4), nn.ReLU())
    module = nn.Sequential(*below, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 3))
    network = Network(module, architecture("r3d18"), ["a", "b", "c"], torch.device("cpu"), torch.float32)
    recipe, saved = Recipe(epochs=2, batch=4), []
    state = TrainingState(network, recipe.optimiser(module))
    progress, stepper = state.progress, Stepper(state, recipe, ranks)
    stepper.ahead, make, numbers = ahead, stepper.make, itertools.count()
    stop = StopRequest()
    def counting(*arguments):
        if next(numbers) == at and ranks.rank == sender:
            stop.received = signal.SIGUSR1
        return make(*arguments)
    stepper.make = counting
    saving = Saving(1e-12 if due and ranks.first else 0, lambda: saved.append(progress.step))
    def resume():
        session = Session(Console(quiet=True), stop, ranks, 1)
        return fit(stepper, TrainingData(Volumes(), Volumes()), session, saving, lambda row, pace: None)
    stood = None
    if at is not None:
        assert not resume() and stop.received == signal.SIGUSR1
        stood, stop = (progress.epoch, progress.step), StopRequest()
    assert resume() and bool(saved) == (due and ranks.first)
    return module.state_dict(), stood

with together(Console(), "cpu", "") as ranks:
    expected, _ = train(ranks, False)
    for due, sender, at in itertools.product((False, True), range(ranks.size), range(6)):
        found, stood = train(ranks, True, due, sender, at)
        stands = ranks.gather(stood)
        # Of several processes each hears of the signal one step later, where the epoch has one.
        assert stands == [(at // 3, min(at % 3 + ranks.size, 3))] * ranks.size, (due, sender, at, stands)
        assert all(found[name].equal(expected[name]) for name in expected), (due, sender, at)
"""


@pytest.mark.parametrize("size", [1, 2])
def test_steps_that_are_read_late_end_in_all_processes_alike_whatever_is_saved_meanwhile(size: int) -> None:
    codes, _, errors = end(srun(size, STOPPED_AHEAD, program=start_code))
    assert codes == [0] * size, errors


@pytest.fixture(scope="module")
def data(thin: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """volumes.h5 of 32x32 slices, with seven test volumes, and an untrained model of them."""
    from PIL import Image

    root = tmp_path_factory.mktemp("distributed")
    split = ["patient,split"]
    for position, label in enumerate(("NCP", "CP", "Normal")):
        for number, (part, slices) in enumerate((("train", 24), ("valid", 4), ("test", 8 + 4 * (position == 0)))):
            patient = 100 * position + number
            folder = root / "scans" / label / str(patient) / "1"
            folder.mkdir(parents=True)
            split.append(f"{patient},{part}")
            generator = np.random.default_rng(patient)
            for index in range(slices):
                pixels = np.clip(generator.normal(60 + 60 * position, 20, (32, 32)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    (root / "split.csv").write_text("\n".join(split))
    options = prepare.Options(root / "scans", depth=4, size=32, output=root / "volumes.h5", split_file=root / "split.csv", workers=1)
    prepare.run(options, Console(quiet=True, results=False))
    torch.manual_seed(0)
    (root / "runs" / "untrained").mkdir(parents=True)
    saved_model.save_weights(root / "runs" / "untrained" / saved_model.WEIGHTS, registry.create("r3d18"))
    card = {"architecture": "r3d18", "classes": ["NCP", "CP", "Normal"], "positive": "NCP", "depth": 4, "size": 32, "scaling": SCALING}
    saved_model.save_card(root / "runs" / "untrained", {**card, "data": {"path": str(root / "volumes.h5")}})
    return root


def test_every_test_volume_is_scored_once_by_one_two_and_three_processes(data: Path, tmp_path: Path) -> None:
    alone = evaluate.Options(("untrained",), data / "volumes.h5", runs=data / "runs", bootstrap=5, workers=1, output=tmp_path / "one")
    evaluate.run(alone, Console(quiet=True, results=False))
    line = ["evaluate", "untrained", "--data", data / "volumes.h5", "--runs", data / "runs", "--bootstrap", 5, "--workers", 1, "--json"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", free_port(), *THIN[1:]]
    two = subprocess.run(
        [sys.executable, *torchrun, *map(str, line), "-o", tmp_path / "two"], env=environment, capture_output=True, text=True, check=False
    )
    assert two.returncode == 0, two.stderr
    assert json.loads(two.stdout)["models"][0]["n_volumes"] == 7
    codes, outputs, errors = end(srun(3, *line, "-o", tmp_path / "three"))
    assert codes == [0, 0, 0], errors
    assert json.loads(outputs[0])["models"][0]["n_volumes"] == 7 and outputs[1:] == errors[1:] == ["", ""]
    rows = list(csv.DictReader((tmp_path / "one" / "predictions-untrained.csv").open()))
    assert len({(row["scan"], row["patient"], row["volume"]) for row in rows}) == len(rows) == 7
    for folder in ("two", "three"):
        assert (tmp_path / folder / "predictions-untrained.csv").read_bytes() == (
            tmp_path / "one" / "predictions-untrained.csv"
        ).read_bytes()


def train_line(data: Path, runs: Path) -> list[object]:
    return ["train", "--data", data / "volumes.h5", "--runs", runs, "--batch", 6, "--workers", 1, "--name", "run"]


def until(process: Forked, beginning: str) -> None:
    said = []
    for line in process.stderr:
        said.append(line)
        if line.startswith(beginning):
            return
    raise AssertionError("".join(said))


def _no_half_files(folder: Path) -> None:
    assert [path.name for path in folder.iterdir() if path.name.endswith(".tmp")] == []


def test_two_processes_stop_together_end_together_and_one_continues(data: Path, tmp_path: Path) -> None:
    line, folder = train_line(data, tmp_path), tmp_path / "run"
    processes = srun(2, *line, "--epochs", 50)
    until(processes[0], "Epoch 1 of 50: training")
    # torchrun hands on to its processes what the whole step of SLURM has got already.
    for number in (1, 0, 0, 1):
        processes[number].send_signal(signal.SIGTERM)
    codes, _, errors = end(processes)
    assert codes == [75, 75], errors
    assert "Stopped by SIGTERM" in errors[0] and "last.pt is written" in errors[0] and "--resume" in errors[0] and errors[1] == ""
    assert json.loads((folder / "run.json").read_text())["status"] == "stopped"

    processes = srun(2, *line, "--epochs", 50, "--resume")
    until(processes[0], "Resuming after")
    processes[1].kill()
    codes, _, errors = end(processes)
    assert codes == [1, -signal.SIGKILL], errors
    assert "Process 1 of 2" in errors[0] and "--resume" in errors[0] and "Traceback" not in errors[0]
    assert json.loads((folder / "run.json").read_text())["status"] == "failed"
    _no_half_files(folder)

    rows = len(torch.load(folder / "last.pt", weights_only=True)["progress"]["history"])
    finished = run(*line, "--epochs", rows + 1, "--resume")
    assert finished.returncode == 0, finished.stderr
    assert "had 2 processes and resumes with 1" in finished.stderr and "equal to the bit" in finished.stderr
    epochs = [int(row["epoch"]) for row in csv.DictReader((folder / "metrics.csv").open())]
    assert epochs == list(range(1, rows + 2))


def test_all_end_and_say_how_to_resume_when_the_first_process_is_killed(data: Path, tmp_path: Path) -> None:
    """It holds the store from which the others would learn of a failure. They end within 30 seconds; a busy machine has twice that."""
    line, folder = train_line(data, tmp_path), tmp_path / "run"
    processes = srun(3, *line, "--epochs", 50)
    until(processes[0], "Epoch 1 of 50: training")
    processes[0].kill()
    killed = time.monotonic()
    codes, _, errors = end(processes)
    assert time.monotonic() - killed < 60
    assert codes == [-signal.SIGKILL, 1, 1], errors
    for error in errors[1:]:
        assert "Process 0 of 3 has ended" in error and "--resume" in error and "Traceback" not in error
    assert torch.load(folder / "last.pt", weights_only=True)["progress"]["epoch"] >= 1


def test_a_failure_in_one_process_is_reported_once_and_ends_all_with_its_code(data: Path, tmp_path: Path) -> None:
    codes, _, errors = end(srun(2, *train_line(data, tmp_path), own={1: ["--data", tmp_path / "absent.h5"]}, program=python))
    assert codes == [3, 3], errors
    assert "Process 1 of 2" in errors[0] and "absent.h5" in errors[0] and errors[1] == ""


def test_commands_of_one_process_refuse_to_run_in_several(data: Path, tmp_path: Path) -> None:
    codes, _, errors = end(srun(2, "prepare", data / "scans", "-o", tmp_path / "v.h5"))
    assert codes == [2, 2] and "one process" in errors[0]
    assert list(tmp_path.iterdir()) == []


def test_two_processes_train_beyond_the_paper_and_one_resumes(data: Path, tmp_path: Path) -> None:
    beyond = ["--augment", "--class-balance", "sampler", "--ema", 0.9, "--clip-gradient", 1, "--warmup", 0.5, "--label-smoothing", 0.1]
    line = [*train_line(data, tmp_path), *beyond, "--micro-batch", "auto"]
    codes, outputs, errors = end(srun(2, *line, "--epochs", 1))
    assert codes == [0, 0], errors
    assert "volumes/s" in errors[0] and outputs[1] == errors[1] == ""
    settings = torch.load(tmp_path / "run" / "last.pt", weights_only=True)["settings"]
    assert (settings["ranks"], settings["micro_batch"]) == (2, 3)
    ((code,), _, (error,)) = end(srun(1, *line, "--epochs", 2, "--resume"))
    assert code == 0, error
    assert "resumes with 1" in error and "--micro-batch" not in error
    content = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert content["ema"]["updates"] == 6 and len(content["progress"]["history"]) == 2


def test_a_validation_that_is_nan_in_one_process_ends_all(data: Path, tmp_path: Path) -> None:
    """The statistics fail in validation alone; the three volumes of it are those of one process and of the other."""
    weights = load_file(data / "runs" / "untrained" / saved_model.WEIGHTS)
    broken = {"bn1.running_mean": torch.full((WIDTHS[0],), -3e38), "bn1.weight": torch.full((WIDTHS[0],), 1e6)}
    save_file(weights | broken, tmp_path / "w.safetensors")
    line = [*train_line(data, tmp_path), "--epochs", 2, "--pretrained", tmp_path / "w.safetensors", "--precision", "float32"]
    codes, _, errors = end(srun(2, *line))
    assert codes == [1, 1], errors
    assert errors[0].count("validation loss is nan after epoch 1") == 1 and "Traceback" not in errors[0] and errors[1] == ""
    assert not (tmp_path / "run" / "model.json").exists()
