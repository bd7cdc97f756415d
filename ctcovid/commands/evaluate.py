"""ctcovid evaluate: trained models or prediction files to metrics, tables and figures."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ctcovid.base import cpus
from ctcovid.base.console import Console
from ctcovid.base.errors import InputError, UsageError
from ctcovid.base.files import claim, fresh_folder, write_json, write_text
from ctcovid.base.runcard import RunCard
from ctcovid.evaluation.bootstrap import Estimate, estimates
from ctcovid.evaluation.metrics import confusion_matrix, undefined
from ctcovid.evaluation.predictions import Predictions, read_predictions, reordered
from ctcovid.evaluation.significance import fisher_p_values, stars
from ctcovid.models import registry
from ctcovid.models.device import device_name
from ctcovid.reports.figures import confusion
from ctcovid.reports.tables import Table
from ctcovid.scans.discover import positive_class
from ctcovid.volumes.batches import VolumeSet, in_order
from ctcovid.volumes.reader import VolumesFile

SHOWN = {"accuracy": "Accuracy", "f1": "F1-score", "precision": "Precision", "recall": "Recall", "macro_auroc": "macro-AUROC"}


@dataclass(frozen=True)
class Options:
    """What `ctcovid evaluate` was asked for; `sources` says where each value came from."""

    models: tuple[str, ...] = ()
    data: Path | None = None
    part: str = "test"
    positive: str | None = None
    bootstrap: int = 1000
    interval: str = "percentile"
    output: Path | None = None
    runs: Path = registry.RUNS
    device: str = "auto"
    precision: str = "auto"
    seed: int = 0
    workers: int = 0
    overwrite: bool = False
    sources: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Score:
    """One model's result. `p_values` is None for the reference; `undefined` gives reasons by metric."""

    name: str
    n_volumes: int
    estimates: dict[str, Estimate]
    confusion: np.ndarray
    undefined: dict[str, str]
    p_values: dict[str, float] | None

    def document(self) -> dict[str, Any]:
        metrics = {name: asdict(estimate) for name, estimate in self.estimates.items()}
        return {
            "name": self.name,
            "n_volumes": self.n_volumes,
            **metrics,
            "confusion": self.confusion.tolist(),
            "undefined": self.undefined,
            "p_values": self.p_values,
        }


@dataclass(frozen=True)
class Summary:
    """Scores of all models, the first being the reference, and the folder they were written to."""

    folder: Path
    positive: str
    classes: list[str]
    scores: list[Score]
    settings: dict[str, Any]

    def document(self) -> dict[str, Any]:
        models = [score.document() for score in self.scores]
        return {
            "reference": self.scores[0].name,
            "positive": self.positive,
            "classes": self.classes,
            **self.settings,
            "models": models,
        }

    def table(self) -> Table:
        rows = [[score.name, f"{score.n_volumes:,}", *(_cell(score, metric) for metric in SHOWN)] for score in self.scores]
        notes = [
            "Bootstrap mean (95 % interval) over volumes. Accuracy and macro-AUROC are over all classes; "
            f"F1-score, precision and recall are {self.positive} against the rest."
        ]
        if len(self.scores) > 1:
            notes.append(f"Fisher's exact test against {self.scores[0].name}: * p < 0.05, ** p < 0.01, *** p < 0.001.")
        for score in self.scores:
            notes += [f"{score.name}: {SHOWN[metric]} is not defined, {reason}." for metric, reason in score.undefined.items()]
        return Table(("model", "volumes", *SHOWN.values()), rows, notes=notes)


def run(options: Options, console: Console) -> Summary:
    """Predict or read predictions, score them, compare them with the first, write tables and figures."""
    sources = [_source(model, options.runs) for model in options.models or (None,)]
    folder = options.output or _default_output(sources)
    claim(folder, options.overwrite)
    all_predictions: list[Predictions] = []
    positives: list[str | None] = []
    devices = set()
    for source in sources:
        if source.suffix == ".csv":
            all_predictions.append(read_predictions(source))
            positives.append(None)
        else:
            model = registry.load(str(source), options.device, options.precision, options.runs)
            all_predictions.append(_predict(model, options, console))
            positives.append(model.card["positive"])
            devices.add(device_name(model.network.device))
    classes = all_predictions[0].classes
    all_predictions = _named_apart([reordered(predictions, classes) for predictions in all_predictions])
    positive = positive_class(classes, options.positive or next((name for name in positives if name), None))
    _warn_of_different_volumes(all_predictions, console)

    with fresh_folder(folder, options.overwrite) as building:
        card = RunCard(building / "run.json", "evaluate", asdict(options), options.sources)
        card.content["device"] = ", ".join(sorted(devices)) or None
        with card.recording():
            scores = _score(all_predictions, classes.index(positive), options)
            settings = {"part": options.part, "interval": options.interval, "bootstrap": options.bootstrap, "seed": options.seed}
            summary = Summary(folder, positive, classes, scores, settings)
            for predictions, score in zip(all_predictions, scores, strict=True):
                write_text(building / f"predictions-{predictions.name}.csv", predictions.csv())
                confusion(building / f"confusion-{predictions.name}.png", score.confusion, classes, predictions.name)
            for source in sources:
                card.input(source if source.is_file() else source / "model.safetensors")
            write_text(building / "evaluation.md", summary.table().text() + "\n")
            write_json(building / "evaluation.json", summary.document())
            for path in sorted(building.iterdir()):
                card.output(folder / path.name)
    console.result(summary.table(), summary.document())
    console.say(f"Wrote {folder}/.")
    return summary


