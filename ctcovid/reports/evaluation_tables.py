"""Tables of an evaluation: the paper's form, and what stands beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ctcovid.base.errors import counted
from ctcovid.evaluation.comparing import DIFFERENCES, Comparison
from ctcovid.evaluation.intervals import Estimate
from ctcovid.evaluation.metrics import METRICS, PER_CLASS, of_class
from ctcovid.evaluation.operating import RATES
from ctcovid.evaluation.scoring import OF_GROUPS, GroupScore, Score
from ctcovid.evaluation.significance import TESTED, stars
from ctcovid.reports.tables import Cell, Table, csv_text

PAPER = {"accuracy": "Accuracy", "f1": "F1-score", "precision": "Precision", "recall": "Recall", "macro_auroc": "macro-AUROC"}
MORE = {
    "specificity": "Specificity",
    "npv": "NPV",
    "binary_accuracy": "Binary accuracy",
    "kappa": "Cohen's kappa",
    "brier": "Brier score",
    "log_loss": "Log loss",
    "ece": "Calibration error",
}
NAMES = {**PAPER, **MORE, "auroc": "AUROC", "average_precision": "Average precision"}
INTERVALS = {
    "percentile": "the 2.5 and 97.5 percentiles",
    "normal": "mean ± 1.96 standard deviations",
    "bca": "bias-corrected and accelerated percentiles (BCa)",
}
# Of fewer patients a bootstrap draws the same ones again and again.
FEW_PATIENTS = 20
# Behind an exact interval.
EXACT = "‡"
STARS = "* p < 0.05, ** p < 0.01, *** p < 0.001"


@dataclass(frozen=True)
class Manner:
    """How the figures came about, in the words that tables need: `level`, `join`, `resample`, `resamples`, `ci` and the positive class."""

    level: str
    join: str
    resample: str
    resamples: int
    ci: str
    positive: str

    def sentence(self) -> str:
        of = f"per {self.level}" + ("" if self.level == "volume" else f", volumes joined by {self.join}")
        figure = "bootstrap mean" if self.ci == "normal" else "value of the sample"
        return (
            f"Figures {of}: {figure} (95 % interval: {INTERVALS[self.ci]} of {self.resamples:,} resamples by {self.resample}). "
            f"Accuracy, macro-AUROC, kappa, Brier score, log loss and calibration error are over all classes; the rest is {self.positive} "
            "against the others."
        )


def cell(found: Estimate, ci: str, mark: str = "") -> str:
    """As the paper writes it: figure, stars, and the interval in brackets. The figure is the paper's mean with its normal interval only."""
    if found.mean is None:
        return "not defined" if found.value is None else f"{found.value:.4f}"
    if found.low is None:
        return f"{found.shown(ci):.4f}{mark} (no interval)"
    return f"{found.shown(ci):.4f}{mark} ({found.low:.4f}, {found.high:.4f}){EXACT * found.exact}"


def paper_table(
    scores: Sequence[Score],
    runs: Sequence[dict[str, Any] | None],
    comparisons: Sequence[Comparison],
    manner: Manner,
    baselines: Sequence[Score],
) -> Table:
    """The form of the paper's Tables 5 to 7: stars against the first, the best of each column bold.

    runs : what model.json says of each, None for predictions of another system
    baselines : trivial models, below the others; they are no competitors for the bold face
    """
    tests: list[dict[str, float]] = [{}, *(comparison.fisher for comparison in comparisons)]
    rows: list[list[Cell]] = []
    said = ("depth", "batch") if any(runs) else ()
    for score, card, p_values in zip(scores, runs, tests, strict=True):
        marks = {metric: stars(p_values.get(metric)) for metric in PAPER}
        known = {"depth": card["depth"], "batch": card.get("recipe", {}).get("batch")} if card else {}
        rows.append(
            [
                score.name,
                *(known.get(what) or "" for what in said),
                score.rows,
                *(cell(score.estimates[metric], manner.ci, marks[metric]) for metric in PAPER),
            ]
        )
    bold = frozenset((row, 2 + len(said) + place) for place, metric in enumerate(PAPER) for row in _best(scores, metric, manner.ci))
    rows += [
        [score.name, *("" for _ in said), score.rows, *(cell(score.estimates[metric], manner.ci) for metric in PAPER)]
        for score in baselines
    ]
    notes = [*_few_patients(scores), manner.sentence()]
    if any(score.estimates[metric].exact for score in (*scores, *baselines) for metric in PAPER):
        notes.append(f"{EXACT} exact (Clopper-Pearson) interval over {manner.resample}s, because all resamples give the same value.")
    if comparisons:
        notes.append(f"Bold: the best. Two-sided Fisher's exact test against {scores[0].name}, as in the paper: {STARS}.")
    for score in scores:
        notes += [
            f"{score.name}: {NAMES[metric]} is not defined, {reason}." for metric, reason in score.undefined.items() if metric in PAPER
        ]
    optional = ("batch", "depth", *(PAPER[metric] for metric in ("precision", "recall", "f1")))
    return Table(("model", *said, f"{manner.level}s", *PAPER.values()), rows, notes=notes, bold=bold, optional=optional)


