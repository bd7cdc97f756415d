"""Whether a saliency map shows what the network uses. Nothing here says whether the network is right, or its reason medical.

- *Deletion and insertion* (Petsiuk et al. 2018, Sec. 4.2): squares are covered, most salient first, or uncovered on a covered volume,
  while the probability of the class is recorded. The area under the curve is low for a good map in deletion and high in insertion. The
  same squares in random order give the reference.
- *Average drop and increase* (Chattopadhyay et al. 2018, Eqs. 20 and 21): the volume is multiplied by its map. The measures are the mean
  relative loss of the class's probability, and the share of volumes in which it rises.
- *Model randomisation* (Adebayo et al. 2018): the rank correlation of the map with that of the same network with random weights. A high
  one shows that the map does not depend on what was learned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import spearmanr

from ctcovid.explanation.occlusion import in_batches, lung_grey
from ctcovid.explanation.scan_maps import ScanMaps
from ctcovid.explanation.upsample import to_slices
from ctcovid.inference.temperature import calibrated
from ctcovid.models import registry
from ctcovid.models.network import Network
from ctcovid.models.registry import TrainedModel

# Squares per side of a slice, the same for all methods, so that maps are compared at one resolution; and steps of a curve.
GRID, STEPS = 16, 16
# Makes the random numbers of the weights independent of all others of the same seed.
RANDOM_WEIGHTS = 1


@dataclass(frozen=True)
class Faithfulness:
    """Measures over all volumes of a scan.

    Attributes
    ----------
    shares : share of the squares that are covered or uncovered at each point of the curves
    deletion, insertion : mean probability of the class along the curve, most salient squares first
    deletion_random, insertion_random : the same in random order
    average_drop, increase : 0..1; a low drop and a high increase are good
    randomised_correlation : Spearman's, between the map and that of the network with random weights
    """

    shares: list[float]
    deletion: list[float]
    insertion: list[float]
    deletion_random: list[float]
    insertion_random: list[float]
    average_drop: float
    increase: float
    randomised_correlation: float

    def document(self) -> dict[str, object]:
        areas = {f"{name}_area": area(getattr(self, name)) for name in ("deletion", "insertion", "deletion_random", "insertion_random")}
        return {**self.__dict__, **areas, "caution": CAUTION}


CAUTION = "These figures measure whether the map is faithful to the model, not whether the model is medically right."


def faithfulness(
    model: TrainedModel,
    volumes: np.ndarray,
    maps: ScanMaps,
    randomised: np.ndarray,
    seed: int,
    advance: Callable[[int], None] = lambda count: None,
) -> Faithfulness:
    """Measure the maps of the explained class on uint8 volumes (N, D, H, W). Probabilities are calibrated, as in predict.

    Parameters
    ----------
    randomised : float (N, d, h, w), maps of the same class and method for a network with random weights
    seed : of the random order
    advance : called with the number of volumes that are done
    """
    generator = np.random.default_rng(seed)
    curves: dict[str, list[np.ndarray]] = {"deletion": [], "insertion": [], "deletion_random": [], "insertion_random": []}
    whole, masked = [], []
    for volume, native in zip(volumes, maps.of_target, strict=True):
        grey = lung_grey(volume)
        weight = to_slices(native[None], maps.cells)[0]
        strength = in_squares(weight.mean(0)).reshape(-1)
        at_random = generator.permutation(GRID * GRID)
        # Squares of equal saliency are in random order too, so that a flat map is at chance level.
        by_saliency = at_random[np.argsort(-strength[at_random], kind="stable")]
        for name, order in (("", by_saliency), ("_random", at_random)):
            for curve in ("deletion", "insertion"):
                curves[curve + name].append(_probability(model, maps.target, steps(volume, order, grey, curve == "insertion")))
        weight = weight / weight.max() if weight.max() > 0 else weight
        weighted = np.rint(grey + weight * (volume.astype(np.float32) - grey)).astype(np.uint8)
        before, after = _probability(model, maps.target, iter([volume, weighted]))
        whole.append(before)
        masked.append(after)
        advance(1)
    before, after = np.array(whole), np.array(masked)
    mean = {name: np.mean(some, axis=0).tolist() for name, some in curves.items()}
    return Faithfulness(
        shares=np.linspace(0, 1, STEPS + 1).tolist(),
        **mean,
        average_drop=float(np.mean(np.maximum(before - after, 0) / before)),
        increase=float(np.mean(after > before)),
        randomised_correlation=correlation(maps.of_target, randomised),
    )


def with_random_weights(network: Network, seed: int) -> Network:
    """The same architecture with random weights, independent of the initial weights of a training with the same seed."""
    with torch.random.fork_rng():
        torch.manual_seed(int(np.random.SeedSequence([seed, RANDOM_WEIGHTS]).generate_state(1)[0]))
        module = registry.create(network.architecture.name, len(network.classes))
    module.requires_grad_(False)
    return Network(module, network.architecture, network.classes, network.device, network.precision)


def in_squares(pixels: np.ndarray) -> np.ndarray:
    """Means over the squares of a slice, float (H, W) to (GRID, GRID)."""
    down, across = (_edges(side) for side in pixels.shape)
    sums: np.ndarray = np.add.reduceat(np.add.reduceat(pixels, down[:-1], 0), across[:-1], 1)
    return sums / np.outer(np.diff(down), np.diff(across))


def _edges(side: int) -> np.ndarray:
    edges: np.ndarray = np.rint(np.linspace(0, side, GRID + 1)).astype(int)
    return edges


def steps(volume: np.ndarray, order: np.ndarray, grey: int, insert: bool) -> Iterator[np.ndarray]:
    """Copies of the volume, uint8 (D, H, W), with more and more squares covered by `grey`, or with `insert` uncovered, in `order`."""
    edges = [_edges(side) for side in volume.shape[1:]]
    rank = np.empty(GRID * GRID, int)
    rank[order] = np.arange(GRID * GRID)
    ranks = np.repeat(np.repeat(rank.reshape(GRID, GRID), np.diff(edges[0]), 0), np.diff(edges[1]), 1)
    for count in np.rint(np.linspace(0, GRID * GRID, STEPS + 1)).astype(int):
        yield np.where((ranks < count) == insert, volume, np.uint8(grey))


def area(curve: list[float]) -> float:
    """Area under a curve over shares from 0 to 1."""
    return float(np.mean((np.array(curve[1:]) + np.array(curve[:-1])) / 2))


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's rank correlation of two sets of maps; 0 if one of them is the same everywhere."""
    found = float(spearmanr(one.reshape(-1), other.reshape(-1)).statistic) if np.ptp(one) > 0 and np.ptp(other) > 0 else 0.0
    return found if np.isfinite(found) else 0.0


def _probability(model: TrainedModel, target: int, volumes: Iterator[np.ndarray]) -> np.ndarray:
    """Calibrated probability of the class, float64 (N,), for volumes of one shape, a batch in memory at a time."""
    network = model.network
    return np.concatenate(
        [calibrated(network.probabilities(np.stack(some)), model.temperature)[:, target] for some in in_batches(volumes, network)]
    )
