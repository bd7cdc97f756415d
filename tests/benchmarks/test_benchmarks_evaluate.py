"""evaluate.py runs the command itself, with the source of each checkout."""

from __future__ import annotations

from pathlib import Path

import evaluate
import pytest

from ctcovid.evaluation.predictions import read_predictions


def test_each_line_is_timed() -> None:
    found = evaluate.measure([evaluate.HERE], 60, 1)
    assert set(found) == set(evaluate.LINES)
    assert all(len(took) == 1 and all(one.cpu > 0 and one.clock > 0 for one in took) for took in found.values())


def test_another_checkout_is_the_one_that_runs(tmp_path: Path) -> None:
    (tmp_path / "ctcovid").mkdir()
    (tmp_path / "ctcovid" / "__main__.py").write_text("import sys; sys.exit('not this one')")
    with pytest.raises(RuntimeError, match="not this one"):
        evaluate.run(tmp_path, tmp_path, ("nosuch",), 3)


def test_predictions_are_of_patients_with_one_label_each(tmp_path: Path) -> None:
    made = read_predictions(evaluate.predictions(tmp_path, 60))
    assert len(made.labels) == 60
    assert len(set(zip(made.patients, made.labels.tolist(), strict=True))) == len(set(made.patients)) < 30
