"""Whether a saliency map says what the network looks at. Nothing here says whether the network is right, or its reason a medical one.

- *Deletion and insertion* (Petsiuk et al. 2018, Sec. 4.2): places are covered, most salient first, or uncovered on a covered volume,
  and the probability of the class is followed; the area under the curve is low for a good map in deletion, high in insertion. The
  same with the places in random order says what the number is worth.
- *Average drop and increase* (Chattopadhyay et al. 2018, Eqs. 20 and 21): the volume is shown through its map. How much of the class's
  probability is lost on average, and for which share of the volumes it grows.
- *Model randomisation* (Adebayo et al. 2018): the map of the same network with fresh weights. A map that stays as it was did not depend
  on what was learned; the rank correlation of the two says how much it does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import spearmanr

from ctcovid.explanation.cells import Cells
from ctcovid.explanation.occlusion import lung_grey, pieces
from ctcovid.explanation.upsample import to_slices
from ctcovid.inference.temperature import calibrated
from ctcovid.models import registry
from ctcovid.models.network import Network

# Places are the cells of a grid over the slice, so that all maps are judged at one resolution; curves have a point for each step.
GRID, STEPS = 16, 16
# Keeps the numbers drawn for random weights apart from all others of the same seed.
RANDOM_WEIGHTS = 1


@dataclass(frozen=True)
class Faithfulness:
    """Measures over all volumes of a scan; `shares` are those of the places covered or uncovered at the points of the curves.

    deletion, insertion : mean probability of the class along the curve, most salient places first
    deletion_random, insertion_random : the same in random order
    average_drop, increase : shares, 0..1; for a map the lower the better, and the higher
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
    network: Network,
    volumes: np.ndarray,
    native: np.ndarray,
    cells: Cells,
    randomised: np.ndarray,
    target: int,
    temperature: float,
    seed: int,
    advance: Callable[[int], None] = lambda count: None,
) -> Faithfulness:
    """Measure the saliency maps (N, d, h, w) of uint8 volumes (N, D, H, W) for class `target`.

    cells : where the cells of the maps lie
    randomised : float (N, d, h, w), the maps of the same method for a network with random weights
    temperature : that of the probabilities that are followed, as predict gives them
    """
    generator = np.random.default_rng(seed)
    curves: dict[str, list[np.ndarray]] = {"deletion": [], "insertion": [], "deletion_random": [], "insertion_random": []}
    whole, shown = [], []
    for volume, maps in zip(volumes, native, strict=True):
        grey = lung_grey(volume)
        weight = to_slices(maps[None], cells)[0]
        strength = in_places(weight.mean(0)).reshape(-1)
        at_random = generator.permutation(GRID * GRID)
        # Places of equal saliency are in random order too: a map that is flat shall be no better than chance.
        by_saliency = at_random[np.argsort(-strength[at_random], kind="stable")]
        for name, order in (("", by_saliency), ("_random", at_random)):
            for way in ("deletion", "insertion"):
                curves[way + name].append(_asked(network, steps(volume, order, grey, way == "insertion"), target, temperature))
        weight = weight / weight.max() if weight.max() > 0 else weight
        through = np.rint(grey + weight * (volume.astype(np.float32) - grey)).astype(np.uint8)
        before, after = _asked(network, iter([volume, through]), target, temperature)
        whole.append(before)
        shown.append(after)
        advance(1)
    before, after = np.array(whole), np.array(shown)
    mean = {name: np.mean(some, axis=0).tolist() for name, some in curves.items()}
    return Faithfulness(
        shares=np.linspace(0, 1, STEPS + 1).tolist(),
        **mean,
        average_drop=float(np.mean(np.maximum(before - after, 0) / before)),
        increase=float(np.mean(after > before)),
        randomised_correlation=correlation(native, randomised),
    )


def with_random_weights(network: Network, seed: int) -> Network:
    """The same network with fresh weights: not those that a training with that seed began with, which are still in what it learned."""
    with torch.random.fork_rng():
        torch.manual_seed(int(np.random.SeedSequence([seed, RANDOM_WEIGHTS]).generate_state(1)[0]))
        module = registry.create(network.architecture.name, len(network.classes))
    module.requires_grad_(False)
    return Network(module, network.architecture, network.classes, network.device, network.precision)


def in_places(pixels: np.ndarray) -> np.ndarray:
    """Means over the places of a slice, float (H, W) to (GRID, GRID)."""
    down, across = (_edges(side) for side in pixels.shape)
    sums: np.ndarray = np.add.reduceat(np.add.reduceat(pixels, down[:-1], 0), across[:-1], 1)
    return sums / np.outer(np.diff(down), np.diff(across))


def _edges(side: int) -> np.ndarray:
    edges: np.ndarray = np.rint(np.linspace(0, side, GRID + 1)).astype(int)
    return edges


def steps(volume: np.ndarray, order: np.ndarray, grey: int, insert: bool) -> Iterator[np.ndarray]:
    """The volume, uint8 (D, H, W), with more and more places covered by `grey`, or, with `insert`, uncovered, in `order`."""
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
    """Spearman's rank correlation of two sets of maps; 0 where one of them is the same everywhere."""
    found = float(spearmanr(one.reshape(-1), other.reshape(-1)).statistic) if np.ptp(one) > 0 and np.ptp(other) > 0 else 0.0
    return found if np.isfinite(found) else 0.0


def _asked(network: Network, volumes: Iterator[np.ndarray], target: int, temperature: float) -> np.ndarray:
    """Probability of the class for volumes of one shape, few in memory at a time."""
    return np.concatenate([calibrated(network.probabilities(np.stack(some)), temperature)[:, target] for some in pieces(volumes, network)])
