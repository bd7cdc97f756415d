"""ctcovid explain: scans on disk to saliency maps, overlays, and a page to look through each scan."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ctcovid.base import cpus
from ctcovid.base.choices import OCCLUSION, SMOOTH
from ctcovid.base.console import Console
from ctcovid.base.errors import InputError, UsageError, counted, did_you_mean, listing
from ctcovid.base.files import RUN_CARD, atomic, claim_folder, fresh_folder, write_json
from ctcovid.base.runcard import RunCard
from ctcovid.evaluation.aggregation import scan_probabilities
from ctcovid.explanation.activations import find_layer
from ctcovid.explanation.cells import Cells
from ctcovid.explanation.faithfulness import CAUTION, Faithfulness, faithfulness, with_random_weights
from ctcovid.explanation.methods import TITLES, map_cells, saliency_maps
from ctcovid.explanation.pointing import Pointing, pointing
from ctcovid.explanation.upsample import telling_slices, to_scan, to_slices
from ctcovid.inference.checked_scan import read_checked
from ctcovid.inference.flags import flags_of, sentence
from ctcovid.inference.temperature import calibrated
from ctcovid.models import registry
from ctcovid.models.device import device_name, keep_freed_layers
from ctcovid.models.network import Network
from ctcovid.models.reference import probabilities_and_features
from ctcovid.models.registry import TrainedModel
from ctcovid.options.explain import Options
from ctcovid.reports.nifti import save_nifti
from ctcovid.reports.overlays import montage, save_overlay
from ctcovid.reports.tables import Table
from ctcovid.reports.viewer import MAP_SIDE, Viewed, save_viewer
from ctcovid.scans.discover import find_scans
from ctcovid.scans.findings import warn_of
from ctcovid.scans.geometry import as_stored
from ctcovid.scans.masks import read_mask
from ctcovid.scans.scan import Scan

MONTAGE_SLICES = 4


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
    options.require_sense()
    with console.busy("Looking for scans"):
        scans = find_scans(options.scans, options.series)
    folders = _folders(scans, options.output)
    for folder in folders:
        claim_folder(folder, options.overwrite, "explain")
    model = registry.load(options.model, options.device, options.precision, options.runs)
    keep_freed_layers(model.network.device)
    layer = options.layer or model.network.architecture.last_layer
    find_layer(model.network.module, layer)
    if options.mask is not None and len(scans) > 1:
        raise UsageError(f"--mask is of one scan, and {len(scans)} are to be explained. Name the scan that it belongs to.")
    if options.target is not None and options.target not in model.classes:
        near = did_you_mean(options.target, model.classes)
        raise UsageError(f"--target {options.target}: {model.name} knows {', '.join(model.classes)}.{near}")
    where = "" if options.method == OCCLUSION else f", layer {layer}"
    console.say(f"Model {model.name} ({model.folder}), {TITLES[options.method]}{where}, {device_name(model.network.device)}.")
    warn_of(scans, console)
    explained, failed = [], []
    for scan, folder in zip(scans, folders, strict=True):
        try:
            explained.append(_explain(scan, model, layer, folder, options, console))
        except InputError as error:
            failed.append(str(error))
    if failed:
        console.warn(f"{len(failed):,} of {counted(len(scans), 'scan')} could not be explained:\n{listing(failed)}")
    if not explained:
        raise InputError("No scan could be explained; the reasons are above.")
    summary = Summary(model.name, explained, failed)
    console.result(summary.table(), summary.document())
    if options.faithfulness or options.mask:
        console.say(_figures_table(explained).text())
    if options.method != OCCLUSION:
        _say_resolution(explained, model, console)
    console.notice()
    return summary


def folder_name(scan: str) -> str:
    """A scan's name as the name of a single folder."""
    return re.sub(r"[^\w.-]+", "-", scan).strip("-.") or "scan"


def _folders(scans: list[Scan], output: Path) -> list[Path]:
    """A folder for each scan's result; a number tells apart names that differ only in what a folder name cannot hold."""
    folders: list[Path] = []
    for scan in scans:
        name, number = folder_name(scan.id), 1
        while output / name in folders:
            number += 1
            name = f"{folder_name(scan.id)}-{number}"
        folders.append(output / name)
    return folders


def _explain(scan: Scan, model: TrainedModel, layer: str, folder: Path, options: Options, console: Console) -> dict[str, Any]:
    """Explain one scan into `folder`; its manifest."""
    with fresh_folder(folder) as building:
        card = RunCard(building / RUN_CARD, "explain", asdict(options), options.sources)
        card.content["device"] = device_name(model.network.device)
        with card.recording():
            card.input(model.folder / "model.safetensors", f"sha256:{model.card['weights_sha256']}")
            digest = scan.sha256()
            card.input(scan.folder, digest and f"sha256:{digest}")
            if options.mask is not None:
                card.input(options.mask)
            manifest = _fill(building, scan, model, layer, folder, options, console)
            card.output(folder)
    return manifest


