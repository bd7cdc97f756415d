"""How fast scans are classified, against the network alone, and how long one DICOM scan takes from the start of the process to its row.

    python tests/benchmarks/predict.py
    python tests/benchmarks/predict.py --arch r3d18 --depth 4 --size 512 --scans 4 --slices 150 --json results.json

The scans are a synthetic chest in slices of `--size`, JPEG for the batch and DICOM for the single scan, and the weights are random: neither
changes the work. The network alone is given the volumes of the same scans from memory. Rounds of both go in turn, so that a slow minute of
the machine hits both; the best of each is shown. CPU time is that of all threads: on a machine that others use as well it says more than
the clock, and on a CPU it shows the work that comes on top of the network's.
"""

from __future__ import annotations

import argparse
import csv
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydicom.uid import ExplicitVRLittleEndian
from reading import write_dicom, write_pictures

from ctcovid.base import cpus
from ctcovid.base.errors import CtcovidError
from ctcovid.base.files import write_json
from ctcovid.inference.classify import ScanPrediction, classify
from ctcovid.models import registry, saved_model
from ctcovid.models.network import SCALING
from ctcovid.phantom.chest import chest
from ctcovid.scans.discover import find_scans

CLASSES = ["NCP", "CP", "Normal"]


def prepared(folder: Path, arch: str, depth: int, size: int, scans: int, slices: int) -> np.ndarray:
    """Write a model and its scans; the volumes of one scan, uint8 (N, depth, size, size)."""
    torch.manual_seed(0)
    (folder / "runs" / "model").mkdir(parents=True)
    saved_model.save_weights(folder / "runs" / "model" / saved_model.WEIGHTS, registry.create(arch))
    card = {"architecture": arch, "classes": CLASSES, "positive": "NCP", "depth": depth, "size": size, "scaling": SCALING}
    saved_model.save_card(folder / "runs" / "model", {**card, "data": {"path": "none"}})
    greys, _ = chest("NCP", slices, size)
    for number in range(scans):
        (folder / "scans" / str(number)).mkdir(parents=True)
        write_pictures(folder / "scans" / str(number), np.roll(greys, number, axis=2), "jpg")
    (folder / "dicom").mkdir()
    write_dicom(folder / "dicom", greys, ExplicitVRLittleEndian)
    return greys[: slices // depth * depth].reshape(-1, depth, size, size)


def from_start_to_row(folder: Path, device: str) -> tuple[float, float]:
    """Seconds that the command takes for the DICOM scan, and its CPU time."""
    line = [sys.executable, "-m", "ctcovid", "predict", str(folder / "dicom"), "--runs", str(folder / "runs"), "--device", device]
    began, before = time.perf_counter(), os.times()
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    seconds, after = time.perf_counter() - began, os.times()
    (row,) = csv.DictReader(done.stdout.splitlines())
    if row["predicted"] not in CLASSES:
        raise CtcovidError(f"The scan was not classified: {row['notes']}")
    return seconds, after.children_user + after.children_system - before.children_user - before.children_system


def measure(arch: str, depth: int, size: int, scans: int, slices: int, rounds: int, device: str) -> dict[str, Any]:
    """Volumes a second of the network alone and of whole scans, and seconds from the start of the process to one scan's row."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        volumes = prepared(folder, arch, depth, size, scans, slices)
        starts = [from_start_to_row(folder, device) for _ in range(rounds)]
        model = registry.load("model", device, runs=folder / "runs")
        found = find_scans([folder / "scans"])
        # By the clock and in CPU time.
        alone: list[tuple[float, float]] = []
        whole: list[tuple[float, float]] = []
        model.network.probabilities(volumes[:1])
        for _ in range(rounds):
            began, before = time.perf_counter(), time.process_time()
            for _ in range(scans):
                model.network.probabilities(volumes)
            alone.append((time.perf_counter() - began, time.process_time() - before))
            began, before = time.perf_counter(), time.process_time()
            predicted = [one for one in classify(found, [model], cpus.allowed()) if isinstance(one, ScanPrediction)]
            whole.append((time.perf_counter() - began, time.process_time() - before))
            if len(predicted) != scans or any(len(one.volumes) != len(volumes) for one in predicted):
                raise CtcovidError("Not all scans were classified.")
    about = {"arch": arch, "depth": depth, "size": size, "scans": scans, "slices": slices, "cpus": cpus.allowed()}
    count = scans * len(volumes)
    network, network_cpu = (min(times) for times in zip(*alone, strict=True))
    scan, scan_cpu = (min(times) for times in zip(*whole, strict=True))
    start, start_cpu = (min(times) for times in zip(*starts, strict=True))
    speeds = {"network": count / network, "scans": count / scan, "share": network / scan, "share_of_cpu_time": network_cpu / scan_cpu}
    device = str(model.network.device)
    return {**about, "device": device, "volumes_per_second": speeds, "start_to_row": start, "start_to_row_cpu": start_cpu}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="r3d18")
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--scans", type=int, default=4)
    parser.add_argument("--slices", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    try:
        found = measure(asked.arch, asked.depth, asked.size, asked.scans, asked.slices, asked.rounds, asked.device)
        if asked.json:
            write_json(asked.json, {**found, "torch": torch.__version__})
    except CtcovidError as error:
        parser.exit(error.exit_code, f"{error}\n")
    speeds = found["volumes_per_second"]
    print(f"{asked.arch}, {asked.depth}×{asked.size}×{asked.size}, {found['device']}, {found['cpus']} CPUs")
    print(f"network alone {speeds['network']:.2f} volumes/s, whole scans {speeds['scans']:.2f} volumes/s, share {speeds['share']:.0%}")
    print(f"of the CPU time for whole scans {speeds['share_of_cpu_time']:.0%} is the network's own")
    print(f"one DICOM scan of {asked.slices} slices, from the start of the process to its row: {found['start_to_row']:.1f} s")
    print(f"its CPU time: {found['start_to_row_cpu']:.1f} s")


if __name__ == "__main__":
    main()
