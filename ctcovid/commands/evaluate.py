"""ctcovid evaluate: trained models or prediction files to metrics, tests, tables, figures and one report."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctcovid.base.console import Console
from ctcovid.base.errors import UsageError, agreeing, counted
from ctcovid.base.files import RUN_CARD, claim_folder, fresh_folder, write_json, write_text
from ctcovid.base.locks import alone_at
from ctcovid.base.names import shortened
from ctcovid.base.runcard import RunCard
from ctcovid.base.signals import StopRequest
from ctcovid.distributed.ranks import together
from ctcovid.distributed.session import Session
from ctcovid.evaluation.bootstrap import Drawing
from ctcovid.evaluation.checks import Checks, baselines, check
from ctcovid.evaluation.predictions import Predictions, read_predictions, reordered
from ctcovid.evaluation.study import Asked, Study, Subject, study
from ctcovid.evaluation.subgroups import KIND, SLICES, Grouping, by_number, by_patient, read_attributes
from ctcovid.evaluation.volume_summary import PartSummary, summarise_part
from ctcovid.models import registry
from ctcovid.options.evaluate import Options, is_csv
from ctcovid.reports import evaluation_report as report
from ctcovid.reports.drawing import FORMATS, drawn
from ctcovid.reports.evaluation_tables import full_numbers
from ctcovid.reports.latex import latex
from ctcovid.reports.tables import Table, file_name
from ctcovid.scans.classes import class_order, positive_class

if TYPE_CHECKING:
    from ctcovid.evaluation.inference import EvaluationSet
    from ctcovid.volumes.batches import VolumeSet

MODEL_CARD = "MODEL_CARD.md"


@dataclass(frozen=True)
class Summary:
    """What was measured, and the folder it was written to. The first model is the reference."""

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
class Evaluated:
    """A model's predictions.

    Attributes
    ----------
    card, scored, valid : of a run: its model.json, what it was scored on, and its predictions on the validation part if they are needed
    """

    source: Path
    predictions: Predictions
    card: dict[str, Any] | None = None
    scored: EvaluationSet | None = None
    valid: Predictions | None = None


def run(options: Options, console: Console) -> Summary | None:
    """Predict or read predictions, score them, compare them with the first, write tables, figures and the report.

    Of several processes started together, each predicts its share of the volumes. The first does everything else; the others return None.
    """
    with together(console, options.device, "Run the same command again.") as ranks:
        options.require_sense()
        sources = [_source(model, options.runs) for model in options.models] or [registry.find(None, options.runs)]
        _require_unique_names(sources)
        # Before any run is loaded, which takes torch, and any volume is read.
        say = console.say if ranks.first else lambda sentence: None
        given = {source: read_predictions(source, say) for source in sources if is_csv(source)}
        if all(map(is_csv, sources)) and options.part != "test" and ranks.first:
            console.warn(f"--part {options.part} does not apply to predictions in a CSV file: all of its rows are scored.")
        folder = options.output or _default_output(sources)
        session = Session(console, StopRequest(), ranks, options.workers or ranks.readers)
        if ranks.first:
            with alone_at(folder, console.say, lambda: claim_folder(folder, options.overwrite, "evaluate")):
                return _score_and_write(sources, given, folder, options, session)
        card = RunCard(folder / RUN_CARD, "evaluate", asdict(options), options.sources)
        for source in sources:
            _evaluated(source, given, options, card, session)
    return None


def _score_and_write(sources: list[Path], given: dict[Path, Predictions], folder: Path, options: Options, session: Session) -> Summary:
    console = session.console
    attributes = read_attributes(options.subgroups) if options.subgroups else {}
    with fresh_folder(folder) as building:
        card = RunCard(building / RUN_CARD, "evaluate", asdict(options), options.sources)
        with card.recording():
            if options.subgroups:
                card.input(options.subgroups)
            models = [_evaluated(source, given, options, card, session) for source in sources]
            classes = models[0].predictions.classes
            positive = _positive(classes, options.positive, models, console)
            subjects = [_subject(one, classes, attributes, options, console) for one in models]
            measured = _measure(models, subjects, classes.index(positive), options, session)
            _warn_of(measured, positive, options, console)
            summary = Summary(folder, positive, classes, measured, _settings(options, card))
            _write(building, summary, models, (*FORMATS, "pdf") if options.pdf else FORMATS, card)
    if not console.results:
        # Otherwise they are printed with the result.
        for note in report.honesty(summary.study):
            console.say(note)
    _write_model_cards(summary, models, options, console)
    console.result(summary.table(), summary.document())
    console.say(f"Wrote {folder}/. Open {folder / 'report.html'} in a browser.")
    return summary


def _evaluated(source: Path, given: dict[Path, Predictions], options: Options, card: RunCard, session: Session) -> Evaluated:
    if source in given:
        card.input(source)
        return Evaluated(source, reordered(given[source], class_order(given[source].classes)))
    from ctcovid.evaluation.inference import open_evaluation_set, predict
    from ctcovid.models.device import device_name, settle

    model = registry.load(str(source), options.device, options.precision, options.runs)
    settle(model.network.device)
    card.content["device"] = device_name(model.network.device)
    card.input(source / "model.safetensors", f"sha256:{model.card['weights_sha256']}")
    scored = open_evaluation_set(model, options.data, options.part, session.console)
    card.input(scored.volume_set.file.path, scored.volume_set.file.fingerprint)
    predictions = predict(model, scored.volume_set, options.part, session)
    valid_set = scored.own_set("valid") if options.sensitivity is not None else None
    valid = predict(model, valid_set, "valid", session) if valid_set is not None and len(valid_set) else None
    return Evaluated(source, predictions, model.card, scored, valid)


def _measure(models: list[Evaluated], subjects: list[Subject], positive: int, options: Options, session: Session) -> Study:
    summaries = _PartSummaries(session)
    checks = [_check(one, subject.predictions, summaries, options.part) for one, subject in zip(models, subjects, strict=True)]
    # Trivial models learn from the training part of the first run. Without a run they know only the classes of the test set.
    first = next((number for number, one in enumerate(models) if one.scored), 0)
    tested, learnt = summaries.around(models[first].scored, options.part)
    trivial = baselines(subjects[first].predictions, tested, learnt.get("train"))
    drawing = Drawing(options.resample, options.bootstrap, options.seed, options.ci)
    return study(subjects, trivial, checks, Asked(positive, options.level, options.join, drawing, options.sensitivity))


def _warn_of(measured: Study, positive: str, options: Options, console: Console) -> None:
    for comparison in measured.comparisons:
        if not comparison.paired:
            console.warn(f"{comparison.name} and {measured.scores[0].name} were not scored on the same {options.level}s: {comparison.why}.")
    for checks in measured.checks:
        if checks.repeated_volumes:
            count = f"{counted(checks.repeated_volumes, 'volume')} of the {options.part} part"
            console.warn(
                f"{checks.name}: {count} {agreeing(checks.repeated_volumes, 'was', 'were')} in the training or validation part too."
            )
    for model in measured.models if options.sensitivity is not None else ():
        if model.point is None:
            console.warn(
                f"{model.score.name} has no operating point. The validation part has no {positive}, or there are no images to predict on."
            )


def _settings(options: Options, card: RunCard) -> dict[str, Any]:
    """What evaluation.json says of how the numbers were made."""
    names = ("part", "level", "join", "bootstrap", "resample", "ci", "sensitivity", "seed")
    return {name: getattr(options, name) for name in names} | {"inputs": card.content["inputs"]}


def _subject(
    one: Evaluated, classes: list[str], attributes: dict[str, dict[str, list[str]]], options: Options, console: Console
) -> Subject:
    predictions = reordered(one.predictions, classes)
    groupings: list[Grouping] = []
    for name, values in attributes.items():
        grouping = by_patient(name, values, predictions.patients)
        if grouping is None:
            console.say(f"{options.subgroups}: the column {name} does not divide the patients of {predictions.name} into groups.")
        else:
            groupings.append(grouping)
    if one.scored is not None:
        scans = [volume.scan for volume in one.scored.volumes]
        groupings.append(Grouping(KIND, [scan.image_kind for scan in scans]))
        groupings.append(by_number(SLICES, [scan.slice_count for scan in scans]))
    elif options.subgroups:
        console.say(f"{predictions.name}: a CSV file has no images, so there are no groups by kind of image and number of slices.")
    population = (one.scored.volume_set.file.fingerprint, options.part) if one.scored else None
    return Subject(predictions, one.card, reordered(one.valid, classes) if one.valid else None, population, groupings)


class _PartSummaries:
    """Summaries of the volumes of parts, each made once."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.made: dict[tuple[str, str, int], PartSummary] = {}

    def of(self, volume_set: VolumeSet, part: str) -> PartSummary:
        key = (volume_set.file.fingerprint, part, volume_set.depth)
        if key not in self.made:
            self.made[key] = summarise_part(volume_set, self.session.workers, self.session.console)
        return self.made[key]

    def around(self, scored: EvaluationSet | None, name: str) -> tuple[PartSummary | None, dict[str, PartSummary]]:
        """Of what a run was scored on, and by name of the training and validation parts; without those that are absent or the same."""
        if scored is None or (scored.same_file and name == "train"):
            return None, {}
        sets = {which: scored.own_set(which) for which in ("train", "valid") if not (scored.same_file and which == name)}
        learnt = {which: self.of(found, which) for which, found in sets.items() if found is not None and len(found)}
        return (self.of(scored.volume_set, name), learnt) if learnt else (None, {})


