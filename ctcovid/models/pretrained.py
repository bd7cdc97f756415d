"""Public weights for a new network: 3D-ResNets-PyTorch, MedicalNet, torchvision, and ctcovid's own."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from ctcovid.base.errors import ModelRefusedError
from ctcovid.models.public_weights import find_weights, read_weights
from ctcovid.models.saved_model import unsound

# torchvision's names within a residual block, and ours; the (2+1)D ones first.
_TORCHVISION = (
    (r"^stem\.0\.", "conv1."),
    (r"^stem\.1\.", "bn1."),
    (r"\.conv(\d)\.0\.0\.", r".conv\1_s."),
    (r"\.conv(\d)\.0\.1\.", r".bn\1_s."),
    (r"\.conv(\d)\.0\.3\.", r".conv\1_t."),
    (r"\.conv(\d)\.0\.", r".conv\1."),
)

# Weights of another network that shares some names with this one fill about half of it; torchvision's of a (2+1)D ResNet fill 72 % of ours.
ENOUGH = 0.6


@dataclass(frozen=True)
class Match:
    """What a network took from a file of weights, by the names of tensors.

    Attributes
    ----------
    layout : where the file seems to come from
    prefix : what precedes each name in the file
    loaded, wanted : number of tensors loaded, and of those that the network has
    share : of the network's parameters that were loaded, from 0 to 1
    adapted : those that were changed to fit, and how
    unused : those of the file that were not loaded, and why
    fresh : those of the network that keep their random values
    """

    layout: str
    prefix: str
    loaded: int
    wanted: int
    share: float
    adapted: list[str]
    unused: list[str]
    fresh: list[str]

    def sentence(self) -> str:
        """The match in words, for the terminal."""
        prefix = f", with the prefix {self.prefix}" if self.prefix else ""
        said = [f"{self.loaded} of {self.wanted} tensors loaded, {self.share:.0%} of the parameters ({self.layout} layout{prefix})"]
        for what, names in (("adapted", self.adapted), ("not used", self.unused), ("left at random values", self.fresh)):
            if names:
                more = f" and {len(names) - 6} more" if len(names) > 6 else ""
                said.append(f"{what}: {', '.join(names[:6])}{more}")
        return "; ".join(said) + "."

    def warning(self) -> str:
        """What the user should check, in words; empty if nothing."""
        if min(self.share, self.loaded / self.wanted) >= ENOUGH:
            return ""
        return (
            f"only {self.loaded} of {self.wanted} tensors ({self.share:.0%} of the parameters) came from --pretrained; the rest is random. "
            "Are these weights of another architecture?"
        )

    def record(self) -> dict[str, str | int | float]:
        """The match in short, for the records of the run."""
        return {"layout": self.layout, "loaded": self.loaded, "wanted": self.wanted, "share": self.share}


def load_pretrained(module: nn.Module, path: Path) -> Match:
    """Load the weights in `path`, a file or a trained run, into `module` as far as they fit.

    The file holds a state dict, bare or under the usual key of a checkpoint, with any prefix before the names (``module.``, ``model.``):

    - of 3D-ResNets-PyTorch, with any number of classes;
    - of MedicalNet, whose one input channel becomes three with a third of the weight each;
    - of torchvision, whose 3D stem of three taps in depth becomes the middle of ours. Its (2+1)D stem has fewer channels and is not used.

    A classifier for another number of classes is not used, nor is a batch norm whose convolution did not fit.

    Raises InputError if there is no such file, ModelRefusedError if it holds no weights, none that fit, or NaN, Inf or negative variances.
    """
    path = find_weights(path)
    own = module.state_dict()
    # Tensors of integers count batches or follow from the architecture.
    wanted = {name: tensor for name, tensor in own.items() if tensor.is_floating_point()}
    everything, unused = read_weights(path)
    prefix = _prefix(everything, wanted)
    outside = {name: tensor for name, tensor in everything.items() if not name.startswith(prefix)}
    given = outside | {name[len(prefix) :]: tensor for name, tensor in everything.items() if name.startswith(prefix)}
    targets = _targets(given, wanted)
    taken: dict[str, Tensor] = {}
    came_from: dict[str, str] = {}
    adapted: dict[str, str] = {}
    for name, tensor in given.items():
        target = targets[name]
        fitting, how = _fitted(target, tensor, wanted.get(target))
        if fitting is None:
            unused.append(f"{name} ({how})")
            continue
        taken[target], came_from[target] = fitting.to(wanted[target].dtype), name
        if how:
            adapted[target] = f"{name} ({how})"
    convolutions = _convolutions_of_norms(module)
    for target in [name for name in taken if convolutions.get(name.rpartition(".")[0], name) not in taken]:
        del taken[target]
        unused.append(f"{came_from[target]} (its convolution did not fit)")
    if not any(wanted[name].ndim == 5 for name in taken):
        example = next((name for name, tensor in everything.items() if tensor.ndim == 5), next(iter(everything), None))
        named = f"tensors are named like {example!r} {tuple(everything[example].shape)}" if example else "tensors are not floating-point"
        raise ModelRefusedError(f"No convolution in {path} fits this architecture; its {named}. Choose another --arch or --pretrained.")
    fault = unsound(taken)
    if fault:
        raise ModelRefusedError(f"{path} holds {fault}. Choose another --pretrained.")
    module.load_state_dict(taken, strict=False)
    sizes = {name: parameter.numel() for name, parameter in module.named_parameters()}
    share = sum(count for name, count in sizes.items() if name in taken) / sum(sizes.values())
    fresh = [name for name in wanted if name not in taken]
    return Match(_layout(given), prefix, len(taken), len(wanted), share, list(adapted.values()), unused, fresh)


def _prefix(given: dict[str, Tensor], wanted: dict[str, Tensor]) -> str:
    """The prefix without which most convolutions fit: that of DataParallel, Lightning or a wrapping module."""
    most, best = 0, ""
    paths = {"": None} | {name[: match.end()]: None for name in given for match in re.finditer(r"\.", name)}
    for prefix in sorted(paths, key=len):
        inside = {name[len(prefix) :]: tensor for name, tensor in given.items() if name.startswith(prefix)}
        targets = _targets(inside, wanted)
        convolutions = [(targets[name], tensor) for name, tensor in inside.items() if tensor.ndim == 5]
        fitting = sum(_fitted(target, tensor, wanted.get(target))[0] is not None for target, tensor in convolutions)
        if fitting > most:
            most, best = fitting, prefix
    return best


def _convolutions_of_norms(module: nn.Module) -> dict[str, str]:
    """For each batch norm, the name of the weight of the convolution before it."""
    found, convolution = {}, ""
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Conv3d):
            convolution = f"{name}.weight"
        elif isinstance(layer, nn.modules.batchnorm._BatchNorm):
            found[name] = convolution
    return found


def _layout(given: dict[str, Tensor]) -> str:
    if any(name.startswith(("stem.", "patch_embed.", "features.")) for name in given):
        return "torchvision"
    stem = given.get("conv1.weight")
    return "MedicalNet" if stem is not None and stem.ndim == 5 and stem.shape[1] == 1 else "3D-ResNets-PyTorch"


def _targets(given: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, str]:
    """The network's name for each tensor of the file, by the file's name."""
    ours = "fc.weight" in wanted and not any(name.startswith("stem.") for name in wanted)
    renaming = ours and _layout(given) == "torchvision"
    return {name: _renamed(name, given) if renaming else name for name in given}


def _renamed(name: str, given: dict[str, Tensor]) -> str:
    for pattern, ours in _TORCHVISION:
        name, found = re.subn(pattern, ours, name)
        if found:
            return name
    # The batch norm after a convolution, or after the second step of one in two steps.
    block = re.match(r"(.*)\.conv(\d)\.1\.", name)
    if block:
        suffix = "_t" if f"{block[1]}.conv{block[2]}.0.3.weight" in given else ""
        name = f"{block[1]}.bn{block[2]}{suffix}.{name[block.end() :]}"
    return name


def _fitted(name: str, tensor: Tensor, wanted: Tensor | None) -> tuple[Tensor | None, str]:
    """The tensor in the shape of `wanted`, and what was changed; or None, and why."""
    if wanted is None:
        return None, "no such tensor in the network"
    if tensor.shape == wanted.shape:
        return tensor, ""
    if tensor.ndim == wanted.ndim == 5 and tensor.shape[0] == wanted.shape[0]:
        how = []
        if tensor.shape[1] == 1 and wanted.shape[1] == 3:
            tensor, how = tensor.expand(-1, 3, -1, -1, -1) / 3, ["one input channel spread over three"]
        missing = wanted.shape[2] - tensor.shape[2]
        if name == "conv1.weight" and missing > 0 and missing % 2 == 0:
            tensor = F.pad(tensor, (0, 0, 0, 0, missing // 2, missing // 2))
            how.append(f"{wanted.shape[2] - missing} taps in depth set in the middle of {wanted.shape[2]}")
        if tensor.shape == wanted.shape:
            return tensor, ", ".join(how)
    if name.startswith(("fc.", "head.", "classifier.")):
        return None, f"{tensor.shape[0]} classes"
    return None, f"shape {tuple(tensor.shape)}, {tuple(wanted.shape)} needed"
