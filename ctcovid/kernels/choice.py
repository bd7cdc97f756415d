"""Whether layers are computed by ctcovid's own passes or by torch's operations alone, and how a fall back to these is said."""

from __future__ import annotations

import os
from collections.abc import Mapping

from ctcovid.base.console import Console
from ctcovid.base.errors import UsageError
from ctcovid.base.process_info import process_info

VARIABLE, TORCH = "CTCOVID_KERNELS", "torch"

_said: set[str] = set()


def plain_torch(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether CTCOVID_KERNELS=torch asks for torch's own operations in place of fused passes, packed convolutions and CUDA graphs.

    Raises UsageError if the variable has another value.
    """
    value = environment.get(VARIABLE, "")
    if value not in ("", TORCH):
        raise UsageError(f"{VARIABLE}={value}: unknown value. Use {VARIABLE}={TORCH}, or unset the variable.")
    return value == TORCH


def warn_once(sentence: str) -> None:
    """Print a warning on stderr, once in a process, and in the first of several processes only."""
    if sentence not in _said and process_info().rank == 0:
        Console().warn(sentence)
    _said.add(sentence)