def _check(one: Evaluated, predictions: Predictions, summaries: _PartSummaries, part: str) -> Checks:
    return check(predictions, one.scored, *summaries.around(one.scored, part), part)


def _write(building: Path, summary: Summary, models: list[Evaluated], formats: Sequence[str], card: RunCard) -> None:
    measured, positive = summary.study, summary.positive
    for one in models:
        write_text(building / f"{shortened(f'predictions-{one.predictions.name}')}.csv", reordered(one.predictions, summary.classes).csv())
    (building / "tables").mkdir()
    for one_table in report.all_tables(measured, positive):
        write_text(building / "tables" / f"{file_name(one_table.title or report.MAIN)}.csv", one_table.csv())
    table = summary.table()
    write_text(building / "table.csv", full_numbers(measured.scores, measured.comparisons, measured.asked.drawing.ci))
    write_text(building / "table.tex", latex(table))
    write_text(building / "evaluation.md", report.text(measured, positive))
    write_json(building / "evaluation.json", summary.document())
    histories = {one.predictions.name: one.source / "metrics.csv" for one in models if (one.source / "metrics.csv").is_file()}
    pictures = [drawn(plot, formats) for plot in report.plots(measured, histories)]
    (building / "figures").mkdir()
    for picture in pictures:
        picture.save(building / "figures")
    footer = [f"Made {card.content['began']} by ctcovid {card.content['versions'].get('ctcovid', '')}; seed {card.content['seed']}."]
    footer += dict.fromkeys(f"Read: {read['path']}, {read['hash']}." for read in card.content["inputs"])
    write_text(building / "report.html", report.html(measured, positive, pictures, footer))
    for path in sorted(path for path in building.rglob("*") if path.is_file()):
        card.output(summary.folder / path.relative_to(building))