def _fill(building: Path, scan: Scan, model: TrainedModel, layer: str, folder: Path, options: Options, console: Console) -> dict[str, Any]:
    with ThreadPoolExecutor(options.workers or cpus.allowed()) as pool:
        checked = read_checked(scan, model.size, model.window, pool, model.depth)
    volumes = checked.volumes(model.depth)
    lesions = None
    if options.mask is not None:
        lesions = read_mask(options.mask, len(scan.slices), model.size, scan.stack)[list(checked.kept)]
    raw, features = probabilities_and_features(model.network, volumes)
    each = calibrated(raw, model.temperature)
    probabilities = scan_probabilities(each)
    predicted = int(probabilities.argmax())
    target = predicted if options.target is None else model.classes.index(options.target)
    native = _maps(model.network, volumes, layer, options, f"Explaining {scan.id}", console)
    slices = volumes.reshape(-1, model.size, model.size)
    cells = map_cells(model.network, options.method, volumes.shape[1:], native.shape[2:])
    saliency = to_slices(native[:, target], cells).reshape(slices.shape)
    lowest, highest = float(saliency.min()), float(saliency.max())
    found = flags_of(scan, checked, model, features)
    notes = [sentence(finding) for finding in found]
    if not highest > lowest:
        # Figures of an empty map would be the best that there are.
        notes.append(f"The map of {model.classes[target]} is the same everywhere: nothing that was looked at speaks for that class.")
        console.warn(f"Scan {scan.id}: {notes[-1]}")
    pointed = pointing(saliency, lesions[: len(slices)]) if lesions is not None and highest > lowest else None
    saliency = unit_range(saliency)
    faithful = None
    if options.faithfulness and highest > lowest:
        faithful = _check(volumes, native[:, target], cells, model, layer, target, options, console)
    smooth = options.method == SMOOTH
    mapped = list(checked.names[: len(slices)])

    manifest = {
        "scan": scan.id,
        "source": str(scan.folder.resolve()),
        "folder": str(folder),
        "model": model.name,
        "method": TITLES[options.method],
        "layer": None if options.method == OCCLUSION else layer,
        "class": model.classes[target],
        "predicted": model.classes[predicted],
        "probabilities": dict(zip(model.classes, probabilities.tolist(), strict=True)),
        "volume_probabilities": each.tolist(),
        "flags": [finding.code for finding in found],
        "notes": notes,
        "samples": options.samples if smooth else None,
        "noise_std": options.noise_std if smooth else None,
        "seed": options.seed,
        "volumes": len(volumes),
        "depth": model.depth,
        "size": model.size,
        "native_shape": list(native.shape[2:]),
        "native_cells": {"first": list(cells.first), "step": list(cells.step)},
        "minimum": lowest,
        "maximum": highest,
        "faithfulness": faithful.document() if faithful else None,
        "pointing": asdict(pointed) if pointed else None,
        "slices": mapped,
        "slices_without_map": [name for name in scan.names if name not in mapped],
        "files": {"viewer": "viewer.html", "montage": "montage.png", "maps": "saliency.npz", "overlays": "overlays/"},
    }
    _draw(building, slices, saliency, manifest)
    with atomic(building / "saliency.npz") as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, native=native, saliency=saliency.astype(np.float16), classes=np.array(model.classes))
    stack, geometry = scan.stack, scan.geometry
    if stack is not None and geometry is not None:
        own = to_scan(native[:, target], cells, *stack.slice_size)
        whole = np.zeros((len(scan.slices), *stack.slice_size), np.float32)
        whole[list(checked.kept[: len(own)])] = own
        # Of a file with all slices, voxel by voxel; DICOM has no order of its own, and gets that of the scan, head to feet.
        in_one = stack.reader == "volume" and not stack.frames
        save_nifti(building / "saliency.nii.gz", *(as_stored(whole, stack.turn, geometry) if in_one else (whole, geometry.affine)))
        manifest["files"]["nifti"] = "saliency.nii.gz"
    small = np.stack([_unit_slices(native[:, number], cells, min(MAP_SIDE, model.size)) for number in range(len(model.classes))], 1)
    figures = _figures(faithful, pointed)
    shape = "×".join(map(str, native.shape[2:]))
    where = "" if options.method == OCCLUSION else f", layer {layer}"
    how = f"{manifest['method']}{where}: {shape} places for each {model.depth} slices, drawn smoothly"
    viewed = Viewed(scan.id, how, slices, small, manifest["slices"], model.classes, target, model.depth, each, probabilities, _card(model))
    save_viewer(building / "viewer.html", replace(viewed, flags=notes, measured=figures, caution=CAUTION, sided=geometry is not None))
    write_json(building / "manifest.json", manifest)
    return manifest


def _maps(network: Network, volumes: np.ndarray, layer: str, options: Options, what: str, console: Console) -> np.ndarray:
    """Maps of every class, float32 (N, K, d, h, w)."""
    every = range(len(network.classes))
    with console.progress(len(volumes), what) as advance:
        return saliency_maps(network, volumes, options.method, layer, every, options.samples, options.noise_std, options.seed, advance)


