"""Scans through several networks: each answer finds its scan and its model, and only a few scans are read ahead."""

from __future__ import annotations

from concurrent.futures import Executor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ctcovid.inference import classify as module
from ctcovid.inference.checked_scan import CheckedScan, RefusedScanError
from ctcovid.inference.classify import AHEAD, Refused, ScanPrediction, classify
from ctcovid.scans.scan import Scan
from ctcovid.scans.window import LUNG, Window


class Network:
    """Says of a volume its first grey level as the first of two shares, in percent, and takes `most` volumes at once."""

    def __init__(self, most: int, shift: float) -> None:
        self.most, self.shift, self.module, self.passes = most, shift, None, []

    def at_once(self, voxels: int) -> int:
        return self.most

    def probabilities(self, volumes: np.ndarray) -> np.ndarray:
        self.passes.append(len(volumes))
        first = volumes[:, 0, 0, 0] / 100 + self.shift
        return np.stack([first, 1 - first], 1)


def model(name: str, most: int, depth: int, shift: float = 0.0) -> Any:
    network = Network(most, shift)
    return SimpleNamespace(
        name=name, network=network, depth=depth, size=8, window=LUNG, temperature=1.0, card={}, reference=None, seen=None
    )


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Scans as they are read, whose number is their grey level; each seventh is refused."""
    read: list[str] = []

    def fake(scan: Scan, size: int, window: Window, pool: Executor, fewest: int) -> CheckedScan:
        read.append(scan.id)
        number = int(scan.id)
        if number % 7 == 3:
            raise RefusedScanError("no", ("not-a-chest",))
        count = 4 + number % 5
        slices = np.full((count, size, size), number, np.uint8)
        return CheckedScan(slices, tuple(range(count)), tuple(map(str, range(count))), (512, 512), "complete", ())

    monkeypatch.setattr(module, "read_checked", fake)
    return read


def scans(count: int) -> list[Scan]:
    return [Scan(str(number), "", "", Path("x"), (Path("x"),), "") for number in range(count)]


def test_answers_find_their_scans_and_models_whatever_the_passes(reads: list[str]) -> None:
    """The second model answers long before the first."""
    models = [model("a", 50, 2), model("b", 3, 4, shift=0.1)]
    found = list(classify(scans(30), models, 2))
    assert [one.scan.id for one in found] == [str(number) for number in range(30)]
    for number, one in enumerate(found):
        if number % 7 == 3:
            assert isinstance(one, Refused) and one.codes == ("not-a-chest",)
            continue
        assert isinstance(one, ScanPrediction)
        assert one.probabilities[0] == pytest.approx(number / 100 + 0.05)
        assert one.spread == pytest.approx(0.05)
        count = 4 + number % 5
        assert [(volume.model, volume.number) for volume in one.volumes] == [("a", n) for n in range(count // 2)] + [
            ("b", n) for n in range(count // 4)
        ]
        assert one.volumes[-1].probabilities[0] == pytest.approx(number / 100 + 0.1)
    # But for the last, every pass is full.
    assert set(models[0].network.passes[:-1]) == {50} and set(models[1].network.passes[:-1]) == {3}


def test_only_a_few_scans_are_in_memory_however_many_there_are(reads: list[str]) -> None:
    most = 0
    for done, _ in enumerate(classify(scans(60), [model("a", 1, 4)], 1), start=1):
        most = max(most, len(reads) - done)
    assert len(reads) == 60 and most <= AHEAD
