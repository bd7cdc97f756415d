"""What ctcovid train says and draws of a run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ctcovid.base.console import Console
from ctcovid.base.errors import counted
from ctcovid.kernels import native
from ctcovid.models.device import announced
from ctcovid.reports.figures import curve
from ctcovid.reports.tables import Cell, Table
from ctcovid.training.data import TrainingData
from ctcovid.training.history import EpochRow
from ctcovid.training.recipe import Recipe
from ctcovid.training.run_folder import RunFolder


@dataclass(frozen=True)
class Summary:
    """The finished run: its folder, the row of the epoch whose weights were kept (None if nothing was trained), and all rows."""

    folder: Path
    kept: EpochRow | None
    history: list[EpochRow]

    def document(self) -> dict[str, Any]:
        return {
            "model": self.folder.name,
            "folder": str(self.folder),
            "kept": None if self.kept is None else asdict(self.kept),
            "history": [asdict(r) for r in self.history],
        }

    def table(self) -> Table:
        if not self.history:
            return Table(("model",), [[self.folder.name]])
        rows: list[list[Cell]] = []
        for row in self.history:
            valid: list[Cell] = ["-" if value is None else value for value in (row.valid_loss, row.valid_accuracy)]
            mark = " (kept)" if row is self.kept else ""
            rows.append([f"{row.epoch}{mark}", f"{row.learning_rate:g}", row.train_loss, row.train_accuracy, *valid])
        names = ("epoch", "learning rate", "train loss", "train accuracy", "valid loss", "valid accuracy")
        return Table(names, rows)


def summarise(run: RunFolder, console: Console) -> Summary:
    """Print the result of a finished run."""
    path, kept = run.path, run.state.progress.best
    summary = Summary(path, kept, run.state.progress.history)
    console.result(summary.table(), summary.document())
    if kept is None:
        console.say(f"Nothing was trained. Model {path.name} is in {path}/. Evaluate it with ctcovid evaluate.")
        return summary
    which = "the last, because the validation part is empty" if kept.valid_accuracy is None else "which has the best validation accuracy"
    console.say(f"Kept the weights of epoch {kept.epoch}, {which}. Model {path.name} is in {path}/.")
    return summary


def announce(run: RunFolder, data: TrainingData, recipe: Recipe, console: Console) -> None:
    """Say what is about to be trained, on what and how."""
    network, progress = run.state.network, run.state.progress
    precision = str(network.precision).removeprefix("torch.")
    processes = f" in each of {run.ranks.size} processes" if run.ranks.size > 1 else ""
    console.say(
        f"Training {network.architecture.name} on {counted(len(data.train), 'volume')} of {'×'.join(map(str, data.train.shape))} "
        f"({len(data.valid):,} to validate), {announced(network.device)}{processes}, {precision}, into {run.path}/."
    )
    if network.device.type == "cpu" and native.compiled is None:
        console.say(
            "No compiled library fits this ctcovid: training takes longer, with the same result. "
            "Install ctcovid again where a C++ compiler is available."
        )
    if progress.epoch or progress.step:
        console.say(
            f"Resuming after {counted(progress.epoch, 'epoch')} and {counted(progress.step, 'step')} of {counted(recipe.epochs, 'epoch')}."
        )


def epoch_line(row: EpochRow, recipe: Recipe, pace: str) -> str:
    """An epoch in one line."""
    valid = "" if row.valid_loss is None else f", validation loss {row.valid_loss:.4f} accuracy {row.valid_accuracy:.4f}"
    line = f"Epoch {row.epoch} of {recipe.epochs}: training loss {row.train_loss:.4f} accuracy {row.train_accuracy:.4f}{valid}"
    return f"{line}; {pace}" if pace else line


def draw_curves(run: RunFolder) -> None:
    """Loss and accuracy by epoch (Li et al. 2021, Figs. 8 and 9), in the first process."""
    history = run.state.progress.history
    if history and run.ranks.first:
        epochs = [row.epoch for row in history]
        for what in ("loss", "accuracy"):
            train, valid = ([getattr(row, f"{part}_{what}") for row in history] for part in ("train", "valid"))
            curve(run.path / f"{what}.png", what, epochs, train, valid)
