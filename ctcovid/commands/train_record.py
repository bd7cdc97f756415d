"""What a training leaves in its folder: checkpoint, best weights, history and curves as it goes on, and at its end the model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ctcovid.base.choices import PARTS
from ctcovid.base.runcard import versions
from ctcovid.distributed.ranks import Ranks
from ctcovid.models import store
from ctcovid.models.network import SCALING, Network
from ctcovid.models.reference import ReferenceFeatures, save_reference
from ctcovid.reports.figures import curve
from ctcovid.training.checkpoint import Progress, room_for, save_checkpoint
from ctcovid.training.ema import Ema, averaged
from ctcovid.training.history import EpochRow, write_history
from ctcovid.training.recipe import Recipe
from ctcovid.training.resume import BEST, HISTORY
from ctcovid.volumes.reader import VolumesFile


@dataclass(frozen=True)
class Record:
    """The folder of a run and what is written there; of several processes, only the first writes.

    settings : what a run may be continued with, for the checkpoint
    """

    folder: Path
    network: Network
    optimiser: torch.optim.Optimizer
    ema: Ema | None
    progress: Progress
    settings: dict[str, Any]
    ranks: Ranks

    def save(self) -> None:
        """Write the checkpoint."""
        if self.ranks.first:
            with self.ranks.writing(), room_for(self.folder / store.CHECKPOINT):
                save_checkpoint(self.folder / store.CHECKPOINT, self.network.module, self.optimiser, self.progress, self.settings, self.ema)

    def keep(self, row: EpochRow) -> None:
        """Write what an epoch has come to. In this order, a kill between two of them repeats the epoch and loses nothing."""
        if self.ranks.first and self.progress.best is row:
            with self.ranks.writing(), room_for(self.folder / store.CHECKPOINT), averaged(self.network.module, self.ema):
                store.save_weights(self.folder / BEST, self.network.module)
        self.save()
        self.draw()

    def keep_untrained(self) -> None:
        """Write the weights that the run began with, where nothing is trained."""
        if self.ranks.first:
            store.save_weights(self.folder / BEST, self.network.module)
        self.save()

    def draw(self) -> None:
        """metrics.csv, and the paper's Figs. 8 and 9."""
        history = self.progress.history
        if not history or not self.ranks.first:
            return
        write_history(self.folder / HISTORY, history)
        epochs = [row.epoch for row in history]
        for what in ("loss", "accuracy"):
            learnt, validated = ([getattr(row, f"{part}_{what}") for row in history] for part in ("train", "valid"))
            curve(self.folder / f"{what}.png", what, epochs, learnt, validated)

    @property
    def weights(self) -> Path:
        """The weights that become the model's."""
        best = self.folder / BEST
        return best if best.exists() else self.folder / store.WEIGHTS

    def register(self, file: VolumesFile, depth: int, recipe: Recipe, use: dict[str, Any], reference: ReferenceFeatures | None) -> None:
        """Make the weights the model of the run, and write model.json, last of all; `use` and `reference` are what `close` has found."""
        weights = self.weights
        # That of an earlier end of the run would be one of other weights.
        (self.folder / store.CARD).unlink(missing_ok=True)
        weights.replace(self.folder / store.WEIGHTS)
        if reference is not None:
            use = use | {"features": save_reference(self.folder, reference)}
        store.save_card(
            self.folder,
            {
                "architecture": self.network.architecture.name,
                "classes": file.classes,
                "positive": file.positive,
                "depth": depth,
                "size": file.size,
                "scaling": SCALING,
                "window": [file.window.level, file.window.width],
                "data": {"path": str(file.path.resolve()), "fingerprint": file.fingerprint},
                "split": {part: sorted({row.patient for row in file.rows if row.split == part}) for part in PARTS},
                "recipe": asdict(recipe),
                "pretrained": self.settings["pretrained"],
                "precision": str(self.network.precision).removeprefix("torch."),
                "trained": self.progress.epoch,
                "kept": asdict(self.progress.best) if self.progress.best else None,
                **use,
                "versions": versions(),
            },
        )
