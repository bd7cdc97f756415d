"""A file of public weights: found, read without running anything in it, and its tensors by name."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ctcovid.base.errors import InputError, ModelRefusedError
from ctcovid.base.faults import raise_machine_fault
from ctcovid.models.saved_model import WEIGHTS, read_tensors

# Under which a checkpoint keeps the weights.
KEYS = ("state_dict", "model_state_dict", "model", "net")
# Names of tensors that are not weights: they count batches or follow from the architecture.
INTEGERS = ("num_batches_tracked", "relative_position_index")
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def find_weights(path: Path) -> Path:
    """The file of weights that `path` names: itself, or that of a trained run.

    Raises InputError if there is none that can be read.
    """
    try:
        file = path / WEIGHTS if path.is_dir() else path
        if not file.is_file():
            what = f"{path} is a folder without {WEIGHTS}" if path.is_dir() else f"No file {path}"
            raise InputError(f"{what}. --pretrained takes a file of weights, or a trained run; nothing is downloaded.")
        with file.open("rb"):
            return file
    except OSError as error:
        raise InputError(f"--pretrained {path} cannot be read: {error.strerror}. Name a file of weights.") from error


def read_weights(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The floating-point tensors of a file, on the CPU, by name; and its other tensors, each as a name with the reason.

    Raises ModelRefusedError if the file holds no tensors, or cannot be read without running code.
    """
    content = _content(path)
    for key in KEYS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise ModelRefusedError(f"{path} does not hold a state dict. Save the state_dict of the model, and name that file.")
    named = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    tensors = {name: tensor for name, tensor in named.items() if not name.endswith(INTEGERS)}
    if not tensors:
        raise ModelRefusedError(f"{path} does not hold named tensors. Save the state_dict of the model, and name that file.")
    reasons = {name: _unusable(tensor) for name, tensor in tensors.items()}
    return (
        {name: tensor for name, tensor in tensors.items() if not reasons[name]},
        [f"{name} ({reason})" for name, reason in reasons.items() if reason],
    )


def _content(path: Path) -> object:
    # The header of a safetensors file is a JSON object after eight bytes with its length.
    with path.open("rb") as file:
        is_safetensors = file.read(9)[8:] == b"{"
    try:
        return load_file(path) if is_safetensors else read_tensors(path, plain=False)
    except (SafetensorError, OSError, LookupError) as error:
        raise_machine_fault(error, path)
        reason = "it is a damaged safetensors file"
    except ValueError as error:
        reason = str(error)
    raise ModelRefusedError(
        f"{path} cannot be read as weights: {reason}. Name a safetensors file, or a checkpoint that holds the model's state_dict alone."
    )


def _unusable(tensor: Tensor) -> str:
    if tensor.is_meta:
        return "without values"
    if tensor.layout != torch.strided or tensor.is_nested:
        return "not dense"
    return "" if tensor.dtype in FLOATS else str(tensor.dtype).removeprefix("torch.")
