"""ctcovid demo: a small synthetic CC-CCII through all five commands."""

from __future__ import annotations

import shlex
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ctcovid.base.console import Console
from ctcovid.base.files import RUN_CARD, claim_folder
from ctcovid.base.runcard import RunCard
from ctcovid.commands import evaluate, explain, predict, prepare, train
from ctcovid.models.store import read_card
from ctcovid.phantom.dataset import TRUTH, Parameters, plan, write_dataset
from ctcovid.reports.tables import Table

# Twice as fast as the default one, and small enough that all is over in a minute or two on a few CPU cores.
ARCH = "r2plus1d18"
# At this size the last layer sees the chest as 3 by 3 places.
LAYER = "layer2"
PATIENTS, SIZE, EPOCHS, BATCH = 16, 96, 12, 16


@dataclass(frozen=True)
class Options:
    """What `ctcovid demo` was asked for; `sources` says where each value came from."""

    folder: Path = Path("ctcovid-demo")
    device: str = "auto"
    seed: int = 0
    workers: int = 0
    overwrite: bool = False
    sources: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Summary:
    """What the demo left behind."""

    folder: Path
    evaluation: evaluate.Summary
    montage: Path

    def document(self) -> dict[str, Any]:
        return {"folder": str(self.folder), "montage": str(self.montage), "evaluation": self.evaluation.document()}

    def table(self) -> Table:
        return self.evaluation.table()


def run(options: Options, console: Console) -> Summary:
    """Make the data, then run each command with the line that a person would type."""
    folder = options.folder
    data, volumes, runs, explanations = (folder / name for name in ("CC-CCII", "volumes.h5", "runs", "explanations"))
    claim_folder(folder, options.overwrite, "demo")
    for earlier in (data, folder / TRUTH):
        if earlier.exists():
            shutil.rmtree(earlier)
    card = RunCard(folder / RUN_CARD, "demo", asdict(options), options.sources)
    with card.recording():
        return _run(options, folder, data, volumes, runs, explanations, console)


def _run(options: Options, folder: Path, data: Path, volumes: Path, runs: Path, explanations: Path, console: Console) -> Summary:
    parameters = Parameters(PATIENTS, SIZE, options.seed, difficulty=0.0, slices=(16, 24), scans=2)
    with console.progress(len(plan(parameters)), "Making synthetic scans") as advance:
        write_dataset(data, parameters, options.workers, advance, truth=folder / TRUTH)

    # The commands' own results would mix with this command's one result on stdout.
    inner = Console(quiet=console.quiet, verbose=console.verbose, results=False)
    common: dict[str, Any] = {"seed": options.seed, "overwrite": options.overwrite}
    machine: dict[str, Any] = {"device": options.device}
    _show(console, "prepare", data, "--depth", 4, "--size", SIZE, "--output", volumes)
    prepared = prepare.run(prepare.Options(data, 4, SIZE, volumes, workers=options.workers, **common), inner)
    console.say(prepared.table.text())
    _show(console, "train", "--arch", ARCH, "--data", volumes, "--runs", runs, "--epochs", EPOCHS, "--batch", BATCH)
    training = train.Options(volumes, ARCH, epochs=EPOCHS, batch=BATCH, runs=runs, workers=options.workers, **machine, **common)
    trained = train.run(training, inner)
    _show(console, "evaluate", "--runs", runs)
    evaluated = evaluate.run(evaluate.Options(runs=runs, workers=options.workers, **machine, **common), inner)
    scan = _test_scan(data, trained.folder)
    _show(console, "predict", scan, "--runs", runs)
    predicted = predict.run(predict.Options((scan,), runs=runs, **machine), inner)
    console.say(predicted.table().text())
    _show(console, "explain", scan, "--layer", LAYER, "--runs", runs, "--output", explanations)
    explained = explain.run(explain.Options((scan,), layer=LAYER, runs=runs, output=explanations, **machine, **common), inner)

    summary = Summary(folder, evaluated, Path(explained.explained[0]["folder"]) / "montage.png")
    console.result(summary.table(), summary.document())
    console.say(
        f"\nThe scans were synthetic, so the figures say that the way works and nothing about patients.\n"
        f"Look at {summary.montage} and {trained.folder / 'accuracy.png'}.\n"
        f"With scans of your own, in the folder CC-CCII:  ctcovid prepare ./CC-CCII --depth 4"
    )
    return summary


def _show(console: Console, command: str, *words: object) -> None:
    console.say(f"\n$ ctcovid {command} {shlex.join(map(str, words))}")


def _test_scan(data: Path, run_folder: Path) -> Path:
    """A scan with COVID-19 of a patient whom the model has not seen."""
    test = set(read_card(run_folder)["split"]["test"])
    return next(scan for scan in sorted((data / "NCP").glob("*/*")) if scan.parent.name in test)
