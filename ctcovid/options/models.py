"""Options of ctcovid models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ctcovid.options import shared


@dataclass(frozen=True)
class Options(shared.Options):
    """List architectures and trained models."""

    cost: Annotated[str, shared.architecture_option("Show what each layer of this architecture costs.")] = ""
    depth: Annotated[int, shared.depth_option("Slices per volume, for --cost.")] = 4
    size: Annotated[int, shared.size_option("Pixels per side of a slice, for --cost.")] = 512
    runs: shared.Runs = Path("runs")
