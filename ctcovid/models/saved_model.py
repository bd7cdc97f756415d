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
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ctcovid.base.errors import ModelRefusedError, OutputExistsError
from ctcovid.base.faults import absence, raise_machine_fault
from ctcovid.base.files import atomic, write_json
from ctcovid.base.runcard import now, sha256

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

T = TypeVar("T")
WEIGHTS, CARD = "model.safetensors", "model.json"
# What a run resumes from.
CHECKPOINT = "last.pt"
CARD_VERSION = 1
# Fields that every command needs, with their types in JSON.
FIELDS: dict[str, type] = {
    "format_version": int,
    "architecture": str,
    "classes": list,
    "positive": str,
    "depth": int,
    "size": int,
    "scaling": dict,
    "data": dict,
    "created": str,
    "weights_sha256": str,
}


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
        if sha256(path) != said["sha256"]:
            raise ValueError("not the file that model.json was written for")
        return build(load_file(path))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ModelRefusedError(f"{path}: {error}. Restore it, or remove it to continue without {what}.") from error


def save_card(folder: Path, card: dict[str, Any]) -> None:
    """Write model.json, which registers the model: from then on it is found by the folder's name."""
    write_json(folder / CARD, {"format_version": CARD_VERSION, "created": now(), **card, "weights_sha256": sha256(folder / WEIGHTS)})


def read_card(folder: Path) -> dict[str, Any]:
    """The content of model.json.

    Raises ModelRefusedError if it is absent, damaged, newer, or lacks a field.
    """
    path = folder / CARD
    if not path.is_file():
        raise ModelRefusedError(f"{folder} has no {CARD}: the run is unfinished. Run its `ctcovid train` command again with --resume.")
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise_machine_fault(error, path)
        raise ModelRefusedError(f"{path} cannot be read ({error}). Restore it, or train the model again.") from error
    if not isinstance(card, dict):
        raise ModelRefusedError(f"{path} is not a model card. Restore it, or train the model again.")
    version = card.get("format_version")
    if isinstance(version, int) and version > CARD_VERSION:
        raise ModelRefusedError(f"{path} was written by a newer ctcovid. Update yours: pip install -U ctcovid")
    wrong = [name for name, kind in FIELDS.items() if type(card.get(name)) is not kind]
    wrong += [name for name in ("depth", "size") if name not in wrong and card[name] < 1]
    if "window" in card and not _is_window(card["window"]):
        wrong.append("a window of level and width")
    if card.get("calibration") is not None and not _is_calibration(card["calibration"]):
        wrong.append("a temperature above zero")
    if "classes" not in wrong and (len(card["classes"]) < 2 or card.get("positive") not in card["classes"]):
        wrong.append("classes that hold the positive one")
    if wrong:
        raise ModelRefusedError(f"{path} lacks {', '.join(wrong)}. Restore it, or train the model again.")
    return card


def _is_window(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(one, int | float) for one in value) and value[1] > 0


def _is_calibration(value: Any) -> bool:
    temperature = value.get("temperature") if isinstance(value, dict) else None
    return isinstance(temperature, int | float) and temperature > 0


def load_weights(folder: Path, card: dict[str, Any], module: nn.Module) -> None:
    """Load model.safetensors into `module`.

    Raises ModelRefusedError if the file is absent, not safetensors (a pickle is never opened), not the one that model.json was written
    for, or made for another network.
    """
    path = folder / WEIGHTS
    weights = _read(path)
    if sha256(path) != card["weights_sha256"]:
        raise ModelRefusedError(f"{path} is not the file that {CARD} was written for. Restore both from one run, or train again.")
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise ModelRefusedError(
            f"{path} does not fit {card['architecture']} with {len(card['classes'])} classes: {_first(error)}"
        ) from error
    fault = unsound(weights)
    if fault:
        raise ModelRefusedError(f"{path} holds {fault}. The training diverged; train again.")


def read_tensors(path: Path) -> Any:
    """What torch.save wrote, on the CPU: tensors and plain types only. Code in the file is never run.

    Raises ValueError, with the reason in one line, if the file cannot be read this way.
    """
    import torch

    try:
        # Given a path, torch would consider its suffix too.
        with warnings.catch_warnings(), path.open("rb") as file:
            # torch's warnings advise on how to run the code.
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise ValueError("it may not be read") from error
    except Exception as error:
        raise_machine_fault(error, path)
        # A damaged pickle can end in almost any exception.
        raise ValueError(_reason(str(error))) from error


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
