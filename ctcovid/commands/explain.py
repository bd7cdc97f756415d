"""ctcovid explain: scans on disk to saliency maps, overlays, and a page to look through each scan."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ctcovid.base import cpus
from ctcovid.base.console import Console
from ctcovid.base.errors import (
    InputError,
    OutputBusyError,
    OutputExistsError,
    StoppedError,
    UsageError,
    agreeing,
    counted,
    did_you_mean,
    listing,
)
from ctcovid.base.faults import MachineFaultError, machine_fault, raise_machine_fault
from ctcovid.base.files import RUN_CARD, claim_folder, fresh_folder, resolved
from ctcovid.base.locks import LockedInTurn
from ctcovid.base.names import shortened
from ctcovid.base.runcard import RunCard
from ctcovid.evaluation.levels import scan_probabilities
from ctcovid.explanation.activations import find_layer
from ctcovid.explanation.faithfulness import Faithfulness, faithfulness, with_random_weights
from ctcovid.explanation.methods import Method, map_cells, saliency_maps
from ctcovid.explanation.pointing import pointing
from ctcovid.explanation.scan_maps import ScanMaps
from ctcovid.inference.checked_scan import CheckedScan, read_checked
from ctcovid.inference.flags import flags_of, sentence
from ctcovid.inference.temperature import calibrated
from ctcovid.models import registry
from ctcovid.models.device import announced, device_name, settle
from ctcovid.models.network import Network
from ctcovid.models.reference_features import probabilities_and_features
from ctcovid.models.registry import TrainedModel
from ctcovid.options.explain import Options
from ctcovid.reports.explanation_files import MANIFEST, Explanation, write_explanation
from ctcovid.reports.tables import Table
from ctcovid.scans.absent import MACHINE_FAULT
from ctcovid.scans.discover import find_scans, with_patients
from ctcovid.scans.findings import warn_of
from ctcovid.scans.masks import read_mask
from ctcovid.scans.scan import Scan

# What --faithfulness and --mask measure, in the order of the table's columns.
MEASURES = [("faithfulness", f"{name}_area") for name in ("deletion", "deletion_random", "insertion", "insertion_random")]
MEASURES += [("faithfulness", "randomised_correlation"), ("pointing", "hits"), ("pointing", "energy"), ("pointing", "chance")]
# Settings on which the maps depend, and the model, whose weights are in the run card.
DECIDING = ("series", "method", "layer", "target", "samples", "noise_std", "faithfulness", "mask", "precision", "seed")
# What stands for measures of a map that is the same everywhere.
FLAT = "flat map"


@dataclass(frozen=True)
class Summary:
    """Manifests of the scans that were explained, and a sentence for each scan that could not be."""

    model: str
    explained: list[dict[str, Any]]
    failed: list[str]

    def document(self) -> dict[str, Any]:
        return {"model": self.model, "explanations": self.explained, "failed": self.failed}

    def table(self) -> Table:
        rows = [
            [
                made["scan"],
                made["predicted"],
                made["class"],
                _viewer(made),
                f"{made['probabilities'][made['predicted']]:.1%}",
                made["volumes"],
                "×".join(map(str, made["native_shape"])),
            ]
            for made in self.explained
        ]
        names = ("scan", "predicted", "explained class", "viewer", "probability", "volumes", "native map")
        return Table(names, rows, text_columns=4, optional=("viewer", "native map", "volumes", "explained class"))


def run(options: Options, console: Console) -> Summary:
    """Find the scans, load the model, and write an explanation of each scan into its folder; a scan that cannot be read is skipped."""
    options.require_sense()
    with console.busy("Looking for scans"):
        scans = find_scans(options.scans, options.series)
    folders = _folders(scans, options.output)
    for folder in folders:
        claim_folder(folder, options.overwrite or options.resume, "explain")
    with LockedInTurn(folders, console.say) as locks:
        return _explain_all(scans, folders, locks, options, console)


def _explain_all(scans: list[Scan], folders: list[Path], locks: LockedInTurn, options: Options, console: Console) -> Summary:
    """The work of `run`: each scan into its folder, which is locked while it is written."""
    model = registry.load(options.model, options.device, options.precision, options.runs)
    scans = with_patients(scans, model.classes)
    settle(model.network.device)
    method = _method(options, model)
    _require_fit(options, model, scans)
    kept = _kept(scans, folders, model, options) if options.resume else {}
    console.say(f"Model {model.name} ({model.folder}), {method.described}, {announced(model.network.device)}.")
    if kept:
        console.say(f"{len(kept):,} of {counted(len(scans), 'scan')} {agreeing(len(kept), 'is', 'are')} already in {options.output}.")
    warn_of([scan for scan, folder in zip(scans, folders, strict=True) if folder not in kept], console)
    explained, failed, faults = [], [], False
    for scan, folder in zip(scans, folders, strict=True):
        if folder in kept:
            explained.append(kept[folder])
            continue
        try:
            locks.turn_to(folder)
            claim_folder(folder, options.overwrite, "explain")
            explained.append(_explain(scan, folder, model, method, options, console))
        except StoppedError as error:
            further = "Finished scans are kept; the same command with --resume continues."
            raise StoppedError(f"{str(error).split('. ')[0]}. {further}", error.exit_code) from error
        except (InputError, OutputBusyError, OutputExistsError) as error:
            failed.append(str(error))
            faults |= isinstance(error, MachineFaultError) or MACHINE_FAULT in getattr(error, "codes", ())
        except (OSError, MemoryError) as error:
            # Too long a name, as that of a slice on a file system for short ones, or a fault of the machine: the next scan may fare better.
            fault = machine_fault(error)
            faults |= fault is not None
            failed.append(f"{scan.folder}: {fault.told(folder) if fault else error}")
    if failed:
        console.warn(f"{len(failed):,} of {counted(len(scans), 'scan')} could not be explained:\n{listing(failed)}")
    if not explained:
        raise (MachineFaultError if faults else InputError)("No scan could be explained; the reasons are above.")
    summary = Summary(model.name, explained, failed)
    console.result(summary.table(), summary.document())
    if asked := {group for group, option in (("faithfulness", options.faithfulness), ("pointing", options.mask)) if option}:
        console.show(_measures_table(explained, asked))
    if method.uses_layer:
        _say_resolution(explained, model, console)
    console.say(f"Open {_viewer(explained[0])} in a browser.")
    console.notice()
    return summary


def _viewer(made: dict[str, Any]) -> str:
    """Where the viewer of a scan lies, by its manifest."""
    return str(Path(made["folder"]) / made["files"]["viewer"])


def folder_name(scan: str) -> str:
    """A scan's name as the name of a single folder; a hash shortens one that file systems do not allow."""
    return shortened(re.sub(r"[^\w.-]+", "-", scan).strip("-.") or "scan")