def _few_patients(scores: Sequence[Score]) -> list[str]:
    """What stands before all else where no interval can tell how a model does on other patients."""
    fewest = min(score.patients for score in scores)
    return [f"{counted(fewest, 'patient')}: these figures describe this sample only."] if fewest < FEW_PATIENTS else []


def _best(scores: Sequence[Score], metric: str, ci: str) -> list[int]:
    """Rows with the highest figure, to the four places that a table shows; none where there is nothing to choose from."""
    found = {row: round(value, 4) for row, score in enumerate(scores) if (value := score.estimates[metric].shown(ci)) is not None}
    return [row for row, value in found.items() if value == max(found.values())] if len(found) > 1 else []


def full_numbers(scores: Sequence[Score], comparisons: Sequence[Comparison], ci: str) -> str:
    """All overall figures without rounding as CSV: value, low, high and Fisher's p by metric, with the paper's interval also the mean."""
    parts = ("value", "mean", "low", "high") if ci == "normal" else ("value", "low", "high")
    heading = ["model", "rows", "patients", *(f"{metric}_{part}" for metric in METRICS for part in parts)]
    tests: list[dict[str, float]] = [{}, *(comparison.fisher for comparison in comparisons)]
    lines: list[list[Cell]] = []
    for score, p_values in zip(scores, tests, strict=True):
        numbers: list[Cell] = [_blank(getattr(score.estimates[metric], part)) for metric in METRICS for part in parts]
        lines.append([score.name, score.rows, score.patients, *numbers, *(_blank(p_values.get(metric)) for metric in TESTED)])
    return csv_text([*heading, *(f"{metric}_p" for metric in TESTED)], lines)


def more_table(scores: Sequence[Score], manner: Manner) -> Table:
    """The other overall figures."""
    rows = [[score.name, *(cell(score.estimates[metric], manner.ci) for metric in MORE)] for score in scores]
    notes = [f"NPV: negative predictive value. Lower is better for Brier score, log loss and calibration error ({manner.level} level)."]
    if manner.ci != "bca":
        notes.append("Bootstrap samples overstate the calibration error, and its interval lies too high; --ci bca corrects that.")
    for score in scores:
        notes += [
            f"{score.name}: {NAMES[metric]} is not defined, {reason}." for metric, reason in score.undefined.items() if metric in MORE
        ]
    return Table(("model", *MORE.values()), rows, "Further figures", notes=notes)


def class_table(scores: Sequence[Score], ci: str) -> Table:
    """The figures of each class against the rest."""
    rows = [
        [score.name, label, *(cell(score.estimates[of_class(metric, number)], ci) for metric in PER_CLASS)]
        for score in scores
        for number, label in enumerate(score.classes)
    ]
    columns = [{"npv": "NPV", "f1": "F1-score"}.get(metric, NAMES[metric]) for metric in PER_CLASS]
    return Table(("model", "class", *columns), rows, "By class, each against the rest", text_columns=2)


def resampling_table(scores: Sequence[Score]) -> Table:
    """Intervals by volume beside those by patient."""
    rows = [
        [score.name, NAMES[metric], *(_interval(score.beside[unit][metric]) for unit in ("volume", "patient")), _ratio(score, metric)]
        for score in scores
        for metric in PAPER
    ]
    note = (
        "Resampling by volume takes the volumes of a patient for independent, which they are not: intervals by patient are the ones to "
        "believe. The last column says how many times as wide they are."
    )
    notes = [note]
    fewest = min(score.patients for score in scores)
    if fewest < FEW_PATIENTS:
        notes.append(f"With {counted(fewest, 'patient')} neither can be believed: so few cannot stand for others.")
    columns = ("model", "metric", "by volume", "by patient", "width ratio")
    return Table(columns, rows, "Intervals by volume and by patient", text_columns=2, notes=notes)


