"""A trained model on disk: a run directory with model.safetensors (weights) and model.json (everything else).

Functions that need torch import it themselves, so that finding a run does not wait for it.
"""

from __future__ import annotations

import json
import pickletools
import re
import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from ctcovid.base.declared import fault
from ctcovid.base.errors import ModelRefusedError, OutputExistsError
from ctcovid.base.faults import absence, raise_machine_fault
from ctcovid.base.files import atomic, json_text, read_small, write_json
from ctcovid.base.guard import guarded
from ctcovid.base.runcard import now, sha256
from ctcovid.models.card import CARD_VERSION, Card

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

T = TypeVar("T")
WEIGHTS, CARD = "model.safetensors", "model.json"
# What a run resumes from.
CHECKPOINT = "last.pt"
# What tensors take in memory, in terms of their file.
TIMES_LARGER = 4
# Larger files are none of a model: names of patients, hashes of slices, and names of tensors take far less.
MOST_CARD, MOST_ARRAYS, MOST_HEADER = 16 << 20, 256 << 20, 16 << 20


def require_no_run(folder: Path) -> None:
    """Raises OutputExistsError if `folder` holds a run, finished or not."""
    if any((folder / name).exists() for name in (CHECKPOINT, CARD, WEIGHTS)):
        raise OutputExistsError(
            f"{folder} already holds a run. Resume it with --resume, replace it with --overwrite, or choose another --name."
        )


def save_weights(path: Path, module: nn.Module) -> None:
    """Write the module's parameters and buffers as safetensors, completely or not at all."""
    from safetensors.torch import save

    with atomic(path) as temporary:
        # Written as bytes: a file that safetensors writes itself is readable by its owner only.
        temporary.write_bytes(save({name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}))


def save_arrays(path: Path, arrays: dict[str, np.ndarray]) -> str:
    """Write arrays beside the weights, completely or not at all. Returns the SHA-256 of the file, for model.json."""
    from safetensors.numpy import save

    with atomic(path) as temporary:
        temporary.write_bytes(save(arrays))
    return sha256(path)


def load_arrays(path: Path, said: dict[str, Any] | None, build: Callable[[dict[str, np.ndarray]], T], what: str) -> T | None:
    """What `build` makes of the arrays of a file beside the weights; None if the model has none, or the file was not copied with it.

    Parameters
    ----------
    said : the file's entry in model.json, with its `sha256`
    build : raises ValueError, KeyError or TypeError if the arrays are not those that it needs
    what : the model works without

    Raises ModelRefusedError if the file is damaged, or not the one that model.json was written for.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not said or not path.is_file():
        return None
    try:
        if path.stat().st_size > MOST_ARRAYS:
            raise ValueError(f"larger than {MOST_ARRAYS >> 20} MB")
        if sha256(path) != said["sha256"]:
            raise ValueError("not the file that model.json was written for")
        return build(load_file(path))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ModelRefusedError(f"{path}: {error}. Restore it, or remove it to continue without {what}.") from error


def save_card(folder: Path, card: dict[str, Any]) -> None:
    """Write model.json, which registers the model: from then on it is found by the folder's name."""
    document = {"format_version": CARD_VERSION, "created": now(), **card, "weights_sha256": sha256(folder / WEIGHTS)}
    Card.model_validate_json(json_text(document))
    write_json(folder / CARD, document)


def read_card(folder: Path) -> dict[str, Any]:
    """The content of model.json, as `Card` declares it.

    Raises ModelRefusedError, with the field, if it is absent, damaged, newer, or not as declared.
    """
    path = folder / CARD
    if not path.is_file():
        raise ModelRefusedError(
            f"{folder} has no {CARD}: the run is unfinished, or this is not a run. Run its `ctcovid train` command again with --resume, "
            "or its `ctcovid demo` with --overwrite."
        )
    try:
        text = read_small(path, MOST_CARD).decode("utf-8")
        card = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise_machine_fault(error, path)
        raise ModelRefusedError(f"{path} cannot be read ({error}). Restore it, or train the model again.") from error
    if not isinstance(card, dict):
        raise ModelRefusedError(f"{path} is not a model card. Restore it, or train the model again.")
    version = card.get("format_version")
    if isinstance(version, int) and version > CARD_VERSION:
        raise ModelRefusedError(f"{path} was written by a newer ctcovid. Update yours: pip install -U ctcovid")
    try:
        Card.model_validate_json(text)
    except ValidationError as error:
        raise ModelRefusedError(f"{path}: {fault(error)}. Restore it, or train the model again.") from error
    return card


