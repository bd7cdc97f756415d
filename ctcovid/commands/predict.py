"""ctcovid predict: scans on disk to probabilities per scan."""

from __future__ import annotations

import contextlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ctcovid.base.console import Console
from ctcovid.base.errors import InputError, listing
from ctcovid.base.files import claim_file, json_text, write_text
from ctcovid.base.runcard import RunCard
from ctcovid.evaluation.aggregation import scan_probabilities
from ctcovid.models import registry
from ctcovid.models.device import device_name
from ctcovid.models.ranks import Ranks, together
from ctcovid.models.registry import TrainedModel
from ctcovid.reports.tables import Cell, CsvText
from ctcovid.scans.discover import find_scans
from ctcovid.scans.findings import warn_of
from ctcovid.scans.read import read_volumes
from ctcovid.scans.scan import Scan


@dataclass(frozen=True)
class Options:
    """What `ctcovid predict` was asked for; `sources` says where each value came from."""

    scans: tuple[Path, ...]
    model: str | None = None
    series: str | None = None
    output: Path | None = None
    runs: Path = registry.RUNS
    device: str = "auto"
    precision: str = "auto"
    workers: int = 0
    overwrite: bool = False
    sources: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ScanPrediction:
    """One scan's result: float `probabilities` (classes,), the mean of its volumes' softmax."""

    scan: str
    path: Path
    volumes: int
    predicted: str
    probabilities: np.ndarray


@dataclass(frozen=True)
class Summary:
    """Predictions of the scans that could be read, and a sentence for each that could not."""

    model: str
    classes: list[str]
    scans: list[ScanPrediction]
    failed: list[str]

    def document(self) -> dict[str, Any]:
        scans = [
            {
                "scan": scan.scan,
                "path": str(scan.path),
                "volumes": scan.volumes,
                "class": scan.predicted,
                "probabilities": dict(zip(self.classes, scan.probabilities.tolist(), strict=True)),
            }
            for scan in self.scans
        ]
        return {"model": self.model, "classes": self.classes, "scans": scans, "failed": self.failed}

    def text(self, path: Path) -> str:
        """What `path` shall hold: JSON or CSV, by its ending."""
        return json_text(self.document()) + "\n" if path.suffix.lower() == ".json" else self.table().csv()

    def table(self) -> CsvText:
        rows: list[list[Cell]] = [[s.scan, s.predicted, *map(float, s.probabilities), s.volumes] for s in self.scans]
        columns = ("scan", "class", *(f"p_{name}" for name in self.classes), "volumes")
        return CsvText(columns, rows, text_columns=2)


def run(options: Options, console: Console) -> Summary:
    """Find the scans, classify each, and go on past those that cannot be read.

    Of several processes started together, each takes its share of the scans, and the first writes.
    """
    with together(console, options.device, "Run the line again.") as ranks:
        if options.output and ranks.first:
            claim_file(options.output, options.overwrite)
        scans = find_scans(options.scans, options.series)
        model = registry.load(options.model, options.device, options.precision, options.runs)
        console.say(f"Model {model.name} ({model.folder}), {device_name(model.network.device)}.")
        if ranks.first:
            warn_of(scans, console)
            return _predict_and_write(scans, model, options, ranks, console)
        return _predict_all(scans, model, options, ranks, console)


def _predict_and_write(scans: list[Scan], model: TrainedModel, options: Options, ranks: Ranks, console: Console) -> Summary:
    card = None
    if options.output:
        card = RunCard(options.output.with_name(options.output.name + ".run.json"), "predict", asdict(options), options.sources)
        card.content["device"] = device_name(model.network.device)
        card.input(model.folder / "model.safetensors", f"sha256:{model.card['weights_sha256']}")
    with card.recording() if card else contextlib.nullcontext():
        summary = _predict_all(scans, model, options, ranks, console)
        if options.output and card:
            for scan in summary.scans:
                card.input(scan.path)
            write_text(options.output, summary.text(options.output))
            card.output(options.output)
            console.say(f"Wrote {options.output}.")
    if console.json or not options.output:
        console.result(summary.table(), summary.document())
    console.notice()
    return summary


def _predict_all(scans: list[Scan], model: TrainedModel, options: Options, ranks: Ranks, console: Console) -> Summary:
    """The predictions of all processes, in the order of the scans."""
    share = ranks.share(list(enumerate(scans)))
    done: list[tuple[int, ScanPrediction | str]] = []
    with console.progress(len(share), "Scans") as advance:
        for number, scan in share:
            try:
                done.append((number, _predict(scan, model, options.workers or ranks.cpus)))
            except InputError as error:
                done.append((number, str(error)))
            advance(1)
            ranks.check()
    everything = sorted((one for some in ranks.gather(done) for one in some), key=lambda one: one[0])
    found = [result for _, result in everything if isinstance(result, ScanPrediction)]
    failed = [result for _, result in everything if isinstance(result, str)]
    if failed:
        console.warn(f"{len(failed):,} of {len(scans):,} scans could not be classified:\n{listing(failed)}")
    if not found:
        raise InputError("No scan could be classified; the reasons are above.")
    return Summary(model.name, model.classes, found, failed)


def _predict(scan: Scan, model: TrainedModel, workers: int) -> ScanPrediction:
    volumes = read_volumes(scan, model.depth, model.size, workers, model.window)
    probabilities = scan_probabilities(model.network.probabilities(volumes))
    return ScanPrediction(scan.id, scan.folder, len(volumes), model.classes[int(probabilities.argmax())], probabilities)
