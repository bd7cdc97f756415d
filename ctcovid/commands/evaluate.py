"""ctcovid evaluate: trained models or prediction files to metrics, tests, tables, figures and one report."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctcovid.base.console import Console
from ctcovid.base.errors import UsageError
from ctcovid.base.files import RUN_CARD, claim_folder, fresh_folder, write_json, write_text
from ctcovid.base.runcard import RunCard
from ctcovid.distributed.ranks import Ranks, together
from ctcovid.evaluation.bootstrap import Drawing
from ctcovid.evaluation.checks import Checks, baselines, check
from ctcovid.evaluation.predictions import Predictions, read_predictions, reordered
from ctcovid.evaluation.shapes import Shapes
from ctcovid.evaluation.study import Asked, Study, Subject, study
from ctcovid.evaluation.subgroups import KIND, SLICES, Grouping, by_number, by_patient, read_attributes
from ctcovid.evaluation.volume_summary import PartSummary, summarise_part
from ctcovid.models import registry
from ctcovid.options.evaluate import Options
from ctcovid.reports import evaluation_report as report
from ctcovid.reports.drawing import FORMATS, Artist
from ctcovid.reports.evaluation_tables import full_numbers
from ctcovid.reports.latex import latex
from ctcovid.reports.tables import Table, file_name
from ctcovid.scans.classes import class_order, positive_class

if TYPE_CHECKING:
    from ctcovid.evaluation.inference import Part
    from ctcovid.volumes.batches import VolumeSet

MODEL_CARD = "MODEL_CARD.md"


@dataclass(frozen=True)
class Summary:
    """What was measured, the first model being the reference, and the folder it was written to."""

    folder: Path
    positive: str
    classes: list[str]
    study: Study
    settings: dict[str, Any]

    def document(self) -> dict[str, Any]:
        reference = self.study.scores[0].name
        return {"reference": reference, "positive": self.positive, "classes": self.classes, **self.settings, **self.study.document()}

    def table(self) -> Table:
        return report.main_table(self.study, self.positive)


@dataclass(frozen=True)
class Found:
    """A model's predictions; for a run its model.json, what it was scored on, and its predictions on the validation part if wanted."""

    source: Path
    predictions: Predictions
    card: dict[str, Any] | None = None
    part: Part | None = None
    valid: Predictions | None = None


def run(options: Options, console: Console) -> Summary | None:
    """Predict or read predictions, score them, compare them with the first, write tables, figures and the report.

    Of several processes started together, each predicts its share of the volumes. The first does everything else; the others return None.
    """
    if options.sensitivity is not None and options.part == "valid":
        raise UsageError("--sensitivity chooses a threshold on the validation part, and says nothing there. Evaluate another --part.")
    with together(console, options.device, "Run the line again.") as ranks:
        sources = [_source(model, options.runs) for model in options.models] or [registry.find(None, options.runs)]
        _require_names_apart(sources)
        # Before any run is loaded, which takes torch, and any volume is read.
        given = {source: read_predictions(source) for source in sources if is_csv(source)}
        if all(map(is_csv, sources)) and options.part != "test" and ranks.first:
            console.warn(f"--part {options.part} says nothing of predictions in a CSV: all of its rows are scored.")
        folder = options.output or _default_output(sources)
        if ranks.first:
            return _score_and_write(sources, given, folder, options, ranks, console)
        card = RunCard(folder / RUN_CARD, "evaluate", asdict(options), options.sources)
        for source in sources:
            _found(source, given, options, card, ranks, console)
    return None


def _score_and_write(
    sources: list[Path], given: dict[Path, Predictions], folder: Path, options: Options, ranks: Ranks, console: Console
) -> Summary:
    claim_folder(folder, options.overwrite, "evaluate")
    attributes = read_attributes(options.subgroups) if options.subgroups else {}
    with fresh_folder(folder) as building:
        card = RunCard(building / RUN_CARD, "evaluate", asdict(options), options.sources)
        with card.recording():
            if options.subgroups:
                card.input(options.subgroups)
            found = [_found(source, given, options, card, ranks, console) for source in sources]
            classes = found[0].predictions.classes
            positive = _positive(classes, options.positive, found, console)
            with Artist((*FORMATS, "pdf") if options.pdf else FORMATS) as artist:
                summary = _measure(found, classes, positive, folder, attributes, options, card, ranks, console, artist)
                _write(building, folder, summary, found, artist, card)
    if not console.results:
        # Otherwise the result says it.
        for note in report.honesty(summary.study):
            console.say(note)
    _write_model_cards(summary, found, options, console)
    console.result(summary.table(), summary.document())
    console.say(f"Wrote {folder}/; look at {folder / 'report.html'}.")
    return summary


