"""Distance in feature space: features are the head's, distances Mahalanobis's, and other scans are farther."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.distance import mahalanobis

from ctcovid.base.errors import ModelRefusedError
from ctcovid.models import registry
from ctcovid.models.reference_features import (
    FILE,
    SHRINKAGE,
    ReferenceFeatures,
    distances,
    fit_reference,
    load_reference,
    probabilities_and_features,
    save_reference,
)


@pytest.mark.parametrize("arch", ["r3d18", "tv_r3d_18"])
def test_features_are_what_the_head_makes_probabilities_of(arch: str) -> None:
    torch.manual_seed(0)
    network = registry.build(arch, ["a", "b", "c"], "cpu", "float32")
    volumes = np.random.default_rng(0).integers(0, 256, (5, 4, 32, 32), dtype=np.uint8)
    probabilities, features = probabilities_and_features(network, volumes)
    assert features is not None and features.shape == (5, 512)
    logits = network.module.fc(torch.from_numpy(features))  # type: ignore[operator]
    assert np.allclose(logits.double().softmax(1).detach().numpy(), probabilities, atol=1e-5)
    assert np.array_equal(network.probabilities(volumes), probabilities)


def test_distances_are_those_of_mahalanobis_to_the_nearest_class() -> None:
    generator = np.random.default_rng(0)
    labels = np.arange(60) % 3
    features = generator.normal(0, 1, (60, 4)) @ generator.normal(0, 1, (4, 4)) + 5 * np.eye(3, 4)[labels]
    statistics = fit_reference(features, labels)
    assert statistics is not None
    means = np.stack([features[labels == label].mean(0) for label in range(3)])
    covariance = np.cov((features - means[labels]).T, bias=True)
    shrunk = (1 - SHRINKAGE) * covariance + SHRINKAGE * np.trace(covariance) / 4 * np.eye(4)
    others = generator.normal(0, 3, (7, 4))
    expected = [min(mahalanobis(one, mean, np.linalg.inv(shrunk)) for mean in means) / 2 for one in others]
    assert np.allclose(distances(others, *statistics), expected, rtol=1e-4)


def test_constant_features_give_no_reference() -> None:
    assert fit_reference(np.ones((4, 3)), np.array([0, 0, 1, 1])) is None


def test_what_was_saved_comes_back_and_another_file_is_refused(tmp_path: Path) -> None:
    reference = ReferenceFeatures(np.ones((3, 4), np.float32), np.eye(4, dtype=np.float32), 1.5)
    card = {"classes": ["NCP", "CP", "Normal"], "features": save_reference(tmp_path, reference)}
    found = load_reference(tmp_path, card)
    assert found is not None and found.threshold == 1.5 and found.distance(np.zeros((2, 4))) == 1.0
    assert load_reference(tmp_path, {}) is None
    (tmp_path / FILE).write_bytes(b"another")
    with pytest.raises(ModelRefusedError, match=FILE):
        load_reference(tmp_path, card)


@pytest.mark.parametrize(
    ("means", "whitening"),
    [(np.ones((3, 4)), np.eye(5)), (np.ones(4), np.eye(4)), (np.ones((4, 4)), np.eye(4)), (np.full((3, 4), np.nan), np.eye(4))],
)
def test_reference_features_that_cannot_be_measured_against_are_refused(means: np.ndarray, whitening: np.ndarray, tmp_path: Path) -> None:
    card = {"classes": ["NCP", "CP", "Normal"], "features": save_reference(tmp_path, ReferenceFeatures(means, whitening, 1.5))}
    with pytest.raises(ModelRefusedError, match=FILE):
        load_reference(tmp_path, card)
