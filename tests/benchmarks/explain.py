"""How fast explanations are: our Smooth Grad-CAM++ against torch-cam's, on the same network, layer, samples and device.

    pip install -r tests/benchmarks/requirements-explain.txt
    python tests/benchmarks/explain.py
    python tests/benchmarks/explain.py --size 512 --layer layer4 layer3 --json results.json

Both explain the same volumes for one class, torch-cam in float32 as its user would run it: a forward pass, then its extractor. Rounds go to
both in turn, so that a slow minute of the machine hits both; the table shows the best round of each. torch-cam is given our network with
frozen weights, as it is fastest, and the same network of torch's own 3D operations, which is what its user has.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ctcovid.base.choices import SMOOTH
from ctcovid.base.errors import CtcovidError, InputError
from ctcovid.base.files import write_json
from ctcovid.explanation.methods import Method, saliency_maps
from ctcovid.models import registry
from ctcovid.models.device import choose_device, choose_precision, device_name
from ctcovid.models.network import Network

CLASSES = ["NCP", "CP", "Normal"]
OURS, FLOAT32, FOLDED, PLAIN = "ctcovid", "ctcovid float32", "torch-cam, our network float32", "torch-cam, plain network float32"


def contestants(arch: str, layer: str, samples: int, device: str, noise: float = 0.1) -> dict[str, Callable[[np.ndarray], Any]]:
    """What explains uint8 volumes (N, D, H, W) for class 0, by name."""
    # The package is wanted here only, and where it is absent the message above all imports would be unkind.
    if importlib.util.find_spec("torchcam") is None:
        raise InputError("torch-cam is not installed. Run pip install -r tests/benchmarks/requirements-explain.txt.")
    from torchcam.methods import SmoothGradCAMpp

    torch.manual_seed(0)
    ours = registry.build(arch, CLASSES, device, "float32")
    ours.module.requires_grad_(False)
    usual = Network(ours.module, ours.architecture, CLASSES, ours.device, choose_precision("auto", ours.device, ours.architecture))
    module = registry.create(arch, len(CLASSES), plain=True).requires_grad_(False)
    module.load_state_dict(ours.module.state_dict())
    plain = Network(module, ours.architecture, CLASSES, ours.device, torch.float32)

    def theirs(network: Network) -> Callable[[np.ndarray], Any]:
        def explain(volumes: np.ndarray) -> list[Any]:
            found = []
            for some in torch.from_numpy(volumes).split(network.at_once(volumes[0].size)):
                scaled = network.scale(some).requires_grad_()
                with SmoothGradCAMpp(
                    network.module, layer, num_samples=samples, std=noise, input_shape=tuple(scaled.shape[1:])
                ) as extractor:
                    scores = network.module(scaled)
                    found.append(extractor([0] * len(scores), scores)[0].cpu())
            return found

        return explain

    method = Method(SMOOTH, layer, samples, noise)
    return {
        OURS: lambda volumes: saliency_maps(usual, volumes, method, [0]),
        FLOAT32: lambda volumes: saliency_maps(ours, volumes, method, [0]),
        FOLDED: theirs(ours),
        PLAIN: theirs(plain),
    }


def measure(arch: str, layer: str, depth: int, size: int, count: int, samples: int, rounds: int, device: str) -> dict[str, Any]:
    """Seconds per volume of each, best of `rounds` after one that warms up."""
    volumes = np.random.default_rng(0).integers(0, 256, (count, depth, size, size), dtype=np.uint8)
    all_of_them = contestants(arch, layer, samples, device)
    best = dict.fromkeys(all_of_them, float("inf"))
    for number in range(rounds + 1):
        for name, explain in all_of_them.items():
            began = time.perf_counter()
            explain(volumes)
            if number:
                best[name] = min(best[name], (time.perf_counter() - began) / count)
    return {"arch": arch, "layer": layer, "depth": depth, "size": size, "samples": samples, "volumes": count, "seconds": best}


def table(results: list[dict[str, Any]]) -> str:
    """Seconds per volume, and how many times as long as ours."""
    lines = ["| layer | method | s/volume | ratio |", "| --- | --- | ---: | ---: |"]
    for found in results:
        for name, seconds in found["seconds"].items():
            lines.append(f"| {found['layer']} | {name} | {seconds:.3f} | {seconds / found['seconds'][OURS]:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="r3d18")
    parser.add_argument("--layer", nargs="+", default=["layer4", "layer3"])
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--volumes", type=int, default=4)
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    numbers = (asked.depth, asked.size, asked.volumes, asked.samples, asked.rounds)
    try:
        results = [measure(asked.arch, layer, *numbers, asked.device) for layer in asked.layer]
        if asked.json:
            write_json(asked.json, {"results": results, "torch": torch.__version__})
    except CtcovidError as error:
        parser.exit(error.exit_code, f"{error}\n")
    device = device_name(choose_device(asked.device))
    print(f"{asked.arch}, {asked.depth}×{asked.size}×{asked.size}, {asked.samples} samples, {device}\n\n{table(results)}")


if __name__ == "__main__":
    main()
