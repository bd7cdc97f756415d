"""What should make one doubt a model's judgement of a scan: flags, for predict and explain alike."""

from __future__ import annotations

import numpy as np

from ctcovid.inference.checked_scan import CheckedScan
from ctcovid.models.registry import TrainedModel
from ctcovid.scans.findings import INFO, WARNING, Finding
from ctcovid.scans.kind import COMPLETE, SEGMENTED
from ctcovid.scans.quality import FEWEST_FOR_ANATOMY
from ctcovid.scans.scan import Scan
from ctcovid.scans.slice_summary import SIDE

# Slices may lie this much nearer to each other, or farther apart, than in any training scan.
FAR_SPACING = 1.5


def flags_of(scan: Scan, checked: CheckedScan, model: TrainedModel, features: np.ndarray | None) -> list[Finding]:
    """What is wrong with a scan as it was checked and repaired, and how it differs from what the model has learnt from.

    Parameters
    ----------
    features : float (N, C), of its volumes, where the network has any
    """
    found = [finding for finding in checked.findings if finding.severity != INFO]
    if len(checked.slices) < FEWEST_FOR_ANATOMY:
        found.append(_flag("few-slices", f"Its {len(checked.slices)} slices are too few to tell whether they show a chest."))
    elif min(checked.own_size) < SIDE:
        found.append(
            _flag("small-slices", f"Its slices of {'×'.join(map(str, checked.own_size))} pixels are too small to tell a chest by.")
        )
    learnt = model.card.get("image_kind", COMPLETE)
    if checked.kind == SEGMENTED and learnt == COMPLETE:
        found.append(_flag("segmented", "It is black outside the lungs; a model that was trained on complete slices has not seen such."))
    if checked.kind == COMPLETE and learnt == SEGMENTED:
        found.append(_flag("complete", "Its slices are complete; the model was trained on slices that are black outside the lungs."))
    found += _spacing(scan, model)
    if model.reference is not None and features is not None and (far := model.reference.distance(features)) > model.reference.threshold:
        how = f"distance {far:.3g}, usual up to {model.reference.threshold:.3g}"
        found.append(_flag("unlike-training", f"To the model it looks unlike the scans that it was trained on ({how})."))
    return found


def sentence(finding: Finding) -> str:
    """A finding in a sentence for whoever reads the result."""
    text = finding.message[:1].upper() + finding.message[1:].rstrip(".")
    return f"{text}." if finding.action == "kept" else f"{text} ({finding.action})."


def _spacing(scan: Scan, model: TrainedModel) -> list[Finding]:
    learnt = model.card.get("slice_spacing")
    if scan.geometry is None or not learnt:
        return []
    own, (least, most) = scan.geometry.spacing[2], learnt
    if least / FAR_SPACING <= own <= most * FAR_SPACING:
        return []
    usual = f"{least:.3g}" if round(least, 3) == round(most, 3) else f"{least:.3g} to {most:.3g}"
    return [_flag("far-spacing", f"Its slices lie {own:.3g} mm apart, those of the training scans {usual} mm.")]


def _flag(code: str, message: str) -> Finding:
    return Finding(code, WARNING, message)
