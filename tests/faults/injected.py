"""Random faults of the machine in prepare, predict and explain: what is documented happens, and the next run completes.

    python tests/faults/injected.py --rounds 200 [--runs RUNS] [--seed 0] [--minutes 30]

It needs Linux and a C compiler. Without --runs, it trains a small model first. After each round it runs the command again without a fault
(`--append`, `--resume`, or the same command), and compares what there is then with what an undisturbed run makes.
"""

from __future__ import annotations

import argparse
import csv
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import harness
from harness import ERRORS, Ended, Injection, run

# Codes that the manual gives for a run that the machine disturbed.
DOCUMENTED = (0, 1, 4)


class Bench:
    """The data, the model, and the commands with what they make."""

    def __init__(self, folder: Path, runs: Path | None) -> None:
        self.folder = folder
        self.data = harness.make_data(folder / "data")
        self.out = folder / "out"
        self.runs = runs or self._trained()
        self.scans = sorted(path for path in self.data.glob("[A-Z]*/*/*"))[:6]

    def _trained(self) -> Path:
        for command in (
            ["prepare", self.data, "--size", 64, "-o", self.folder / "model.h5"],
            ["train", "--data", self.folder / "model.h5", "--runs", self.folder / "runs", "--epochs", 1, "--batch", 4, "--device", "cpu"],
        ):
            done = run(command, self.folder, None, 1200)
            assert done.code == 0, done.stderr
        return self.folder / "runs"

    def commands(self) -> dict[str, tuple[list[object], Callable[[], Any]]]:
        predict: list[object] = ["predict", *self.scans, "--runs", self.runs, "--device", "cpu", "--workers", 2]
        return {
            "prepare": (["prepare", self.data, "--size", 64, "-o", self.out / "v.h5"], self._volumes),
            "append": (
                ["prepare", self.data, "--append", "-o", self.out / "v.h5"],
                self._volumes,
            ),
            "predict": ([*predict, "-o", self.out / "p.csv"], lambda: self._rows("p.csv")),
            "predict-json": ([*predict, "-o", self.out / "p.jsonl", "--volumes", self.out / "pv.csv"], lambda: self._rows("p.jsonl")),
            "explain": (
                ["explain", *self.scans[:3], "--runs", self.runs, "--device", "cpu", "--samples", 1, "-o", self.out / "x"],
                lambda: harness.explained(self.out / "x"),
            ),
        }

    def begin(self, name: str) -> None:
        """An empty folder; for --append, a file of some of the classes' scans."""
        shutil.rmtree(self.out, ignore_errors=True)
        self.out.mkdir()
        if name == "append":
            shutil.copy(self.folder / "first.h5", self.out / "v.h5")

    def make_first(self) -> None:
        """The file that --append begins with: without the last patient of each class."""
        few = self.folder / "few"
        for label in (path for path in self.data.iterdir() if path.is_dir() and path.name != "truth"):
            for patient in sorted(label.iterdir())[:-1]:
                shutil.copytree(patient, few / label.name / patient.name)
        command = ["prepare", few, "--size", 64, "-o", self.folder / "first.h5"]
        done = run(command, self.folder, None)
        assert done.code == 0, done.stderr

    def finish(self, name: str) -> Ended:
        """The command again, without a fault, as the manual says."""
        command, _ = self.commands()[name]
        if name == "prepare" and (self.out / "v.h5").exists():
            command = self.commands()["append"][0]
        if name not in ("prepare", "append"):
            command = [*command, "--resume"]
        return run(command, self.folder, None)

    def _volumes(self) -> Any:
        return harness.volumes_content(self.out / "v.h5") if (self.out / "v.h5").exists() else {}

    def _rows(self, name: str) -> Any:
        path = self.out / name
        if not path.exists():
            return {}
        if path.suffix == ".jsonl":
            import json

            rows = [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        else:
            rows = list(csv.DictReader(path.read_text().splitlines()))
        values = {row["scan"]: (row["predicted"], *(row[key] for key in row if key.startswith("p_"))) for row in rows}
        return {scan: tuple(f"{float(one):.6f}" if one and n else one for n, one in enumerate(row)) for scan, row in values.items()}


def complaints(done: Ended, made: Any, right: Any) -> list[str]:
    """What is wrong with a disturbed run."""
    wrong = []
    if done.code not in DOCUMENTED:
        wrong.append(f"exit code {done.code}")
    if "Traceback" in done.stderr or "unexpected" in done.stderr:
        wrong.append("an unexpected error")
    if "damaged" in done.stderr or "damaged" in str(made):
        wrong.append("called damaged")
    if done.code == 0 and made != right:
        wrong.append("exit code 0, but other content")
    if done.code and not ("Error: " in done.stderr or "Warning: " in done.stderr):
        wrong.append("no sentence")
    return wrong


def measure(bench: Bench, rounds: int, seed: int, minutes: float) -> int:
    """Run the rounds; the number of those in which something was wrong."""
    draw = random.Random(seed)
    names = list(bench.commands())
    right, calls = {}, {}
    for name in names:
        bench.begin(name)
        command, content = bench.commands()[name]
        done = run(command, bench.folder, None)
        assert done.code == 0, done.stderr
        right[name] = content()
    counts: Counter[str] = Counter()
    bad = 0
    began = time.monotonic()
    for number in range(rounds):
        if time.monotonic() - began > 60 * minutes:
            break
        name, error = names[number % len(names)], draw.choice(list(ERRORS))
        prefixes = draw.choice([(bench.data,), (bench.out,), (bench.data, bench.out, bench.runs)])
        command, content = bench.commands()[name]
        key = name, ERRORS[error], prefixes
        if key not in calls:
            bench.begin(name)
            calls[key] = run(command, bench.folder, Injection(error, 0, 0, prefixes)).calls
        fault = Injection(error, draw.randint(1, max(calls[key], 1)), draw.choice([1, 1, 3, 0]), prefixes)
        bench.begin(name)
        done = run(command, bench.folder, fault)
        made = content()
        wrong = complaints(done, made, right[name])
        again = bench.finish(name)
        if again.code != 0 or content() != right[name]:
            wrong.append(f"the run after it: exit code {again.code}{', other content' if again.code == 0 else ': ' + again.stderr[-300:]}")
        counts[f"{name} {done.code}"] += 1
        if wrong:
            bad += 1
            where = "+".join(path.name for path in prefixes)
            print(
                f"round {number}: {name} {error} at {fault.at} of {calls[key]} for {fault.count} in {where}: {'; '.join(wrong)}", flush=True
            )
            print("   ", done.stderr[-600:].replace("\n", "\n    "), flush=True)
    total = sum(counts.values())
    print(
        f"{total} rounds, {bad} of them wrong, {time.monotonic() - began:.0f} s; by command and exit code: {dict(sorted(counts.items()))}"
    )
    return bad


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=600)
    parser.add_argument("--runs", type=Path)
    options = parser.parse_args()
    if "FAULT_KINDS" not in os.environ:
        with tempfile.TemporaryDirectory() as folder:
            shim = harness.compiled(Path(folder))
            if shim is None:
                sys.exit("No C compiler, or not Linux.")
            environment = {**os.environ, "LD_PRELOAD": str(shim), "FAULT_KINDS": "", "OMP_NUM_THREADS": "1"}
            sys.exit(subprocess.run([sys.executable, *sys.argv], env=environment, check=False).returncode)
    harness.warmed()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder).resolve(), options.runs and options.runs.resolve())
        bench.make_first()
        sys.exit(int(measure(bench, options.rounds, options.seed, options.minutes) > 0))


if __name__ == "__main__":
    main()
