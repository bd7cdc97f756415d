"""What of a study is done: which data are prepared, which cells are trained and evaluated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ctcovid.base.errors import UsageError
from ctcovid.base.files import RUN_CARD, made_by
from ctcovid.experiments.cells import Cell
from ctcovid.experiments.study import Study
from ctcovid.models.saved_model import CARD, CHECKPOINT

DONE, TRAINED, BEGUN, NOTHING = "done", "trained", "begun", "not begun"
# What ctcovid evaluate wrote of a run, inside its folder.
EVALUATION = Path("evaluation") / "evaluation.json"


def status(study: Study, cell: Cell) -> str:
    """How far a cell is, in a word."""
    if evaluation(study, cell) is not None:
        return DONE
    if is_trained(study, cell):
        return TRAINED
    folder = study.runs / cell.run
    return BEGUN if any((folder / name).is_file() for name in (CARD, CHECKPOINT)) else NOTHING


def is_trained(study: Study, cell: Cell) -> bool:
    """Whether the run is trained for the epochs that are asked for."""
    return _epochs(_read(study.runs / cell.run / CARD)) == study.epochs


def require_epochs(study: Study) -> None:
    """Raises UsageError if a cell is trained for more epochs than are asked for: it cannot be made untrained."""
    for cell in study.cells:
        if (trained := _epochs(_read(study.runs / cell.run / CARD))) > study.epochs:
            raise UsageError(
                f"{study.runs / cell.run} is trained for {trained} epochs. Ask for at least so many --epochs, or give another --output."
            )


def evaluation(study: Study, cell: Cell) -> dict[str, Any] | None:
    """What ctcovid evaluate measured of a cell as it is trained now, in the paper's way; None if that is still to be done."""
    card, found = _read(study.runs / cell.run / CARD), _read(study.runs / cell.run / EVALUATION)
    if _epochs(card) != study.epochs or found.get("ci") != "normal" or found.get("part") != "test":
        return None
    hashes = [read.get("hash") for read in found.get("inputs", [])]
    return found if f"sha256:{card['weights_sha256']}" in hashes else None


def is_synthesised(folder: Path) -> bool:
    """Whether ctcovid demo has written the whole synthetic data set."""
    return made_by(folder, "demo") and _read(folder / RUN_CARD).get("status") == "done"


def _epochs(card: dict[str, Any]) -> int:
    """Epochs that a model was to be trained for; 0 for none."""
    recipe = card.get("recipe")
    return int(recipe["epochs"]) if isinstance(recipe, dict) and "weights_sha256" in card else 0


def _read(path: Path) -> dict[str, Any]:
    """A JSON document; an empty one if the file is absent or damaged, and what it says is to be done again."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
