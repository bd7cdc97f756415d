"""ctcovid evaluate: trained models or prediction files to metrics, tables and figures."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ctcovid.base.console import Console
from ctcovid.base.errors import InputError, ToldError, UsageError
from ctcovid.base.files import RUN_CARD, claim_folder, fresh_folder, write_json, write_text
from ctcovid.base.runcard import RunCard
from ctcovid.evaluation.bootstrap import Estimate, estimates
from ctcovid.evaluation.metrics import confusion_matrix, undefined
from ctcovid.evaluation.predictions import Predictions, read_predictions, reordered
from ctcovid.evaluation.significance import fisher_p_values, stars
from ctcovid.models import registry
from ctcovid.models.device import device_name
from ctcovid.models.ranks import Ranks, together
from ctcovid.reports.figures import confusion
from ctcovid.reports.tables import Table
from ctcovid.scans.discover import class_order, positive_class
from ctcovid.volumes.batches import VolumeSet, in_order
from ctcovid.volumes.limits import naming_limits
from ctcovid.volumes.reader import Volume, VolumesFile

# Volumes that are read at a time.
AT_ONCE = 32
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
    """Predict or read predictions, score them, compare them with the first, write tables and figures.

    Of several processes started together, each predicts its share of the volumes, and the first does all else; the others end with
    ToldError.
    """
    with together(console, options.device, "Run the line again.") as ranks:
        sources = [_source(model, options.runs) for model in options.models or (None,)]
        folder = options.output or _default_output(sources)
        if ranks.first:
            return _score_and_write(sources, folder, options, ranks, console)
        card = RunCard(folder / RUN_CARD, "evaluate", asdict(options), options.sources)
        for source in sources:
            _predictions(source, options, card, ranks, console)
    raise ToldError(0)


def _score_and_write(sources: list[Path], folder: Path, options: Options, ranks: Ranks, console: Console) -> Summary:
    claim_folder(folder, options.overwrite, "evaluate")
    with fresh_folder(folder) as building:
        card = RunCard(building / RUN_CARD, "evaluate", asdict(options), options.sources)
        with card.recording():
            found = [_predictions(source, options, card, ranks, console) for source in sources]
            classes = found[0][0].classes
            all_predictions = [reordered(predictions, classes) for predictions, _ in found]
            _require_names_apart(all_predictions)
            _warn_of_different_volumes(all_predictions, console)
            positive = _positive(classes, options.positive, [name for _, name in found if name], console)
            scores = _score(all_predictions, classes.index(positive), options)
            settings = {"part": options.part, "interval": options.interval, "bootstrap": options.bootstrap, "seed": options.seed}
            summary = Summary(folder, positive, classes, scores, settings | {"inputs": card.content["inputs"]})
            for predictions, score in zip(all_predictions, scores, strict=True):
                write_text(building / f"predictions-{predictions.name}.csv", predictions.csv())
                confusion(building / f"confusion-{predictions.name}.png", score.confusion, classes, predictions.name)
            write_text(building / "evaluation.md", summary.table().text() + "\n")
            write_json(building / "evaluation.json", summary.document())
            for path in sorted(building.iterdir()):
                card.output(folder / path.name)
    console.result(summary.table(), summary.document())
    console.say(f"Wrote {folder}/.")
    return summary


def _predictions(source: Path, options: Options, card: RunCard, ranks: Ranks, console: Console) -> tuple[Predictions, str | None]:
    """The predictions of one source, and the positive class that its model was trained with, if it says one."""
    if is_csv(source):
        predictions = read_predictions(source)
        card.input(source)
        return reordered(predictions, class_order(predictions.classes)), None
    model = registry.load(str(source), options.device, options.precision, options.runs)
    card.content["device"] = device_name(model.network.device)
    card.input(source / "model.safetensors", f"sha256:{model.card['weights_sha256']}")
    return _predict(model, options, card, ranks, console), str(model.card["positive"])


def _positive(classes: list[str], wanted: str | None, known: list[str], console: Console) -> str:
    positive = positive_class(classes, wanted or next(iter(known), None))
    if not wanted and not known:
        console.say(f"Precision, recall and F1-score are about {positive}; --positive names another class.")
    return positive


def is_csv(source: Path) -> bool:
    """Whether the source is a file of predictions, and not a run directory."""
    return source.suffix.lower() == ".csv"


def _source(model: str | None, runs: Path) -> Path:
    """The predictions file or the run directory that is meant."""
    if model is not None and is_csv(Path(model)):
        return Path(model)
    return registry.find(model, runs)


def _default_output(sources: list[Path]) -> Path:
    """Inside the run for a single model, so that it is found with it; else a folder here, named after all that is compared."""
    if len(sources) == 1 and not is_csv(sources[0]):
        return sources[0] / "evaluation"
    return Path("evaluation-" + "-vs-".join(source.stem if is_csv(source) else source.name for source in sources))


def _predict(model: registry.TrainedModel, options: Options, card: RunCard, ranks: Ranks, console: Console) -> Predictions:
    """The model's predictions on its part of the data.

    Raises InputError where the part is empty, has other classes, or has patients that the model was trained on.
    """
    trained_on = Path(model.card["data"]["path"])
    path = options.data or (trained_on if trained_on.is_file() else Path("volumes.h5"))
    file = VolumesFile(path)
    card.input(path, file.fingerprint)
    if file.fingerprint != model.card["data"].get("fingerprint"):
        console.warn(f"{path} is not the file that {model.name} was trained with.")
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
    _refuse_seen_patients(model, volume_set, options.part, console)
    probabilities = _probabilities(model, volume_set, options.workers or ranks.readers, ranks, console)
    volumes = volume_set.volumes
    labels = np.array([model.classes.index(volume.scan.label) for volume in volumes])
    return Predictions(
        model.name,
        model.classes,
        [volume.scan.patient for volume in volumes],
        _scan_names(volumes),
        np.array([volume.number for volume in volumes]),
        labels,
        probabilities,
    )


def _probabilities(model: registry.TrainedModel, volume_set: VolumeSet, workers: int, ranks: Ranks, console: Console) -> np.ndarray:
    """Softmax probabilities, float64 (N, classes), each volume's from one of the processes; all of them in each process."""
    order = ranks.share(in_order(len(volume_set), ranks.at_most(AT_ONCE, len(volume_set))))
    own: list[tuple[np.ndarray, np.ndarray]] = []
    with console.progress(sum(map(len, order)), f"Predicting with {model.name}") as advance, naming_limits(workers):
        for batch in volume_set.batches(order, workers) if order else ():
            own.append((batch.indices.numpy(), model.network.probabilities(batch.volumes)))
            advance(len(batch.labels))
            ranks.check()
    found = np.full((len(volume_set), len(model.classes)), np.nan)
    times = np.zeros(len(volume_set), dtype=int)
    for some in ranks.gather(own):
        for indices, probabilities in some:
            found[indices] = probabilities
            times[indices] += 1
    assert (times == 1).all(), "a volume was left out, or classified twice"
    return found


