"""The parts of gpu.sh that measure, and the table of what they found.

    python tests/benchmarks/gpu.py networks --arch r3d18 --out results      one network against its plain variants
    python tests/benchmarks/gpu.py profile --arch r3d18 --out results       the first 15 rows of a profile of its step
    python tests/benchmarks/gpu.py train --out results                      synthetic CT, prepare and train from the command line
    python tests/benchmarks/gpu.py table --out results                      one table of all in Markdown

``--device cpu --small`` runs all of it on a CPU at a small size, to see that it runs.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from networks import OURS, Contestant, matrix_peak, volumes_of
from PIL import Image

from ctcovid.base import cpus
from ctcovid.models.costs import plan
from ctcovid.phantom.dataset import DEFECTS, LESIONS, SCANS
from ctcovid.scans.classes import CLASS_ORDER
from ctcovid.scans.discover import TRUTH

VARIANTS = (OURS, f"{OURS} float32", "plain float32", "plain bfloat16", "plain bfloat16 channels last")
# The paper's training: volumes of depth 4 to train on, and a tenth as many to validate on.
VOLUMES, VALIDATED, EPOCHS = 20_699, 2_070, 20
# At least and aim, in the columns of the table.
WANTED = {
    "r3d18": {"step against plain bfloat16 channels last": (6.5, 10), "forward against plain float32": (6, 10)},
    "r2plus1d18": {"step against plain bfloat16 channels last": (3, 5)},
    "r3d50": {"step against plain bfloat16 channels last": (4, 6)},
}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def per_call(work: Callable[[], None], device: torch.device, rounds: int, calls: int) -> float:
    """Seconds of a call, the median over rounds of several calls one after the other, as in training."""
    times = []
    for _ in range(rounds):
        wait(device)
        began = time.perf_counter()
        for _ in range(calls):
            work()
        wait(device)
        times.append((time.perf_counter() - began) / calls)
    return sorted(times)[len(times) // 2]


def measure(variant: str, arch: str, shape: tuple[int, int, int], device: torch.device) -> dict[str, Any]:
    """Seconds per volume of forward pass and step, and bytes that a step needs."""
    batch, depth, size = shape
    volumes = volumes_of(batch, depth, size, device)
    cuda, found = device.type == "cuda", {}
    # The others take long, and their times vary little.
    rounds, calls = ((5, 10) if variant == OURS else (3, 3)) if cuda else (1, 1)
    if cuda:
        torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(device) if cuda else 0
    contestant = Contestant(variant, arch, device)
    for work in ("step", "forward"):
        run = partial(getattr(contestant, work), volumes)
        began = time.perf_counter()
        # The first call compiles, chooses kernels and captures.
        run()
        wait(device)
        found[f"{work}_first"] = time.perf_counter() - began
        run()
        if cuda:
            torch.cuda.reset_peak_memory_stats(device)
        found[work] = per_call(run, device, rounds, calls) / batch
        if cuda and work == "step":
            began = time.perf_counter()
            for _ in range(3):
                run()
            found["issue"] = (time.perf_counter() - began) / 3
            wait(device)
            peak = torch.cuda.max_memory_allocated(device)
            torch.cuda.empty_cache()
            # What graphs use is not allocated any more when they run; it is kept.
            found["memory"] = max(peak, torch.cuda.memory_reserved(device)) - before
    return found


def networks(chosen: argparse.Namespace) -> None:
    device = torch.device(chosen.device)
    shape = (2, 4, 32) if chosen.small else (32, 4, 512)
    rows: dict[str, Any] = {}
    for variant in VARIANTS:
        say(f"{chosen.arch}: {variant}")
        try:
            rows[variant] = measure(variant, chosen.arch, shape, device)
            say(json.dumps(rows[variant]))
        except Exception as error:
            rows[variant] = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
            say(rows[variant]["failed"])
        costs = plan(chosen.arch, *shape[1:])
        macs = sum(row.cost for row in costs) * 1e9
        peak = matrix_peak(device, torch.bfloat16)
        content = {
            "arch": chosen.arch,
            "shape": shape,
            "product": 2 * peak,
            "step_macs": 3 * macs - costs[0].cost * 1e9,
            "forward_macs": macs,
            "variants": rows,
        }
        write(chosen.out / f"networks-{chosen.arch}.json", content)


def profile(chosen: argparse.Namespace) -> None:
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiling

    device = torch.device(chosen.device)
    shape = (2, 4, 32) if chosen.small else (32, 4, 512)
    contestant, volumes = Contestant(OURS, chosen.arch, device), volumes_of(*shape, device)
    for _ in range(3):
        contestant.step(volumes)
    wait(device)
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with profiling(activities=activities) as found:
        for _ in range(3):
            contestant.step(volumes)
        wait(device)
    on_gpu = device.type == "cuda"
    rows = [
        ((event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 3e3, event.count / 3, event.key)
        for event in found.key_averages()
        if not on_gpu or event.device_type == torch.autograd.DeviceType.CUDA
    ]
    rows.sort(reverse=True)
    lines = [f"{chosen.arch}: {sum(row[0] for row in rows):.2f} ms in {sum(row[1] for row in rows):.0f} launches a step", ""]
    lines += ["| ms | launches | kernel |", "| ---: | ---: | --- |"]
    lines += [f"| {ms:.3f} | {count:.1f} | `{name.replace('|', '/')[:110]}` |" for ms, count, name in rows[: 15 if not chosen.all else 60]]
    (chosen.out / f"profile-{chosen.arch}.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "ctcovid", *map(str, words)]


def timed(line: list[str], log: Path) -> list[tuple[float, str]]:
    """What a command says, line by line, with the seconds since it began; RuntimeError if it fails."""
    say("$ " + " ".join(line[2:]))
    began, found = time.monotonic(), []
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process, log.open("w") as file:
        for text in process.stdout or ():
            found.append((time.monotonic() - began, text.rstrip()))
            file.write(f"[{found[-1][0]:7.2f}] {text}")
            file.flush()
    if process.returncode:
        raise RuntimeError(f"{' '.join(line[2:4])} ended with {process.returncode}: {' / '.join(text for _, text in found[-3:])}")
    found.append((time.monotonic() - began, ""))
    return found


def shifted(scan: Path, copies: int) -> None:
    """Further patients, whose slices are those of a scan, shifted and mirrored: data to read, cheaper than to draw."""
    slices = [np.asarray(Image.open(path).convert("L")) for path in sorted(scan.iterdir())]
    for copy in range(1, copies):
        folder = scan.parents[1] / f"{int(scan.parent.name) + 100_000 * copy}" / scan.name
        folder.mkdir(parents=True)
        for number, pixels in enumerate(slices):
            moved = np.roll(pixels if copy % 2 == 0 else pixels[:, ::-1], (9 * copy, 5 * copy), (0, 1))
            Image.fromarray(moved).save(folder / f"{number:04d}.png", compress_level=0)


def train(chosen: argparse.Namespace) -> None:
    """Synthetic CT, prepare, and train, as a user types them."""
    small, found = chosen.small, {"arch": chosen.arch, "cores": cpus.allowed()}
    folder = chosen.out / "work"
    shutil.rmtree(folder, ignore_errors=True)
    data, file, size = folder / "CC-CCII", folder / "volumes.h5", 32 if small else 512
    path = chosen.out / f"train-{chosen.arch}.json"
    try:
        patients, slices, copies = (2, 8, 2) if small else (12, 64, 4)
        demo = command("demo", data, "--data-only", "--patients", patients, "--size", size, "--slices", slices)
        took = timed(demo, chosen.out / "demo.log")[-1][0]
        scans = [scan for label in CLASS_ORDER for scan in sorted((data / label).glob("*/*"))]
        made = sum(len(list(scan.iterdir())) for scan in scans)
        found["slices_per_core"] = made / took / found["cores"]
        write(path, found)
        for name in (TRUTH, LESIONS, SCANS, DEFECTS):
            shutil.rmtree(data / name) if (data / name).is_dir() else (data / name).unlink(missing_ok=True)
        began = time.monotonic()
        with ProcessPoolExecutor(found["cores"]) as pool:
            list(pool.map(partial(shifted, copies=copies), scans))
        say(f"{made * copies} slices, of which {made * (copies - 1)} are copies, in {time.monotonic() - began:.1f} s")
        found["slices"] = made * copies
        found["prepare"] = timed(command("prepare", data, "--depth", 4, "--size", size, "--output", file), chosen.out / "prepare.log")[-1][
            0
        ]
        write(path, found)
        line = command("train", "--arch", chosen.arch, "--data", file, "--runs", folder / "runs", "--epochs", 3 if small else 5)
        line += ["--batch", "4" if small else "32", "--device", chosen.device, "--verbose"]
        lines = timed(line, chosen.out / "train.log")
        found |= read_train(lines)
        write(path, found)
    finally:
        if not chosen.keep:
            shutil.rmtree(folder, ignore_errors=True)


def read_train(lines: list[tuple[float, str]]) -> dict[str, Any]:
    """Volumes, and for each epoch the seconds that training, validation and all together took, from what the command said."""
    found: dict[str, Any] = {
        "epochs": [],
        "wall": lines[-1][0],
        "said": [text for _, text in lines if "CUDA graph" in text or "Warning" in text],
    }
    for seconds, text in lines:
        if match := re.search(r"on ([\d,]+) volumes? of \S+ \(([\d,]+) to validate\)", text):
            found["train"], found["valid"] = (int(number.replace(",", "")) for number in match.groups())
        elif match := re.match(r"Read ([\d,]+) volumes/s", text):
            found.setdefault("read", []).append(int(match[1].replace(",", "")))
        elif match := re.match(r"Epoch \d+: trained in ([\d.]+) s, validated in ([\d.]+) s", text):
            found["epochs"].append({"trained": float(match[1]), "validated": float(match[2])})
        elif re.match(r"Epoch \d+ of \d+: training loss", text):
            found["epochs"][-1]["at"] = seconds
    return found


def write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1))


def read(path: Path) -> Any:
    return json.loads(path.read_text()) if path.is_file() else None


def machine(device: torch.device) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    triton = "no triton"
    try:
        import triton as module

        triton = f"triton {module.__version__}"
    except ImportError:
        pass
    versions = f"torch {torch.__version__}, {triton}, Python {platform.python_version()}"
    return f"{time.strftime('%Y-%m-%d')}, {name}, {cpus.allowed()} CPUs, {versions}"


def network_lines(found: dict[str, Any]) -> list[str]:
    """A row for each variant: milliseconds per volume, how many times as long as ours, memory, and share of the matrix product."""
    rows, lines = found["variants"], []
    ours = rows.get(OURS, {})
    for variant, row in rows.items():
        if "failed" in row:
            lines.append(f"| {found['arch']} | {variant} | {row['failed'].replace('|', '/')[:90]} | | | | | | |")
            continue
        cells = [found["arch"], variant]
        for work in ("forward", "step"):
            cells += [f"{1e3 * row[work]:.3f}", f"{row[work] / ours[work]:.2f}" if work in ours else "-"]
        cells.append(f"{row['memory'] / 2**30:.2f}" if "memory" in row else "-")
        cells.append(f"{1e3 * row['issue']:.1f}" if "issue" in row else "-")
        share = found["step_macs"] * 2 / row["step"] / found["product"]
        cells.append(f"{share:.0%}" if variant == OURS else "")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def wanted_lines(found: dict[str, Any]) -> list[str]:
    rows, lines = found["variants"], []
    for what, (least, aim) in WANTED.get(found["arch"], {}).items():
        work, other = what.split(" against ")
        if work in rows.get(OURS, {}) and work in rows.get(other, {}):
            ratio = rows[other][work] / rows[OURS][work]
            lines.append(f"| {found['arch']} {what} | {ratio:.1f}× | {least}× | {aim}× | {_reached(ratio, least, aim)} |")
    ours = rows.get(OURS, {})
    if found["arch"] == "r3d18" and "step" in ours:
        share, memory = found["step_macs"] * 2 / ours["step"] / found["product"], ours.get("memory", 0) / 2**30
        lines.append(f"| r3d18 share of the product in a step | {share:.0%} | 26% | 40% | {_reached(share, 0.26, 0.40)} |")
        lines.append(f"| r3d18 GiB of a step | {memory:.1f} | 3.3 | 2.5 | {_reached(-memory, -3.3, -2.5)} |")
    return lines


def _reached(value: float, least: float, aim: float) -> str:
    return "aim" if value >= aim else "reached" if value >= least else "MISSED"


def train_lines(found: dict[str, Any], step: dict[str, Any] | None) -> list[str]:
    """What the command line reached, and what the paper's whole training would take: computed, not run."""
    lines = []
    if "slices_per_core" in found:
        lines.append(f"- synthetic slices: {found['slices_per_core']:.1f} a second and core, on {found['cores']} cores, imports included")
    if "prepare" in found:
        lines.append(f"- `prepare`: {found['slices']:,} slices in {found['prepare']:.0f} s")
    epochs = [epoch for epoch in found.get("epochs", []) if "at" in epoch]
    if len(epochs) < 2 or "train" not in found:
        return [*lines, "- `train` gave no epochs to read"]
    trained, validated = (float(np.median([epoch[name] for epoch in epochs[1:]])) for name in ("trained", "validated"))
    each = float(np.median(np.diff([epoch["at"] for epoch in epochs])))
    beside, train, valid = max(0.0, each - trained - validated), found["train"], max(found["valid"], 1)
    rates = ", ".join(f"{rate:,}" for rate in found.get("read", [])) or "not"
    lines += [
        f"- read into memory: {rates} volumes/s (training part, validation part)",
        f"- `train` {found['arch']} on {train:,} volumes, {valid:,} to validate; from the second epoch on {trained:.2f} s to train "
        f"({train / trained:,.0f} volumes/s), {validated:.2f} s to validate, {beside:.2f} s for checkpoint and curves",
    ]
    if step:
        whole = VOLUMES * trained / train + VALIDATED * validated / valid + beside
        shares = [train * step["step"] / trained, (train * step["step"] + valid * step["forward"]) / (trained + validated)]
        shares.append((VOLUMES * step["step"] + VALIDATED * step["forward"]) / whole)
        lines += [
            f"- against its own step and forward pass: training {shares[0]:.0%}, with validation {shares[1]:.0%}",
            f"- extrapolated, not run: {EPOCHS} epochs of {VOLUMES:,} volumes, {VALIDATED:,} to validate: {EPOCHS * whole / 60:.1f} min, "
            f"{shares[2]:.0%} of its own step (at least 92 %, aim 97 %; less than 5 min, aim 3 min)",
        ]
    return [*lines, *(f"- said: {text}" for text in found.get("said", []))]