def _write_model_cards(summary: Summary, models: list[Evaluated], options: Options, console: Console) -> None:
    """Write MODEL_CARD.md into each run that was tested; only --overwrite replaces an earlier one."""
    for number, one in enumerate(models):
        path = one.source / MODEL_CARD
        if one.card is None or options.part != "test":
            continue
        if path.exists() and not options.overwrite:
            console.say(f"{path} exists and was not changed; --overwrite replaces it.")
        elif not os.access(one.source, os.W_OK):
            console.warn(f"{path} was not written: there is no permission to write to its folder.")
        else:
            write_text(path, report.card_of(summary.study, number, summary.positive))


def _positive(classes: list[str], wanted: str | None, models: list[Evaluated], console: Console) -> str:
    known = next((str(one.card["positive"]) for one in models if one.card), None)
    positive = positive_class(classes, wanted or known)
    if not wanted and not known:
        console.say(f"Precision, recall and F1-score are those of {positive}; --positive chooses another class.")
    return positive


def _source(model: str, runs: Path) -> Path:
    """The predictions file or run folder of that name."""
    return Path(model) if is_csv(Path(model)) else registry.find(model, runs)


def _default_output(sources: list[Path]) -> Path:
    """Inside the run for a single run; otherwise a folder in the current one, named after everything that is compared."""
    if len(sources) == 1 and not is_csv(sources[0]):
        return sources[0] / "evaluation"
    return Path(shortened("evaluation-" + "-vs-".join(source.stem if is_csv(source) else source.name for source in sources)))


def _require_unique_names(sources: list[Path]) -> None:
    names = Counter(source.stem if is_csv(source) else source.name for source in sources)
    repeated = [name for name, count in names.items() if count > 1]
    if repeated:
        raise UsageError(f"Several of the models are called {', '.join(repeated)}. Rename one of them.")
