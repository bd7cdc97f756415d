"""last.pt: everything that a run needs to resume as if it had not been stopped."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from torch import Tensor

from ctcovid.base.declared import Declared, fault
from ctcovid.base.errors import CtcovidError, ModelRefusedError
from ctcovid.base.files import atomic
from ctcovid.models.card import Count, Pretrained, Scalar, Word
from ctcovid.models.network import Network
from ctcovid.models.saved_model import read_tensors, unsound
from ctcovid.training.ema import Ema
from ctcovid.training.history import EpochRow


@dataclass
class Progress:
    """How far a run is: `epoch` whole epochs, and `step` batches of the next with the sums over their volumes.

    `skipped` steps had no finite loss and gradient; `skipped_in_a_row` counts those since the last step that was made.
    """

    epoch: Count = 0
    step: Count = 0
    loss_sum: float = 0.0
    correct: Count = 0
    seen: Count = 0
    skipped: Count = 0
    skipped_in_a_row: Count = 0
    history: list[EpochRow] = field(default_factory=list)

    @property
    def best(self) -> EpochRow | None:
        """The row of the best epoch so far."""
        best: EpochRow | None = None
        for row in self.history:
            if row.better_than(best):
                best = row
        return best

    def note(self) -> str:
        """Mean loss and accuracy over the epoch so far, in words."""
        return f"loss {self.loss_sum / self.seen:.4f}, accuracy {self.correct / self.seen:.4f}" if self.seen else ""

    def over(self, epochs: int, patience: int) -> bool:
        """Whether there have been so many epochs, or `patience` of them (0: any number) since the best one."""
        return self.epoch >= epochs or (self.best is not None and 0 < patience <= self.epoch - self.best.epoch)

    def end_epoch(self, row: EpochRow) -> None:
        """Count the epoch that `row` describes, and start the sums of the next."""
        self.history.append(row)
        self.epoch, self.step = self.epoch + 1, 0
        self.loss_sum, self.correct, self.seen = 0.0, 0, 0


@dataclass(frozen=True)
class TrainingState:
    """What training changes and a checkpoint holds: weights, their moving average, optimiser and progress."""

    network: Network
    optimiser: torch.optim.Optimizer
    ema: Ema | None = None
    progress: Progress = field(default_factory=Progress)


class Saving:
    """Calls `save` every so many `minutes`, when the loop asks for it between two steps; never with 0 minutes."""

    def __init__(self, minutes: float, save: Callable[[], None]) -> None:
        self.seconds, self._save = 60 * minutes, save
        self.last = time.monotonic()

    def due(self) -> bool:
        return 0 < self.seconds <= time.monotonic() - self.last

    def save(self) -> None:
        self._save()
        self.last = time.monotonic()


def save_checkpoint(path: Path, state: TrainingState, settings: dict[str, Any]) -> None:
    """Write the state and the settings of the run, plain types only, whole or not at all."""
    content = {
        "model": state.network.module.state_dict(),
        "optimiser": state.optimiser.state_dict(),
        "ema": None if state.ema is None else state.ema.state(),
        "progress": asdict(state.progress),
        "settings": settings,
    }
    with atomic(path) as temporary:
        try:
            with temporary.open("wb") as file:
                torch.save(content, file)
        except RuntimeError as error:
            # torch's message does not mention a full disk. The error of the file, which does, is its context.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from error
            raise


@contextlib.contextmanager
def room_for(path: Path) -> Iterator[None]:
    """Turn the error of a full disk, or of a used up quota, into a message that says what is left of the run at `path`.

    Raises CtcovidError instead.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        kept = f"The previous {path} is kept" if path.is_file() else "Nothing is saved yet"
        raise CtcovidError(
            f"No space is left to save {path} ({error.strerror}). {kept}. Free some space, and resume with the same command and --resume."
        ) from error


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU.

    Raises ModelRefusedError if the file is damaged or holds anything but tensors and plain types.
    """
    try:
        content = read_tensors(path)
    except ValueError as error:
        raise ModelRefusedError(f"{path} is not a checkpoint of ctcovid: {error}. Train again with --overwrite.") from error
    try:
        return _required(content)
    except (ValueError, TypeError, RecursionError) as error:
        said = fault(error) if isinstance(error, ValidationError) else str(error)
        raise ModelRefusedError(f"{path} is not a checkpoint of ctcovid: {said}. Train again with --overwrite.") from error


class Settings(Declared):
    """The settings of a run, as far as they are used again; the others are compared only."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Scalar] = Field(init=False)

    data: Word | None = None
    ranks: Annotated[int, Field(ge=1, le=1 << 20)] = 1
    micro_batch: Annotated[int, Field(ge=0, le=1 << 20)] | Literal["auto"] | None = None
    device: Word | None = None
    pretrained: Pretrained | None = None


_PROGRESS: TypeAdapter[Progress] = TypeAdapter(Progress)
# Of Adam.
HYPERPARAMETERS = ("lr", "betas", "eps", "weight_decay")
TENSORS = {"model", "optimiser", "ema"}


