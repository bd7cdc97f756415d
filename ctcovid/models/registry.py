"""The only door to a network: by architecture, or by the name of a trained run.

Functions that make a network import torch themselves, so that finding a run does not wait for it.
"""

from __future__ import annotations

import datetime
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ctcovid.base.errors import InputError, ModelRefusedError, UsageError, counted, did_you_mean
from ctcovid.models import saved_model
from ctcovid.models.architectures import architecture
from ctcovid.scans.window import LUNG, Window

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ctcovid.models.network import Network
    from ctcovid.models.reference_features import ReferenceFeatures
    from ctcovid.models.training_slices import TrainingSlices

RUNS = Path("runs")
# What to propose if volumes are too small for an architecture.
LARGER_DEPTHS, LARGER_SIZES = (8, 16, 32), (128, 224)


@dataclass(frozen=True)
class TrainedModel:
    """A trained model, ready to be called. `card` is its model.json; `reference` and `seen` are None if they were not kept."""

    name: str
    folder: Path
    card: dict[str, Any]
    network: Network
    reference: ReferenceFeatures | None = None
    seen: TrainingSlices | None = None

    @property
    def classes(self) -> list[str]:
        return self.network.classes

    @property
    def depth(self) -> int:
        return int(self.card["depth"])

    @property
    def size(self) -> int:
        return int(self.card["size"])

    @property
    def window(self) -> Window:
        """The display window of its training scans; models from before there was a choice have the default."""
        level, width = self.card.get("window", (LUNG.level, LUNG.width))
        return Window(level, width)

    @property
    def temperature(self) -> float:
        """What its logits are divided by for calibrated probabilities; 1 if the validation split was empty."""
        return float((self.card.get("calibration") or {}).get("temperature", 1.0))


_loaded: dict[tuple[Path, str, torch.device, torch.dtype], TrainedModel] = {}


def create(name: str, classes: int = 3, plain: bool = False) -> nn.Module:
    """A new network of the named architecture, on the CPU, with fresh weights.

    It takes float (B, 1 or 3, D, H, W) and returns logits (B, classes). With `plain`, the paper's networks are made of torch's own 3D
    operations, without depth folding: slower, but the same function of the same parameters.

    Raises UsageError, with the nearest name, if the architecture is unknown.
    """
    row = architecture(name)
    if row.name_in_torchvision:
        from ctcovid.models.torchvision import video_model

        return video_model(row.name_in_torchvision, classes)
    from ctcovid.models.resnet3d import ResNet3D

    return ResNet3D(row.block, row.blocks, row.factorised, classes, plain)


def require_fit(name: str, depth: int, size: int, volumes: int = 2) -> None:
    """Make sure that the architecture takes volumes of that depth and size, and can be trained on `volumes` of them at a time.

    Raises UsageError if not: some of torchvision's models need thicker volumes, and batch norm needs more than one value per channel.
    """
    if not _takes(name, depth, size):
        way_out = _larger(name, depth, size)
        raise UsageError(f"{depth}×{size}×{size} volumes are too small for {name}. {way_out}, or choose another --arch.")
    if volumes < 2 and not _takes(name, depth, size, learning=True):
        raise UsageError(
            f"{name} cannot be trained on one {depth}×{size}×{size} volume at a time: batch norm would see a single value per channel. "
            "Use two or more at a time (--batch, --micro-batch), or larger volumes."
        )


def _larger(name: str, depth: int, size: int) -> str:
    """Larger volumes that the network takes, in words."""
    for pixels in (size, *(other for other in LARGER_SIZES if other > size)):
        for slices in (depth, *(other for other in LARGER_DEPTHS if other > depth)):
            if _takes(name, slices, pixels):
                return f"--depth {slices}{'' if pixels == size else f' with slices of {pixels} pixels'} is enough"
    return "Use larger ones"


def _takes(name: str, depth: int, size: int, learning: bool = False) -> bool:
    """Whether one volume passes through the network, in inference or in training."""
    import torch

    with torch.device("meta"), torch.inference_mode():
        try:
            create(name, plain=True).train(learning)(torch.empty(1, 3, depth, size, size))
        except (RuntimeError, ValueError, AssertionError):
            return False
    return True


def build(name: str, classes: list[str], device: str = "auto", precision: str = "auto") -> Network:
    """A new network on its device, ready to be trained. Raises UsageError if the device is absent."""
    from ctcovid.models.device import choose_device, choose_precision
    from ctcovid.models.network import Network

    row, chosen = architecture(name), choose_device(device)
    return Network(create(name, len(classes)), row, classes, chosen, choose_precision(precision, chosen, row))


