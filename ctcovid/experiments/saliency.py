"""Fig. 7: the saliency maps of the best model for three test patients of each class."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ctcovid.base.files import RUN_CARD, resolved
from ctcovid.experiments.cells import BEST, COMPLETE
from ctcovid.experiments.study import Study
from ctcovid.models.saved_model import CARD
from ctcovid.scans.manifest import is_manifest
from ctcovid.volumes.reader import VolumesFile

OUTPUT = "figure-7"
PATIENTS = 3


def scans_to_explain(study: Study) -> dict[Path, str]:
    """The scan folders, without links, of the first test patients of each class, with the class; those that are still there."""
    if study.scans is None:
        return {}
    root = study.scans.parent if is_manifest(study.scans) else study.scans
    file = VolumesFile(study.data(COMPLETE))
    found: dict[Path, str] = {}
    for label in file.classes:
        chosen: dict[str, Path] = {}
        for row in file.rows:
            path = resolved(root / row.source)
            if (row.label, row.split) == (label, "test") and row.volume_count(BEST.depth) and path.exists():
                chosen.setdefault(row.patient, path)
        found |= dict.fromkeys(list(chosen.values())[:PATIENTS], label)
    return found


def explained(study: Study) -> dict[Path, dict[str, Any]]:
    """Manifests of the explanations by the model as it is now, by the scan's folder; each has its own ``folder``."""
    weights = json.loads((study.runs / BEST.run / CARD).read_text(encoding="utf-8"))["weights_sha256"]
    found: dict[Path, dict[str, Any]] = {}
    for path in sorted((study.out / OUTPUT).glob("*/manifest.json")):
        manifest, card = (json.loads(file.read_text(encoding="utf-8")) for file in (path, path.with_name(RUN_CARD)))
        if card["inputs"] and card["inputs"][0]["hash"] == f"sha256:{weights}":
            found[Path(manifest["source"])] = {**manifest, "folder": path.parent}
    return found
