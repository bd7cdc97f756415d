"""Which device, in which precision, and what a process that computes on it sets for the time of a command."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from ctcovid.base import cpus
from ctcovid.base.allocation import keep_freed_memory
from ctcovid.base.choices import PRECISIONS
from ctcovid.base.errors import UsageError, counted
from ctcovid.base.process_info import process_info
from ctcovid.models.architectures import Architecture

# Bytes of the largest activations that one layer leaves to the next, on a CPU.
LARGEST_KEPT = 1 << 30


def choose_device(wanted: str) -> torch.device:
    """The device for ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``. Each of several processes on a node takes a GPU of its own.

    Raises UsageError if that device is absent or unknown.
    """
    if wanted == "auto":
        # MPS only on request: on it, some of the supported releases of torch lack 3D pooling and convolution, or compute them wrongly.
        return torch.device(_own_gpu() if torch.cuda.is_available() else "cpu")
    if wanted == "cuda" and torch.cuda.is_available():
        return torch.device(_own_gpu())
    unknown = f"--device {wanted}: unknown device. Use auto, cpu, cuda, cuda:N or mps."
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise UsageError(unknown) from error
    present = {
        "cpu": device.index in (None, 0),
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if device.type not in present:
        raise UsageError(unknown)
    if not present[device.type]:
        count = torch.cuda.device_count()
        reason = {
            "cpu": "all CPUs are one device, cpu",
            "cuda": f"torch finds {count} CUDA device{'' if count == 1 else 's'}",
            "mps": "torch finds no Apple GPU",
        }
        raise UsageError(f"--device {wanted} is not available: {reason[device.type]}. Use --device auto.")
    return device


def _own_gpu() -> str:
    here = process_info()
    # SLURM may show each process only its own GPU, which is number 0 for all.
    return "cuda" if here.size == 1 else f"cuda:{here.local_rank % torch.cuda.device_count()}"


def choose_precision(wanted: str, device: torch.device, architecture: Architecture) -> torch.dtype:
    """float32, or bfloat16 for autocast where that is faster.

    On a CPU, bfloat16 gains only where the processor computes in it and convolutions run as 2D ones (depthfold.py): the library has no
    fast bfloat16 kernel for the backward pass of Conv3d, and the one that it has corrupted memory at batch 1 (torch 2.13).

    Raises UsageError if the precision is unknown, or bfloat16 was asked for and is not faster.
    """
    if wanted not in PRECISIONS:
        raise UsageError(f"--precision {wanted}: unknown precision. Use {', '.join(PRECISIONS)}.")
    if wanted == "float32":
        return torch.float32
    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        folded = not architecture.name_in_torchvision
        fast = device.type == "cpu" and folded and _takes_bfloat16()
    if wanted == "bfloat16" and not fast:
        raise UsageError(f"--precision bfloat16 is not available for {architecture.name} on {device}. Use --precision auto.")
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


def settle(device: torch.device) -> None:
    """Compute with the CPUs of the job only and, on a CPU, keep the memory that one layer frees for the next one (base/allocation.py).

    The commands call this, as their process is their own. Loading a model does not: a notebook's process is the user's.
    """
    # torch asks the node, or OMP_NUM_THREADS.
    torch.set_num_threads(min(torch.get_num_threads(), cpus.allowed()))
    if device.type == "cpu":
        keep_freed_memory(LARGEST_KEPT)


@contextlib.contextmanager
def deterministic_convolutions() -> Iterator[None]:
    """Only algorithms of cuDNN that give the same bits on every run; afterwards, whatever was allowed before."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = before


def device_name(device: torch.device) -> str:
    """The device for messages, such as ``cuda (NVIDIA H200)`` or ``cpu (2 threads)``."""
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    if device.type == "cpu":
        return f"cpu ({counted(torch.get_num_threads(), 'thread')})"
    return str(device)


def announced(device: torch.device) -> str:
    """The device for the first message of a command, with the CPUs of the job and what decided on them."""
    return f"{device_name(device)}, {cpus.decided()}"


def device_kind(device: torch.device) -> str:
    """The model of a GPU, ``cpu`` or ``mps``: results of the same kind of device may agree to the bit."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
