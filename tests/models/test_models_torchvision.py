"""torchvision's video models work beside any build of torch, under this package's manners."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from ctcovid.base.errors import UsageError
from ctcovid.models import registry
from ctcovid.models.architectures import ARCHITECTURES

TORCHVISION = [name for name in ARCHITECTURES if name.startswith("tv_")]
# The separable Inception pools over 2x7x7 maps, and so needs thick volumes.
SHAPE = {"tv_s3d": (16, 224)}


def test_torchvision_is_imported_in_a_fresh_process_even_without_its_compiled_part() -> None:
    code = (
        "from ctcovid.models.torchvision import import_torchvision\n"
        "first, second = import_torchvision(), import_torchvision()\n"
        "from torchvision.models.video import r3d_18\n"
        "print(first is second, first.__name__, callable(r3d_18))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True", "torchvision", "True"]


@pytest.mark.parametrize("name", TORCHVISION)
def test_every_video_model_takes_one_channel_or_three(name: str) -> None:
    depth, size = SHAPE.get(name, (4, 512))
    with torch.device("meta"), torch.inference_mode():
        network = registry.create(name, 5).eval()
        for channels in (1, 3):
            assert network(torch.empty(2, channels, depth, size, size)).shape == (2, 5)


def test_an_architecture_that_cannot_take_thin_volumes_is_refused_before_any_work() -> None:
    with pytest.raises(UsageError, match=r"4×512×512.*tv_s3d.*--arch") as caught:
        registry.require_fit("tv_s3d", 4, 512)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name in ("r3d18", "r2plus1d18", "r3d50", "tv_r3d_18", "tv_swin3d_t")])
def test_architectures_that_take_the_papers_volumes_are_not_refused(name: str) -> None:
    for depth in (2, 4, 64):
        registry.require_fit(name, depth, 512)