def _found(source: Path, given: dict[Path, Predictions], options: Options, card: RunCard, ranks: Ranks, console: Console) -> Found:
    if source in given:
        card.input(source)
        return Found(source, reordered(given[source], class_order(given[source].classes)))
    from ctcovid.evaluation.inference import open_part, predict
    from ctcovid.models.device import device_name, keep_freed_layers

    model = registry.load(str(source), options.device, options.precision, options.runs)
    keep_freed_layers(model.network.device)
    card.content["device"] = device_name(model.network.device)
    card.input(source / "model.safetensors", f"sha256:{model.card['weights_sha256']}")
    part = open_part(model, options.data, options.part, console)
    card.input(part.volume_set.file.path, part.volume_set.file.fingerprint)
    predictions = predict(model, part.volume_set, options.part, options.workers, ranks, console)
    valid_set = part.own_set("valid") if options.sensitivity is not None else None
    valid = predict(model, valid_set, "valid", options.workers, ranks, console) if valid_set is not None and len(valid_set) else None
    return Found(source, predictions, model.card, part, valid)


def _measure(
    found: list[Found],
    classes: list[str],
    positive: str,
    folder: Path,
    attributes: dict[str, dict[str, list[str]]],
    options: Options,
    card: RunCard,
    ranks: Ranks,
    console: Console,
    artist: Artist,
) -> Summary:
    subjects = [_subject(one, classes, attributes, options, console) for one in found]
    looked = _Looks(options.workers or ranks.readers, console)
    checks = [_check(one, subject.predictions, looked, options.part) for one, subject in zip(found, subjects, strict=True)]
    # Trivial models learn from the training part of the first run; where there is none, they know no more than the test set's classes.
    first = next((number for number, one in enumerate(found) if one.part), 0)
    tested, learnt = looked.around(found[first].part, options.part)
    trivial = baselines(subjects[first].predictions, tested, learnt.get("train"))
    drawing = Drawing(options.resample, options.bootstrap, options.seed, options.ci)
    asked = Asked(classes.index(positive), options.level, options.join, drawing, options.sensitivity)
    histories = {one.predictions.name: one.source / "metrics.csv" for one in found if (one.source / "metrics.csv").is_file()}

    def show(shown: Shapes) -> None:
        artist.draw(report.figures_of(shown, histories.get(shown.name)))

    # Not sooner: processes that read volumes are forked, and must not be while another thread is at work.
    artist.begin()
    measured = study(subjects, trivial, checks, asked, show)
    artist.draw(report.effects(measured.models, options.ci))
    for comparison in measured.comparisons:
        if not comparison.paired:
            console.warn(f"{comparison.name} and {measured.scores[0].name} were not scored on the same {options.level}s: {comparison.why}.")
    for check_ in checks:
        if check_.repeated_volumes:
            count = f"{check_.repeated_volumes:,} volumes of the {options.part} part"
            console.warn(f"{check_.name}: {count} were in the training or validation part too.")
    if options.sensitivity is not None:
        for model in measured.models:
            if model.point is None:
                console.warn(
                    f"{model.score.name} has no operating point: no {positive} to validate on, or no images of the validation part."
                )
    names = ("part", "level", "join", "bootstrap", "resample", "ci", "sensitivity", "seed")
    settings = {name: getattr(options, name) for name in names} | {"inputs": card.content["inputs"]}
    return Summary(folder, positive, classes, measured, settings)


def _subject(one: Found, classes: list[str], attributes: dict[str, dict[str, list[str]]], options: Options, console: Console) -> Subject:
    predictions = reordered(one.predictions, classes)
    groupings: list[Grouping] = []
    for name, values in attributes.items():
        grouping = by_patient(name, values, predictions.patients)
        if grouping is None:
            console.say(f"{options.subgroups}: {name} makes no groups of the patients of {predictions.name}.")
        else:
            groupings.append(grouping)
    if one.part is not None:
        scans = [volume.scan for volume in one.part.volumes]
        groupings.append(Grouping(KIND, [scan.image_kind for scan in scans]))
        groupings.append(by_number(SLICES, [scan.slice_count for scan in scans]))
    elif options.subgroups:
        console.say(f"{predictions.name}: no groups by kind of image and number of slices, because predictions come without images.")
    population = (one.part.volume_set.file.fingerprint, options.part) if one.part else None
    return Subject(predictions, one.card, reordered(one.valid, classes) if one.valid else None, population, groupings)