def _check(
    volumes: np.ndarray, native: np.ndarray, cells: Cells, model: TrainedModel, layer: str, target: int, options: Options, console: Console
) -> Faithfulness:
    """Hold the maps against the model, and against those of the same network with random weights."""
    untrained = with_random_weights(model.network, options.seed)
    randomised = _maps(untrained, volumes, layer, options, "Maps of random weights", console)[:, target]
    with console.progress(len(volumes), "Checking the maps") as advance:
        return faithfulness(model.network, volumes, native, cells, randomised, target, model.temperature, options.seed, advance)


def unit_range(saliency: np.ndarray) -> np.ndarray:
    """Saliency from 0, the scan's least, to 1, its most; 0 where it is the same everywhere."""
    lowest, highest = saliency.min(), saliency.max()
    found: np.ndarray = (saliency - lowest) / (highest - lowest) if highest > lowest else np.zeros_like(saliency)
    return found


def _unit_slices(native: np.ndarray, cells: Cells, side: int) -> np.ndarray:
    return unit_range(to_slices(native, cells, side).reshape(-1, side, side))


def _card(model: TrainedModel) -> dict[str, str]:
    """What the page says of the model; patients of its split are nobody's business there."""
    kept = model.card.get("kept") or {}
    shown = {
        "name": model.name,
        "architecture": model.card["architecture"],
        "classes": ", ".join(model.classes),
        "volumes": f"{model.depth}×{model.size}×{model.size}",
        "trained": model.card["created"],
        "best epoch": kept.get("epoch"),
        "validation accuracy": kept.get("valid_accuracy"),
        "probabilities": "as the softmax gives them" if model.temperature == 1 else f"calibrated, temperature {model.temperature:.3g}",
        "data": str(model.card["data"].get("fingerprint", ""))[:20],
        "weights": f"sha256:{model.card['weights_sha256'][:12]}",
    }
    return {name: f"{value:.4f}" if isinstance(value, float) else str(value) for name, value in shown.items() if value not in (None, "")}


def _figures(faithful: Faithfulness | None, pointed: Pointing | None) -> dict[str, str]:
    """The figures about the maps in words, for the page."""
    figures: dict[str, str] = {}
    if faithful:
        found = faithful.document()
        figures = {
            "deletion, area (low is good)": f"{found['deletion_area']:.3f}; random order {found['deletion_random_area']:.3f}",
            "insertion, area (high is good)": f"{found['insertion_area']:.3f}; random order {found['insertion_random_area']:.3f}",
            "average drop (low is good)": f"{faithful.average_drop:.1%}",
            "increase (high is good)": f"{faithful.increase:.1%} of the volumes",
            "rank correlation with random weights (near 0 is good)": f"{faithful.randomised_correlation:.2f}",
        }
    if pointed:
        figures |= {
            "most salient place in a lesion": f"{pointed.hits:.1%} of {pointed.slices} slices; chance {pointed.chance:.1%}",
            "saliency inside lesions": f"{pointed.energy:.1%}; chance {pointed.chance:.1%}",
        }
    return figures


def _figures_table(explained: list[dict[str, Any]]) -> Table:
    """What --faithfulness and --mask measured; the manifests have it whole."""
    names: dict[str, tuple[str, ...]] = {}
    names["faithfulness"] = ("deletion_area", "deletion_random_area", "insertion_area", "insertion_random_area", "randomised_correlation")
    names["pointing"] = ("hits", "energy", "chance")
    used = [(part, name) for part, some in names.items() for name in some if any(made[part] for made in explained)]
    rows = [[made["scan"], *(made[part][name] if made[part] else "-" for part, name in used)] for made in explained]
    return Table(("scan", *(name.replace("_", " ") for _, name in used)), rows)


def _draw(folder: Path, slices: np.ndarray, saliency: np.ndarray, manifest: dict[str, Any]) -> None:
    (folder / "overlays").mkdir()
    names = manifest["slices"]
    for number, name in enumerate(names):
        save_overlay(folder / "overlays" / f"{Path(name).stem}.png", slices[number], saliency[number])
    chosen = telling_slices(saliency, MONTAGE_SLICES)
    share = manifest["probabilities"][manifest["class"]]
    where = f", layer {manifest['layer']}" if manifest["layer"] else ""
    title = f"{manifest['scan']}: {manifest['method']} for {manifest['class']} (p = {share:.4f}){where}"
    montage(folder / "montage.png", slices[chosen], saliency[chosen], [names[number] for number in chosen], title)


def _say_resolution(explained: list[dict[str, Any]], model: TrainedModel, console: Console) -> None:
    depth = explained[0]["native_shape"][0]
    if depth < model.depth:
        console.say(
            f"At layer {explained[0]['layer']} the {model.depth} slices of a volume share {depth} "
            f"map{'' if depth == 1 else 's'} of {'×'.join(map(str, explained[0]['native_shape'][1:]))}; an earlier --layer resolves more."
        )
