"""ctcovid explain: scans on disk to Smooth Grad-CAM++ overlays."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ctcovid.base import cpus
from ctcovid.base.console import Console
from ctcovid.base.errors import InputError, UsageError, did_you_mean, listing
from ctcovid.base.files import RUN_CARD, atomic, claim_folder, fresh_folder, write_json
from ctcovid.base.runcard import RunCard
from ctcovid.evaluation.aggregation import scan_probabilities
from ctcovid.explanation.activations import find_layer
from ctcovid.explanation.smooth_gradcampp import METHOD, saliency_maps
from ctcovid.explanation.upsample import to_slices
from ctcovid.models import registry
from ctcovid.models.device import device_name
from ctcovid.models.registry import TrainedModel
from ctcovid.reports.overlays import montage, save_overlay
from ctcovid.reports.tables import Table
from ctcovid.scans.discover import find_scans
from ctcovid.scans.findings import warn_of
from ctcovid.scans.read import read_volumes
from ctcovid.scans.scan import Scan

MONTAGE_SLICES = 4


@dataclass(frozen=True)
class Options:
    """What `ctcovid explain` was asked for; `sources` says where each value came from."""

    scans: tuple[Path, ...]
    model: str | None = None
    series: str | None = None
    layer: str | None = None
    target: str | None = None
    samples: int = 10
    noise: float = 0.1
    output: Path = Path("explanations")
    runs: Path = registry.RUNS
    device: str = "auto"
    precision: str = "auto"
    seed: int = 0
    workers: int = 0
    overwrite: bool = False
    sources: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Summary:
    """Manifests of the scans that were explained, and a sentence for each that could not be."""

    model: str
    explained: list[dict[str, Any]]
    failed: list[str]

    def document(self) -> dict[str, Any]:
        return {"model": self.model, "explanations": self.explained, "failed": self.failed}

    def table(self) -> Table:
        rows = [
            [made["scan"], made["predicted"], made["class"], made["folder"], made["volumes"], "×".join(map(str, made["native_shape"]))]
            for made in self.explained
        ]
        return Table(("scan", "predicted", "explained class", "folder", "volumes", "native map"), rows, text_columns=4)


def run(options: Options, console: Console) -> Summary:
    """Find the scans, explain each into a folder of its own, and go on past those that cannot be read."""
    scans = find_scans(options.scans, options.series)
    folders = _folders(scans, options.output)
    for folder in folders.values():
        claim_folder(folder, options.overwrite, "explain")
    model = registry.load(options.model, options.device, options.precision, options.runs)
    layer = options.layer or model.network.architecture.last_layer
    find_layer(model.network.module, layer)
    if options.target is not None and options.target not in model.classes:
        near = did_you_mean(options.target, model.classes)
        raise UsageError(f"--target {options.target}: {model.name} knows {', '.join(model.classes)}.{near}")
    console.say(f"Model {model.name} ({model.folder}), layer {layer}, {device_name(model.network.device)}.")
    warn_of(scans, console)
    explained, failed = [], []
    for scan in scans:
        try:
            explained.append(_explain(scan, model, layer, folders[scan.id], options, console))
        except InputError as error:
            failed.append(str(error))
    if failed:
        console.warn(f"{len(failed):,} of {len(scans):,} scans could not be explained:\n{listing(failed)}")
    if not explained:
        raise InputError("No scan could be explained; the reasons are above.")
    summary = Summary(model.name, explained, failed)
    console.result(summary.table(), summary.document())
    _say_resolution(explained, model, console)
    console.notice()
    return summary


def folder_name(scan: str) -> str:
    """A scan's name as the name of a single folder."""
    return re.sub(r"[^\w.-]+", "-", scan).strip("-.") or "scan"


def _folders(scans: list[Scan], output: Path) -> dict[str, Path]:
    """A folder for each scan's result; a number tells apart names that differ only in what a folder name cannot hold."""
    folders: dict[str, Path] = {}
    for scan in scans:
        name, number = folder_name(scan.id), 1
        while output / name in folders.values():
            number += 1
            name = f"{folder_name(scan.id)}-{number}"
        folders[scan.id] = output / name
    return folders


