"""Flags: what differs from the model's training scans is said once, in words, and what does not is not."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ctcovid.inference.checked_scan import CheckedScan
from ctcovid.inference.flags import flags_of, sentence
from ctcovid.models.reference_features import ReferenceFeatures
from ctcovid.scans.findings import INFO, REPAIRED, WARNING, Finding
from ctcovid.scans.geometry import Geometry
from ctcovid.scans.scan import Scan, Stack


def codes(
    kind: str = "complete",
    slices: int = 8,
    side: int = 512,
    spacing: float | None = None,
    findings: tuple[Finding, ...] = (),
    features: np.ndarray | None = None,
    reference: ReferenceFeatures | None = None,
    **card: Any,
) -> list[str]:
    stack = None if spacing is None else Stack("volume", (8, 8, 8), geometry=Geometry(np.diag([1.0, 1.0, spacing, 1.0])))
    scan = Scan("s", "", "", Path("s"), (Path("s"),) * slices, "", stack)
    checked = CheckedScan(np.zeros((slices, 8, 8), np.uint8), tuple(range(slices)), ("n",) * slices, (side, side), kind, findings)
    model: Any = SimpleNamespace(card=card, reference=reference, seen=None)
    return [finding.code for finding in flags_of(scan, checked, model, features)]


@pytest.mark.parametrize(
    ("kind", "learnt", "expected"),
    [
        ("complete", "complete", []),
        ("segmented", "complete", ["segmented"]),
        ("complete", "segmented", ["complete"]),
        ("segmented", "segmented", []),
        ("segmented", "mixed", []),
        ("complete", "mixed", []),
    ],
)
def test_the_other_kind_of_image_is_flagged(kind: str, learnt: str, expected: list[str]) -> None:
    assert codes(kind=kind, image_kind=learnt) == expected


def test_a_model_from_before_kinds_were_recorded_learnt_from_complete_slices() -> None:
    assert codes(kind="segmented") == ["segmented"] and codes() == []


@pytest.mark.parametrize(("spacing", "flagged"), [(0.6, True), (0.7, False), (2.0, False), (4.4, False), (4.6, True), (None, False)])
def test_spacing_far_from_that_of_all_training_scans_is_flagged(spacing: float | None, flagged: bool) -> None:
    assert codes(spacing=spacing, slice_spacing=[1.0, 3.0]) == (["far-spacing"] if flagged else [])
    assert codes(spacing=spacing, slice_spacing=None) == codes(spacing=spacing) == []


def test_features_far_from_those_of_training_are_flagged() -> None:
    reference = ReferenceFeatures(np.zeros((2, 4), np.float32), np.eye(4, dtype=np.float32), threshold=1.0)
    assert codes(features=np.full((3, 4), 0.9), reference=reference) == []
    assert codes(features=np.full((3, 4), 1.1), reference=reference) == ["unlike-training"]
    # The scan is checked as a whole, not by its strangest volume.
    assert codes(features=np.array([[0.0] * 4, [1.9] * 4]), reference=reference) == []
    assert codes(features=None, reference=reference) == []


def test_too_little_to_tell_a_chest_by_is_flagged_and_findings_stay() -> None:
    assert codes(slices=5) == ["few-slices"] and codes(side=63) == ["small-slices"]
    findings = (Finding("shuffled", WARNING, "slices were out of order.", REPAIRED), Finding("not-square", INFO, "x"))
    assert codes(findings=findings) == ["shuffled"]
    assert sentence(findings[0]) == "Slices were out of order (repaired)."
