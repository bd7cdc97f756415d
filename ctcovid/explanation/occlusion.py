"""Occlusion: how much a class loses when a patch is covered (Zeiler and Fergus 2014). It needs neither gradients nor a layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product

import numpy as np
import torch
from torch import Tensor

from ctcovid.models.network import Network

# Cells along a side of the map, and cells along a side of the patch: a patch is a sixth of the side, and patches overlap by half.
CELLS, PATCH = 12, 2


def occlusion_maps(network: Network, volumes: np.ndarray, classes: Sequence[int], advance: Callable[[int], None]) -> np.ndarray:
    """Saliency of uint8 volumes (N, D, H, W) for K classes, float32 (N, K, 1, cells, cells), not negative.

    Each patch is covered in turn, in all slices of its volume, by the most common grey of the lungs. The saliency of a patch is the drop
    in the class's log-odds against all other classes, or 0 if they rise; that of a cell is the mean over the patches that cover it.
    """
    found = []
    for volume in volumes:
        grey = lung_grey(volume)
        windows = list(patches(volume.shape[1], volume.shape[2]))
        copies = (covered(volume, rows, columns, grey) for _, rows, columns in windows)
        odds = log_odds(network, [volume, *copies])[:, list(classes)]
        drop = np.maximum(odds[0] - odds[1:], 0)
        total = np.zeros((len(classes), CELLS, CELLS))
        count = np.zeros((CELLS, CELLS))
        for ((row, column), _, _), lost in zip(windows, drop, strict=True):
            total[:, row : row + PATCH, column : column + PATCH] += lost[:, None, None]
            count[row : row + PATCH, column : column + PATCH] += 1
        found.append((total / count)[:, None].astype(np.float32))
        advance(1)
    return np.stack(found)


def patches(height: int, width: int) -> Iterator[tuple[tuple[int, int], slice, slice]]:
    """The patches of a slice: row and column of their first cell, and their rows and columns in pixels."""
    down, across = (np.rint(np.linspace(0, side, CELLS + 1)).astype(int) for side in (height, width))
    for row, column in product(range(CELLS - PATCH + 1), repeat=2):
        yield (row, column), slice(down[row], down[row + PATCH]), slice(across[column], across[column + PATCH])


def covered(volume: np.ndarray, rows: slice, columns: slice, grey: int) -> np.ndarray:
    """The volume, uint8 (D, H, W), with the window set to `grey` in all slices."""
    copy = volume.copy()
    copy[:, rows, columns] = grey
    return copy


def lung_grey(volume: np.ndarray) -> int:
    """The most common grey from 8 to 127: neither the black of air nor the upper half. In the lung window this is the grey of lungs."""
    counts = np.bincount(volume.reshape(-1), minlength=256)[:128]
    counts[:8] = 0
    return int(counts.argmax())


@torch.inference_mode()
def log_odds(network: Network, volumes: Iterable[np.ndarray]) -> np.ndarray:
    """log(p / (1 - p)) of each class, float64 (N, classes), for uint8 volumes (D, H, W) of one shape, a batch in memory at a time."""
    found = []
    for some in in_batches(volumes, network):
        for logits in network.logits_by_passes(np.stack(some)):
            found.append(odds_of(logits.double()).cpu().numpy())
    return np.concatenate(found)


def in_batches(volumes: Iterable[np.ndarray], network: Network) -> Iterator[list[np.ndarray]]:
    """The volumes in lists, each with as many as one forward pass takes."""
    some: list[np.ndarray] = []
    for volume in volumes:
        some.append(volume)
        if len(some) == network.at_once(volume.size):
            yield some
            some = []
    if some:
        yield some


def odds_of(logits: Tensor) -> Tensor:
    """Logits (N, classes) to the log-odds of each class against all others together."""
    own = torch.eye(logits.shape[1], dtype=torch.bool, device=logits.device)
    others = logits.unsqueeze(1).expand(-1, logits.shape[1], -1).masked_fill(own, -torch.inf)
    return logits - others.logsumexp(2)
