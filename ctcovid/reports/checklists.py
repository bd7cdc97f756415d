"""Items of TRIPOD+AI and CLAIM that can be filled from what was recorded and measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ctcovid.reports.tables import Table

AUTHORS = "for the authors to say"
NOT_SAID = "not recorded"


@dataclass(frozen=True)
class Known:
    """What was looked into: whether the test is `external`, `groups` of patients and an operating `point` are among the figures, `images`
    were compared with those of training, a `regression` on global features was fitted, and the model was tested against others (`tests`).
    """

    external: bool
    groups: bool
    point: bool
    images: bool
    regression: bool
    tests: bool


def kept(card: dict[str, Any]) -> str:
    """Which epoch's weights the model has, and why."""
    found = card.get("kept")
    if not found:
        return "the initial weights, nothing was trained" if card.get("recipe", {}).get("epochs") == 0 else NOT_SAID
    valid = found.get("valid_accuracy")
    by = "the last one, there was no validation part" if valid is None else f"best validation accuracy, {valid:.4f}"
    return f"epoch {found['epoch']} ({by})"


def window(card: dict[str, Any]) -> str:
    """Level and width, as in ``-600/1500``."""
    return "/".join(f"{number:g}" for number in card["window"]) if "window" in card else NOT_SAID


def checklist_table(card: dict[str, Any], known: Known) -> Table:
    """What the toolkit can say to each item, by the numbers of TRIPOD+AI (Collins et al. 2024, BMJ 385:e078378) and of CLAIM
    (Mongan, Moy and Kahn 2020, Radiol. Artif. Intell. 2(2):e200029).
    """
    split = card.get("split", {})
    recipe = card.get("recipe", {})
    patients = ", ".join(f"{part} {len(members):,}" for part, members in split.items())
    start = "pretrained weights, see Model" if card.get("pretrained") else "random weights"
    tests = "tests with Holm's correction, in the report of the evaluation" if known.tests else "no test against another model"
    images = "repeated images" if known.images else "repeated images could not be checked"
    robustness = f"{images}; majority class{', regression on global image features' if known.regression else ''}"
    # Called "balance" in models of earlier versions.
    balance = str(recipe.get("class_balance", recipe.get("balance", NOT_SAID)))
    rows = [
        ["Data source, dates, eligibility, de-identification", "5a, 5b, 6a–c", "7, 8, 12", f"file and fingerprint above; {AUTHORS}"],
        ["Preparation of the images", "7", "9", f"see Data and split; volumes of {card['depth']} slices"],
        ["Outcome and reference standard", "8a–c", "14–18", f"class given to ctcovid prepare ({', '.join(card['classes'])}); {AUTHORS}"],
        ["Sample size", "10", "19", f"patients: {patients}; no calculation of the size needed"],
        ["Missing data", "11", "13", "scans that could not be read were left out and named by ctcovid prepare"],
        ["Partitions, and the level at which they are disjoint", "12a", "20, 21", "by patient, checked when opened"],
        ["Type of model, inputs, outputs", "12c, 15, 22", "22", f"{card['architecture']}, softmax over {len(card['classes'])} classes"],
        ["Software", "18f", "23", "see Model"],
        ["Initial parameters", "12c", "24", start],
        ["Training, hyperparameters", "12c", "25", f"see Recipe; seed {recipe.get('seed', NOT_SAID)}"],
        ["Choice of the final model", "12c", "26", kept(card)],
        ["Class imbalance", "13", "25", {"none": "nothing done"}.get(balance, balance)],
        ["Measures of performance", "12e", "28", "discrimination, calibration and classification, see Figures"],
        ["Uncertainty and significance", "12e, 23a", "29, 36", f"bootstrap by volume and by patient; {tests}"],
        ["Robustness; trivial models", "12e", "30", robustness],
        ["Threshold", "15", "28", "chosen on the validation part, see Figures" if known.point else "highest probability; none was chosen"],
        ["Fairness, heterogeneity between groups", "12d, 14, 23b", "30, 34", "see Subgroups" if known.groups else "not evaluated"],
        ["Training against evaluation data", "16", "32", "external test" if known.external else "internal test"],
        ["Participants and their characteristics", "20a–c", "33, 34", f"counts above; {AUTHORS}"],
        ["Performance, with intervals", "23a", "35, 36", "see Figures"],
        ["Failure analysis", "23a", "37", "predictions of every volume in evaluation/predictions-….csv; maps with ctcovid explain"],
        ["Limitations", "26", "38", "see Limits"],
        ["Intended use", "27a–c", "39", "research only, see Intended use"],
        ["Ethics, funding, protocol, registration, patient involvement", "17–19", "40–42", AUTHORS],
        ["Code and data availability", "18e, 18f", "", "ctcovid, and run.json with versions, seed and hashes"],
    ]
    return Table(("item", "TRIPOD+AI", "CLAIM", "here"), rows, text_columns=4)
