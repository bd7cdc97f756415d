"""How fast the networks are, and in how much memory: ours against the same network as plain 3D, and against what else one could take.

    python tests/benchmarks/networks.py
    python tests/benchmarks/networks.py --arch r3d18 r2plus1d18 --depth 4 16 --json results.json

Every variant takes the same volumes. Rounds go through all variants in turn, so that a slow minute of the machine hits all of them; the
table shows the best round of each, and ratios of those. Memory that is freed is treated as it would be in a process of each variant's own.
Memory in the table is the peak of a training step in such a process. The last column is the share of the machine's matrix product,
measured here in the same minutes, over the multiplications that folding leaves over; Winograd's convolutions need fewer than those.
Nothing is downloaded; MONAI is compared where it is installed.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import os
import platform
import resource
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctcovid.base.allocation import hand_back, keep_freed_memory
from ctcovid.base.errors import CtcovidError
from ctcovid.base.files import claim_file, write_json
from ctcovid.base.process_info import ProcessInfo
from ctcovid.distributed.ranks import Ranks
from ctcovid.kernels import native
from ctcovid.models import registry
from ctcovid.models.architectures import ARCHITECTURES
from ctcovid.models.costs import plan
from ctcovid.models.device import LARGEST_KEPT, choose_device, device_name
from ctcovid.training.checkpoint import TrainingState
from ctcovid.training.recipe import Recipe
from ctcovid.training.step import Stepper
from ctcovid.volumes.batches import Batch

CLASSES = ["NCP", "CP", "Normal"]
OURS = "ctcovid"
VARIANTS = (
    OURS,
    f"{OURS} float32",
    "plain float32",
    "plain float32 channels last",
    "plain bfloat16 channels last",
    "torchvision r3d_18",
    "MONAI resnet18",
)
# Takes minutes to compile: with --compile only.
COMPILED = f"{OURS} torch.compile"


class Contestant:
    """A network as its user would run it: `forward` in use and `step` in training, on uint8 volumes (B, D, H, W) of the device."""

    def __init__(self, variant: str, arch: str, device: torch.device) -> None:
        torch.manual_seed(0)
        self.device, self.last, self.precision = device, "channels last" in variant, torch.float32
        self.network: Any = None
        if variant.startswith(OURS):
            self.network = registry.build(arch, CLASSES, str(device), "float32" if "float32" in variant else "auto")
            self.module, self.precision = self.network.module, self.network.precision
            if variant == COMPILED:
                self.network.module = torch.compile(self.module)
        else:
            self.module = _other(variant, arch).to(device)
            if self.last:
                self.module = self.module.to(memory_format=torch.channels_last_3d)
            if "bfloat16" in variant:
                self.precision = torch.bfloat16
        self.channels = 1 if variant.startswith("MONAI") else 3
        self.optimiser = torch.optim.Adam(self.module.parameters(), lr=1e-3, fused=True)
        # On a GPU ours is measured as the commands run it, with all that a step does beside the network: most of it is replayed.
        self.as_commands = self.network is not None and variant != COMPILED and device.type == "cuda"
        self.stepper: Stepper | None = None

    def logits(self, volumes: Tensor) -> Tensor:
        if self.network is not None:
            found: Tensor = self.network.logits(volumes)
            return found
        x = (volumes.unsqueeze(1).float() / 255).expand(-1, self.channels, -1, -1, -1)
        x = x.contiguous(memory_format=torch.channels_last_3d if self.last else torch.contiguous_format)
        with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
            result: Tensor = self.module(x).float()
        return result

    def forward(self, volumes: Tensor) -> None:
        self.module.eval()
        with torch.inference_mode():
            if self.as_commands:
                for _ in self.network.logits_by_passes(volumes):
                    pass
            else:
                self.logits(volumes)

    def step(self, volumes: Tensor) -> None:
        self.module.train()
        labels = torch.arange(len(volumes), device=self.device) % len(CLASSES)
        if self.as_commands:
            if self.stepper is None:
                self.stepper = Stepper(TrainingState(self.network, self.optimiser), Recipe(batch=len(volumes)), Ranks(ProcessInfo()))
            self.stepper.make(Batch(volumes, labels, labels), range(len(volumes)))
            return
        self.optimiser.zero_grad(set_to_none=True)
        F.cross_entropy(self.logits(volumes), labels).backward()
        self.optimiser.step()


def _other(variant: str, arch: str) -> nn.Module:
    if variant.startswith("MONAI"):
        from monai.networks.nets import resnet18

        module: nn.Module = resnet18(spatial_dims=3, n_input_channels=1, num_classes=len(CLASSES))
        return module
    return registry.create("tv_r3d_18" if variant.startswith("torchvision") else arch, len(CLASSES), plain=True)


def volumes_of(batch: int, depth: int, size: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (batch, depth, size, size), dtype=torch.uint8, generator=generator).to(device)


def seconds(work: Callable[[], None], device: torch.device) -> float:
    _wait(device)
    began = time.perf_counter()
    work()
    _wait(device)
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def allocate_as_usual(usual: bool) -> None:
    """Treat memory that is freed as glibc does by itself, at the thresholds at which it arrives; otherwise as ctcovid has it."""
    if not usual:
        keep_freed_memory(LARGEST_KEPT)
    elif keep_freed_memory(32 << 20, 64 << 20):
        hand_back()


def matrix_peak(device: torch.device, precision: torch.dtype, rounds: int = 5) -> float:
    """Multiply-accumulates per second of a large square matrix product."""
    n = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(n, n, device=device).to(precision) for _ in range(2))
    torch.mm(a, b)
    return n**3 / min(seconds(lambda: torch.mm(a, b), device) for _ in range(rounds))


def child(task: str, variant: str, arch: str, depth: int, size: int, batch: int, device: torch.device, patience: float) -> dict[str, Any]:
    """Measure something in a process of its own, which may take its time, or crash, without taking the others with it."""
    line = [sys.executable, __file__, "--task", task, "--variant", variant, "--arch", arch, "--device", str(device)]
    line += ["--depth", str(depth), "--size", str(size), "--batch", str(batch)]
    try:
        done = subprocess.run(line, capture_output=True, text=True, timeout=patience, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"did not finish in {patience:.0f} s"}
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [""])[-1].replace("|", "/")
        how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        return {"failed": textwrap.shorten(f"crashed ({how}) {last}", 120, placeholder=" …")}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def task(name: str, variant: str, arch: str, depth: int, size: int, batch: int, device: torch.device) -> dict[str, Any]:
    """In the child: seconds of one ``forward`` or ``step``, and the peak memory that it took, in bytes."""
    volumes = volumes_of(batch, depth, size, device)
    # On a CPU, what the interpreter and the libraries take is not the network's.
    before = _peak(device)
    contestant = Contestant(variant, arch, device)
    run = functools.partial(getattr(contestant, name), volumes)
    first = seconds(run, device)
    memory = _peak(device) - before
    # What corrupts memory does not always end on the spot.
    again = 3 if _corrupts(variant, device) else 1
    return {"first": first, "seconds": min(first, *(seconds(run, device) for _ in range(again))), "memory": memory}


def _corrupts(variant: str, device: torch.device) -> bool:
    """Whether this is torch's own Conv3d in bfloat16 on a CPU, whose backward pass writes past the end of its memory (torch 2.13)."""
    return device.type == "cpu" and "plain bfloat16" in variant


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.is_file():
        # On Linux the resource usage of a process that another one started begins with the peak of that one.
        (peak,) = (line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(peak) * 1024
    # macOS counts in bytes, others in KiB.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(
    arch: str, depth: int, size: int, batch: int, device: torch.device, rounds: int, patience: float, compiled: bool = False
) -> dict[str, Any]:
    """All variants of one architecture at one depth."""
    known = (*VARIANTS, COMPILED) if compiled else VARIANTS
    variants = [name for name in known if not (name.startswith("MONAI") and importlib.util.find_spec("monai") is None)]
    if registry.build(arch, CLASSES, str(device)).precision == torch.float32:
        variants.remove(OURS)
    rows: dict[str, dict[str, Any]] = {}
    for variant in variants:
        say(f"{arch} {depth}×{size}×{size}: {variant}")
        row: dict[str, Any] = {"batch": batch}
        memory = child("step", variant, arch, depth, size, batch, device, patience)
        if "failed" in memory and batch > 1:
            # A variant that a batch is too much for is measured with a single volume, and compared per volume.
            row["batch"] = 1
            memory = {**child("step", variant, arch, depth, size, 1, device, patience), "tried": memory["failed"]}
        row["memory"] = memory
        row["works"] = ["forward", "step"] if "failed" not in memory else []
        if _corrupts(variant, device):
            # It never runs in the process of the others.
            row["works"] = []
            alone = {"forward": child("forward", variant, arch, depth, size, row["batch"], device, patience), "step": memory}
            row |= {work: found["seconds"] / row["batch"] for work, found in alone.items() if "failed" not in found}
        rows[variant] = row
    contestants = {variant: Contestant(variant, arch, device) for variant, row in rows.items() if row["works"]}
    times: dict[tuple[str, str], list[float]] = {}
    for round_ in range(rounds):
        for variant, contestant in contestants.items():
            say(f"round {round_ + 1} of {rounds}: {variant}")
            for work in rows[variant]["works"]:
                volumes = volumes_of(rows[variant]["batch"], depth, size, device)
                run = functools.partial(getattr(contestant, work), volumes)
                # Libraries choose and compile their kernels on the first call, and memory is asked for.
                allocate_as_usual(not variant.startswith(OURS))
                seconds(run, device)
                times.setdefault((variant, work), []).append(seconds(run, device) / len(volumes))
                if device.type == "cuda":
                    torch.cuda.empty_cache()
    peaks = {str(precision): matrix_peak(device, precision) for precision in (torch.float32, torch.bfloat16)}
    costs = plan(arch, depth, size)
    folded = sum(row.cost for row in costs) * 1e9
    # Forward, gradient of the weights, and gradient of the input, which nobody needs for the first convolution.
    step = 3 * folded - costs[0].cost * 1e9
    for variant, row in rows.items():
        for work, macs in (("forward", folded), ("step", step)):
            if (variant, work) in times:
                row[work] = min(times[variant, work])
                if variant.startswith(OURS):
                    row[f"{work}_share"] = macs / row[work] / peaks[str(contestants[variant].precision)]
    return {"arch": arch, "depth": depth, "size": size, "peaks": peaks, "gmac_folded": folded / 1e9, "variants": rows}


