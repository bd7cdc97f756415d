"""Trivial models, and images that stand in two parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from ctcovid.base.console import Console
from ctcovid.commands import prepare
from ctcovid.evaluation.baselines import FEATURES, global_features, logistic_probabilities, majority_probabilities
from ctcovid.evaluation.checks import LOGISTIC, MAJORITY, baselines, check
from ctcovid.evaluation.inference import EvaluationSet
from ctcovid.evaluation.predictions import Predictions
from ctcovid.evaluation.volume_summary import PartSummary, repeated, summarise_part
from ctcovid.volumes.batches import VolumeSet
from ctcovid.volumes.reader import VolumesFile

CLASSES = ["NCP", "CP", "Normal"]


def test_global_features_are_what_numpy_says_of_the_pixels() -> None:
    volume = np.random.default_rng(0).integers(0, 256, (3, 20, 24), dtype=np.uint8)
    found = dict(zip(FEATURES, global_features(volume), strict=True))
    assert found["mean"] == pytest.approx(volume.mean())
    assert found["s.d."] == pytest.approx(volume.std())
    for share in (5, 25, 50, 75, 95):
        assert found[f"{share} %"] == np.percentile(volume, share, method="inverted_cdf")
    assert found["black"] == pytest.approx((volume < 8).mean())
    assert found["white"] == pytest.approx((volume > 247).mean())
    assert found["roughness"] == pytest.approx(np.abs(np.diff(volume[:, ::2].astype(float), axis=2)).mean())


def least_penalised_loss(features: np.ndarray, labels: np.ndarray, tested: np.ndarray, classes: int) -> np.ndarray:
    """The probabilities of the softmax regression with the least log loss plus half the sum of squared weights, from its definition."""
    mean, spread = features.mean(0), np.where(features.std(0) > 0, features.std(0), 1)
    known, asked = (np.column_stack([(one - mean) / spread, np.ones(len(one))]) for one in (features, tested))

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(-1, classes)
        penalised = np.vstack([weights[:-1], np.zeros((1, classes))])
        truth, logits = np.eye(classes)[labels], known @ weights
        gradient = known.T @ (softmax(logits, axis=1) - truth) + penalised
        return -(truth * log_softmax(logits, axis=1)).sum() + (penalised**2).sum() / 2, gradient.ravel()

    found = minimize(loss, np.zeros(known.shape[1] * classes), jac=True, method="L-BFGS-B", options={"maxiter": 1000, "ftol": 1e-12})
    return np.asarray(softmax(asked @ found.x.reshape(-1, classes), axis=1))


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_the_regression_has_the_least_penalised_log_loss(classes: int) -> None:
    generator = np.random.default_rng(classes)
    labels = generator.integers(0, classes, 150)
    features = generator.normal(size=(150, 4)) * [1, 10, 100, 0] + labels[:, None] * [0.5, 0, 40, 0]
    tested = features + generator.normal(size=features.shape)
    expected = least_penalised_loss(features, labels, tested, classes)
    assert logistic_probabilities(features, labels, tested, classes) == pytest.approx(expected, abs=1e-4)


def test_a_class_without_an_example_is_never_likely() -> None:
    features, labels = np.random.default_rng(0).normal(size=(40, 2)), np.arange(40) % 2
    found = logistic_probabilities(features, labels, features, 3)
    assert found.sum(1) == pytest.approx(1)
    assert not found[:, 2].any()
    assert found == pytest.approx(least_penalised_loss(features, labels, features, 3), abs=1e-4)


def test_the_majority_is_the_commonest_class_of_training() -> None:
    assert majority_probabilities(np.array([0, 1, 1, 2]), 2, 3).tolist() == [[0.25, 0.5, 0.25]] * 2


def made(names: list[str], labels: list[str], spread: float = 10.0) -> PartSummary:
    features = np.full((len(labels), len(FEATURES)), spread)
    return PartSummary(features, [tuple(name[at : at + 1].encode() for at in range(len(name))) for name in names], labels)


def test_volumes_count_as_repeated_whose_every_slice_was_trained_on_however_cut_or_ordered() -> None:
    trained = made(["abcd", "efgh"], ["NCP", "CP"])
    tested = made(["abcd", "dcbe", "abcx", "mnop"], ["NCP"] * 4)
    assert repeated(tested, trained).tolist() == [True, True, False, False]
    assert not repeated(replace(tested, features=np.zeros((4, len(FEATURES)))), trained).any()


@pytest.fixture
def file(tmp_path: Path, make_dataset: Callable[..., Path]) -> VolumesFile:
    data = make_dataset(tmp_path / "data")
    prepare.run(prepare.Options(data, 4, 32, tmp_path / "volumes.h5"), Console(quiet=True, results=False))
    return VolumesFile(tmp_path / "volumes.h5")


def test_a_scan_that_is_stored_for_two_patients_is_found(tmp_path: Path, make_dataset: Callable[..., Path]) -> None:
    """make_dataset's scans of one class and one number of slices are the same pixels, patient by patient."""
    data = make_dataset(tmp_path / "data")
    prepare.run(prepare.Options(data, 4, 32, tmp_path / "volumes.h5"), Console(quiet=True, results=False))
    file = VolumesFile(tmp_path / "volumes.h5")
    console = Console(quiet=True)
    tested, trained = (summarise_part(VolumeSet(file, part, 4), 0, console) for part in ("test", "train"))
    slices = {part: {file.read(v.first_slice, 4).tobytes() for v in file.volumes(part, 4)} for part in ("test", "train")}
    expected = [file.read(v.first_slice, 4).tobytes() in slices["train"] for v in file.volumes("test", 4)]
    assert any(expected)
    assert repeated(tested, trained).tolist() == expected


