"""Presets of `ctcovid demo`, and how one is chosen for a machine. It needs neither torch nor a clock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ctcovid.base.errors import UsageError, did_you_mean

AUTO = "auto"


@dataclass(frozen=True)
class Preset:
    """A size of the demo. The same preset and seed give the same data on every machine.

    patients : of each class
    size : pixels per side of a slice
    slices : fewest and most slices of a scan
    epochs, augment : of the training; in few epochs a network learns more without augmentation
    layer : whose maps are made
    """

    name: str
    patients: int
    size: int
    slices: str
    epochs: int
    augment: bool
    layer: str

    def recipe(self) -> dict[str, Any]:
        """Options of `ctcovid train`. With so few patients the paper's recipe would learn more slowly, and overfit."""
        common = {"epochs": self.epochs, "batch": 16, "learning_rate": 3e-4, "schedule": "cosine"}
        return common | ({"augment": True} if self.augment else {})


# Of 64 pixels layer3 leaves 4 by 4 places, of which the most salient lies in a lesion less often than by chance (RESULTS.md).
PRESETS = {
    preset.name: preset
    for preset in (
        Preset("small", patients=60, size=64, slices="16-18", epochs=6, augment=False, layer="layer2"),
        Preset("medium", patients=60, size=96, slices="16-18", epochs=6, augment=False, layer="layer3"),
        Preset("full", patients=72, size=96, slices="16-18", epochs=9, augment=True, layer="layer3"),
    )
}
# From how many CPUs on a preset is chosen, with fast bfloat16 and without. On two CPUs the full demo takes three to four and a half
# minutes with it and seven without (RESULTS.md).
ENOUGH = {True: {"medium": 2, "full": 4}, False: {"medium": 4, "full": 8}}


@dataclass(frozen=True)
class Machine:
    """What the preset depends on: a GPU, CPUs with fast bfloat16, and how many CPUs the job may use."""

    gpu: bool
    bfloat16: bool
    cpus: int


def choose(wanted: str, machine: Machine) -> tuple[Preset, str]:
    """The preset of that name, or for "auto" the one for this machine; and the reason for the choice.

    Raises UsageError for an unknown name.
    """
    if wanted != AUTO:
        if wanted not in PRESETS:
            hint = did_you_mean(wanted, (AUTO, *PRESETS))
            raise UsageError(f"--preset {wanted}: no such preset.{hint} Use {', '.join((AUTO, *PRESETS))}.")
        return PRESETS[wanted], "as asked for"
    if machine.gpu:
        return PRESETS["full"], "there is a GPU"
    possible = ["small", *(name for name, cpus in ENOUGH[machine.bfloat16].items() if machine.cpus >= cpus)]
    kind = f"{machine.cpus} CPU{'s' * (machine.cpus != 1)} {'with' if machine.bfloat16 else 'without'} fast bfloat16"
    return PRESETS[possible[-1]], kind
