"""An evaluation as tables, figures and one page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from ctcovid.evaluation.checks import LOGISTIC
from ctcovid.evaluation.metrics import of_class
from ctcovid.evaluation.shapes import Shapes
from ctcovid.evaluation.study import Scored, Study
from ctcovid.evaluation.subgroups import KIND, SLICES
from ctcovid.reports import evaluation_tables as tables
from ctcovid.reports.card import model_card
from ctcovid.reports.checklists import Known
from ctcovid.reports.drawing import Picture
from ctcovid.reports.evaluation_tables import PAPER, Manner
from ctcovid.reports.html import Section, page
from ctcovid.reports.plots import Plot, confusion_plot, effect_plot, history_plots, pr_plot, reliability_plot, roc_plot
from ctcovid.reports.tables import Table
from ctcovid.training.history import read_history

# What the main table is called where it needs a name.
MAIN = "Results"


def manner(study: Study, positive: str) -> Manner:
    """How the figures of a study came about, in the words that tables need."""
    asked = study.asked
    return Manner(asked.level, asked.join, asked.drawing.resample, asked.drawing.resamples, asked.drawing.ci, positive)


def main_table(study: Study, positive: str) -> Table:
    """The table in the paper's form, with what a reader has to know below it."""
    table = tables.paper_table(
        study.scores, [model.card for model in study.models], study.comparisons, manner(study, positive), study.baselines
    )
    return replace(table, notes=[*table.notes, *honesty(study)])


def honesty(study: Study) -> list[str]:
    """What was found out about the test sets: once, where it is the same for all models."""
    found: dict[str, list[str]] = {}
    for check in study.checks:
        for note in check.notes:
            found.setdefault(note, []).append(check.name)
    everybody = len(study.checks)
    return [note if len(names) == everybody else f"{', '.join(names)}: {note}" for note, names in found.items()]


def further_tables(study: Study, positive: str) -> list[Table]:
    """What stands beside the paper's table; each has a title."""
    how, reference = manner(study, positive), study.scores[0].name
    found = [tables.more_table(study.scores, how), tables.class_table(study.scores, how.ci), tables.resampling_table(study.scores)]
    if study.comparisons:
        found.append(tables.comparison_table(study.comparisons, reference))
    points = {model.score.name: model.point for model in study.models if model.point}
    if points and study.asked.sensitivity is not None:
        found.append(tables.operating_table(points, study.asked.sensitivity, positive, how.ci))
    groups = {model.score.name: model.groups for model in study.models if model.groups}
    if groups:
        found.append(tables.group_table(groups, how))
    return found


def all_tables(study: Study, positive: str) -> list[Table]:
    """The table in the paper's form, which has no title, and those beside it."""
    return [main_table(study, positive), *further_tables(study, positive)]


def plots(study: Study, histories: dict[str, Path]) -> list[Plot]:
    """All figures. `histories` are files metrics.csv by model."""
    of_models = (_figures_of(model.shapes, histories.get(model.shapes.name)) for model in study.models)
    return [*_effects(study.models, study.asked.drawing.ci), *chain.from_iterable(of_models)]


def _figures_of(shown: Shapes, history: Path | None) -> list[Plot]:
    """The figures of one model. `history` is the metrics.csv of its training."""
    name = shown.name
    found = [confusion_plot(name, shown.confusion, shown.classes)]
    if shown.roc:
        areas = {label: shown.values[of_class("auroc", number)] for number, label in enumerate(shown.classes)}
        precisions = {label: shown.values[of_class("average_precision", number)] for number, label in enumerate(shown.classes)}
        found += [roc_plot(name, shown.roc, areas), pr_plot(name, shown.pr, precisions)]
    found.append(reliability_plot(name, shown.bins, shown.values["ece"]))
    if history is not None:
        columns = read_history(history)
        found += history_plots(name, columns) if columns["epoch"] else []
    return found


def _effects(models: Sequence[Scored], ci: str) -> list[Plot]:
    """Figs. 4 and 5, where the runs vary in depth or batch size."""
    runs = [(model.card["depth"], model.card.get("recipe", {}).get("batch"), model) for model in models if model.card]
    runs.sort(key=lambda run: (run[0], run[1] or 0))
    figures: list[dict[str, Any]] = [model.score.estimates for _, _, model in runs]
    metrics = {name: label for name, label in PAPER.items() if name != "macro_auroc"}
    depths, batches = {depth for depth, _, _ in runs}, {batch for _, batch, _ in runs}
    found = []
    if len(depths) > 1 and len(batches) == 1:
        found.append(effect_plot("depth", [str(depth) for depth, _, _ in runs], figures, metrics, len(depths) == len(runs), ci))
    if len(batches) > 1:
        kind, places = "depth, batch size", [f"{depth}, {batch}" for depth, batch, _ in runs]
        if len(depths) == 1:
            kind, places = "batch size", [str(batch) for _, batch, _ in runs]
        found.append(effect_plot(kind, places, figures, metrics, len(depths) == 1 and len(batches) == len(runs), ci))
    return found


def text(study: Study, positive: str) -> str:
    """All tables as Markdown."""
    return "\n\n".join(table.text() for table in all_tables(study, positive)) + "\n"


def html(study: Study, positive: str, pictures: Sequence[Picture], told: Sequence[str]) -> str:
    """The whole evaluation as one page. `told` are sentences on how it was made."""
    main, *rest = all_tables(study, positive)
    about = [*honesty(study), *told]
    of_several = [picture for picture in pictures if not picture.plot.model]
    sections = [
        Section(MAIN, tables=[replace(main, notes=main.notes[: len(main.notes) - len(honesty(study))])], pictures=of_several),
        Section("What to know before trusting them", about),
        Section("Further tables", tables=rest),
    ]
    for model in study.models:
        mine = [picture for picture in pictures if picture.plot.model == model.score.name]
        sections.append(Section(f"Figures of {model.score.name}", pictures=mine))
    names = ", ".join(score.name for score in study.scores)
    lead = "Written by ctcovid evaluate. For research use only, not a medical device. Everything is in this one file."
    return page(f"Evaluation of {names}", lead, sections)


def card_of(study: Study, number: int, positive: str) -> str:
    """The model card of one model of a study."""
    model = study.models[number]
    alone = replace(study, models=[model], comparisons=[], checks=study.checks[number : number + 1])
    assert model.card is not None, "only runs have a card"
    table = tables.paper_table(alone.scores, [model.card], [], manner(alone, positive), alone.baselines)
    external = alone.checks[0].population == "external"
    by_person = any(group.grouping not in (KIND, SLICES) for group in model.groups)
    grouped = [replace(table, title="The paper's figures, and trivial models"), *further_tables(alone, positive)]
    known = Known(
        external,
        by_person,
        model.point is not None,
        alone.checks[0].repeated_volumes is not None,
        any(baseline.name == LOGISTIC for baseline in alone.baselines),
        bool(study.comparisons),
    )
    return model_card(model.score.name, model.card, grouped, alone.checks[0].notes, known)
