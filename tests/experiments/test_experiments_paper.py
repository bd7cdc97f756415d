"""The paper's experiments as scripts: at the tiniest scale, and under a simulated SLURM."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from thin import THIN

from ctcovid import experiments
from ctcovid.experiments.paper_tables import saliency_montage

ROOT = Path(__file__).parents[2]
FOLDER = Path(experiments.__file__).parent
SCRIPT, BATCH = FOLDER / "paper.sh", FOLDER / "paper.sbatch"
BEST = "r3d18-d4-b32"
# Table 4's first row, Tables 5 and 6, and what Table 7 adds; rows that stand in two tables once.
PAPER = [
    *("r3d18-d64-b8", "r3d18-d2-b8", "r3d18-d4-b8", "r3d18-d8-b8", "r3d18-d16-b8", "r3d18-d32-b8"),
    *("r3d18-d2-b32", "r3d18-d2-b64", BEST, "r3d18-d4-b64", "r3d18-d8-b32", "r3d18-d16-b32"),
    *("r2plus1d18-d4-b32", "r3d34-d4-b32", "r2plus1d34-d4-b32", "r3d50-d4-b32"),
]
# srun in one rank: the step is a process group of its own, which signals go to; its variables are those that SLURM sets for a step.
SRUN = """import os, subprocess, sys
step = {"PROCID": 0, "LOCALID": 0, "NODEID": 0, "NTASKS": 1, "NPROCS": 1, "NNODES": 1, "STEP_ID": 0, "STEP_NUM_TASKS": 1,
        "STEP_NODELIST": "localhost", "LAUNCH_NODE_IPADDR": "127.0.0.1", "SRUN_COMM_PORT": 40000, "GTIDS": 0}
task = subprocess.Popen(sys.argv[1:], env=os.environ | {f"SLURM_{k}": str(v) for k, v in step.items()}, start_new_session=True)
with open(os.environ["STEP_FILE"], "w") as file:
    file.write(str(task.pid))
code = task.wait()
sys.exit(code if code >= 0 else 128 - code)
"""
SCONTROL = 'import os, sys\nopen(os.environ["REQUEUE_FILE"], "a").write(" ".join(sys.argv[1:]) + "\\n")\n'

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")


@pytest.fixture(scope="module")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PATH, with ctcovid of thin networks and python3 of this environment, and stubs of SLURM's commands."""
    folder = tmp_path_factory.mktemp("bin")
    (folder / "ctcovid").write_text(f'#!/bin/sh\nexec "{THIN[0]}" "{THIN[1]}" "$@"\n')
    (folder / "python3").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    for name, program in (("srun", SRUN), ("scontrol", SCONTROL)):
        (folder / name).write_text(f"#!{sys.executable}\n{program}")
    for tool in folder.iterdir():
        tool.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of grey noise in the CC-CCII layout; classes differ in brightness."""
    root = tmp_path_factory.mktemp("data") / "CC-CCII"
    for position, label in enumerate(("NCP", "CP", "Normal")):
        for number in range(5):
            folder = root / label / str(100 * position + number) / "1"
            folder.mkdir(parents=True)
            generator = np.random.default_rng([position, number])
            for index in range(8):
                pixels = np.clip(generator.normal(60 + 60 * position, 20, (32, 32)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return root


def _environment(tools: Path, **settings: object) -> dict[str, str]:
    """What a shell has that has ctcovid's environment activated, and these settings alone."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "CTCOVID_"))}
    for name in ("SIZE", "EPOCHS", "DEPTHS", "BATCHES", "MODELS", "OUT", "COMPLETE", "SEGMENTED"):
        inherited.pop(name, None)
    path = {"PATH": f"{tools}:{os.environ['PATH']}", "CTCOVID_WORKERS": "1", "CTCOVID_DEVICE": "cpu"}
    return inherited | path | {name: str(value) for name, value in settings.items()}