def comparison_table(comparisons: Sequence[Comparison], reference: str) -> Table:
    """Every test against the reference, with Holm's correction."""
    rows: list[list[Cell]] = []
    for one in comparisons:
        rows += [[one.name, "Fisher (paper)", NAMES[metric], "", _p(one.fisher[metric]), _p(one.fisher_holm[metric])] for metric in TESTED]
        if one.mcnemar:
            split = f"{one.mcnemar.reference_only:,} : {one.mcnemar.other_only:,}"
            rows.append([one.name, "McNemar, exact", NAMES["accuracy"], split, _p(one.mcnemar.p_value), _p(one.holm["mcnemar"])])
        area = "" if one.delong.difference is None else f"{one.delong.difference:+.4f} (s.e. {one.delong.error:.4f})"
        kind = "DeLong" if one.paired else "DeLong, unpaired"
        rows.append([one.name, kind, "AUROC", area, _p(one.delong.p_value), _p(one.holm["delong"])])
        kind = "bootstrap, paired" if one.paired else "bootstrap"
        rows += [
            [one.name, kind, NAMES[metric], _signed(one.differences[metric]), _p(one.p_values[metric]), _p(one.holm[metric])]
            for metric in DIFFERENCES
        ]
    notes = [f"{one.name} and {reference}: {one.why}." for one in comparisons]
    notes += [
        "Differences are the model minus the reference; for McNemar, rows that the reference alone and the model alone got right. AUROC is "
        "that of the positive class.",
        "Fisher's test takes the two models' rows for independent samples of independent rows. McNemar's and DeLong's know that the models "
        "saw the same rows, and take the rows for independent of each other. The bootstrap assumes what its resampling does: by patient, "
        "that patients are independent.",
        "Holm: adjusted over the models and metrics of this table, for each kind of test.",
    ]
    columns = ("model", "test", "of", "difference (95 % interval)", "p", "p (Holm)")
    return Table(columns, rows, f"Tests against {reference}", text_columns=3, notes=notes)


def operating_table(points: dict[str, tuple[float, dict[str, Estimate]]], sensitivity: float, positive: str, ci: str) -> Table:
    """Thresholds chosen on the validation part, by model, and what they give here."""
    names = {"recall": "Sensitivity", "specificity": "Specificity", "precision": "Precision", "npv": "NPV"}
    rows: list[list[Cell]] = [
        [name, threshold, *(cell(found[metric], ci) for metric in RATES)] for name, (threshold, found) in points.items()
    ]
    title = f"Operating point for a sensitivity of {sensitivity:g} on the validation part"
    note = f"{positive} is predicted where its probability is at least the threshold. Intervals take the threshold as given."
    return Table(("model", "threshold", *(names[metric] for metric in RATES)), rows, title, notes=[note])


def group_table(groups: dict[str, list[GroupScore]], manner: Manner) -> Table:
    """The figures of subgroups, small ones marked."""
    rows: list[list[Cell]] = [
        [
            name,
            one.grouping,
            one.group + (" †" if one.small else ""),
            one.rows,
            one.patients,
            *(cell(one.estimates[m], manner.ci) for m in OF_GROUPS),
        ]
        for name, found in groups.items()
        for one in found
    ]
    columns = ("model", "by", "group", f"{manner.level}s", "patients", *(NAMES[metric] for metric in OF_GROUPS))
    notes = ["† Fewer than 10 patients: too few for a conclusion."] if any(one.small for found in groups.values() for one in found) else []
    notes.append("Differences between groups were not tested; with many groups, some differ by chance.")
    return Table(columns, rows, "Subgroups", text_columns=3, notes=notes)


def _interval(found: Estimate) -> str:
    return "not defined" if found.low is None else f"{found.low:.4f} – {found.high:.4f}"


def _ratio(score: Score, metric: str) -> str:
    by_volume, by_patient = (score.beside[unit][metric] for unit in ("volume", "patient"))
    if by_volume.low is None or by_volume.high is None or by_patient.low is None or by_patient.high is None:
        return ""
    width = by_volume.high - by_volume.low
    return f"{(by_patient.high - by_patient.low) / width:.2f}" if width > 0 else ""


def _signed(found: Estimate) -> str:
    return "not defined" if found.low is None else f"{found.value:+.4f} ({found.low:+.4f}, {found.high:+.4f})"


def _p(value: float | None) -> str:
    if value is None:
        return "not defined"
    return "< 0.0001" if value < 0.0001 else f"{value:.4f}"


def _blank(value: float | None) -> Cell:
    return "" if value is None else value
