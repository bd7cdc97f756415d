"""The architectures as plain data, for the command line, the documentation and the tests."""

from __future__ import annotations

from dataclasses import dataclass

from ctcovid.base.errors import UsageError, did_you_mean

DEFAULT = "r3d18"
PAPER = "Li et al. 2021, Table 3"


@dataclass(frozen=True)
class Architecture:
    """One architecture.

    `parameters` counts those of the three-class network. `last_layer` is the module whose output the head pools, the default layer of
    the CAM methods; `channels_last` says that this output is (B, D, H, W, C). `name_in_torchvision` is empty for our own.
    """

    name: str
    family: str
    parameters: int
    source: str
    block: str = ""
    blocks: tuple[int, ...] = ()
    factorised: bool = False
    last_layer: str = "layer4"
    channels_last: bool = False
    name_in_torchvision: str = ""


def _paper(name: str, block: str, blocks: tuple[int, ...], parameters: int, source: str) -> Architecture:
    factorised = name.startswith("r2plus1d")
    family = "(2+1)D ResNet" if factorised else "3D ResNet"
    return Architecture(name, family, parameters, source, block, blocks, factorised)


def _torchvision(name: str, family: str, parameters: int, last_layer: str = "layer4") -> Architecture:
    source = f"torchvision.models.video.{name}"
    swin = name.startswith("swin")
    return Architecture(f"tv_{name}", family, parameters, source, last_layer=last_layer, channels_last=swin, name_in_torchvision=name)


ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        _paper("r3d18", "basic", (2, 2, 2, 2), 33_031_619, PAPER),
        _paper("r3d34", "basic", (3, 4, 6, 3), 63_341_251, PAPER),
        _paper("r3d50", "bottleneck", (3, 4, 6, 3), 46_205_123, PAPER),
        _paper("r3d101", "bottleneck", (3, 4, 23, 3), 85_251_267, "Li et al. 2021, Sec. 2.5"),
        _paper("r3d152", "bottleneck", (3, 8, 36, 3), 117_409_987, "Li et al. 2021, Sec. 2.5"),
        _paper("r3d200", "bottleneck", (3, 24, 36, 3), 126_609_603, "Li et al. 2021, Sec. 2.5"),
        _paper("r2plus1d18", "basic", (2, 2, 2, 2), 33_043_679, "Li et al. 2021, Sec. 2.6, Table 7"),
        _paper("r2plus1d34", "basic", (3, 4, 6, 3), 63_370_015, "Li et al. 2021, Sec. 2.6, Table 7"),
        _paper("r2plus1d50", "bottleneck", (3, 4, 6, 3), 46_221_929, "Li et al. 2021, Sec. 2.6"),
        _torchvision("r3d_18", "3D ResNet", 33_167_811),
        _torchvision("mc3_18", "mixed 3D-2D ResNet", 11_491_779),
        _torchvision("r2plus1d_18", "(2+1)D ResNet", 31_301_664),
        _torchvision("s3d", "separable 3D Inception", 7_913_123, last_layer="features"),
        _torchvision("swin3d_t", "3D Swin transformer", 27_852_777, last_layer="norm"),
        _torchvision("swin3d_s", "3D Swin transformer", 49_511_385, last_layer="norm"),
        _torchvision("swin3d_b", "3D Swin transformer", 87_642_059, last_layer="norm"),
    )
}


def architecture(name: str) -> Architecture:
    """The architecture of that name.

    Raises UsageError, with the nearest name, where there is none.
    """
    if name not in ARCHITECTURES:
        raise UsageError(f"No architecture '{name}'.{did_you_mean(name, ARCHITECTURES)} `ctcovid models` lists them all.")
    return ARCHITECTURES[name]
