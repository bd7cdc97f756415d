"""On a GPU: evaluate, predict and explain give what they give on a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ctcovid.base.console import Console
from ctcovid.commands import evaluate, predict, train
from ctcovid.explanation.methods import Method, saliency_maps
from ctcovid.models import registry
from ctcovid.models.network import Network

pytestmark = pytest.mark.cuda


@pytest.fixture(scope="module")
def run(_prepared: Path, device: torch.device, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was trained on the device."""
    runs = tmp_path_factory.mktemp("runs")
    return train.run(train.Options(data=_prepared, epochs=2, batch=4, runs=runs, workers=1, device=str(device)), Console()).folder


@pytest.mark.parametrize("precision", ["float32", "auto"])
def test_evaluate_and_predict_give_the_cpus_probabilities(precision: Any, run: Path, device: torch.device, tmp_path: Path) -> None:
    """Each of them in float32, and on average in bfloat16, which keeps three digits of a logit."""
    scan = tmp_path / "scan"
    scan.mkdir()
    for number in range(70):
        pixels = np.random.default_rng(number).integers(0, 256, (32, 32), dtype=np.uint8)
        Image.fromarray(pixels).save(scan / f"{number:04d}.png")
    found = []
    for number, where in enumerate((str(device), "cpu")):
        out = tmp_path / f"evaluation-{number}"
        evaluate.run(
            evaluate.Options([str(run)], output=out, workers=1, device=where, precision=precision, bootstrap=10),
            Console(quiet=True, results=False),
        )
        rows = np.genfromtxt(next(out.rglob("predictions*.csv")), delimiter=",", names=True, dtype=None, encoding="utf-8")
        columns = [name for name in rows.dtype.names if name.startswith("p_")]
        predicted = predict.run(
            predict.Options([scan], model=[str(run)], output=tmp_path / f"{number}.csv", device=where, precision=precision, raw=True),
            Console(quiet=True, results=False),
        )
        probabilities = [[row[f"p_{label}"] for label in predicted.classes] for row in predicted.rows]
        found.append((np.stack([rows[name] for name in columns]), np.array(probabilities)))
    for one, other in zip(*found, strict=True):
        assert one.shape == other.shape and one.size
        apart = np.abs(one - other)
        assert (apart.max() if precision == "float32" else apart.mean()) < 1e-2


@pytest.mark.parametrize(
    "method",
    [
        Method("smooth-gradcam++", "layer4", samples=3),
        Method("gradcam", "layer4"),
        Method("gradcam", "layer2"),
        Method("occlusion"),
    ],
)
def test_maps_are_the_cpus(run: Path, method: Method, device: torch.device) -> None:
    volumes = np.random.default_rng(0).integers(0, 256, (3, 2, 32, 32), dtype=np.uint8)

    def maps(where: str) -> np.ndarray:
        network: Network = registry.load(str(run), where, "float32").network
        first, second = (saliency_maps(network, volumes, method, [0, 2]) for _ in range(2))
        assert np.abs(first - second).max() <= 1e-5 * np.abs(first).max()
        return first

    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    one, other = maps(str(device)), maps("cpu")
    assert np.abs(one - other).max() < 1e-2 * np.abs(other).max()