def _folders(scans: list[Scan], output: Path) -> list[Path]:
    """A folder for each scan; a number is added if two scans would share one."""
    folders: list[Path] = []
    for scan in scans:
        name, number = folder_name(scan.id), 1
        while output / name in folders:
            number += 1
            name = f"{folder_name(scan.id)}-{number}"
        folders.append(output / name)
    return folders


def _kept(scans: list[Scan], folders: list[Path], model: TrainedModel, options: Options) -> dict[Path, dict[str, Any]]:
    """By folder, the manifests of the scans that an earlier run of this command has explained.

    Raises OutputExistsError if a folder holds what another model or other settings made, or another scan.
    """
    kept = {}
    for scan, folder in zip(scans, folders, strict=True):
        # A folder gets its name when it is complete.
        if not folder.is_dir() or not any(folder.iterdir()):
            continue
        try:
            manifest, card = (json.loads((folder / name).read_text(encoding="utf-8")) for name in (MANIFEST, RUN_CARD))
            made = {name: card["settings"][name]["value"] for name in DECIDING}
            same = made == {name: _as_written(getattr(options, name)) for name in DECIDING}
            same &= card["inputs"][0]["hash"] == f"sha256:{model.card['weights_sha256']}"
            same &= (manifest["scan"], manifest["source"]) == (scan.id, str(resolved(scan.folder)))
        except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
            raise_machine_fault(error, folder)
            same = False
        if not same:
            text = "has maps of another scan or model, or made with other settings. Name another --output, or pass --overwrite."
            raise OutputExistsError(f"{folder} {text}")
        kept[folder] = manifest
    return kept


def _as_written(value: object) -> object:
    """A setting as it is in a run card."""
    return str(value) if isinstance(value, Path) else value


def _method(options: Options, model: TrainedModel) -> Method:
    """Raises UsageError if the network has no such layer."""
    layer = options.layer or model.network.architecture.last_layer
    find_layer(model.network.module, layer)
    return Method(options.method, layer, options.samples, options.noise_std, options.seed)


def _require_fit(options: Options, model: TrainedModel, scans: list[Scan]) -> None:
    """Raises UsageError if --mask is given for several scans, or --target is not a class of the model."""
    if options.mask is not None and len(scans) > 1:
        raise UsageError(f"--mask belongs to one scan, but {len(scans)} scans were found. Name the scan that the mask belongs to.")
    if options.target is not None and options.target not in model.classes:
        near = did_you_mean(options.target, model.classes)
        raise UsageError(f"--target {options.target}: the classes of {model.name} are {', '.join(model.classes)}.{near}")


