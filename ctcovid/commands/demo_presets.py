"""How large `ctcovid demo` is: a few fixed sizes, and which of them a machine gets. No torch here, and no clock."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ctcovid.base.errors import UsageError, did_you_mean

AUTO = "auto"


@dataclass(frozen=True)
class Preset:
    """One size of the demo. The same preset and seed give the same data on every machine.

    patients : of each class
    size : pixels of a side
    slices : fewest and most slices of a scan
    epochs, augment : of the training; in few epochs a network learns more where volumes do not change from one to the next
    layer : which maps are of
    """

    name: str
    patients: int
    size: int
    slices: str
    epochs: int
    augment: bool
    layer: str

    def recipe(self) -> dict[str, Any]:
        """Options of `ctcovid train`. With so few patients the paper's recipe would take longer to learn, and learn the patients."""
        common = {"epochs": self.epochs, "batch": 16, "learning_rate": 3e-4, "schedule": "cosine"}
        return common | ({"augment": True} if self.augment else {})


# Of 64 pixels layer3 leaves 4 by 4 places, of which the most salient lies in a lesion less often than by chance (RESULTS.md).
PRESETS = {
    preset.name: preset
    for preset in (
        Preset("small", patients=60, size=64, slices="16-18", epochs=7, augment=False, layer="layer2"),
        Preset("full", patients=72, size=96, slices="16-18", epochs=9, augment=True, layer="layer3"),
    )
}
# On two CPUs the full demo ends within three minutes where they multiply bfloat16, and takes seven where they do not (RESULTS.md).
ENOUGH_WITH_BFLOAT16, ENOUGH_WITHOUT = 2, 8


@dataclass(frozen=True)
class Machine:
    """What the choice rests on: is there a GPU, do the CPUs multiply bfloat16, and how many of them may the job use."""

    gpu: bool
    bfloat16: bool
    cpus: int


def choose(wanted: str, machine: Machine) -> tuple[Preset, str]:
    """The preset of that name, or for "auto" the one for this machine; and why it is that one, in words.

    Raises UsageError for an unknown name.
    """
    if wanted != AUTO:
        if wanted not in PRESETS:
            hint = did_you_mean(wanted, (AUTO, *PRESETS))
            raise UsageError(f"--preset {wanted}: no such preset.{hint} Use {', '.join((AUTO, *PRESETS))}.")
        return PRESETS[wanted], "as asked for"
    if machine.gpu:
        return PRESETS["full"], "there is a GPU"
    enough = ENOUGH_WITH_BFLOAT16 if machine.bfloat16 else ENOUGH_WITHOUT
    kind = f"{machine.cpus} CPU{'s' * (machine.cpus != 1)} {'with' if machine.bfloat16 else 'without'} fast bfloat16"
    return PRESETS["full" if machine.cpus >= enough else "small"], kind