def load(model: str | None = None, device: str = "auto", precision: str = "auto", runs: Path = RUNS) -> TrainedModel:
    """A trained model by name under `runs` or by path; without `model`, the newest finished one.

    The same model on the same device is loaded once in a process.

    Raises InputError if there is no such model, UsageError if the device is absent, ModelRefusedError if the model cannot be trusted.
    """
    folder = find(model, runs)
    card = saved_model.read_card(folder)
    from ctcovid.models.device import choose_device, choose_precision
    from ctcovid.models.network import SCALING, Network
    from ctcovid.models.reference_features import FILE, last_linear, load_reference
    from ctcovid.models.training_slices import load_training_slices

    if card["scaling"] != SCALING:
        raise ModelRefusedError(
            f"{folder / saved_model.CARD} needs the intensity scaling {card['scaling']}; this ctcovid has {SCALING}. Train the model again."
        )
    try:
        row = architecture(card["architecture"])
    except UsageError as error:
        raise ModelRefusedError(f"{folder / saved_model.CARD}: {error}") from error
    chosen = choose_device(device)
    dtype = choose_precision(precision, chosen, row)
    key = (folder.resolve(), card["weights_sha256"], chosen, dtype)
    if key not in _loaded:
        module = create(row.name, len(card["classes"]))
        saved_model.load_weights(folder, card, module)
        # Explanations need gradients of feature maps, never of weights; torch would keep what it needs for both.
        module.requires_grad_(False)
        network = Network(module, row, list(card["classes"]), chosen, dtype)
        kept = load_reference(folder, card), load_training_slices(folder, card)
        head = last_linear(network)
        if kept[0] is not None and (head is None or head.in_features != kept[0].means.shape[1]):
            raise ModelRefusedError(f"{folder / FILE} has {kept[0].means.shape[1]} features, which {row.name} does not have. Restore it.")
        _loaded[key] = TrainedModel(folder.name, folder, card, network, *kept)
    return _loaded[key]


def find(model: str | None, runs: Path = RUNS) -> Path:
    """The run directory of a trained model, see `load`."""
    finished = finished_runs(runs)
    if model is None:
        if not finished:
            raise InputError(f"No trained model in {runs}/. {elsewhere()}Train one with `ctcovid train`, or name one with --model.")
        return finished[-1]
    for folder in (runs / model, Path(model)):
        if folder.is_dir():
            _require_run(folder)
            return folder
        if folder.is_file() and folder.name in (saved_model.WEIGHTS, saved_model.CARD):
            return folder.parent
    if Path(model).is_file():
        raise ModelRefusedError(
            f"{model} is a file; a trained model is a run directory with {saved_model.WEIGHTS} and {saved_model.CARD}. "
            "Predictions of other systems are files whose names end in .csv."
        )
    names = [folder.name for folder in finished]
    raise InputError(
        f"No trained model '{model}' in {runs}/, and no such file or folder.{did_you_mean(model, names)} "
        "`ctcovid models` lists the trained models."
    )


def elsewhere() -> str:
    """A sentence that names another folder of runs below the current one, such as the demo's; nothing if there is none."""
    found = sorted({path.parents[1] for path in Path().glob(f"*/{RUNS}/*/{saved_model.CARD}")})
    return f"Those in {found[0]}/ are used with --runs {shlex.quote(str(found[0]))}. " if found else ""


def _require_run(folder: Path) -> None:
    """Raises ModelRefusedError if `folder` is not a run, but holds runs, as the demo's does."""
    if not (folder / saved_model.CARD).exists() and (held := finished_runs(folder) or finished_runs(folder / RUNS)):
        raise ModelRefusedError(f"{folder} is not a trained model, but holds {counted(len(held), 'model')}. Name one: {held[-1]}.")


def finished_runs(runs: Path = RUNS) -> list[Path]:
    """Run directories with a registered model, oldest first; those with an unreadable model.json come first."""
    folders = [path.parent for path in runs.glob(f"*/{saved_model.CARD}")]
    return sorted(folders, key=lambda folder: (_created(folder), folder.name))


def _created(folder: Path) -> float:
    try:
        return datetime.datetime.fromisoformat(saved_model.read_card(folder)["created"]).timestamp()
    except (ModelRefusedError, ValueError, OverflowError, OSError):
        return 0.0


def describe(folder: Path) -> dict[str, Any]:
    """The content of a finished run's model.json, without loading weights; {"error": …} if it cannot be read."""
    try:
        return saved_model.read_card(folder)
    except ModelRefusedError as error:
        return {"error": str(error)}
