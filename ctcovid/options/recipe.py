"""Options of the training recipe: the paper's, and what goes beyond it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from ctcovid.base import choices
from ctcovid.base.errors import UsageError

PAPER = "The paper's recipe"
BEYOND = "Beyond the paper's recipe, all off by default"


def _paper(what: str, **further: Any) -> Any:
    return typer.Option(help=what, rich_help_panel=PAPER, **further)


def _beyond(what: str, **limits: Any) -> Any:
    return typer.Option(help=what, rich_help_panel=BEYOND, show_default=False, **limits)


@dataclass(frozen=True)
class RecipeOptions:
    """How to train (Li et al. 2021, Sec. 2.3; batch size from Table 6).

    Adam at `learning_rate`, divided by 10 every 10 epochs, for `epochs` epochs with `batch` volumes per step.

    The rest goes beyond the paper and is off by default. `augment` training volumes (training/augment.py). `class_balance` for classes of
    unequal size, by ``weights`` or a ``sampler`` (training/balance.py). `label_smoothing`, and decoupled `weight_decay` (AdamW). A
    ``cosine`` `schedule` in place of the steps, and `warmup` epochs before either. `ema`: decay of a moving average of the weights
    (training/ema.py). `patience`: epochs to wait for a better one. `clip_gradient`: highest norm. `freeze`: the last frozen layer
    (training/freeze.py).
    """

    epochs: Annotated[int, _paper("Passes over the training part; 0 makes a model of --pretrained without training.", min=0)] = 20
    batch: Annotated[int, _paper("Volumes per step.", min=1)] = 32
    learning_rate: Annotated[float, _paper("Initial learning rate, divided by 10 every 10 epochs.", min=1e-12)] = 1e-3
    augment: Annotated[bool, _beyond("Random flips, rotations, shifts, zooms, brightness and noise of training volumes.")] = False
    class_balance: Annotated[choices.ClassBalance, _beyond("Give all classes equal weight: in the loss, or by sampling.")] = "none"
    label_smoothing: Annotated[float, _beyond("Share of the target that is spread evenly over all classes.", min=0, max=0.99)] = 0.0
    weight_decay: Annotated[float, _beyond("AdamW with this weight decay, in place of Adam.", min=0)] = 0.0
    schedule: Annotated[choices.Schedule, _beyond("cosine: the learning rate follows a cosine down to the last epoch.")] = "step"
    warmup: Annotated[float, _beyond("Epochs in which the learning rate rises to its initial value.", min=0)] = 0.0
    ema: Annotated[
        float, _beyond("Decay of a moving average of the weights, which becomes the model; typically 0.999.", min=0, max=0.99999)
    ] = 0.0
    patience: Annotated[int, _beyond("Stop after this many epochs without a better one.", min=0)] = 0
    clip_gradient: Annotated[float, _beyond("Clip the norm of the gradient to this value.", min=0)] = 0.0
    freeze: Annotated[str, _beyond("Do not train the weights up to this layer: stem, layer1, … For --pretrained.")] = ""

    def require_recipe(self) -> None:
        """Raises UsageError if the values do not fit together."""
        for name, known in (("class_balance", choices.CLASS_BALANCES), ("schedule", choices.SCHEDULES)):
            if getattr(self, name) not in known:
                option = name.replace("_", "-")
                raise UsageError(f"--{option} {getattr(self, name)}: not a choice. Use {', '.join(known)}.")
        for name in ("learning_rate", "label_smoothing", "weight_decay", "warmup", "ema", "clip_gradient"):
            if not math.isfinite(getattr(self, name)):
                raise UsageError(f"--{name.replace('_', '-')} {getattr(self, name)}: give a finite number.")
        if self.epochs and self.warmup >= self.epochs:
            raise UsageError(f"--warmup {self.warmup:g} takes all epochs ({self.epochs}). Give a smaller --warmup or more --epochs.")
