"""What many GPUs would gain, on paper: from the time of one step, the bytes of the gradients, and how fast they travel.

    python tests/benchmarks/scaling.py                          # measures a step and the reading on this machine
    python tests/benchmarks/scaling.py --step-seconds 0.1 --slice-seconds 0.0015 --slice-bytes 180000

Nothing here has run on several GPUs: what is said of 2, 8 and 64 is computed. The model: each GPU computes its share of the batch, in
time proportional to its volumes. Gradients (float32) are summed by a ring all-reduce, which sends 2(n-1)/n of their bytes over each link of
the ring in 2(n-1) messages; the slowest link counts. That happens after the backward pass, or beside it in buckets, as torch's
DistributedDataParallel does: then what outlasts the backward pass shows, and at least the last bucket, with nothing left to hide behind.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from networks import CLASSES, OURS, Contestant, seconds, volumes_of

from ctcovid.base import cpus
from ctcovid.base.console import Console
from ctcovid.commands import prepare
from ctcovid.models import registry
from ctcovid.models.architectures import ARCHITECTURES
from ctcovid.models.device import choose_device, device_name
from ctcovid.phantom.dataset import Parameters, write_dataset
from ctcovid.volumes.reader import VolumesFile

GPUS = (1, 2, 8, 64)
# The two gradients of each convolution against its one product forward.
BACKWARD_SHARE = 2 / 3
# What DistributedDataParallel sends at a time.
BUCKET_BYTES = 25 * 2**20


@dataclass(frozen=True)
class Link:
    """The slowest link of a ring: bytes per second, seconds that a message takes beside its bytes, and how many GPUs such rings join."""

    name: str
    bandwidth: float
    latency: float
    most: int


# Nominal rates of one direction. The latencies are of the usual order, not measured.
LINKS = (
    Link("NVLink 450 GB/s", 450e9, 3e-6, 8),
    Link("InfiniBand NDR 50 GB/s", 50e9, 5e-6, 10**6),
    Link("10 GbE 1.25 GB/s", 1.25e9, 30e-6, 10**6),
)


def all_reduce_seconds(gpus: int, size: float, link: Link) -> float:
    """Time of a ring all-reduce of `size` bytes over `gpus` GPUs."""
    return 2 * (gpus - 1) / gpus * size / link.bandwidth + 2 * (gpus - 1) * link.latency


def compute_seconds(gpus: int, batch: int, one: float) -> float:
    """Time of the largest share of the batch, where one GPU takes `one` seconds for all of it."""
    return one * math.ceil(batch / gpus) / batch


def step_seconds(gpus: int, batch: int, one: float, size: float, link: Link, beside: bool) -> float:
    """Time of one step of `batch` volumes on `gpus` GPUs; `beside` says whether gradients are summed beside the backward pass."""
    compute = compute_seconds(gpus, batch, one)
    if gpus == 1:
        return compute
    buckets = math.ceil(size / BUCKET_BYTES) if beside else 1
    bucket = all_reduce_seconds(gpus, size / buckets, link)
    hidden = BACKWARD_SHARE * compute if beside else 0.0
    return compute + max(buckets * bucket - hidden, bucket)


def efficiency(gpus: int, batch: int, one: float, size: float, link: Link, beside: bool, grows: bool) -> float:
    """Share of `gpus` times one GPU's volumes per second that is reached.

    The batch is that of all GPUs together, which is the paper's; where it `grows`, each GPU has a batch of its own.
    """
    total, alone = (batch * gpus, one * gpus) if grows else (batch, one)
    return alone / (gpus * step_seconds(gpus, total, alone, size, link, beside))


@dataclass(frozen=True)
class Reading:
    """What one process of DataLoader reads: seconds and compressed bytes of a slice."""

    slice_seconds: float
    slice_bytes: float

    def processes(self, volumes_per_second: float, depth: int) -> float:
        """Processes that it takes to keep up."""
        return volumes_per_second * depth * self.slice_seconds

    def bytes_per_second(self, volumes_per_second: float, depth: int) -> float:
        """What the file system has to give for that."""
        return volumes_per_second * depth * self.slice_bytes

    def limit(self, processes: int, depth: int) -> float:
        """Volumes per second beyond which that many processes are the limit."""
        return processes / (depth * self.slice_seconds)


def measure_step(arch: str, depth: int, size: int, batch: int, device: torch.device, rounds: int) -> float:
    """Seconds of a training step on one device: the best of `rounds`, after one that is not counted."""
    network = Contestant(OURS, arch, device)
    volumes = volumes_of(batch, depth, size, device)
    network.step(volumes)
    return min(seconds(lambda: network.step(volumes), device) for _ in range(rounds))


def measure_reading(path: Path, depth: int, rounds: int, count: int = 50) -> Reading:
    """How fast one process reads volumes of a volumes.h5 in random order, the best of `rounds`. A small file lies in the page cache."""
    file = VolumesFile(path)
    firsts = [volume.first_slice for volume in file.volumes("train", depth)]
    order = np.random.default_rng(0).choice(firsts, count).tolist()
    file.read(firsts[0], depth)
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        for first in order:
            file.read(first, depth)
        times.append(time.perf_counter() - began)
    return Reading(min(times) / (count * depth), path.stat().st_size / sum(row.slice_count for row in file.rows))


def measure_phantom_reading(size: int, depth: int, rounds: int) -> Reading:
    """The same of a file of phantoms, made for this."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_dataset(root / "data", Parameters(3, size, slices=(16, 24), scans=1))
        prepare.run(prepare.Options(root / "data", depth, size, root / "volumes.h5"), Console(quiet=True, results=False))
        return measure_reading(root / "volumes.h5", depth, rounds)


