"""Public weights for a new network: 3D-ResNets-PyTorch, MedicalNet, torchvision, and ctcovid's own."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ctcovid.base.errors import InputError, ModelRefusedError
from ctcovid.models.store import read_tensors

# torchvision's names of a residual block's parts, and ours; the (2+1)D ones first.
_TORCHVISION = (
    (r"^stem\.0\.", "conv1."),
    (r"^stem\.1\.", "bn1."),
    (r"\.conv(\d)\.0\.0\.", r".conv\1_s."),
    (r"\.conv(\d)\.0\.1\.", r".bn\1_s."),
    (r"\.conv(\d)\.0\.3\.", r".conv\1_t."),
    (r"\.conv(\d)\.0\.", r".conv\1."),
)


@dataclass(frozen=True)
class Match:
    """What a file of weights gave to a network, by the names of tensors.

    `layout` is where the file seems to come from, `loaded` counts tensors, `adapted` says which were changed to fit, and how, `unused`
    are those of the file that found no place, and `fresh` those of the network that keep their random values.
    """

    layout: str
    loaded: int
    adapted: list[str]
    unused: list[str]
    fresh: list[str]

    def sentence(self) -> str:
        """In words, for the terminal."""
        said = [f"{self.loaded} tensors loaded ({self.layout} layout)"]
        for what, names in (("adapted", self.adapted), ("not used", self.unused), ("left at random values", self.fresh)):
            if names:
                more = f" and {len(names) - 6} more" if len(names) > 6 else ""
                said.append(f"{what}: {', '.join(names[:6])}{more}")
        return "; ".join(said) + "."


def load_pretrained(module: nn.Module, path: Path) -> Match:
    """Load what fits of the weights in `path` into `module`.

    Understood are state dicts, bare or under the usual key of a checkpoint, with or without ``module.`` before each name: those of
    3D-ResNets-PyTorch (any number of classes), of MedicalNet (one input channel, which becomes three with a third of the weight each)
    and of torchvision (whose 3D stem of three taps in depth becomes the middle of ours; its (2+1)D stem has fewer channels and finds no
    place). A classifier for another number of classes is not used, nor is a batch norm whose convolution did not fit.

    Raises InputError where there is no such file, ModelRefusedError where it holds no weights, or none that fit.
    """
    given = _names(_read(path))
    layout = _layout(given)
    own = module.state_dict()
    if layout == "torchvision" and not any(name.startswith("stem.") for name in own) and "fc.weight" in own:
        given = {_renamed(name, given): tensor for name, tensor in given.items()}
    wanted = {name: tensor for name, tensor in own.items() if not name.endswith("num_batches_tracked")}
    taken: dict[str, Tensor] = {}
    adapted: list[str] = []
    unused: list[str] = []
    for name, tensor in given.items():
        if name.endswith("num_batches_tracked"):
            continue
        fitting, how = _fitted(name, tensor, wanted.get(name))
        if fitting is None:
            unused.append(f"{name} ({how})")
            continue
        taken[name] = fitting
        if how:
            adapted.append(f"{name} ({how})")
    for name in [name for name in taken if (conv := _convolution_before(name)) in wanted and conv not in taken]:
        del taken[name]
        unused.append(f"{name} (its convolution did not fit)")
    convolutions = [name for name in taken if wanted[name].ndim == 5]
    if not convolutions:
        raise ModelRefusedError(
            f"No convolution in {path} fits this architecture ({layout} layout). Choose another --arch or --pretrained."
        )
    broken = [name for name, tensor in taken.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise ModelRefusedError(f"{path} holds values that are not finite, in {broken[0]}. Choose another --pretrained.")
    module.load_state_dict(taken, strict=False)
    return Match(layout, len(taken), adapted, unused, [name for name in wanted if name not in taken])


def _read(path: Path) -> dict[str, object]:
    if not path.is_file():
        raise InputError(f"No file {path}. --pretrained takes a file of weights; nothing is downloaded.")
    try:
        content: object = load_file(path) if path.suffix == ".safetensors" else read_tensors(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelRefusedError(
            f"{path} cannot be read as weights ({error}). Code in it is never run: "
            "where it is a trusted checkpoint, save its state_dict alone, and name that file."
        ) from error
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise ModelRefusedError(f"{path} holds no state dict. Save the state_dict of the model, and name that file.")
    return content


def _names(content: dict[str, object]) -> dict[str, Tensor]:
    """Tensors by name, without the prefix that DataParallel leaves."""
    return {name.removeprefix("module."): value for name, value in content.items() if isinstance(value, Tensor)}


def _layout(given: dict[str, Tensor]) -> str:
    if any(name.startswith(("stem.", "patch_embed.", "features.")) for name in given):
        return "torchvision"
    stem = given.get("conv1.weight")
    return "MedicalNet" if stem is not None and stem.ndim == 5 and stem.shape[1] == 1 else "3D-ResNets-PyTorch"


def _renamed(name: str, given: dict[str, Tensor]) -> str:
    for pattern, ours in _TORCHVISION:
        name, found = re.subn(pattern, ours, name)
        if found:
            return name
    # Behind a convolution stands its batch norm, in one step or behind the second of two.
    block = re.match(r"(.*)\.conv(\d)\.1\.", name)
    if block:
        suffix = "_t" if f"{block[1]}.conv{block[2]}.0.3.weight" in given else ""
        name = f"{block[1]}.bn{block[2]}{suffix}.{name[block.end() :]}"
    return name


def _convolution_before(name: str) -> str:
    """Name of the weight of the convolution that a batch norm's tensor belongs to; empty where it belongs to none."""
    module = name.rpartition(".")[0]
    conv = re.sub(r"(^|\.)bn(\d(_[st])?)$", r"\1conv\2", re.sub(r"downsample\.1$", "downsample.0", module))
    return "" if conv == module else f"{conv}.weight"


def _fitted(name: str, tensor: Tensor, place: Tensor | None) -> tuple[Tensor | None, str]:
    """The tensor as the network wants it, and what was done to it; or None, and why."""
    if place is None:
        return None, "no such part"
    if tensor.shape == place.shape:
        return tensor, ""
    if tensor.ndim == place.ndim == 5 and tensor.shape[0] == place.shape[0]:
        how = []
        if tensor.shape[1] == 1 and place.shape[1] == 3:
            tensor, how = tensor.expand(-1, 3, -1, -1, -1) / 3, ["one input channel spread over three"]
        missing = place.shape[2] - tensor.shape[2]
        if name == "conv1.weight" and missing > 0 and missing % 2 == 0:
            tensor = F.pad(tensor, (0, 0, 0, 0, missing // 2, missing // 2))
            how.append(f"{place.shape[2] - missing} taps in depth set in the middle of {place.shape[2]}")
        if tensor.shape == place.shape:
            return tensor, ", ".join(how)
    if name.startswith(("fc.", "head.", "classifier.")):
        return None, f"{tensor.shape[0]} classes"
    return None, f"shape {tuple(tensor.shape)}, {tuple(place.shape)} wanted"