class _Looks:
    """Looks at parts of files, each once."""

    def __init__(self, workers: int, console: Console) -> None:
        self.workers, self.console = workers, console
        self.seen: dict[tuple[str, str, int], PartSummary] = {}

    def at(self, volume_set: VolumeSet, part: str) -> PartSummary:
        key = (volume_set.file.fingerprint, part, volume_set.depth)
        if key not in self.seen:
            self.seen[key] = summarise_part(volume_set, self.workers, self.console)
        return self.seen[key]

    def around(self, part: Part | None, name: str) -> tuple[PartSummary | None, dict[str, PartSummary]]:
        """At what a run was scored on, and by name at the parts that it was trained and chosen on; not at what is absent or the same."""
        if part is None or (part.same_file and name == "train"):
            return None, {}
        sets = {which: part.own_set(which) for which in ("train", "valid") if not (part.same_file and which == name)}
        learnt = {which: self.at(found, which) for which, found in sets.items() if found is not None and len(found)}
        return (self.at(part.volume_set, name), learnt) if learnt else (None, {})


def _check(one: Found, predictions: Predictions, looked: _Looks, name: str) -> Checks:
    return check(predictions, one.part, *looked.around(one.part, name), name)


def _write(building: Path, folder: Path, summary: Summary, found: list[Found], artist: Artist, card: RunCard) -> None:
    measured, positive = summary.study, summary.positive
    for one in found:
        write_text(building / f"predictions-{one.predictions.name}.csv", reordered(one.predictions, summary.classes).csv())
    (building / "tables").mkdir()
    for one_table in report.all_tables(measured, positive):
        write_text(building / "tables" / f"{file_name(one_table.title or report.MAIN)}.csv", one_table.csv())
    table = summary.table()
    write_text(building / "table.csv", full_numbers(measured.scores, measured.comparisons, summary.study.asked.drawing.ci))
    write_text(building / "table.tex", latex(table))
    write_text(building / "evaluation.md", report.text(measured, positive))
    write_json(building / "evaluation.json", summary.document())
    pictures = artist.pictures()
    (building / "figures").mkdir()
    for picture in pictures:
        picture.save(building / "figures")
    told = [f"Made {card.content['began']} by ctcovid {card.content['versions'].get('ctcovid', '')}; seed {card.content['seed']}."]
    told += dict.fromkeys(f"Read: {read['path']}, {read['hash']}." for read in card.content["inputs"])
    write_text(building / "report.html", report.html(measured, positive, pictures, told))
    for path in sorted(path for path in building.rglob("*") if path.is_file()):
        card.output(folder / path.relative_to(building))


def _write_model_cards(summary: Summary, found: list[Found], options: Options, console: Console) -> None:
    """MODEL_CARD.md in each run that was tested; one that is there is replaced with --overwrite only."""
    for number, one in enumerate(found):
        path = one.source / MODEL_CARD
        if one.card is None or options.part != "test":
            continue
        if path.exists() and not options.overwrite:
            console.say(f"{path} is left as it was; --overwrite replaces it.")
        elif not os.access(one.source, os.W_OK):
            console.warn(f"{path} cannot be written, the folder is not ours to write to.")
        else:
            write_text(path, report.card_of(summary.study, number, summary.positive))


def _positive(classes: list[str], wanted: str | None, found: list[Found], console: Console) -> str:
    known = next((str(one.card["positive"]) for one in found if one.card), None)
    positive = positive_class(classes, wanted or known)
    if not wanted and not known:
        console.say(f"Precision, recall and F1-score are about {positive}; --positive names another class.")
    return positive


def is_csv(source: Path) -> bool:
    """Whether the source is a file of predictions, and not a run directory."""
    return source.suffix.lower() == ".csv"


def _source(model: str, runs: Path) -> Path:
    """The predictions file or the run directory that is meant."""
    return Path(model) if is_csv(Path(model)) else registry.find(model, runs)


def _default_output(sources: list[Path]) -> Path:
    """Inside the run for a single model, so that it is found with it; else a folder here, named after all that is compared."""
    if len(sources) == 1 and not is_csv(sources[0]):
        return sources[0] / "evaluation"
    return Path("evaluation-" + "-vs-".join(source.stem if is_csv(source) else source.name for source in sources))


def _require_names_apart(sources: list[Path]) -> None:
    names = Counter(source.stem if is_csv(source) else source.name for source in sources)
    repeated = [name for name, count in names.items() if count > 1]
    if repeated:
        raise UsageError(f"Several of the models are called {', '.join(repeated)}. Rename one, so that the table tells them apart.")