def _explain(scan: Scan, model: TrainedModel, layer: str, folder: Path, options: Options, console: Console) -> dict[str, Any]:
    """Explain one scan into `folder`; its manifest."""
    with fresh_folder(folder) as building:
        card = RunCard(building / RUN_CARD, "explain", asdict(options), options.sources)
        card.content["device"] = device_name(model.network.device)
        with card.recording():
            card.input(model.folder / "model.safetensors", f"sha256:{model.card['weights_sha256']}")
            card.input(scan.folder)
            manifest = _fill(building, scan, model, layer, folder, options, console)
            card.output(folder)
    return manifest


def _fill(building: Path, scan: Scan, model: TrainedModel, layer: str, folder: Path, options: Options, console: Console) -> dict[str, Any]:
    volumes = read_volumes(scan, model.depth, model.size, options.workers or cpus.allowed(), model.window)
    probabilities = scan_probabilities(model.network.probabilities(volumes))
    predicted = int(probabilities.argmax())
    target = predicted if options.target is None else model.classes.index(options.target)
    with console.progress(len(volumes), f"Explaining {scan.id}") as advance:
        native = saliency_maps(model.network, volumes, layer, target, options.samples, options.noise, options.seed, advance)
    slices = volumes.reshape(-1, model.size, model.size)
    saliency = to_slices(native, model.depth, model.size).reshape(slices.shape)
    lowest, highest = float(saliency.min()), float(saliency.max())
    saliency = (saliency - lowest) / (highest - lowest) if highest > lowest else np.zeros_like(saliency)

    manifest = {
        "scan": scan.id,
        "source": str(scan.folder.resolve()),
        "folder": str(folder),
        "model": model.name,
        "method": METHOD,
        "layer": layer,
        "class": model.classes[target],
        "predicted": model.classes[predicted],
        "probabilities": dict(zip(model.classes, probabilities.tolist(), strict=True)),
        "samples": options.samples,
        "noise": options.noise,
        "seed": options.seed,
        "volumes": len(volumes),
        "depth": model.depth,
        "size": model.size,
        "native_shape": list(native.shape[1:]),
        "minimum": lowest,
        "maximum": highest,
        "slices": list(scan.names[: len(slices)]),
        "slices_without_map": list(scan.names[len(slices) :]),
        "files": {"montage": "montage.png", "maps": "saliency.npz", "overlays": "overlays/"},
    }
    _draw(building, scan, slices, saliency, manifest)
    with atomic(building / "saliency.npz") as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, native=native, saliency=saliency.astype(np.float16))
    write_json(building / "manifest.json", manifest)
    return manifest


def _draw(folder: Path, scan: Scan, slices: np.ndarray, saliency: np.ndarray, manifest: dict[str, Any]) -> None:
    (folder / "overlays").mkdir()
    for number, name in enumerate(scan.names[: len(slices)]):
        save_overlay(folder / "overlays" / f"{Path(name).stem}.png", slices[number], saliency[number])
    chosen = telling_slices(saliency, MONTAGE_SLICES)
    share = manifest["probabilities"][manifest["class"]]
    title = f"{scan.id}: {METHOD} for {manifest['class']} (p = {share:.4f}), layer {manifest['layer']}"
    montage(folder / "montage.png", slices[chosen], saliency[chosen], [scan.names[number] for number in chosen], title)


def telling_slices(saliency: np.ndarray, count: int) -> list[int]:
    """The most salient slice of each of `count` equal stretches of the scan, saliency (S, H, W); indices in order."""
    strength = saliency.mean((1, 2))
    stretches = np.array_split(np.arange(len(saliency)), min(count, len(saliency)))
    return [int(stretch[strength[stretch].argmax()]) for stretch in stretches]


def _say_resolution(explained: list[dict[str, Any]], model: TrainedModel, console: Console) -> None:
    depth = explained[0]["native_shape"][0]
    if depth < model.depth:
        console.say(
            f"At layer {explained[0]['layer']} the {model.depth} slices of a volume share {depth} "
            f"map{'' if depth == 1 else 's'} of {'×'.join(map(str, explained[0]['native_shape'][1:]))}; an earlier --layer resolves more."
        )
