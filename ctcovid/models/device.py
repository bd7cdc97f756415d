"""Which device, and in which precision."""

from __future__ import annotations

import torch

from ctcovid.base.choices import PRECISIONS
from ctcovid.base.errors import UsageError
from ctcovid.base.process_info import process_info
from ctcovid.models.catalog import Architecture


def choose_device(wanted: str) -> torch.device:
    """The device for ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``. Of several processes on a node each takes a GPU of its own.

    Raises UsageError where that device is absent or unknown.
    """
    if wanted == "auto":
        # MPS only on request: the releases of torch that are supported here pool and convolve in 3D on it late, or wrongly.
        return torch.device(_own_gpu() if torch.cuda.is_available() else "cpu")
    if wanted == "cuda" and torch.cuda.is_available():
        return torch.device(_own_gpu())
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise UsageError(f"--device {wanted}: no such kind of device. Use auto, cpu, cuda, cuda:N or mps.") from error
    present = {
        "cpu": device.index in (None, 0),
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if device.type not in present:
        raise UsageError(f"--device {wanted}: no such kind of device. Use auto, cpu, cuda, cuda:N or mps.")
    if not present[device.type]:
        count = torch.cuda.device_count()
        reason = {
            "cpu": "all CPUs are one device, cpu",
            "cuda": f"torch sees {count} CUDA device{'' if count == 1 else 's'}",
            "mps": "torch sees no GPU of Apple",
        }
        raise UsageError(f"--device {wanted} is absent here; {reason[device.type]}. Use --device auto.")
    return device


def _own_gpu() -> str:
    here = process_info()
    # SLURM may show each process nothing but its own GPU, which is number 0 for all.
    return "cuda" if here.size == 1 else f"cuda:{here.local_rank % torch.cuda.device_count()}"


def choose_precision(wanted: str, device: torch.device, architecture: Architecture) -> torch.dtype:
    """float32, or bfloat16 for autocast, where that is the faster one.

    On a CPU, bfloat16 gains only where the processor computes in it and convolutions run as 2D ones (depthfold.py): the library has no
    fast bfloat16 kernel for the backward pass of Conv3d, and at batch 1 the one that it has corrupted memory (torch 2.13).
    """
    if wanted not in PRECISIONS:
        raise UsageError(f"--precision {wanted}: no such precision. Use {', '.join(PRECISIONS)}.")
    if wanted == "float32":
        return torch.float32
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        folded = not architecture.name_in_torchvision
        fast = device.type == "cpu" and folded and _takes_bfloat16()
    if wanted == "bfloat16" and not fast:
        raise UsageError(f"--precision bfloat16 is not to be had for {architecture.name} on {device}. Use --precision auto.")
    return torch.bfloat16 if fast else torch.float32


def multiplies_bfloat16() -> bool:
    """Whether the CPUs have instructions for products in bfloat16 (AVX512-BF16, with AMX or without), and may use them.

    Narrower than what `choose_precision` asks: with any AVX-512, oneDNN takes bfloat16, but without these instructions by way of float32.
    """
    # The names are private to torch: where a release lacks them, the answer is no.
    processor = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return processor is not None and bool(processor()) and _takes_bfloat16()


def _takes_bfloat16() -> bool:
    """Whether oneDNN, torch's library of convolutions on CPUs, takes bfloat16 here."""
    return bool(torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def device_name(device: torch.device) -> str:
    """The device as a person knows it, as in ``cuda (NVIDIA H200)`` or ``cpu (2 threads)``."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    if device.type == "cpu":
        return f"cpu ({torch.get_num_threads()} threads)"
    return str(device)


def device_kind(device: torch.device) -> str:
    """What a result may depend on to the bit: the model of a GPU, ``cpu`` or ``mps``."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