def simulate(batch: int, depth: int, one: float, size: float, reading: Reading, processes: int) -> dict[str, Any]:
    """All figures: efficiencies by link and number of GPUs, and what reading has to give at each number."""
    rows = []
    for link in LINKS:
        for grows in (False, True):
            for beside in (False, True):
                found = {n: efficiency(n, batch, one, size, link, beside, grows) if n <= link.most else None for n in GPUS}
                rows.append({"link": link.name, "grows": grows, "beside": beside, "efficiency": found})
    needed = []
    for gpus in GPUS:
        # As much as the GPUs could take if nothing held them up.
        rate = gpus * batch / one
        given = {"processes": reading.processes(rate, depth), "bytes_per_second": reading.bytes_per_second(rate, depth)}
        needed.append({"gpus": gpus, "volumes_per_second": rate, **given})
    limit = reading.limit(processes, depth)
    return {"links": [asdict(link) for link in LINKS], "rows": rows, "reading": needed, "limit": limit, "limit_gpus": limit * one / batch}


def table(found: dict[str, Any]) -> str:
    """Efficiencies and needs of reading as two tables in Markdown."""
    numbers = [n for n in GPUS if n > 1]
    lines = [
        f"| interconnect | batch | gradients are summed | {' | '.join(f'{n} GPUs' for n in numbers)} |",
        f"| --- | --- | --- | {' | '.join('---:' for _ in numbers)} |",
    ]
    for row in found["rows"]:
        cells = ["-" if row["efficiency"][n] is None else f"{row['efficiency'][n]:.0%}" for n in numbers]
        batch = f"{found['batch']} on each GPU" if row["grows"] else f"{found['batch']} on all together"
        when = "beside the backward pass" if row["beside"] else "after it"
        lines.append(f"| {row['link']} | {batch} | {when} | {' | '.join(cells)} |")
    lines += ["", "| GPUs | volumes/s at most | reading processes for that | MB/s from the file |", "| ---: | ---: | ---: | ---: |"]
    for need in found["reading"]:
        rate, of_file = need["volumes_per_second"], need["bytes_per_second"] / 1e6
        lines.append(f"| {need['gpus']} | {rate:,.1f} | {need['processes']:,.1f} | {of_file:,.1f} |")
    lines += [
        "",
        f"{found['processes']} processes read {found['limit']:,.1f} volumes/s: the limit from {found['limit_gpus']:,.1f} GPUs on.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", default="r3d18", choices=[name for name in ARCHITECTURES if not name.startswith("tv_")])
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--step-seconds", type=float, help="of one step of the batch on one GPU, measured elsewhere")
    parser.add_argument("--data", type=Path, help="volumes.h5 to measure the reading of; by default one of a phantom is made")
    parser.add_argument("--slice-seconds", type=float, help="that one process takes to read a slice, measured elsewhere")
    parser.add_argument("--slice-bytes", type=float, help="of a slice in the file; by default as many as it has pixels")
    parser.add_argument("--processes", type=int, default=min(cpus.allowed(), 8), help="that read; by default those of ctcovid train")
    parser.add_argument("--json", type=Path, help="file to write all figures to")
    chosen = parser.parse_args()
    device = choose_device(chosen.device)
    size = 4 * sum(p.numel() for p in registry.create(chosen.arch, len(CLASSES)).parameters())
    one = chosen.step_seconds or measure_step(chosen.arch, chosen.depth, chosen.size, chosen.batch, device, chosen.rounds)
    if chosen.slice_seconds:
        reading = Reading(chosen.slice_seconds, chosen.slice_bytes or chosen.size**2)
    elif chosen.data:
        reading = measure_reading(chosen.data, chosen.depth, chosen.rounds)
    else:
        reading = measure_phantom_reading(chosen.size, chosen.depth, chosen.rounds)
    found = simulate(chosen.batch, chosen.depth, one, size, reading, chosen.processes)
    found |= {"arch": chosen.arch, "depth": chosen.depth, "size": chosen.size, "batch": chosen.batch, "gradient_bytes": size}
    found |= {"step_seconds": one, "step_measured": chosen.step_seconds is None, "processes": chosen.processes, **asdict(reading)}
    found |= {"reading_measured": chosen.slice_seconds is None, "device": device_name(device)}
    found |= {"torch": torch.__version__, "processor": platform.processor() or platform.machine(), "date": time.strftime("%Y-%m-%d")}
    step, read = (f"measured on {found['device']}" if found[what] else "given" for what in ("step_measured", "reading_measured"))
    print(
        f"{chosen.arch}, {chosen.depth}×{chosen.size}×{chosen.size}, batch {chosen.batch}: step {1e3 * one:.1f} ms ({step}), "
        f"gradients {size / 1e6:.0f} MB; a slice {1e3 * reading.slice_seconds:.2f} ms and {reading.slice_bytes / 1e3:.0f} kB ({read}). "
        f"What is said of several GPUs is computed, not measured.\n\n{table(found)}"
    )
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
