"""The model card says what was recorded, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from ctcovid.reports.card import model_card
from ctcovid.reports.checklists import Known

CARD: dict[str, Any] = {
    "architecture": "r3d18",
    "classes": ["NCP", "CP"],
    "positive": "NCP",
    "depth": 4,
    "size": 32,
    "created": "today",
    "weights_sha256": "0",
    "window": [40.0, 400.0],
    "data": {"path": "volumes.h5", "fingerprint": "sha256:0"},
    "split": {"train": ["a"], "test": ["b"]},
    "recipe": {"epochs": 2, "seed": 7, "balance": "none"},
    "kept": {"epoch": 2, "valid_accuracy": None},
}
NOTHING = Known(False, False, False, False, False, False)
EVERYTHING = Known(True, True, True, True, True, True)


def test_window_and_labels_are_said_as_recorded() -> None:
    text = model_card("m", CARD, [], [], NOTHING)
    assert "by the window 40/400" in text and "as the 8-bit grey values of the files" not in text
    assert "class folders or of the list" in text


@pytest.mark.parametrize(
    ("kept", "epochs", "said"),
    [
        ({"epoch": 2, "valid_accuracy": None}, 2, "epoch 2 (the last one, there was no validation part)"),
        ({"epoch": 1, "valid_accuracy": 0.5}, 2, "epoch 1 (best validation accuracy, 0.5000)"),
        (None, 0, "the initial weights, nothing was trained"),
        (None, 2, "not recorded"),
    ],
)
def test_the_choice_of_weights_is_the_recorded_one(kept: dict[str, Any] | None, epochs: int, said: str) -> None:
    text = model_card("m", {**CARD, "kept": kept, "recipe": {"epochs": epochs}}, [], [], NOTHING)
    # In the recipe, and in the checklists.
    assert text.count(said) >= 2
    assert ("best validation accuracy" in text) == (kept is not None and kept["valid_accuracy"] is not None)


def test_what_was_not_looked_into_is_not_claimed() -> None:
    nothing, everything = (model_card("m", CARD, [], [], known) for known in (NOTHING, EVERYTHING))
    for words in ("Holm", "regression on global image features"):
        assert words in everything and words not in nothing
    assert "repeated images could not be checked" in nothing
    assert "stratified" not in nothing + everything
