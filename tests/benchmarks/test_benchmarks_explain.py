"""The benchmark of the explanations runs at a small size, and compares the same work."""

from __future__ import annotations

import explain
import numpy as np
import pytest


def test_everything_is_measured_for_the_same_volumes_and_shown() -> None:
    pytest.importorskip("torchcam", reason="torch-cam is not installed: tests/benchmarks/requirements-explain.txt")
    found = explain.measure("r3d18", "layer4", 4, 32, 1, 2, 1, "cpu")
    assert set(found["seconds"]) == {explain.OURS, explain.FLOAT32, explain.FOLDED, explain.PLAIN}
    assert all(0 < seconds < float("inf") for seconds in found["seconds"].values())
    assert len(explain.table([found]).splitlines()) == 6


def test_both_look_at_the_same_class_without_noise_to_tell_them_apart() -> None:
    """torch-cam's maps of one copy with hardly any noise are ours, but for its scale."""
    pytest.importorskip("torchcam", reason="torch-cam is not installed: tests/benchmarks/requirements-explain.txt")
    from ctcovid.base.choices import PLUS
    from ctcovid.explanation.methods import Method, saliency_maps
    from ctcovid.models import registry

    volumes = np.random.default_rng(0).integers(0, 256, (1, 4, 96, 96), dtype=np.uint8)
    all_of_them = explain.contestants("r3d18", "layer4", 1, "cpu", noise=1e-6)
    theirs = all_of_them[explain.PLAIN](volumes)[0].numpy().reshape(-1)
    import torch

    torch.manual_seed(0)
    network = registry.build("r3d18", explain.CLASSES, "cpu", "float32")
    ours = saliency_maps(network, volumes, Method(PLUS, "layer4"), [0]).reshape(-1)
    assert np.corrcoef(ours, theirs)[0, 1] > 0.99