def table(found: dict[str, Any]) -> str:
    """One line a variant: milliseconds and memory per volume, and how many times as much as ours."""
    rows = found["variants"]
    ours = rows.get(OURS) or rows[f"{OURS} float32"]
    peaks = ", ".join(f"{name.removeprefix('torch.')} {2 * peak / 1e12:.2f} TFLOP/s" for name, peak in found["peaks"].items())
    lines = [
        f"{found['arch']}, {found['depth']}×{found['size']}×{found['size']}, folded {found['gmac_folded']:.1f} GMAC per volume; "
        f"matrix product {peaks}",
        "",
        "| variant | batch | forward ms | ratio | step ms | ratio | step MB per batch | ratio | share of peak, forward / step |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for variant, row in rows.items():
        cells = [variant, str(row["batch"])]
        for work in ("forward", "step"):
            cells += [f"{1e3 * row[work]:.1f}", _ratio(row[work], ours.get(work))] if work in row else ["-", "-"]
        memory = row["memory"]
        if "memory" in memory:
            same = ours["memory"].get("memory") if row["batch"] == ours["batch"] else None
            cells += [f"{memory['memory'] / 1e6:.0f}", _ratio(memory["memory"], same)]
        else:
            cells += [memory["failed"], "-"]
        cells.append(f"{row['forward_share']:.0%} / {row['step_share']:.0%}" if "step_share" in row else "")
        lines.append(f"| {' | '.join(cells)} |")
    notes = [f"{variant}: at the full batch {row['memory']['tried']}." for variant, row in rows.items() if "tried" in row["memory"]]
    if COMPILED in rows and "first" in rows[COMPILED]["memory"]:
        notes.append(f"{COMPILED}: the first training step took {rows[COMPILED]['memory']['first']:.0f} s.")
    return "\n".join([*lines, *notes])


def _ratio(value: float, ours: float | None) -> str:
    return f"{value / ours:.2f}" if ours else "-"


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number


def _require_sense(parser: argparse.ArgumentParser, chosen: argparse.Namespace, batch: int) -> None:
    """End with a usage error, before anything is measured, where something could not be measured or written."""
    try:
        for arch in chosen.arch:
            for depth in chosen.depth:
                registry.require_fit(arch, depth, chosen.size, volumes=batch)
        if chosen.json:
            claim_file(chosen.json, overwrite=True)
    except CtcovidError as error:
        parser.error(str(error))
    if chosen.json and not chosen.json.parent.is_dir():
        parser.error(f"--json {chosen.json}: there is no folder {chosen.json.parent}")
    if not chosen.patience > 0:
        parser.error(f"--patience {chosen.patience:g}: more than 0 seconds are needed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", default=["r3d18"], choices=[name for name in ARCHITECTURES if not name.startswith("tv_")])
    parser.add_argument("--depth", nargs="+", type=_positive, default=[4])
    parser.add_argument("--size", type=_positive, default=512)
    parser.add_argument("--batch", type=_positive, help="volumes at a time; by default 32 on a GPU and 8 on a CPU")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rounds", type=_positive, default=3)
    parser.add_argument("--patience", type=float, default=90, help="seconds after which a variant gets a single volume")
    parser.add_argument("--compile", action="store_true", help="measure ours under torch.compile as well")
    parser.add_argument("--json", type=Path, help="file to write all figures to")
    parser.add_argument("--task", choices=("forward", "step"), help=argparse.SUPPRESS)
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    try:
        device = choose_device(chosen.device)
    except CtcovidError as error:
        parser.error(str(error))
    batch = chosen.batch or (32 if device.type == "cuda" else 8)
    if chosen.task:
        print(json.dumps(task(chosen.task, chosen.variant, chosen.arch[0], chosen.depth[0], chosen.size, batch, device)))
        return
    _require_sense(parser, chosen, batch)
    machine = {
        "device": device_name(device),
        "processor": platform.processor() or platform.machine(),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch": torch.__version__,
        "compiled_passes": native.compiled is not None,
        "date": time.strftime("%Y-%m-%d"),
    }
    print(", ".join(f"{name} {value}" for name, value in machine.items()), flush=True)
    found = []
    for arch in chosen.arch:
        for depth in chosen.depth:
            found.append(measure(arch, depth, chosen.size, batch, device, chosen.rounds, chosen.patience, chosen.compile))
            if chosen.json:
                write_json(chosen.json, {"machine": machine, "results": found})
            print("\n" + table(found[-1]), flush=True)


if __name__ == "__main__":
    main()
