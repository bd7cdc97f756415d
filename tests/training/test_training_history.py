"""metrics.csv."""

from __future__ import annotations

from pathlib import Path

from ctcovid.training.history import EpochRow, write_history


def test_history_keeps_full_precision_and_leaves_blank_what_was_not_validated(tmp_path: Path) -> None:
    write_history(tmp_path / "metrics.csv", [EpochRow(1, 1e-3, 1 / 3, 0.5, None, None)])
    assert (tmp_path / "metrics.csv").read_text().splitlines() == [
        "epoch,learning_rate,train_loss,train_accuracy,valid_loss,valid_accuracy",
        "1,0.001,0.3333333333333333,0.5,,",
    ]
