"""Flags, the reasons to doubt a model's prediction of a scan, for predict and explain alike."""

from __future__ import annotations

import numpy as np

from ctcovid.base.errors import agreeing, counted
from ctcovid.inference.checked_scan import CheckedScan
from ctcovid.models.registry import TrainedModel
from ctcovid.scans.findings import INFO, WARNING, Finding
from ctcovid.scans.kind import COMPLETE, SEGMENTED
from ctcovid.scans.quality import FEWEST_FOR_ANATOMY
from ctcovid.scans.scan import Scan
from ctcovid.scans.slice_summary import SIDE

# Slice spacing may be smaller or larger than in any training scan by this factor.
FAR_SPACING = 1.5


def flags_of(scan: Scan, checked: CheckedScan, model: TrainedModel, features: np.ndarray | None) -> list[Finding]:
    """What was wrong with a scan when it was checked, and how it differs from the model's training data.

    Parameters
    ----------
    features : float (N, C), of its volumes, if the network has any
    """
    found = [finding for finding in checked.findings if finding.severity != INFO]
    if len(checked.slices) < FEWEST_FOR_ANATOMY:
        found.append(_flag("few-slices", f"{counted(len(checked.slices), 'slice')} of it: too few to check that it shows a chest."))
    elif min(checked.own_size) < SIDE:
        found.append(
            _flag(
                "small-slices",
                f"Its slices of {'×'.join(map(str, checked.own_size))} pixels are too small to check that they show a chest.",
            )
        )
    trained_on = model.card.get("image_kind", COMPLETE)
    if checked.kind == SEGMENTED and trained_on == COMPLETE:
        found.append(_flag("segmented", "It is black outside the lungs; the model was trained on complete slices only."))
    if checked.kind == COMPLETE and trained_on == SEGMENTED:
        found.append(_flag("complete", "Its slices are complete; the model was trained on slices that are black outside the lungs."))
    found += _seen(scan, checked, model)
    found += _spacing(scan, model)
    if model.reference is not None and features is not None and (far := model.reference.distance(features)) > model.reference.threshold:
        how = f"distance {far:.3g}, threshold {model.reference.threshold:.3g}"
        found.append(_flag("unlike-training", f"Its features are farther from the training data than usual ({how})."))
    return found


def sentence(finding: Finding) -> str:
    """A finding as a sentence for the reader of the result. A path stays as it is."""
    first = finding.message[:1] if "/" in finding.message.split(" ")[0] else finding.message[:1].upper()
    text = first + finding.message[1:].rstrip(".")
    return f"{text}." if finding.action == "kept" else f"{text} ({finding.action})."


def _seen(scan: Scan, checked: CheckedScan, model: TrainedModel) -> list[Finding]:
    """Whether the model was trained on the scan, by its slices or else by the name of its patient."""
    if not model.card.get("trained", True):
        return []
    if model.seen is not None and (count := model.seen.count(checked.hashes)):
        verb = agreeing(count, "is", "are")
        return [_flag("seen-in-training", f"{count} of its {counted(len(checked.hashes), 'slice')} {verb} in the model's training part.")]
    if scan.patient and scan.patient in model.card.get("split", {}).get("train", ()):
        # Another archive may count its patients in the same way.
        return [_flag("seen-in-training", f"A patient of the same name, {scan.patient}, is in the model's training part.")]
    return []


def _spacing(scan: Scan, model: TrainedModel) -> list[Finding]:
    trained_on = model.card.get("slice_spacing")
    if scan.geometry is None or not trained_on:
        return []
    own, (least, most) = scan.geometry.spacing[2], trained_on
    if least / FAR_SPACING <= own <= most * FAR_SPACING:
        return []
    usual = f"{least:.3g}" if round(least, 3) == round(most, 3) else f"{least:.3g} to {most:.3g}"
    return [_flag("far-spacing", f"Its slices are {own:.3g} mm apart, those of the training scans {usual} mm.")]


def _flag(code: str, message: str) -> Finding:
    return Finding(code, WARNING, message)
