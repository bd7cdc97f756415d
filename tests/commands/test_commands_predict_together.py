"""ctcovid predict in two processes: one list of scans, one stop for both, and rows that another run of two resumes."""

from __future__ import annotations

import csv
import json
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from forked import Forked, start_code
from thin import WIDTHS

from ctcovid.commands.predict import ROUND
from ctcovid.models import registry, saved_model
from ctcovid.models.network import SCALING

pytestmark = pytest.mark.usefixtures("thin")

ROOT = Path(__file__).parents[2]
SCANS = 6 * ROUND
# ctcovid with thin networks, in which a scan takes so many seconds more.
SLOW = """
import json, sys, time
from ctcovid.commands import predict
from ctcovid.models import resnet3d

seconds, resnet3d.WIDTHS = float(sys.argv.pop(1)), json.loads(sys.argv.pop(1))
usual = predict.classify

def classify(*arguments):
    for prediction in usual(*arguments):
        time.sleep(seconds)
        yield prediction

predict.classify = classify
from ctcovid.cli import main
main()
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, thin: None) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    (folder / "small").mkdir()
    saved_model.save_weights(folder / "small" / saved_model.WEIGHTS, registry.create("r3d18"))
    card = {"architecture": "r3d18", "classes": ["NCP", "CP", "Normal"], "positive": "NCP", "depth": 4, "size": 32, "scaling": SCALING}
    saved_model.save_card(folder / "small", {**card, "data": {"path": "volumes.h5"}})
    return folder


@pytest.fixture
def scans(tmp_path: Path, make_scan: Callable[..., Path]) -> Path:
    """Six scans for each process in every round of two."""
    for number in range(SCANS):
        make_scan(tmp_path / "scans" / f"s{number:02d}", slices=4, level=60 + 3 * number)
    return tmp_path / "scans"


def started(runs: Path, output: Path, seconds: float, lists: tuple[list[Path], list[Path]], *more: str) -> list[Forked]:
    """Two processes as srun starts them, each with its list of scans."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = str(one.getsockname()[1])
    processes = []
    for rank, scans in enumerate(lists):
        process = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        line = ["predict", *scans, "--runs", runs, "--device", "cpu", "--workers", 1, "-o", output, *more]
        processes.append(start_code(SLOW, seconds, json.dumps(WIDTHS), *line, environment={**os.environ, **process}))
    return processes


def ended(processes: list[Forked]) -> tuple[list[int], list[str]]:
    """Codes and stderr of the processes, which are killed where they hang."""
    try:
        messages = [process.communicate(timeout=240)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.wait() for process in processes], messages


def rows(output: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(output.open())) if output.exists() else []


def until_a_round_is_written(processes: list[Forked], output: Path) -> None:
    while len(rows(output)) < 2 * ROUND:
        assert all(process.poll() is None for process in processes), ended(processes)
        time.sleep(0.05)


def test_a_signal_to_one_process_stops_both_and_two_resume(runs: Path, scans: Path, tmp_path: Path) -> None:
    output = tmp_path / "p.csv"
    processes = started(runs, output, 0.6, ([scans], [scans]))
    until_a_round_is_written(processes, output)
    processes[1].send_signal(signal.SIGTERM)
    codes, errors = ended(processes)
    assert codes == [75, 75], errors
    assert "Stopped by SIGTERM" in errors[0] and "--resume" in errors[0] and errors[1] == ""
    assert json.loads((tmp_path / "p.csv.run.json").read_text())["status"] == "stopped"
    done = rows(output)
    # The first one did not finish its second round, and what the other had done of it is kept.
    second = [int(row["scan"].removeprefix("s")) % 2 for row in done[2 * ROUND :]]
    assert 0 < second.count(0) < ROUND and second.count(1) > 0

    codes, errors = ended(started(runs, output, 0, ([scans], [scans]), "--resume"))
    assert codes == [0, 0], errors
    assert f"{len(done)} of {SCANS} scans are already in {output}." in errors[0]
    found = rows(output)
    assert found[: len(done)] == done
    assert sorted(row["scan"] for row in found) == [f"s{number:02d}" for number in range(SCANS)]


def test_rows_stay_if_a_process_is_killed(runs: Path, scans: Path, tmp_path: Path) -> None:
    output = tmp_path / "p.csv"
    processes = started(runs, output, 0.2, ([scans], [scans]))
    until_a_round_is_written(processes, output)
    processes[1].kill()
    codes, errors = ended(processes)
    assert codes == [1, -signal.SIGKILL], errors
    assert "Process 1 of 2" in errors[0] and "--resume" in errors[0] and "Traceback" not in errors[0]
    assert len(rows(output)) >= 2 * ROUND


def test_processes_that_see_different_scans_are_refused(runs: Path, scans: Path, make_scan: Callable[..., Path], tmp_path: Path) -> None:
    output = tmp_path / "p.csv"
    make_scan(tmp_path / "elsewhere" / "s99")
    codes, errors = ended(started(runs, output, 0, ([scans], [scans, tmp_path / "elsewhere"])))
    assert codes == [1, 1], errors
    assert "do not agree on the scans" in errors[0] and "Traceback" not in errors[0] and errors[1] == ""
    assert not output.exists()
