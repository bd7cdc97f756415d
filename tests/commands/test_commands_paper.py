"""The paper's experiments as a user runs them: a rehearsal on synthetic CT at a tiny scale, and as jobs under a simulated SLURM."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from thin import THIN

from ctcovid.base.console import Console
from ctcovid.commands import paper
from ctcovid.experiments.report import Report
from ctcovid.experiments.slurm import Script
from ctcovid.options.words import parsed

ROOT = Path(__file__).parents[2]
BEST, OTHER = "r3d18-d4-b32", "r2plus1d18-d4-b32"
SCALE = ("--depths", "4", "--batches", "32", "--archs", "r3d18 r2plus1d18")
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
# In place of ctcovid: trains until it is stopped, and is done when it is resumed.
TRAINING = """import pathlib, signal, sys
log = pathlib.Path("calls")
before = log.read_text() if log.exists() else ""
log.write_text(before + " ".join(sys.argv[1:]) + chr(10))
if not before:
    signal.signal(signal.SIGUSR1, lambda number, frame: sys.exit(75))
    print("training", flush=True)
    signal.pause()
"""


def run(*words: object) -> object:
    options = parsed("paper", words)
    options.require_sense()
    return paper.run(options, Console())


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory, thin: None) -> Iterator[Path]:
    """The folder of two cells that were run on synthetic CT, with settings in the environment and the current folder."""
    folder = tmp_path_factory.mktemp("paper")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, value in {"WORKERS": 1, "DEVICE": "cpu", "EVALUATE_BOOTSTRAP": 50, "EXPLAIN_SAMPLES": 2}.items():
            patch.setenv(f"CTCOVID_{name}", str(value))
        report = run("run", "--synthetic", "--patients", 3, "--size", 64, "--epochs", 1, *SCALE)
        assert isinstance(report, Report) and report.failed == [] and (report.done, report.cells) == (2, 2)
        yield folder / "ctcovid-paper"


def test_a_rehearsal_ends_with_the_papers_values_beside_those_of_its_cells(rehearsal: Path) -> None:
    results = (rehearsal / "results.md").read_text()
    assert "- Data: synthetic CT, 3 patients of each class\n- Scale: 64 pixels, 1 epoch, seed 0\n- Done: 2 of 2 cells" in results
    assert re.search(r"\| ResNet-18 +\| Accuracy +\| +0\.9924 \(0\.9902, 0\.9945\) \| +[01]\.\d{4} \(", results)
    finished = {number: pd.read_csv(rehearsal / f"table-{number}.csv")["status"].eq("finished").tolist() for number in (4, 5, 6, 7)}
    assert finished == {4: [False] * 3, 5: [False] * 6, 6: [False] * 2 + [True] + [False] * 3, 7: [True, True, False, False, False]}


def test_the_numbers_of_a_cell_are_those_of_its_predictions(rehearsal: Path) -> None:
    from sklearn.metrics import accuracy_score, recall_score

    predictions = pd.read_csv(rehearsal / "runs" / BEST / "evaluation" / f"predictions-{BEST}.csv")
    columns = [name for name in predictions if name.startswith("p_")]
    predicted = predictions[columns].idxmax(axis=1).str.removeprefix("p_")
    row = pd.read_csv(rehearsal / "table-7.csv").iloc[0]
    assert row["test_volumes"] == len(predictions)
    assert row["accuracy_value"] == pytest.approx(accuracy_score(predictions["label"], predicted))
    assert row["recall_value"] == pytest.approx(recall_score(predictions["label"] == "NCP", predicted == "NCP"))


def test_every_figure_but_that_of_depths_is_drawn_once_the_best_model_is_finished(rehearsal: Path) -> None:
    for number in range(5, 10):
        with Image.open(rehearsal / f"figure-{number}.png") as figure:
            assert min(figure.size) > 200
    assert "Figure 4: missing\nFigure 5: figure-5.png" in (rehearsal / "results.md").read_text()
    sources = [json.loads(path.read_text())["source"] for path in rehearsal.glob("figure-7/*/manifest.json")]
    assert sorted(Path(source).parts[-3] for source in sources) == ["CP", "NCP", "Normal"], "one patient of each class is in the test part"


def test_the_same_command_again_only_makes_the_report(rehearsal: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in rehearsal.rglob("*") if path.is_file() and path.parent != rehearsal}
    run("run")
    said = capsys.readouterr()
    assert "$ ctcovid" not in said.err and "2 of 2 cells done" in said.err
    assert said.out.startswith("**Table 4."), "results alone are on stdout"
    assert {path: path.stat().st_mtime_ns for path in before} == before


class Job:
    """A batch script as SLURM runs it: a copy of it in a spool folder, its variables set, its output in a log."""

    def __init__(self, script: str, folder: Path, programs: dict[str, str], task: int = 1) -> None:
        self.folder, tools = folder, folder / "bin"
        self.script = folder / "slurm_script"
        self.script.write_text(script)
        tools.mkdir()
        for name, program in {"srun": SRUN, "scontrol": SCONTROL, **programs}.items():
            (tools / name).write_text(f"#!{sys.executable}\n{program}")
            (tools / name).chmod(0o755)
        self.log, self.step, self.requeued = (folder / name for name in ("log", "step", "requeued"))
        job = {"SLURM_JOB_ID": "712", "SLURM_ARRAY_JOB_ID": "711", "SLURM_ARRAY_TASK_ID": str(task), "SLURM_NTASKS": "1"}
        path = {"PATH": f"{tools}:{os.environ['PATH']}", "STEP_FILE": str(self.step), "REQUEUE_FILE": str(self.requeued)}
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        self.environment = inherited | job | path

    def start(self) -> subprocess.Popen[bytes]:
        # As with --open-mode=append, a job that is run again goes on in its log.
        with self.log.open("ab") as log:
            return subprocess.Popen(["bash", str(self.script)], cwd=self.folder, env=self.environment, stdout=log, stderr=log)

    def stop_and_restart(self, text: str, *numbers: signal.Signals) -> None:
        """Run until `text` is in the log, then signal the step, as --signal=USR1 does; SIGTERM as preemption sends it, to the shell too."""
        process = self.start()
        deadline = time.monotonic() + 300
        while text not in self.log.read_text():
            assert process.poll() is None and time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)
        for number in numbers:
            os.killpg(int(self.step.read_text()), number)
            if number == signal.SIGTERM:
                process.send_signal(number)
        assert process.wait(timeout=300) == 0, self.log.read_text()
        assert self.requeued.read_text() == "requeue 712\n"
        self.environment["SLURM_RESTART_COUNT"] = "1"
        assert self.start().wait(timeout=600) == 0, self.log.read_text()
        assert self.requeued.read_text() == "requeue 712\n", "requeued once"


# A Python of its own that imports ctcovid, as a job starts it.
PROGRAM = f"import os, sys\nos.execv({THIN[0]!r}, [{THIN[0]!r}, {THIN[1]!r}, *sys.argv[1:]])\n"


def _script(*words: object) -> str:
    made = run("sbatch", *words)
    assert isinstance(made, Script)
    return made.text() + "\n"


pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")


def test_a_job_of_the_array_that_is_stopped_requeues_itself_resumes_and_reports(rehearsal: Path, tmp_path: Path) -> None:
    epochs, out = 8, tmp_path / "out"
    out.mkdir()
    for name in ("complete.h5", "paper.json"):
        shutil.copy(rehearsal / name, out)
    script = _script("--epochs", epochs, "--output", out, "--workers", 1)
    assert "#SBATCH --array=1-2\n" in script and "--workers 1 --cell" in script
    job = Job(script, tmp_path, {"ctcovid": PROGRAM}, task=2)
    job.stop_and_restart("Epoch 1 of 8: training", signal.SIGUSR1, signal.SIGTERM)
    assert "Resuming after" in job.log.read_text() and "Traceback" not in job.log.read_text()
    assert pd.read_csv(out / "runs" / OTHER / "metrics.csv")["epoch"].tolist() == [*range(1, epochs + 1)]
    assert not (out / "runs" / BEST).exists(), "another job's cell"
    assert pd.read_csv(out / "table-7.csv")["status"].tolist() == ["missing", "finished", "missing", "missing", "missing"]


def test_a_job_that_fails_is_not_requeued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scans").mkdir()
    script = _script("scans")
    (tmp_path / "scans").rmdir()
    job = Job(script, tmp_path, {"ctcovid": PROGRAM})
    assert job.start().wait(timeout=300) == 3
    assert not job.requeued.exists() and "No such file, folder or cell" in job.log.read_text()


def test_the_batch_script_of_the_manual_requeues_itself_and_evaluates_at_the_end(tmp_path: Path) -> None:
    blocks: list[str] = re.findall(r"```sh\n(#!/bin/bash\n.*?)```", (ROOT / "ctcovid" / "manual" / "cluster.md").read_text(), re.DOTALL)
    (block,) = (block for block in blocks if "scontrol requeue" in block)
    Job(block, tmp_path, {"ctcovid": TRAINING}).stop_and_restart("training", signal.SIGUSR1)
    train, again, evaluate = (tmp_path / "calls").read_text().splitlines()
    assert train == again and train.startswith("train ") and train.endswith(" --resume")
    assert parsed("train", train.split()[1:]).folder(4) == Path("runs") / parsed("evaluate", evaluate.split()[1:]).models[0]


def test_the_script_asks_for_no_shell_newer_than_that_of_macos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = re.sub(r"(?m)^#.*$", "", _script("--synthetic"))
    newer = r"mapfile|readarray|declare -[Ag]|local -[An]|\$\{\w+(\^|,,|@)|\|&|&>>|wait -n|\$\{\w+\[-1\]\}|\bseq\b|readlink -f"
    assert re.findall(newer, text) == []
