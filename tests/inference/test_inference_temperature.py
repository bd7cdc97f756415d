"""Temperature from the validation part, and what it does to the log loss."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from ctcovid.inference.temperature import calibrated, fit_temperature, scan_losses, trusted_temperature


def volumes(count: int, sureness: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Logits, float (N, 3), `sureness` times those whose softmax the classes are drawn from."""
    generator = np.random.default_rng(seed)
    honest = generator.normal(0, 2, (count, 3))
    labels = np.array([generator.choice(3, p=shares) for shares in softmax(honest, 1)])
    return honest * sureness, labels


def log_loss(probabilities: np.ndarray, labels: np.ndarray) -> float:
    return float(-np.log(probabilities[np.arange(len(labels)), labels]).mean())


@pytest.mark.parametrize("sureness", [0.4, 1.0, 3.0])
def test_temperature_from_validation_lowers_the_log_loss_on_other_volumes(sureness: float) -> None:
    logits, labels = volumes(2000, sureness, 0)
    temperature = fit_temperature(softmax(logits, 1), labels, range(len(labels)))
    assert temperature == pytest.approx(sureness, rel=0.15)
    others, theirs = volumes(2000, sureness, 1)
    before, after = log_loss(softmax(others, 1), theirs), log_loss(calibrated(softmax(others, 1), temperature), theirs)
    assert after < before + (0.002 if sureness == 1 else -0.01)


def test_temperature_is_where_an_independent_search_finds_it() -> None:
    logits, labels = volumes(300, 2.0, 2)
    count = np.bincount(labels)

    def loss(temperature: np.ndarray) -> float:
        total = 0.0
        for row, label in zip(log_softmax(logits / temperature[0], 1), labels, strict=True):
            for number in range(3):
                total -= row[number] * ((count[label] + 1) / (count[label] + 3) if number == label else 1 / (count[label] + 3))
        return total

    expected = minimize(loss, [1.0], method="Nelder-Mead", options={"xatol": 1e-6}).x[0]
    assert fit_temperature(softmax(logits, 1), labels, range(len(labels))) == pytest.approx(expected, rel=1e-3)


def test_calibration_is_the_softmax_of_divided_logits_and_keeps_the_class() -> None:
    logits = np.array([[1.0, -2.0, 40.0], [0.0, 0.1, 0.2], [900.0, 0.0, -900.0]])
    found = calibrated(softmax(logits, 1), 3.0)
    assert np.allclose(found[:2], softmax(logits[:2] / 3, 1), atol=1e-12)
    assert np.array_equal(found.argmax(1), logits.argmax(1)) and np.allclose(found.sum(1), 1)


def test_without_a_mistake_the_model_is_not_made_sure_without_end() -> None:
    shares = np.full((6, 3), 0.05) + 0.85 * np.eye(3)[[0, 1, 2, 0, 1, 2]]
    assert calibrated(shares, fit_temperature(shares, np.array([0, 1, 2, 0, 1, 2]), range(6))).max() < 0.95


def of_patients(count: int, each: int, sureness: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As :func:`volumes`, with `each` nearly equal volumes of every patient's scan, whose number is given too."""
    logits, labels = volumes(count, sureness, seed)
    alike = np.random.default_rng(seed).normal(0, 0.1, (count * each, 3))
    return softmax(logits.repeat(each, 0) + alike, 1), labels.repeat(each), np.arange(count).repeat(each)


def test_a_temperature_is_for_the_mean_over_the_volumes_of_a_scan() -> None:
    """Overconfident volumes that differ have a mean that is not. A temperature for them would make the mean underconfident."""
    generator = np.random.default_rng(0)
    honest, labels = volumes(1500, 1.0, 0)
    means = softmax(honest, 1)
    # Each volume is confident of one class, and each class has as many volumes of a scan as its probability says.
    shares = np.concatenate([0.97 * np.eye(3)[generator.choice(3, 40, p=row)] + 0.01 for row in means])
    scans = np.arange(1500).repeat(40)
    temperature = fit_temperature(shares, labels.repeat(40), scans)
    assert temperature == pytest.approx(1, rel=0.15)
    assert fit_temperature(shares, labels.repeat(40), range(len(shares))) > 2
    expected = [-np.log(shares[scans == scan].mean(0)[labels[scan]]) for scan in range(1500)]
    assert np.allclose(scan_losses(shares, labels.repeat(40), scans), expected)


def test_a_temperature_that_many_patients_ask_for_is_kept() -> None:
    for seed in range(20):
        shares, labels, numbers = of_patients(100, 4, 4.0, seed)
        fitted = fit_temperature(shares, labels, numbers)
        assert trusted_temperature(shares, labels, numbers, [str(n) for n in numbers], fitted) == fitted > 2


def test_a_temperature_that_chance_has_made_does_less_harm_than_if_it_were_kept() -> None:
    """The probabilities are calibrated already, so that any temperature raises the log loss of other volumes."""
    others, theirs, _ = of_patients(2000, 1, 1.0, 1000)
    before, kept, harm = log_loss(others, theirs), 0, {"fitted": 0.0, "trusted": 0.0}
    for seed in range(100):
        shares, labels, numbers = of_patients(20, 6, 1.0, seed)
        fitted = fit_temperature(shares, labels, numbers)
        trusted = trusted_temperature(shares, labels, numbers, [str(n) for n in numbers], fitted)
        assert trusted in (1.0, fitted)
        kept += trusted != 1
        for name, temperature in (("fitted", fitted), ("trusted", trusted)):
            harm[name] += (log_loss(calibrated(others, temperature), theirs) - before) / 100
    assert kept < 50
    assert harm["trusted"] < 0.75 * harm["fitted"]


def test_scans_of_one_patient_count_once() -> None:
    """A hundred scans that ask for a temperature, of one patient who does, beside nine others who ask for none."""
    shares, labels, numbers = of_patients(109, 1, 4.0, 0)
    shares[100:] = 1 / 3
    patients = ["one"] * 100 + [str(n) for n in range(9)]
    assert trusted_temperature(shares, labels, numbers, [str(n) for n in numbers], 4.0) == 4
    assert trusted_temperature(shares, labels, numbers, patients, 4.0) == 1
    assert trusted_temperature(shares[:100], labels[:100], numbers[:100], patients[:100], 4.0) == 1