def table(chosen: argparse.Namespace) -> None:
    networks_found = [read(path) for path in sorted(chosen.out.glob("networks-*.json"))]
    lines = [machine(torch.device(chosen.device)), ""]
    status = chosen.out / "status.txt"
    lines += [*(f"- {line}" for line in status.read_text().splitlines()), ""] if status.is_file() else []
    tests = chosen.out / "tests.log"
    lines += (
        [f"tests: {tests.read_text().strip().splitlines()[-1].strip('= ')}", ""] if tests.is_file() and tests.read_text().strip() else []
    )
    if networks_found:
        first = networks_found[0]
        lines.append(
            f"Batch {first['shape'][0]}, {first['shape'][1]}×{first['shape'][2]}×{first['shape'][2]}, ms per volume, matrix product "
            f"{first['product'] / 1e12:.0f} TFLOP/s in bfloat16. Issue: ms of Python a step."
        )
        lines += ["", "| network | variant | forward | ratio | step | ratio | GiB | issue | share of product |"]
        lines += ["| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"]
        lines += [line for found in networks_found for line in network_lines(found)]
        wanted = [line for found in networks_found for line in wanted_lines(found)]
        lines += ["", "| wanted | found | at least | aim | |", "| --- | ---: | ---: | ---: | --- |", *wanted, ""]
    for path in sorted(chosen.out.glob("train-*.json")):
        found = read(path)
        own = next((one["variants"].get(OURS) for one in networks_found if one["arch"] == found["arch"]), None)
        lines += train_lines(found, own if own and "step" in own else None)
    for path in sorted(chosen.out.glob("profile-*.md")):
        lines += ["", path.read_text().rstrip()]
    text = "\n".join(lines) + "\n"
    (chosen.out / "table.md").write_text(text)
    print(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("networks", "profile", "train", "table"))
    parser.add_argument("--arch", default="r3d18")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="a size that a CPU can do")
    parser.add_argument("--keep", action="store_true", help="keep the data and the run of the part train")
    parser.add_argument("--all", action="store_true", help="more rows of the profile")
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    {"networks": networks, "profile": profile, "train": train, "table": table}[chosen.part](chosen)


if __name__ == "__main__":
    main()
