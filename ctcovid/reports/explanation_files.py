"""The files that explain writes for one scan: overlays, montage, maps, viewer and manifest."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ctcovid.base.choices import SMOOTH
from ctcovid.base.files import atomic, resolved, write_json
from ctcovid.base.names import distinct
from ctcovid.explanation.faithfulness import CAUTION, Faithfulness
from ctcovid.explanation.methods import Method
from ctcovid.explanation.pointing import Pointing
from ctcovid.explanation.scan_maps import ScanMaps, unit_range
from ctcovid.explanation.upsample import most_salient_slices
from ctcovid.inference.checked_scan import CheckedScan
from ctcovid.models.registry import TrainedModel
from ctcovid.reports.nifti import save_nifti
from ctcovid.reports.overlays import montage, save_overlay
from ctcovid.reports.viewer import MAP_SIDE, Viewed, save_viewer
from ctcovid.scans.decode import ending
from ctcovid.scans.geometry import as_stored
from ctcovid.scans.nifti import NIFTI_ENDINGS, placement
from ctcovid.scans.scan import Scan

MONTAGE_SLICES = 4


@dataclass(frozen=True)
class Explanation:
    """What a model predicts of a scan, and the maps that explain it.

    Attributes
    ----------
    volume_probabilities, probabilities : calibrated, float64 (N, K) of the volumes and (K,) of the scan
    flags, notes : codes of the reasons to doubt the prediction, and sentences
    faithful, pointed : measures of the maps; None if they were not asked for, or the map is flat
    """

    scan: Scan
    checked: CheckedScan
    model: TrainedModel
    method: Method
    maps: ScanMaps
    volume_probabilities: np.ndarray
    probabilities: np.ndarray
    flags: list[str]
    notes: list[str]
    faithful: Faithfulness | None = None
    pointed: Pointing | None = None

    @property
    def slices(self) -> np.ndarray:
        """The slices that have a map, uint8 (S, H, W)."""
        return self.checked.slices[: len(self.maps.saliency)]

    @property
    def names(self) -> list[str]:
        """Names of the slices that have a map."""
        return list(self.checked.names[: len(self.maps.saliency)])


def write_explanation(building: Path, folder: Path, found: Explanation) -> dict[str, Any]:
    """Write all files into `building`, which becomes `folder`; the content of the manifest."""
    maps, saliency = found.maps, unit_range(found.maps.saliency)
    manifest = _manifest(found, folder)
    _draw(building, found, saliency)
    with atomic(building / "saliency.npz") as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, native=maps.native, saliency=saliency.astype(np.float16), classes=np.array(found.model.classes))
    if found.scan.stack is not None and found.scan.geometry is not None:
        _save_volume(building / "saliency.nii.gz", found)
        manifest["files"]["nifti"] = "saliency.nii.gz"
    save_viewer(building / "viewer.html", _viewed(found))
    write_json(building / "manifest.json", manifest)
    return manifest


def _manifest(found: Explanation, folder: Path) -> dict[str, Any]:
    model, method, maps, names = found.model, found.method, found.maps, found.names
    smooth = method.name == SMOOTH
    return {
        "scan": found.scan.id,
        "source": str(resolved(found.scan.folder)),
        "folder": str(folder),
        "model": model.name,
        "method": method.title,
        "layer": method.layer if method.uses_layer else None,
        "class": model.classes[maps.target],
        "predicted": model.classes[int(found.probabilities.argmax())],
        "probabilities": dict(zip(model.classes, found.probabilities.tolist(), strict=True)),
        "volume_probabilities": found.volume_probabilities.tolist(),
        "flags": found.flags,
        "notes": found.notes,
        "samples": method.samples if smooth else None,
        "noise_std": method.noise_std if smooth else None,
        "seed": method.seed,
        "volumes": len(maps.native),
        "depth": model.depth,
        "size": model.size,
        "native_shape": list(maps.native.shape[2:]),
        "native_cells": {"first": list(maps.cells.first), "step": list(maps.cells.step)},
        "minimum": float(maps.saliency.min()),
        "maximum": float(maps.saliency.max()),
        "faithfulness": found.faithful.document() if found.faithful else None,
        "pointing": asdict(found.pointed) if found.pointed else None,
        "slices": names,
        "slices_without_map": [name for name in found.scan.names if name not in names],
        "files": {"viewer": "viewer.html", "montage": "montage.png", "maps": "saliency.npz", "overlays": "overlays/"},
    }


def _draw(folder: Path, found: Explanation, saliency: np.ndarray) -> None:
    """Overlays of all slices, and a montage of the most salient ones."""
    (folder / "overlays").mkdir()
    slices, names, target = found.slices, found.names, found.maps.target
    for number, name in enumerate(distinct([Path(name).stem for name in names], names)):
        save_overlay(folder / "overlays" / f"{name}.png", slices[number], saliency[number])
    chosen = most_salient_slices(saliency, MONTAGE_SLICES)
    layer = f", layer {found.method.layer}" if found.method.uses_layer else ""
    explained = f"{found.model.classes[target]} (p = {found.probabilities[target]:.4f}){layer}"
    title = f"{found.scan.id}: {found.method.title} for {explained}"
    montage(folder / "montage.png", slices[chosen], saliency[chosen], [names[number] for number in chosen], title)


def _save_volume(path: Path, found: Explanation) -> None:
    """Saliency as NIfTI: 0 on slices without a map."""
    stack, geometry = found.scan.stack, found.scan.geometry
    assert stack is not None and geometry is not None
    mapped = found.maps.on_scan(*stack.slice_size)
    whole = np.zeros((len(found.scan.slices), *stack.slice_size), np.float32)
    whole[list(found.checked.kept[: len(mapped)])] = mapped
    # A file that holds all slices gives its own voxel order. DICOM has none, and gets that of the scan, head to feet.
    in_one = stack.reader == "volume"
    values, affine = as_stored(whole, stack.turn, geometry) if in_one else (whole, geometry.affine)
    own = placement(found.scan.slices[0]) if in_one and ending(found.scan.slices[0].name) in NIFTI_ENDINGS else None
    save_nifti(path, values, affine, own)


def _viewed(found: Explanation) -> Viewed:
    model, maps = found.model, found.maps
    shape = "×".join(map(str, maps.native.shape[2:]))
    return Viewed(
        found.scan.id,
        f"{found.method.described}: {shape} cells for each {model.depth} slices, interpolated",
        found.slices,
        maps.unit_slices(min(MAP_SIDE, model.size)),
        found.names,
        model.classes,
        maps.target,
        model.depth,
        found.volume_probabilities,
        found.probabilities,
        _model_card(model),
        flags=found.notes,
        measured=_measures(found.faithful, found.pointed),
        caution=CAUTION,
        sided=found.scan.geometry is not None,
    )


def _model_card(model: TrainedModel) -> dict[str, str]:
    """What the page says of the model; it does not list the patients of the model's splits."""
    kept = model.card.get("kept") or {}
    shown = {
        "name": model.name,
        "architecture": model.card["architecture"],
        "classes": ", ".join(model.classes),
        "volumes": f"{model.depth}×{model.size}×{model.size}",
        "trained": model.card["created"],
        "best epoch": kept.get("epoch"),
        "validation accuracy": kept.get("valid_accuracy"),
        "probabilities": "not calibrated" if model.temperature == 1 else f"calibrated, temperature {model.temperature:.3g}",
        "data": str(model.card["data"].get("fingerprint", ""))[:20],
        "weights": f"sha256:{model.card['weights_sha256'][:12]}",
    }
    return {name: f"{value:.4f}" if isinstance(value, float) else str(value) for name, value in shown.items() if value not in (None, "")}


def _measures(faithful: Faithfulness | None, pointed: Pointing | None) -> dict[str, str]:
    """The measures of the maps in words, for the page."""
    measures: dict[str, str] = {}
    if faithful:
        found = faithful.document()
        measures = {
            "deletion, area (low is good)": f"{found['deletion_area']:.3f}; random order {found['deletion_random_area']:.3f}",
            "insertion, area (high is good)": f"{found['insertion_area']:.3f}; random order {found['insertion_random_area']:.3f}",
            "average drop (low is good)": f"{faithful.average_drop:.1%}",
            "increase (high is good)": f"{faithful.increase:.1%} of the volumes",
            "rank correlation with random weights (near 0 is good)": f"{faithful.randomised_correlation:.2f}",
        }
    if pointed:
        measures |= {
            "most salient pixel in a lesion": f"{pointed.hits:.1%} of {pointed.slices} slices; chance level {pointed.chance:.1%}",
            "saliency inside lesions": f"{pointed.energy:.1%}; chance level {pointed.chance:.1%}",
        }
    return measures