def _refuse_seen_patients(model: registry.TrainedModel, volume_set: VolumeSet, part: str, console: Console) -> None:
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


def _scan_names(volumes: list[Volume]) -> list[str]:
    """Ids of the volumes' scans; the whole path where a patient has one id in two class folders."""
    rows = {id(volume.scan): volume.scan for volume in volumes}.values()
    ids = Counter((row.patient, row.id) for row in rows)
    return [volume.scan.id if ids[volume.scan.patient, volume.scan.id] == 1 else volume.scan.source for volume in volumes]


def _require_names_apart(all_predictions: list[Predictions]) -> None:
    repeated = [name for name, count in Counter(predictions.name for predictions in all_predictions).items() if count > 1]
    if repeated:
        raise UsageError(f"Several of the models are called {', '.join(repeated)}. Rename one, so that the table tells them apart.")


def _warn_of_different_volumes(all_predictions: list[Predictions], console: Console) -> None:
    truths = [dict(zip(zip(p.patients, p.scans, p.volumes.tolist(), strict=True), p.labels.tolist(), strict=True)) for p in all_predictions]
    for predictions, truth in zip(all_predictions[1:], truths[1:], strict=True):
        if truth.keys() != truths[0].keys():
            console.warn(f"{predictions.name} and {all_predictions[0].name} were not scored on the same volumes.")
        if differing := sum(truths[0].get(key, label) != label for key, label in truth.items()):
            console.warn(f"{predictions.name} and {all_predictions[0].name} have different labels for {differing:,} volumes.")


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