def _source(model: str | None, runs: Path) -> Path:
    """The predictions file or the run directory that is meant."""
    if model is not None and model.lower().endswith(".csv"):
        return Path(model)
    return registry.find(model, runs)


def _default_output(sources: list[Path]) -> Path:
    """Inside the run for a single model, so that it is found with it; else a folder here, named after all that is compared."""
    if len(sources) == 1 and sources[0].suffix != ".csv":
        return sources[0] / "evaluation"
    return Path("evaluation-" + "-vs-".join(source.stem if source.suffix == ".csv" else source.name for source in sources))


def _predict(model: registry.TrainedModel, options: Options, console: Console) -> Predictions:
    """The model's predictions on its part of the data.

    Raises InputError where the part is empty, has other classes, or has patients that the model was trained on.
    """
    trained_on = Path(model.card["data"]["path"])
    path = options.data or (trained_on if trained_on.is_file() else Path("volumes.h5"))
    file = VolumesFile(path)
    console.say(f"Evaluating {model.name} on the {options.part} part of {path}, {device_name(model.network.device)}.")
    if sorted(file.classes) != sorted(model.classes):
        raise InputError(f"{path} has the classes {', '.join(file.classes)}, {model.name} {', '.join(model.classes)}. Give other --data.")
    if file.size != model.size:
        raise InputError(
            f"{path} has slices of {file.size}×{file.size}, {model.name} was trained on {model.size}×{model.size}. "
            f"Make a file with ctcovid prepare --size {model.size}."
        )
    volume_set = VolumeSet(file, options.part, model.depth)
    if not len(volume_set):
        raise InputError(
            f"The {options.part} part of {path} has no volumes of depth {model.depth}. Assign patients to it with "
            "ctcovid prepare --split-file, or evaluate another --part."
        )
    _warn_of_seen_patients(model, volume_set, options.part, console)
    found = []
    with console.progress(len(volume_set), f"Predicting with {model.name}") as advance:
        for batch in volume_set.batches(in_order(len(volume_set), 32), options.workers or min(cpus.allowed(), 8)):
            found.append(model.network.probabilities(batch.volumes))
            advance(len(batch.labels))
    volumes = volume_set.volumes
    labels = np.array([model.classes.index(volume.scan.label) for volume in volumes])
    return Predictions(
        model.name,
        model.classes,
        [volume.scan.patient for volume in volumes],
        [volume.scan.id for volume in volumes],
        np.array([volume.number for volume in volumes]),
        labels,
        np.concatenate(found),
    )


def _warn_of_seen_patients(model: registry.TrainedModel, volume_set: VolumeSet, part: str, console: Console) -> None:
    """A model scored on patients that it has learnt from looks better than it is."""
    learnt = {patient for name in ("train", "valid") for patient in model.card.get("split", {}).get(name, [])}
    seen = learnt & {volume.scan.patient for volume in volume_set.volumes}
    if seen and part == "test":
        raise InputError(
            f"{len(seen)} of the patients to test on were in the training or validation part of {model.name} "
            f"({', '.join(sorted(seen)[:5])}). Evaluate on the file that it was trained with, or on other patients."
        )
    if seen:
        console.warn(f"{model.name} was trained or chosen on {len(seen)} of these patients; the result says nothing about new ones.")


def _named_apart(all_predictions: list[Predictions]) -> list[Predictions]:
    names = [predictions.name for predictions in all_predictions]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UsageError(f"Several of the models are called {', '.join(repeated)}. Rename one, so that the table tells them apart.")
    return all_predictions


def _warn_of_different_volumes(all_predictions: list[Predictions], console: Console) -> None:
    keys = [set(zip(p.patients, p.scans, p.volumes.tolist(), strict=True)) for p in all_predictions]
    for predictions, key in zip(all_predictions[1:], keys[1:], strict=True):
        if key != keys[0]:
            console.warn(f"{predictions.name} and {all_predictions[0].name} were not scored on the same volumes.")


def _score(all_predictions: list[Predictions], positive: int, options: Options) -> list[Score]:
    scores: list[Score] = []
    for predictions in all_predictions:
        labels, probabilities = predictions.labels, predictions.probabilities
        matrix = confusion_matrix(labels, predictions.predicted, len(predictions.classes))
        found = estimates(labels, probabilities, positive, options.bootstrap, options.seed, options.interval)
        reasons = undefined(labels, predictions.predicted, predictions.classes, positive)
        p_values = fisher_p_values(scores[0].confusion, matrix, positive) if scores else None
        scores.append(Score(predictions.name, len(labels), found, matrix, reasons, p_values))
    return scores


def _cell(score: Score, metric: str) -> str:
    found = score.estimates[metric]
    if found.mean is None:
        return "not defined" if found.value is None else f"{found.value:.4f}"
    mark = stars(score.p_values.get(metric) if score.p_values else None)
    return f"{found.mean:.4f}{mark} ({found.low:.4f}, {found.high:.4f})"