def _required(content: Any) -> dict[str, Any]:
    """The content of a checkpoint, as declared.

    Raises ValueError, TypeError or RecursionError if it is not.
    """
    if not isinstance(content, dict) or not {"model", "optimiser", "progress", "settings"} <= set(content):
        raise ValueError("it has no model, optimiser, progress and settings")
    for name in TENSORS & set(content):
        if not isinstance(content[name], dict) and not (name == "ema" and content[name] is None):
            raise ValueError(f"{name} does not hold fields")
    # As JSON, anything but plain values is refused, and so is what contains itself.
    progress = _PROGRESS.validate_json(json.dumps(content["progress"]), strict=True)
    Settings.model_validate_json(json.dumps(content["settings"]))
    if not all(isinstance(name, str) for name in content["settings"]):
        raise ValueError("settings have names that are not text")
    if len(progress.history) != progress.epoch or [row.epoch for row in progress.history] != list(range(1, progress.epoch + 1)):
        raise ValueError(f"progress.history: {len(progress.history)} epochs, not those up to epoch {progress.epoch}")
    if progress.correct > progress.seen:
        raise ValueError("progress.correct: more than progress.seen")
    return {**content, "progress": asdict(progress)}


def restore(content: dict[str, Any], state: TrainingState, steps: int) -> TrainingState:
    """Load the checkpoint's `content` into network, optimiser and average of `state`; the state with the checkpoint's progress.

    Raises ModelRefusedError, with the name of a tensor, if the content is not of this network, or not within an epoch of so many `steps`.
    """
    own = state.network.module.state_dict()
    try:
        _require_like(content["model"], own, "model")
        _require_optimiser(content["optimiser"], state.optimiser)
        if state.ema is not None:
            _require_ema(content.get("ema"), own)
        if content["progress"].get("step", 0) > steps:
            raise ValueError(f"progress.step: {content['progress']['step']}, but an epoch has {steps}")
    except ValueError as error:
        raise ModelRefusedError(f"The checkpoint of the run does not fit it: {error}. Train again with --overwrite.") from error
    state.network.module.load_state_dict(content["model"])
    state.optimiser.load_state_dict(content["optimiser"])
    if state.ema is not None:
        state.ema.load(content["ema"])
    progress = Progress(**content["progress"])
    progress.history = [EpochRow(**row) for row in content["progress"]["history"]]
    return replace(state, progress=progress)


def _require_like(found: Any, own: dict[str, Tensor], where: str) -> None:
    """Raises ValueError unless the tensors have the names, shapes and kinds of our own."""
    if not isinstance(found, dict):
        raise ValueError(f"{where} does not hold tensors")
    if names := set(found) ^ set(own):
        raise ValueError(f"{where}.{str(min(map(str, names)))[:80]} is missing, or unknown")
    for name, tensor in own.items():
        one = found[name]
        if not isinstance(one, Tensor) or one.shape != tensor.shape or one.is_floating_point() != tensor.is_floating_point():
            raise ValueError(f"{where}.{name} is not of the shape {tuple(tensor.shape)}")
    if wrong := unsound(found):
        raise ValueError(f"{where} holds {wrong}")


def _require_optimiser(found: Any, optimiser: torch.optim.Optimizer) -> None:
    """Raises ValueError unless this is the state of that optimiser: for each weight its step and two moments, or nothing yet."""
    groups = optimiser.state_dict()["param_groups"]
    given, states = found.get("param_groups"), found.get("state")
    if not isinstance(given, list) or not isinstance(states, dict) or len(given) != len(groups):
        raise ValueError("optimiser has other groups of weights")
    for one, own in zip(given, groups, strict=True):
        if not isinstance(one, dict) or one.get("params") != own["params"]:
            raise ValueError("optimiser.param_groups are not those of this network")
        # Versions of torch differ in what else they have.
        for name in (*HYPERPARAMETERS, *(set(one) & set(own) - {"params"})):
            if not _is_like(one.get(name), own[name]):
                raise ValueError(f"optimiser.param_groups: {name} is {str(one.get(name))[:40]}")
    weights = [weight for group in optimiser.param_groups for weight in group["params"]]
    for number, state in states.items():
        if not isinstance(number, int) or not 0 <= number < len(weights):
            raise ValueError("optimiser.state has other weights")
        _require_moments(state, weights[number], number)


def _require_moments(state: Any, weight: Tensor, number: int) -> None:
    shapes = {"step": torch.Size(), "exp_avg": weight.shape, "exp_avg_sq": weight.shape}
    if not isinstance(state, dict) or set(state) != set(shapes):
        raise ValueError(f"optimiser.state.{number} is not that of Adam")
    for name, shape in shapes.items():
        one = state[name]
        if not isinstance(one, Tensor) or one.shape != shape or not one.is_floating_point() or not torch.isfinite(one).all():
            raise ValueError(f"optimiser.state.{number}.{name} is not finite, or not of the shape {tuple(shape)}")
    if (state["exp_avg_sq"] < 0).any() or state["step"] < 0:
        raise ValueError(f"optimiser.state.{number} is below zero")


def _is_like(value: Any, own: Any) -> bool:
    """Whether a setting of the optimiser is of the kind of our own, and finite."""
    if isinstance(own, tuple):
        return isinstance(value, tuple) and len(value) == len(own) and all(map(_is_like, value, own))
    if own is None or isinstance(own, bool):
        return value is None or isinstance(value, bool)
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def _require_ema(found: Any, own: dict[str, Tensor]) -> None:
    if not isinstance(found, dict) or not isinstance(found.get("updates"), int) or not 0 <= found["updates"] < 1 << 40:
        raise ValueError("ema.updates is not a number of steps")
    _require_like(found.get("tensors"), own, "ema.tensors")
