"""The folder of a run: checkpoint, best weights and history while it trains, and at its end the registered model."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ctcovid.base.choices import PARTS
from ctcovid.base.files import RUN_CARD, made_by
from ctcovid.base.runcard import versions
from ctcovid.base.temporaries import clear_all
from ctcovid.distributed.ranks import Ranks
from ctcovid.models import saved_model
from ctcovid.models.network import SCALING
from ctcovid.models.reference_features import FILE as FEATURES
from ctcovid.models.reference_features import ReferenceFeatures, save_reference
from ctcovid.models.training_slices import FILE as SEEN
from ctcovid.models.training_slices import TrainingSlices, save_training_slices
from ctcovid.training import scalars
from ctcovid.training.checkpoint import TrainingState, room_for, save_checkpoint
from ctcovid.training.data import TrainingData
from ctcovid.training.ema import averaged
from ctcovid.training.history import EpochRow, write_history
from ctcovid.training.recipe import Recipe

BEST, HISTORY = "best.safetensors", "metrics.csv"
# What training writes into the folder of its run, except its run card and the files of TensorBoard.
WRITTEN = (saved_model.CARD, saved_model.WEIGHTS, FEATURES, SEEN, BEST, saved_model.CHECKPOINT, HISTORY, "loss.png", "accuracy.png")


@dataclass(frozen=True)
class RunFolder:
    """The folder `path` of a run and the files in it. Of several processes, only the first writes.

    Attributes
    ----------
    state : what is trained, for the checkpoint
    settings : the settings that a resumed run is compared with, for the checkpoint
    """

    path: Path
    state: TrainingState
    settings: dict[str, Any]
    ranks: Ranks

    @property
    def checkpoint(self) -> Path:
        return self.path / saved_model.CHECKPOINT

    def is_finished(self) -> bool:
        """Whether the model of all epochs so far is registered. That of fewer epochs stays until a resumed run has finished.

        Raises ModelRefusedError if model.json is damaged.
        """
        return (self.path / saved_model.CARD).is_file() and saved_model.read_card(self.path).get("trained") == self.state.progress.epoch

    def save(self) -> None:
        """Write the checkpoint."""
        if self.ranks.first:
            with self.ranks.writing(), room_for(self.checkpoint):
                save_checkpoint(self.checkpoint, self.state, self.settings)

    def keep(self, row: EpochRow) -> None:
        """Write the best weights, the checkpoint and the history after an epoch.

        In this order, a kill between two of them repeats the epoch and loses nothing.
        """
        if self.ranks.first and self.state.progress.best is row:
            module = self.state.network.module
            with self.ranks.writing(), room_for(self.checkpoint), averaged(module, self.state.ema):
                saved_model.save_weights(self.path / BEST, module)
        self.save()
        self.write_history()

    def keep_untrained(self) -> None:
        """Write the initial weights, if nothing is trained."""
        if self.ranks.first:
            saved_model.save_weights(self.path / BEST, self.state.network.module)
        self.save()

    def write_history(self) -> None:
        if self.ranks.first and self.state.progress.history:
            write_history(self.path / HISTORY, self.state.progress.history)

    @property
    def weights(self) -> Path:
        """The weights that become the model's."""
        best = self.path / BEST
        return best if best.exists() else self.path / saved_model.WEIGHTS

    def register(
        self, data: TrainingData, recipe: Recipe, use: dict[str, Any], reference: ReferenceFeatures | None, seen: TrainingSlices | None
    ) -> None:
        """Make the weights the model of the run, and write model.json last; `use`, `reference` and `seen` are from `finalize`."""
        weights, file = self.weights, data.train.file
        # A model.json of fewer epochs would describe other weights.
        (self.path / saved_model.CARD).unlink(missing_ok=True)
        weights.replace(self.path / saved_model.WEIGHTS)
        if reference is not None:
            use = use | {"features": save_reference(self.path, reference)}
        if seen is not None:
            use = use | {"training_slices": save_training_slices(self.path, seen)}
        network, progress = self.state.network, self.state.progress
        saved_model.save_card(
            self.path,
            {
                "architecture": network.architecture.name,
                "classes": file.classes,
                "positive": file.positive,
                "depth": data.train.depth,
                "size": file.size,
                "scaling": SCALING,
                "window": [file.window.level, file.window.width],
                "data": {"path": str(file.path.resolve()), "fingerprint": file.fingerprint},
                "split": {part: sorted({row.patient for row in file.rows if row.split == part}) for part in PARTS},
                "recipe": asdict(recipe),
                "pretrained": self.settings["pretrained"],
                "precision": str(network.precision).removeprefix("torch."),
                "trained": progress.epoch,
                "kept": asdict(progress.best) if progress.best else None,
                **use,
                "versions": versions(),
            },
        )


def clear(folder: Path) -> None:
    """Remove what an earlier run of that name has left, so that a half-trained model cannot pass for a finished one."""
    for name in (*WRITTEN, "MODEL_CARD.md"):
        (folder / name).unlink(missing_ok=True)
    scalars.clear(folder)
    if made_by(folder / "evaluation", "evaluate"):
        shutil.rmtree(folder / "evaluation")


def clear_unfinished(folder: Path) -> None:
    """Remove the temporary files that killed runs have left in `folder`, on any host. No run may be at work there."""
    clear_all(folder, (*WRITTEN, RUN_CARD))
