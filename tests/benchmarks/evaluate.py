"""What `ctcovid evaluate` of one CSV takes as a whole process, and what it takes to refuse a model that is not there.

    python tests/benchmarks/evaluate.py                             # 6,709 volumes, the paper's test part at depth 4
    python tests/benchmarks/evaluate.py --against ../another-checkout --rounds 7

CPU time is that of all threads and processes of the command: on a machine that others use as well it says more than the clock. Medians of
several rounds are shown. With `--against`, each round runs both checkouts in turn, so that a slow minute of the machine hits both, and the
ratio is that of the medians. The command runs with this Python and its packages, and with the checkout's own source.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from bootstrap import study

from ctcovid.evaluation.predictions import Predictions

HERE = Path(__file__).resolve().parents[2]
CLASSES = ["NCP", "CP", "Normal"]
CSV = "predictions.csv"
# Arguments and exit code by what they ask for.
LINES = {
    "one CSV": ((CSV, "--output", "out", "--overwrite", "--quiet"), 0),
    "a run that is absent": (("nosuch",), 3),
    "a CSV that is absent": (("absent.csv",), 3),
}


@dataclass(frozen=True)
class Took:
    """Median seconds of CPU time and by the clock."""

    cpu: float
    clock: float


def predictions(folder: Path, volumes: int) -> Path:
    """A CSV of a good model of three classes, with four volumes of each patient."""
    labels, probabilities = study(volumes)
    # A patient has one label.
    number = np.argsort(np.argsort(labels, kind="stable"))
    patients = [f"{label}-{place // 4}" for label, place in zip(labels.tolist(), number.tolist(), strict=True)]
    made = Predictions("predictions", CLASSES, patients, ["1"] * volumes, number, labels, probabilities)
    path = folder / CSV
    path.write_text(made.csv())
    return path


def run(checkout: Path, folder: Path, arguments: tuple[str, ...], code: int) -> Took:
    """One run of a checkout's command in `folder`."""
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    began, before = time.perf_counter(), os.times()
    line = [sys.executable, "-m", "ctcovid", "evaluate", *arguments]
    done = subprocess.run(line, capture_output=True, text=True, cwd=folder, env=environment, check=False)
    clock, after = time.perf_counter() - began, os.times()
    if done.returncode != code:
        raise RuntimeError(f"{checkout}: exit code {done.returncode} in place of {code}: {done.stderr}")
    return Took(after.children_user + after.children_system - before.children_user - before.children_system, clock)


def measure(checkouts: list[Path], volumes: int, rounds: int) -> dict[str, list[Took]]:
    """What each line takes, by its name, in the order of the checkouts."""
    found = {}
    with tempfile.TemporaryDirectory() as name:
        predictions(Path(name), volumes)
        for asked, (arguments, code) in LINES.items():
            took: list[list[Took]] = [[] for _ in checkouts]
            for _ in range(rounds):
                for checkout, mine in zip(checkouts, took, strict=True):
                    mine.append(run(checkout, Path(name), arguments, code))
            found[asked] = [Took(statistics.median(one.cpu for one in mine), statistics.median(one.clock for one in mine)) for mine in took]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--volumes", type=int, default=6709)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--against", type=Path, help="another checkout of ctcovid to compare with")
    asked = parser.parse_args()
    checkouts = [HERE, *([asked.against.resolve()] if asked.against else [])]
    headings = [f"{whose}{what}" for whose in ("", "against: ")[: len(checkouts)] for what in ("CPU s", "clock s")]
    headings += ["CPU, ratio", "clock, ratio"] if asked.against else []
    print(f"| evaluate of | {' | '.join(headings)} |\n| --- |" + " ---: |" * len(headings))
    for name, (mine, *others) in measure(checkouts, asked.volumes, asked.rounds).items():
        cells = [f"{seconds:.2f}" for took in (mine, *others) for seconds in (took.cpu, took.clock)]
        cells += [f"{ratio:.2f}" for other in others for ratio in (mine.cpu / other.cpu, mine.clock / other.clock)]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