def _explain(scan: Scan, folder: Path, model: TrainedModel, method: Method, options: Options, console: Console) -> dict[str, Any]:
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
            manifest = write_explanation(building, folder, _explanation(scan, model, method, options, console))
            card.output(folder)
    return manifest


def _explanation(scan: Scan, model: TrainedModel, method: Method, options: Options, console: Console) -> Explanation:
    """Read a scan, predict its class, map what speaks for the explained class, and check the maps."""
    with ThreadPoolExecutor(options.workers or cpus.allowed()) as pool:
        checked = read_checked(scan, model.size, model.window, pool, model.depth)
    volumes = checked.volumes(model.depth)
    lesions = None if options.mask is None else _lesions(options.mask, scan, checked, model, console)
    raw, features = probabilities_and_features(model.network, volumes)
    each = calibrated(raw, model.temperature)
    probabilities = scan_probabilities(each)
    target = int(probabilities.argmax()) if options.target is None else model.classes.index(options.target)
    native = _class_maps(model.network, volumes, method, f"Explaining {scan.id}", console)
    maps = ScanMaps(native, map_cells(model.network, method, volumes.shape[1:], native.shape[2:]), target)
    flags = flags_of(scan, checked, model, features)
    notes = [sentence(flag) for flag in flags]
    pointed, faithful = None, None
    if maps.flat:
        name = model.classes[target]
        notes.append(f"The map of {name} is empty: by this method and layer, no place in the scan raises the probability of {name}.")
        console.warn(f"Scan {scan.id}: {notes[-1]}")
    else:
        # Measures of a flat map would be the best possible ones.
        pointed = None if lesions is None else pointing(maps.saliency, lesions)
        faithful = _faithfulness(model, volumes, maps, method, console) if options.faithfulness else None
    codes = [flag.code for flag in flags]
    return Explanation(scan, checked, model, method, maps, each, probabilities, codes, notes, faithful, pointed)


def _lesions(path: Path, scan: Scan, checked: CheckedScan, model: TrainedModel, console: Console) -> np.ndarray:
    """The lesions on the slices that have a map, bool (S, size, size).

    Raises InputError if no lesion is on them: there would be nothing to measure.
    """
    mask = read_mask(path, scan, model.size, checked.own_size)
    console.say(str(mask))
    mapped = len(checked.slices) // model.depth * model.depth
    lesions = mask.of(checked.kept[:mapped])
    if not lesions.any():
        left = f"{len(scan.slices) - mapped} of its {counted(len(scan.slices), 'slice')} have no map"
        raise InputError(f"{path}: its lesions are on slices without a map ({left}). Nothing can be measured; omit --mask.")
    return lesions


def _class_maps(network: Network, volumes: np.ndarray, method: Method, task: str, console: Console) -> np.ndarray:
    """Maps of every class, float32 (N, K, d, h, w)."""
    with console.progress(len(volumes), task) as advance:
        return saliency_maps(network, volumes, method, range(len(network.classes)), advance)


def _faithfulness(model: TrainedModel, volumes: np.ndarray, maps: ScanMaps, method: Method, console: Console) -> Faithfulness:
    """Measure the maps against the model, and against those of the same network with random weights."""
    untrained = with_random_weights(model.network, method.seed)
    randomised = _class_maps(untrained, volumes, method, "Maps of random weights", console)[:, maps.target]
    with console.progress(len(volumes), "Checking the maps") as advance:
        return faithfulness(model, volumes, maps, randomised, method.seed, advance)


def _measures_table(explained: list[dict[str, Any]], asked: set[str]) -> Table:
    """What --faithfulness and --mask measured; the manifests have all of it. A map that is the same everywhere has no measures."""
    used = [(group, name) for group, name in MEASURES if group in asked]
    rows = [[made["scan"], *(made[group][name] if made[group] else FLAT for group, name in used)] for made in explained]
    return Table(("scan", *(name.replace("_", " ") for _, name in used)), rows)


def _say_resolution(explained: list[dict[str, Any]], model: TrainedModel, console: Console) -> None:
    depth, *plane = explained[0]["native_shape"]
    if depth < model.depth:
        maps = f"{counted(depth, 'map')} of {'×'.join(map(str, plane))}"
        shared = f"At layer {explained[0]['layer']} the {model.depth} slices of a volume share {maps}."
        console.say(f"{shared} An earlier --layer has a higher resolution.")