def predictions(labels: list[str], patients: list[str]) -> Predictions:
    numbers = np.array([CLASSES.index(label) for label in labels])
    count = len(labels)
    return Predictions("m", CLASSES, patients, ["s"] * count, np.arange(count), numbers, np.full((count, 3), 1 / 3))


def test_a_test_on_the_same_file_is_internal_and_on_other_patients_of_another_external(file: VolumesFile) -> None:
    found = predictions(["NCP", "CP", "Normal"], ["a", "b", "c"])
    tested, trained = made(["ab", "cd", "xy"], ["NCP", "CP", "Normal"]), made(["ab"], ["NCP"])
    volume_set = VolumeSet(file, "test", 4)
    same = check(found, EvaluationSet(volume_set, file, "", 0, False), tested, {"train": trained})
    assert (same.population, same.repeated_volumes) == ("internal", 1)
    assert any("1 of 3 volumes" in note for note in same.notes)
    chosen = check(found, EvaluationSet(volume_set, file, "", 0, False), tested, {"train": trained, "valid": made(["cd"], ["CP"])})
    assert chosen.repeated_volumes == 2 and any("training or validation part" in note for note in chosen.notes)
    own = check(found, EvaluationSet(volume_set, file, "", 0, False), tested, {}, "train")
    assert own.population == "none" and own.notes[0].startswith("The training part: ") and "Not a test" in own.notes[1]
    other = check(found, EvaluationSet(volume_set, None, "gone.h5 is not there any more", 0, False), None, {})
    assert (other.population, other.repeated_volumes) == ("external", None)
    assert any("gone.h5" in note for note in other.notes)
    populations = [check(found, EvaluationSet(volume_set, None, "gone", 1, same), None, {}).population for same in (None, True, False)]
    assert populations == ["internal", "internal", "external"]
    assert check(found, None, None, {}).population == "unknown"


def test_classes_that_are_far_from_balanced_are_pointed_at() -> None:
    found = check(predictions(["NCP"] * 7 + ["CP", "Normal"], list("aabbccdef")), None, None, {})
    assert found.balance == {"NCP": (7, 4), "CP": (1, 1), "Normal": (1, 1)}
    assert "far from balanced" in found.notes[0]


def test_trivial_models_predict_the_same_volumes(file: VolumesFile) -> None:
    console = Console(quiet=True)
    tested, trained = (summarise_part(VolumeSet(file, part, 4), 0, console) for part in ("test", "train"))
    found = predictions(tested.labels, [str(number) for number in range(len(tested.labels))])
    majority, logistic = baselines(found, tested, trained)
    assert (majority.name, logistic.name) == (MAJORITY, LOGISTIC)
    assert majority.keys == logistic.keys == found.keys
    # make_dataset tells its classes apart by brightness, which is all that the regression sees.
    assert (logistic.predicted == logistic.labels).all()
    assert len({*majority.predicted.tolist()}) == 1
    assert [one.name for one in baselines(found, None, None)] == [MAJORITY]
