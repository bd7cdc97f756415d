"""MODEL_CARD.md: what a reader of a model's figures has to know, written from what was recorded and measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ctcovid.reports.checklists import NOT_SAID, Known, checklist_table, kept, window
from ctcovid.reports.tables import Table, markdown


def model_card(name: str, card: dict[str, Any], tables: Sequence[Table], checks: Sequence[str], known: Known) -> str:
    """The card as Markdown (Mitchell et al. 2019, Model cards for model reporting), with the checklist items that it fills.

    Parameters
    ----------
    card : what model.json says
    tables : figures with intervals and subgroups, each with a title
    checks : what was found out about the test set, in sentences
    known : what was looked into
    """
    parts = [
        f"# Model card: {markdown(name)}",
        "Written by `ctcovid evaluate` from what was recorded in training and measured in the test. **For research use only, not a "
        "medical device.**",
        "## Model",
        _list(_model(card)),
        "## Intended use",
        "Research on the classification of chest CT into "
        + markdown(", ".join(card["classes"]))
        + ", and comparison of methods on the same data. Not for diagnosis, triage or treatment. No prospective study, and no "
        "reading by physicians beside it, stands behind these figures.",
        "## Data and split",
        _list(_data(card)),
        "## Recipe",
        _list(_recipe(card)),
        "## Figures",
        *(table.text() for table in tables),
        "## Test set",
        _list(list(checks)),
        "## Limits",
        _list(_limits(known)),
        "## Reporting checklists",
        checklist_table(card, known).text(),
    ]
    return "\n\n".join(parts) + "\n"


def _model(card: dict[str, Any]) -> list[str]:
    versions = ", ".join(f"{package} {version}" for package, version in card.get("versions", {}).items())
    return [
        f"Architecture: {card['architecture']}, for volumes of {card['depth']} slices of {card['size']}×{card['size']} pixels.",
        f"Output: probabilities of {', '.join(card['classes'])} (softmax); positive class {card['positive']}.",
        f"Made: {card['created']}, weights sha256:{card['weights_sha256']}.",
        f"Initial weights: {_pretrained(card)}.",
        f"Software: {versions or NOT_SAID}.",
    ]


def _pretrained(card: dict[str, Any]) -> str:
    found = card.get("pretrained")
    return f"{found.get('path', NOT_SAID)}, sha256:{found.get('sha256', NOT_SAID)}" if found else "random"


def _data(card: dict[str, Any]) -> list[str]:
    split = card.get("split", {})
    patients = ", ".join(f"{len(members):,} {part}" for part, members in split.items()) or NOT_SAID
    return [
        f"File: {card['data'].get('path', NOT_SAID)}, fingerprint {card['data'].get('fingerprint', NOT_SAID)}.",
        f"Patients: {patients}; no patient is in two parts, which was checked.",
        "Labels are those of the class folders or of the list that ctcovid prepare was given; their source says how they were made.",
        f"Slices enter as 8-bit grey, resized to {card['size']}×{card['size']}: pictures such as PNG with their own grey values, "
        f"Hounsfield units (DICOM, NIfTI and the like) by the window {window(card)}. The last slices of a scan that fill no volume "
        "take no part.",
    ]


def _recipe(card: dict[str, Any]) -> list[str]:
    recipe = card.get("recipe", {})
    lines = [", ".join(f"{name.replace('_', ' ')} {value}" for name, value in recipe.items()) or NOT_SAID]
    return [*lines, f"Kept: {kept(card)}."]


def _limits(known: Known) -> list[str]:
    lines = [
        "Volumes are classified one by one; lesion size, position and progression are not measured.",
        "Classes of an archive may differ in how they were scanned, stored or masked, and a network learns such differences as well as a "
        "disease. " + ("Compare the regression on global image features above." if known.regression else "Their size was not measured."),
    ]
    if not known.external:
        lines.append("The test is internal: it does not show how the model performs on scans from another hospital.")
    if not known.groups:
        lines.append("Subgroups by age, sex or severity were not evaluated (`--subgroups`).")
    return lines


def _list(lines: Sequence[str]) -> str:
    return "\n".join(f"- {markdown(line)}" for line in lines)
