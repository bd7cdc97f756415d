"""Batches of volumes that span scans, so that every forward pass is full."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np

from ctcovid.models.network import Network
from ctcovid.models.reference_features import probabilities_and_features


@dataclass(frozen=True)
class Outputs:
    """Output for a scan's volumes: float64 `probabilities` (N, classes), and float32 `features` (N, C) if the network has any."""

    probabilities: np.ndarray
    features: np.ndarray | None


@dataclass
class _Open:
    left: int
    probabilities: list[np.ndarray] = field(default_factory=list)
    features: list[np.ndarray] = field(default_factory=list)


class Batcher:
    """Takes the volumes of one scan after the other, all of one shape, and returns the outputs in the same order, as soon as complete.

    It holds fewer volumes than one scan and one pass.
    """

    def __init__(self, network: Network) -> None:
        self.network = network
        self.waiting: deque[np.ndarray] = deque()
        self.open: deque[_Open] = deque()

    def add(self, volumes: np.ndarray) -> list[Outputs]:
        """Add a scan's volumes, uint8 (N, D, H, W) with N ≥ 1; returns the outputs of scans that are complete."""
        self.open.append(_Open(len(volumes)))
        self.waiting.append(volumes)
        at_once = self.network.at_once(volumes[0].size)
        found: list[Outputs] = []
        while sum(map(len, self.waiting)) >= at_once:
            found += self._pass(at_once)
        return found

    def finish(self) -> list[Outputs]:
        """The outputs of all remaining scans."""
        return self._pass(sum(map(len, self.waiting))) if self.waiting else []

    def _pass(self, count: int) -> list[Outputs]:
        pieces = []
        while count:
            volumes = self.waiting.popleft()
            pieces.append(volumes[:count])
            if len(volumes) > count:
                self.waiting.appendleft(volumes[count:])
            count -= len(pieces[-1])
        probabilities, features = probabilities_and_features(self.network, pieces[0] if len(pieces) == 1 else np.concatenate(pieces))
        return self._by_scan(probabilities, features)

    def _by_scan(self, probabilities: np.ndarray, features: np.ndarray | None) -> list[Outputs]:
        found, first = [], 0
        while first < len(probabilities):
            one = self.open[0]
            last = min(first + one.left, len(probabilities))
            one.probabilities.append(probabilities[first:last])
            if features is not None:
                one.features.append(features[first:last])
            one.left -= last - first
            first = last
            if not one.left:
                self.open.popleft()
                found.append(Outputs(np.concatenate(one.probabilities), np.concatenate(one.features) if one.features else None))
        return found