def load_weights(folder: Path, card: dict[str, Any], module: nn.Module) -> None:
    """Load model.safetensors into `module`.

    Raises ModelRefusedError if the file is absent, not safetensors (a pickle is never opened), not the one that model.json was written
    for, or made for another network.
    """
    path = folder / WEIGHTS
    _require_size(path, sum(tensor.nbytes for tensor in module.state_dict().values()), card)
    weights = _read(path)
    if sha256(path) != card["weights_sha256"]:
        raise ModelRefusedError(f"{path} is not the file that {CARD} was written for. Restore both from one run, or train again.")
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise ModelRefusedError(
            f"{path} does not fit {card['architecture']} with {len(card['classes'])} classes: {_first(error)}"
        ) from error
    if found := unsound(weights):
        raise ModelRefusedError(f"{path} holds {found}. The training diverged; train again.")


def _require_size(path: Path, expected: int, card: dict[str, Any]) -> None:
    """Raises ModelRefusedError if a file of weights is larger than those of its network are, before it is read."""
    if path.is_file() and (size := path.stat().st_size) > 2 * expected + MOST_HEADER:
        raise ModelRefusedError(
            f"{path} has {size / 1e6:,.0f} MB, but the weights of {card['architecture']} take {expected / 1e6:,.0f} MB. "
            "Restore it, or train the model again."
        )


def read_tensors(path: Path, plain: bool = True) -> Any:
    """What torch.save wrote, on the CPU: tensors and plain types only. Code in the file is never run.

    It is read in a process of its own first: a pickle may ask for any amount of time and memory. With `plain`, tensors that are sparse,
    quantised or without values are refused.

    Raises ValueError, with the reason in one line, if the file cannot be read this way.
    """
    if not path.is_file():
        raise ValueError("it is not a file")
    guarded(path, partial(_read_tensors, path, plain, keep=False), TIMES_LARGER)
    return _read_tensors(path, plain)


def _read_tensors(path: Path, plain: bool, keep: bool = True) -> Any:
    """`read_tensors` in this process; None unless it is to be kept."""
    import torch

    try:
        # Given a path, torch would consider its suffix too.
        with warnings.catch_warnings(), path.open("rb") as file:
            # torch's warnings advise on how to run the code.
            warnings.simplefilter("ignore")
            found = torch.load(file, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise ValueError("it may not be read") from error
    except Exception as error:
        raise_machine_fault(error, path)
        # A damaged pickle can end in almost any exception.
        raise ValueError(_reason(str(error))) from error
    if hollow := _hollow(found, plain):
        raise ValueError(f"{hollow} has more values than are stored")
    return found if keep else None


def _hollow(found: Any, plain: bool) -> str:
    """Where a tensor says that it has more values than are stored for it, or with `plain` is none of values alone; empty if none is so."""
    import torch

    waiting, seen = [("", found)], set()
    while waiting:
        name, one = waiting.pop()
        if isinstance(one, torch.Tensor):
            whole = one.layout == torch.strided and one.device.type == "cpu" and not one.is_quantized
            if one.nbytes > one.untyped_storage().nbytes() if whole else plain:
                return name or "a tensor"
        elif isinstance(one, dict | list | tuple | set) and id(one) not in seen:
            seen.add(id(one))
            inner = one.items() if isinstance(one, dict) else enumerate(one)
            waiting += [(f"{name}.{str(key)[:40]}".lstrip("."), value) for key, value in inner]
    return ""


def _reason(said: str) -> str:
    """Why torch did not read a file, without its advice to read it anyway."""
    code = re.search(r"GLOBAL ([\w.]+)", said)
    if code:
        return f"it holds Python code of type {code[1]}, which is never run"
    if "TorchScript" in said:
        return "it holds a TorchScript program, which is never run"
    return "it is not a PyTorch checkpoint, or it is damaged"


def unsound(tensors: dict[str, Tensor]) -> str:
    """What makes weights unusable, and where, in words; empty if they are sound."""
    import torch

    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            return f"NaN or Inf in {name}"
        if name.endswith("running_var") and (tensor < 0).any():
            return f"a variance below zero in {name}"
    return ""


def _read(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise ModelRefusedError(f"{path} is missing. Restore it, or train the model again.")
    try:
        # safetensors does not say why it cannot open a file.
        path.open("rb").close()
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise_machine_fault(error, path)
        if isinstance(error, PermissionError):
            raise ModelRefusedError(f"{path}: {absence(path, error)}.") from error
        if _is_pickle(path):
            raise ModelRefusedError(
                f"{path} is a Python pickle, which could run any code, so it was not opened. Weights must be a safetensors file."
            ) from error
        raise ModelRefusedError(
            f"{path} is not a safetensors file, or it is damaged ({error}). Restore it, or train the model again."
        ) from error


def _is_pickle(path: Path) -> bool:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(".pkl") for name in archive.namelist())
    try:
        with path.open("rb") as file:
            return next(pickletools.genops(file))[0].name == "PROTO"
    except (OSError, ValueError, StopIteration):
        return False


def _first(error: RuntimeError) -> str:
    """The first of the faults that torch lists, in one line."""
    return " ".join(line.strip() for line in str(error).splitlines()[1:2])[:300] or str(error)
