"""Public weights for a new network: 3D-ResNets-PyTorch, MedicalNet, torchvision, and ctcovid's own."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from ctcovid.base.errors import ModelRefusedError
from ctcovid.models.store import unsound
from ctcovid.models.weightfile import find_weights, read_weights

# torchvision's names of a residual block's parts, and ours; the (2+1)D ones first.
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
    """What a file of weights gave to a network, by the names of tensors.

    `layout` is where the file seems to come from and `prefix` what stands before each name in it; `loaded` counts tensors, of `wanted`,
    and `share` is that of the network's parameters which they make up, from 0 to 1. `adapted` says which were changed to fit, and how,
    `unused` are those of the file that found no place, and `fresh` those of the network that keep their random values.
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
        """In words, for the terminal."""
        prefix = f", behind the prefix {self.prefix}" if self.prefix else ""
        said = [f"{self.loaded} of {self.wanted} tensors loaded, {self.share:.0%} of the parameters ({self.layout} layout{prefix})"]
        for what, names in (("adapted", self.adapted), ("not used", self.unused), ("left at random values", self.fresh)):
            if names:
                more = f" and {len(names) - 6} more" if len(names) > 6 else ""
                said.append(f"{what}: {', '.join(names[:6])}{more}")
        return "; ".join(said) + "."

    def doubt(self) -> str:
        """What the user should look into, in words; empty where there is nothing."""
        if min(self.share, self.loaded / self.wanted) >= ENOUGH:
            return ""
        return (
            f"only {self.loaded} of {self.wanted} tensors ({self.share:.0%} of the parameters) came from --pretrained, the rest is random: "
            "are these weights of another architecture?"
        )

    def record(self) -> dict[str, str | int | float]:
        """In short, for the records of the run."""
        return {"layout": self.layout, "loaded": self.loaded, "wanted": self.wanted, "share": self.share}


def load_pretrained(module: nn.Module, path: Path) -> Match:
    """Load what fits of the weights in `path`, a file or a trained run, into `module`.

    Understood are state dicts, bare or under the usual key of a checkpoint, with any prefix before the names (``module.``, ``model.``):
    those of 3D-ResNets-PyTorch (any number of classes), of MedicalNet (one input channel, which becomes three with a third of the weight
    each) and of torchvision (whose 3D stem of three taps in depth becomes the middle of ours; its (2+1)D stem has fewer channels and finds
    no place). A classifier for another number of classes is not used, nor is a batch norm whose convolution did not fit.

    Raises InputError where there is no such file, ModelRefusedError where it holds no weights, none that fit, or values that no training
    leaves.
    """
    path = find_weights(path)
    own = module.state_dict()
    # What holds integers counts batches or follows from the architecture.
    wanted = {name: tensor for name, tensor in own.items() if tensor.is_floating_point()}
    everything, unused = read_weights(path)
    prefix = _prefix(everything, wanted)
    outside = {name: tensor for name, tensor in everything.items() if not name.startswith(prefix)}
    given = outside | {name[len(prefix) :]: tensor for name, tensor in everything.items() if name.startswith(prefix)}
    places = _places(given, wanted)
    taken: dict[str, Tensor] = {}
    came_from: dict[str, str] = {}
    adapted: dict[str, str] = {}
    for name, tensor in given.items():
        place = places[name]
        fitting, how = _fitted(place, tensor, wanted.get(place))
        if fitting is None:
            unused.append(f"{name} ({how})")
            continue
        taken[place], came_from[place] = fitting.to(wanted[place].dtype), name
        if how:
            adapted[place] = f"{name} ({how})"
    convolutions = _convolutions_of_norms(module)
    for place in [place for place in taken if convolutions.get(place.rpartition(".")[0], place) not in taken]:
        del taken[place]
        unused.append(f"{came_from[place]} (its convolution did not fit)")
    if not any(wanted[place].ndim == 5 for place in taken):
        example = next((name for name, tensor in everything.items() if tensor.ndim == 5), next(iter(everything), None))
        named = f"tensors are named like {example!r} {tuple(everything[example].shape)}" if example else "tensors hold no such numbers"
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
    """What has to be cut off the names for the most convolutions to fit: that of DataParallel, Lightning or a wrapping module."""
    most, best = 0, ""
    paths = {"": None} | {name[: match.end()]: None for name in given for match in re.finditer(r"\.", name)}
    for prefix in sorted(paths, key=len):
        inside = {name[len(prefix) :]: tensor for name, tensor in given.items() if name.startswith(prefix)}
        places = _places(inside, wanted)
        convolutions = [(places[name], tensor) for name, tensor in inside.items() if tensor.ndim == 5]
        fitting = sum(_fitted(place, tensor, wanted.get(place))[0] is not None for place, tensor in convolutions)
        if fitting > most:
            most, best = fitting, prefix
    return best


def _convolutions_of_norms(module: nn.Module) -> dict[str, str]:
    """For each batch norm, the name of the weight of the convolution before it."""
    found, convolution = {}, ""
    for name, part in module.named_modules():
        if isinstance(part, nn.Conv3d):
            convolution = f"{name}.weight"
        elif isinstance(part, nn.modules.batchnorm._BatchNorm):
            found[name] = convolution
    return found


def _layout(given: dict[str, Tensor]) -> str:
    if any(name.startswith(("stem.", "patch_embed.", "features.")) for name in given):
        return "torchvision"
    stem = given.get("conv1.weight")
    return "MedicalNet" if stem is not None and stem.ndim == 5 and stem.shape[1] == 1 else "3D-ResNets-PyTorch"


def _places(given: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, str]:
    """By the file's name of each tensor, the network's name for it."""
    ours = "fc.weight" in wanted and not any(name.startswith("stem.") for name in wanted)
    renaming = ours and _layout(given) == "torchvision"
    return {name: _renamed(name, given) if renaming else name for name in given}


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