def _paper(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["bash", str(SCRIPT), *arguments], env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def prepared(tools: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Settings for two cells, with the data prepared."""
    out = tmp_path_factory.mktemp("paper") / "out"
    settings = {"COMPLETE": data, "OUT": out, "SIZE": 32, "EPOCHS": 1, "DEPTHS": 4, "BATCHES": "8 32", "MODELS": "r3d18"}
    environment = _environment(tools, **settings, CTCOVID_EVALUATE_BOOTSTRAP=50, CTCOVID_EXPLAIN_SAMPLES=2)
    done = _paper(environment, "prepare")
    assert done.returncode == 0, done.stderr
    return environment


@pytest.fixture(scope="module")
def small(prepared: dict[str, str]) -> dict[str, str]:
    """The same settings and one cell that must fail, for the scans have 8 slices, after a run of the whole script."""
    settings = prepared | {"DEPTHS": "64 4"}
    done = _paper(settings)
    assert done.returncode == 4 and "these cells failed, for the reasons above: 2\n" in done.stderr, done.stderr
    assert "no training volumes of depth 64" in done.stderr
    assert done.stdout.startswith("**Table 4."), "results alone are on stdout"
    return settings


def _rows(small: dict[str, str], table: int) -> pd.DataFrame:
    return pd.read_csv(Path(small["OUT"]) / f"table-{table}.csv")


def test_the_scripts_train_the_cells_of_the_paper(tools: Path) -> None:
    lines = _paper(_environment(tools), "list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == PAPER
    for line in lines:
        name, images, arch, depth, batch = line.split()
        assert (name, images) == (f"{arch}-d{depth}-b{batch}", "complete")
    with_all = _paper(_environment(tools, SEGMENTED="s"), "list").stdout
    assert {line.split()[0] for line in with_all.splitlines()} == {*PAPER, "r3d18-d64-b8-same-number", "r3d18-d64-b8-segmented"}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"MODELS": "r3d18 nonsense"}, "MODELS: 'nonsense' is none of the paper's architectures, which are r3d18 "),
        ({"DEPTHS": "2 x"}, "DEPTHS: 'x' is not a number"),
        ({"BATCHES": "8,32"}, "BATCHES: '8,32' is not a number"),
        ({"SIZE": "0"}, "SIZE: '0' is not a number above 0"),
        ({"EPOCHS": "-1"}, "EPOCHS: '-1' is not a number"),
        ({"DEPTHS": "2 4", "BATCHES": "16", "MODELS": "r3d18 r2plus1d18"}, 'no cell of the paper has DEPTHS="2 4", BATCHES="16" and'),
        ({"BATCHES": "8", "MODELS": "r3d50"}, "Table 7, the only one of models other than r3d18, is of depth 4 and batch 32"),
    ],
)
def test_settings_that_leave_nothing_to_train_are_refused_before_any_work(
    settings: dict[str, str], said: str, tools: Path, tmp_path: Path
) -> None:
    environment = _environment(tools, COMPLETE=tmp_path / "absent", OUT=tmp_path / "out", **settings)
    for part in ("list", "prepare", "everything"):
        done = _paper(environment, part)
        assert (done.returncode, done.stdout) == (2, "") and said in done.stderr
        assert done.stderr.startswith("paper.sh: ") and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_what_was_asked_for_and_no_cell_has_is_named(tools: Path) -> None:
    done = _paper(_environment(tools, BATCHES=8, MODELS="r3d18 r3d50"), "list")
    assert [line.split()[0] for line in done.stdout.splitlines()] == PAPER[:6]
    assert done.returncode == 0 and done.stderr.count("no cell has") == 1 and "no cell has r3d50 of MODELS. Table 7" in done.stderr
    assert _paper(_environment(tools), "list").stderr == ""


def test_every_table_has_the_rows_of_the_paper_and_says_which_are_missing(small: dict[str, str]) -> None:
    tables = {number: _rows(small, number) for number in (4, 5, 6, 7)}
    assert tables[4]["images"].tolist() == ["complete", "same-number", "segmented"]
    assert tables[5]["depth"].tolist() == [2, 4, 8, 16, 32, 64] and set(tables[5]["batch"]) == {8}
    assert list(zip(tables[6]["depth"], tables[6]["batch"], strict=True)) == [(2, 32), (2, 64), (4, 32), (4, 64), (8, 32), (16, 32)]
    assert tables[7]["arch"].tolist() == ["r3d18", "r2plus1d18", "r3d34", "r2plus1d34", "r3d50"]
    finished = {number: table.index[table["status"] == "finished"].tolist() for number, table in tables.items()}
    assert finished == {4: [0], 5: [1], 6: [2], 7: [0]}
    for number, table in tables.items():
        lines = [line for line in (Path(small["OUT"]) / f"table-{number}.md").read_text().splitlines() if line.startswith("|")][2:]
        assert ["missing" in line.split("|")[-2] for line in lines] == (table["status"] == "missing").tolist()
        tex = (Path(small["OUT"]) / f"table-{number}.tex").read_text()
        assert tex.count(r"\\") == len(table) + 1 and not re.search(r"(?<!\\)[%_]", tex)


def test_the_numbers_of_a_cell_are_those_of_its_predictions(small: dict[str, str]) -> None:
    from sklearn.metrics import accuracy_score, recall_score

    predictions = pd.read_csv(Path(small["OUT"]) / "table-7" / f"predictions-{BEST}.csv")
    columns = [name for name in predictions if name.startswith("p_")]
    predicted = predictions[columns].idxmax(axis=1).str.removeprefix("p_")
    row = _rows(small, 7).iloc[0]
    assert row["test_volumes"] == len(predictions)
    assert row["accuracy_value"] == pytest.approx(accuracy_score(predictions["label"], predicted))
    assert row["recall_value"] == pytest.approx(recall_score(predictions["label"] == "NCP", predicted == "NCP"))


def test_every_figure_is_drawn_once_the_best_model_is_finished(small: dict[str, str]) -> None:
    out = Path(small["OUT"])
    for number in range(4, 10):
        with Image.open(out / f"figure-{number}.png") as figure:
            assert min(figure.size) > 200
    assert "Figure 7: figure-7.png" in (out / "results.md").read_text()
    assert len(list((out / "figure-7").glob("*/manifest.json"))) == 3, "one patient of each class is in the test part"


def test_the_saliency_figure_shows_the_middle_slice_of_a_scan(tmp_path: Path) -> None:
    """CC-CCII's names are not padded, and sort as text into another order than that of the scan."""
    names = [f"{number}.png" for number in range(6, 17)]
    overlays = tmp_path / "explained" / "7" / "overlays"
    overlays.mkdir(parents=True)
    for number, name in enumerate(names):
        Image.new("RGB", (8, 8), (0, 20 * number, 0)).save(overlays / name)
    manifest = {"source": "CC-CCII/NCP/7/1", "slices": names}
    (overlays.parent / "manifest.json").write_text(json.dumps(manifest))
    assert saliency_montage(tmp_path / "figure.png", tmp_path / "explained")
    with Image.open(tmp_path / "figure.png") as figure:
        colours = figure.convert("RGB").getcolors(1 << 20)
    assert (0, 20 * names.index("11.png"), 0) in [colour for _, colour in colours]


def test_a_finished_cell_is_not_trained_again(small: dict[str, str]) -> None:
    card = Path(small["OUT"]) / "runs" / "r3d18-d4-b8" / "model.json"
    before = card.stat().st_mtime_ns
    done = _paper(small, "train", "1")
    assert done.returncode == 0 and "already" in done.stderr and card.stat().st_mtime_ns == before


def test_a_cell_that_is_not_in_the_list_is_refused(prepared: dict[str, str]) -> None:
    for number in ("0", "3", "one"):
        done = _paper(prepared, "train", number)
        assert done.returncode == 2 and f"no cell {number}" in done.stderr


def test_a_signal_to_all_of_the_script_ends_it_with_75_and_begins_no_other_cell(prepared: dict[str, str], tmp_path: Path) -> None:
    shutil.copy(Path(prepared["OUT"]) / "complete.h5", tmp_path)
    with (tmp_path / "log").open("wb") as log:
        settings = prepared | {"OUT": str(tmp_path), "EPOCHS": "4"}
        process = subprocess.Popen(["bash", str(SCRIPT)], env=settings, stdout=log, stderr=log, start_new_session=True)
    _wait_for(tmp_path / "log", "Epoch 1 of 4: training", process)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(timeout=300) == 75
    talk = (tmp_path / "log").read_text()
    assert "Cell 1" in talk and "Cell 2" not in talk and "Traceback" not in talk
    assert (tmp_path / "runs" / "r3d18-d4-b8" / "last.pt").is_file()


def _wait_for(log: Path, text: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 300
    while text not in log.read_text():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


class Job:
    """A batch script as SLURM runs it: a copy of it in a spool folder, its variables set, its output in a log."""

    def __init__(self, script: Path, folder: Path, cwd: Path, environment: dict[str, str]) -> None:
        self.script, self.cwd = folder / "slurm_script", cwd
        shutil.copy(script, self.script)
        self.log, self.step, self.requeued = (folder / name for name in ("log", "step", "requeued"))
        job = {"SLURM_JOB_ID": "712", "SLURM_ARRAY_JOB_ID": "711", "SLURM_ARRAY_TASK_ID": "1", "SLURM_NTASKS": "1", "SLURM_NNODES": "1"}
        self.environment = environment | job | {"STEP_FILE": str(self.step), "REQUEUE_FILE": str(self.requeued)}

    def start(self) -> subprocess.Popen[bytes]:
        # As with --open-mode=append, a job that is run again goes on in its log.
        with self.log.open("ab") as log:
            return subprocess.Popen(["bash", str(self.script)], cwd=self.cwd, env=self.environment, stdout=log, stderr=log)

    def signal(self, number: signal.Signals, process: subprocess.Popen[bytes]) -> None:
        """As the scheduler does it: --signal=USR1 goes to the step alone, preemption's SIGTERM to the batch script as well."""
        os.killpg(int(self.step.read_text()), number)
        if number == signal.SIGTERM:
            process.send_signal(number)


def _stop_requeue_and_finish(job: Job, epochs: int, run: Path, number: signal.Signals) -> None:
    process = job.start()
    _wait_for(job.log, f"Epoch 1 of {epochs}: training", process)
    job.signal(number, process)
    assert process.wait(timeout=300) == 0, job.log.read_text()
    assert job.requeued.read_text() == "requeue 712\n"
    assert not (run / "model.json").exists(), "the training was over before the signal came"
    job.environment["SLURM_RESTART_COUNT"] = "1"
    assert job.start().wait(timeout=600) == 0, job.log.read_text()
    assert job.requeued.read_text() == "requeue 712\n", "requeued once"
    assert "Resuming after" in job.log.read_text() and "Traceback" not in job.log.read_text()
    assert pd.read_csv(run / "metrics.csv")["epoch"].tolist() == [*range(1, epochs + 1)]
    assert (run / "model.json").is_file()


def test_a_job_of_the_array_that_is_stopped_requeues_itself_and_continues(prepared: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    shutil.copy(Path(prepared["OUT"]) / "complete.h5", out)
    job = Job(BATCH, tmp_path, ROOT, prepared | {"OUT": str(out), "EPOCHS": "4"})
    _stop_requeue_and_finish(job, 4, out / "runs" / "r3d18-d4-b8", signal.SIGUSR1)


def test_a_job_that_fails_is_not_requeued(prepared: dict[str, str], tmp_path: Path) -> None:
    job = Job(BATCH, tmp_path, ROOT, prepared | {"OUT": str(tmp_path / "nothing-prepared")})
    assert job.start().wait(timeout=300) == 3
    assert not job.requeued.exists() and "No such volumes file" in job.log.read_text()


def test_the_batch_script_of_the_readme_requeues_itself_and_evaluates_at_the_end(
    prepared: dict[str, str], tools: Path, tmp_path: Path
) -> None:
    blocks: list[str] = re.findall(r"```sh\n(#!/bin/bash\n.*?)```", (ROOT / "ctcovid" / "manual" / "cluster.md").read_text(), re.DOTALL)
    (block,) = (block for block in blocks if "scontrol requeue" in block)
    script = tmp_path / "train.sbatch"
    script.write_text(block)
    shutil.copy(Path(prepared["OUT"]) / "complete.h5", tmp_path / "volumes.h5")
    settings = {"CTCOVID_TRAIN_EPOCHS": 4, "CTCOVID_EVALUATE_BOOTSTRAP": 50}
    run = tmp_path / "runs" / "r2plus1d18-d4-b32"
    _stop_requeue_and_finish(Job(script, tmp_path, tmp_path, _environment(tools, **settings)), 4, run, signal.SIGUSR1)
    assert (run / "evaluation" / "evaluation.json").is_file()


def test_the_scripts_ask_for_no_shell_newer_than_that_of_macos() -> None:
    for script in (SCRIPT, BATCH):
        text = re.sub(r"(?m)^#.*$", "", script.read_text())
        newer = r"mapfile|readarray|declare -[Ag]|local -[An]|\$\{\w+(\^|,,|@)|\|&|&>>|wait -n|\$\{\w+\[-1\]\}|\bseq\b|readlink -f"
        assert re.findall(newer, text) == [], script
