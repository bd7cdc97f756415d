"""Bootstrap means and intervals: a naive loop, the binomial distribution, and the paper's own tables."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from scipy.stats import bootstrap as bootstrap_of_scipy
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    cohen_kappa_score,
    f1_score,
    log_loss,
    precision_score,
    recall_score,
    roc_auc_score,
)

from ctcovid.base.choices import INTERVALS
from ctcovid.evaluation import bootstrap
from ctcovid.evaluation.bootstrap import Drawing, estimates, left_out, resampled, units_of
from ctcovid.evaluation.intervals import Estimate, estimate
from ctcovid.evaluation.metrics import METRICS, Sample


def sample(volumes: int = 70, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, volumes)
    probabilities = generator.dirichlet([1, 1, 1], volumes) + 0.4 * np.eye(3)[labels]
    return labels, probabilities / probabilities.sum(1, keepdims=True)


def resampled_values(labels: np.ndarray, probabilities: np.ndarray, positive: int, resamples: int, seed: int) -> dict[str, np.ndarray]:
    return resampled(Sample(labels, probabilities, positive), np.arange(len(labels)), resamples, seed)


def point_values(labels: np.ndarray, probabilities: np.ndarray, positive: int) -> dict[str, float]:
    return Sample(labels, probabilities, positive).point()


def right_and_wrong(volumes: int, accuracy: float) -> tuple[np.ndarray, np.ndarray]:
    """A sample of three classes of which that share is classified correctly."""
    labels = np.arange(volumes) % 3
    wrong = np.arange(volumes) >= round(accuracy * volumes)
    return labels, np.eye(3)[(labels + wrong) % 3]


def test_resampling_is_the_naive_loop_over_volumes_drawn_with_replacement() -> None:
    labels, probabilities = sample()
    found = resampled_values(labels, probabilities, 1, resamples=25, seed=3)
    generator = np.random.default_rng(3)
    for number in range(25):
        rows = generator.integers(0, len(labels), len(labels))
        truth, predicted = labels[rows], probabilities[rows].argmax(1)
        expected = {
            "accuracy": accuracy_score(truth, predicted),
            "binary_accuracy": accuracy_score(truth == 1, predicted == 1),
            "precision": precision_score(truth == 1, predicted == 1),
            "recall": recall_score(truth == 1, predicted == 1),
            "f1": f1_score(truth == 1, predicted == 1),
            "macro_auroc": roc_auc_score(truth, probabilities[rows], multi_class="ovr"),
            "kappa": cohen_kappa_score(truth, predicted),
            "log_loss": log_loss(truth, probabilities[rows]),
            "average_precision:2": average_precision_score(truth == 2, probabilities[rows, 2]),
        }
        assert {name: found[name][number] for name in expected} == pytest.approx(expected, rel=1e-6)


def test_resampling_patients_is_the_naive_loop_over_patients_with_all_their_volumes() -> None:
    labels, probabilities = sample()
    patients = [f"p{number}" for number in np.random.default_rng(1).integers(0, 12, len(labels))]
    found = resampled(Sample(labels, probabilities, 1), units_of(patients), 25, 3)
    names = sorted(set(patients))
    rows_of = [np.flatnonzero(np.array(patients) == name) for name in names]
    generator = np.random.default_rng(3)
    for number in range(25):
        rows = np.concatenate([rows_of[place] for place in generator.integers(0, len(names), len(names))])
        assert found["accuracy"][number] == pytest.approx(accuracy_score(labels[rows], probabilities[rows].argmax(1)), rel=1e-6)
        assert found["auroc:0"][number] == pytest.approx(roc_auc_score(labels[rows] == 0, probabilities[rows, 0]), rel=1e-6)


def test_the_jackknife_leaves_each_patient_out_once() -> None:
    labels, probabilities = sample()
    patients = np.arange(len(labels)) // 7
    found = left_out(Sample(labels, probabilities, 1), patients)
    for patient in range(10):
        kept = patients != patient
        assert found["accuracy"][patient] == pytest.approx(accuracy_score(labels[kept], probabilities[kept].argmax(1)), rel=1e-12)
        assert found["auroc:2"][patient] == pytest.approx(roc_auc_score(labels[kept] == 2, probabilities[kept, 2]), rel=1e-12)


def test_bca_is_that_of_scipy() -> None:
    """Given the same resamples; the value is whether each of 60 volumes was right."""
    right = np.random.default_rng(0).random(60) < 0.9
    # scipy before 1.15 has another name for it.
    drawing = "rng" if "rng" in inspect.signature(bootstrap_of_scipy).parameters else "random_state"
    theirs = bootstrap_of_scipy((right.astype(float),), np.mean, n_resamples=999, method="BCa", **{drawing: np.random.default_rng(1)})
    jackknife = np.array([np.delete(right, row).mean() for row in range(60)])
    mine = estimate(right.mean(), theirs.bootstrap_distribution, "bca", (0, 1), jackknife)
    assert (mine.low, mine.high) == pytest.approx(tuple(theirs.confidence_interval), rel=1e-12)
    percentile = estimate(right.mean(), theirs.bootstrap_distribution, "percentile", (0, 1))
    assert (mine.low, mine.high) != (percentile.low, percentile.high)


def test_how_many_resamples_are_held_at_once_changes_nothing_but_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, probabilities = sample()
    expected = resampled_values(labels, probabilities, 0, resamples=20, seed=0)
    for at_once in (1, 3, 20):
        monkeypatch.setattr(bootstrap, "AT_ONCE", at_once)
        found = resampled_values(labels, probabilities, 0, resamples=20, seed=0)
        assert all(found[name] == pytest.approx(expected[name], rel=1e-12, abs=1e-15) for name in METRICS)


def test_draws_that_are_kept_are_those_that_would_be_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    for units, resamples, seed in ((70, 150, 3), (1, 70, 0), (300, 5, (3, 1))):
        kept = [list(bootstrap.draws(units, resamples, seed)) for _ in range(2)]
        with monkeypatch.context() as patch:
            patch.setattr(bootstrap, "KEPT", 0)
            drawn = list(bootstrap.draws(units, resamples, seed))
        for found in kept:
            assert all(np.array_equal(*pair) and pair[0].dtype == np.float32 for pair in zip(found, drawn, strict=True))


def test_the_same_seed_gives_the_same_result_and_another_one_another() -> None:
    labels, probabilities = sample()
    first, second, other = (estimates(labels, probabilities, 0, Drawing(resamples=50, seed=seed)) for seed in (7, 7, 8))
    assert first == second
    assert first["accuracy"] != other["accuracy"]
    assert first["accuracy"].value == other["accuracy"].value


def test_mean_and_spread_of_the_accuracy_are_those_of_the_binomial_distribution() -> None:
    volumes, accuracy, resamples = 500, 0.9, 4000
    drawn = resampled_values(*right_and_wrong(volumes, accuracy), 0, resamples, 0)["accuracy"]
    spread = (accuracy * (1 - accuracy) / volumes) ** 0.5
    assert drawn.mean() == pytest.approx(accuracy, abs=4 * spread / resamples**0.5)
    assert drawn.std(ddof=1) == pytest.approx(spread, rel=0.05)


# Li et al. 2021, Tables 5 to 7: accuracies with the bounds of their intervals. Volumes are those of the test part at that depth;
# in Table 5 the intervals of depths 16 and 32, in Table 6 those of 8 and 16, have each other's number of volumes.
PAPER = [
    ("Table 7, ResNet-18", 6709, 0.9924, 0.9902, 0.9945),
    ("Table 7, ResNet-18 (2+1)D", 6709, 0.9885, 0.9860, 0.9910),
    ("Table 7, ResNet-34", 6709, 0.9800, 0.9767, 0.9834),
    ("Table 7, ResNet-34 (2+1)D", 6709, 0.9719, 0.9679, 0.9758),
    ("Table 7, ResNet-50", 6709, 0.9801, 0.9768, 0.9834),
    ("Table 5, depth 2", 13418, 0.8481, 0.8421, 0.8542),
    ("Table 5, depth 4", 6709, 0.9547, 0.9499, 0.9597),
    ("Table 5, depth 8", 3354, 0.9683, 0.9625, 0.9742),
    ("Table 5, depth 16", 837, 0.9677, 0.9556, 0.9798),
    ("Table 5, depth 32", 1676, 0.9640, 0.9550, 0.9730),
    ("Table 5, depth 64", 418, 0.9298, 0.9057, 0.9540),
    ("Table 6, depth 2, batch 32", 13418, 0.9914, 0.9897, 0.9930),
    ("Table 6, depth 4, batch 64", 6709, 0.9832, 0.9802, 0.9862),
    ("Table 6, depth 8, batch 32", 1676, 0.9815, 0.9751, 0.9880),
    ("Table 6, depth 16, batch 32", 3354, 0.9790, 0.9743, 0.9838),
]


@pytest.mark.parametrize(("volumes", "accuracy", "low", "high"), [row[1:] for row in PAPER], ids=[row[0] for row in PAPER])
def test_the_normal_interval_is_that_of_the_papers_tables(volumes: int, accuracy: float, low: float, high: float) -> None:
    """To within what 400 resamples leave to chance."""
    found = estimates(*right_and_wrong(volumes, accuracy), 0, Drawing(resamples=400, ci="normal"))["accuracy"]
    chance = 0.15 * (high - low) / 2
    assert (found.mean, found.low, found.high) == pytest.approx((accuracy, low, high), abs=chance + 0.0001)


def test_the_normal_interval_is_symmetric_about_the_mean() -> None:
    labels, probabilities = sample()
    drawn = resampled_values(labels, probabilities, 0, 200, 0)
    for name, found in estimates(labels, probabilities, 0, Drawing(resamples=200, ci="normal")).items():
        reach = 1.96 * drawn[name].std(ddof=1)
        if found.high == 1 or found.low == 0:
            continue
        assert (found.mean, found.low, found.high) == pytest.approx((drawn[name].mean(), found.mean - reach, found.mean + reach), rel=1e-12)


def test_the_normal_interval_is_clipped_to_what_a_share_can_be() -> None:
    """As in Li et al. 2021, Table 4: "0.9826 (0.9461, 1.0000)"."""
    almost = estimates(*right_and_wrong(40, 0.975), 0, Drawing(resamples=200, ci="normal"))["accuracy"]
    assert almost.high == 1
    assert 1 - almost.mean < almost.mean - almost.low
    never = estimates(*right_and_wrong(40, 0.025), 0, Drawing(resamples=200, ci="normal"))["accuracy"]
    assert never.low == 0


def test_the_percentile_interval_is_that_of_the_resamples() -> None:
    labels, probabilities = sample()
    drawn = resampled_values(labels, probabilities, 2, 333, 5)
    values = point_values(labels, probabilities, 2)
    found = estimates(labels, probabilities, 2, Drawing(resamples=333, seed=5))
    assert set(found) >= set(METRICS)
    for name in METRICS:
        low, high = np.percentile(drawn[name], [2.5, 97.5])
        assert found[name] == Estimate(values[name], pytest.approx(drawn[name].mean(), rel=1e-12), low, high)


def test_the_figures_of_a_perfect_model_are_the_best_and_not_certain() -> None:
    labels = np.repeat([0, 1, 2], 20)
    for interval in INTERVALS:
        found = estimates(labels, np.eye(3)[labels], 0, Drawing(resamples=100, ci=interval))
        best = {name: 0.0 if name in ("brier", "log_loss", "ece") else 1.0 for name in found}
        assert {name: (one.value, one.mean) for name, one in found.items()} == {name: (value, value) for name, value in best.items()}
        assert all(one.low is None or one.low < one.high for one in found.values()), "no interval claims certainty"


@pytest.mark.parametrize("interval", INTERVALS)
def test_metrics_that_are_not_defined_have_no_estimate_and_the_others_have(interval: str) -> None:
    labels = np.repeat([1, 2], 10)
    found = estimates(labels, np.eye(3)[(labels + np.arange(20) // 18) % 3], 0, Drawing(resamples=100, ci=interval))
    assert found["macro_auroc"] == found["recall"] == Estimate(None, None, None, None)
    assert found["accuracy"].value == 0.9
    assert found["accuracy"].low < 0.9 < found["accuracy"].high


def test_resamples_without_a_class_do_not_count_for_metrics_that_need_it() -> None:
    """One volume in ten is positive and always found: recall is one wherever there is one to find."""
    labels = np.array([0] + [1] * 5 + [2] * 4)
    drawn = resampled_values(labels, np.eye(3)[labels], 0, 300, 0)["recall"]
    assert 0.2 < np.isnan(drawn).mean() < 0.5
    assert estimates(labels, np.eye(3)[labels], 0, Drawing(resamples=300))["recall"] == Estimate(
        1.0, 1.0, pytest.approx(0.025), 1.0, exact=True
    )


def test_the_value_of_the_sample_is_kept_where_no_resample_defines_the_metric() -> None:
    labels = np.array([0] + [1] * 9 + [2] * 9)
    for seed in range(5):
        assert estimates(labels, np.eye(3)[labels], 0, Drawing(resamples=1, seed=seed))["recall"].value == 1.0


def perfect(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels of `count` volumes, and probabilities that are right of each."""
    labels = np.arange(count) % 3
    return labels, np.eye(3)[labels] * 0.7 + 0.1


def test_where_all_volumes_are_right_the_interval_is_that_of_an_exact_binomial_test() -> None:
    from scipy.stats import binomtest

    labels, probabilities = perfect(12)
    found = estimates(labels, probabilities, 0)
    for metric, count in {"accuracy": 12, "binary_accuracy": 12, "recall": 4, "precision:1": 4, "specificity": 8, "npv:2": 8}.items():
        expected = binomtest(count, count).proportion_ci(0.95, "exact")
        assert (found[metric].low, found[metric].high) == pytest.approx((expected.low, 1.0)), metric
        assert found[metric].value == found[metric].mean == 1 and found[metric].exact
    # F1 follows from the share of true positives in all that are positive or predicted so.
    share = binomtest(4, 4).proportion_ci(0.95, "exact").low
    assert found["f1"].low == pytest.approx(2 * share / (1 + share)) and found["f1"].exact
    # No share, and so no interval rather than one without width.
    assert (found["macro_auroc"].low, found["macro_auroc"].high, found["macro_auroc"].exact) == (None, None, False)


def test_all_wrong_and_by_patient_the_exact_interval_counts_patients() -> None:
    from scipy.stats import binomtest

    labels, probabilities = perfect(12)
    wrong = estimates((labels + 1) % 3, probabilities, 0)["accuracy"]
    assert (wrong.low, wrong.high) == pytest.approx((0.0, binomtest(0, 12).proportion_ci(0.95, "exact").high))
    by_patient = estimates(labels, probabilities, 0, Drawing("patient"), np.arange(12) // 4)["accuracy"]
    assert by_patient.low == pytest.approx(binomtest(3, 3).proportion_ci(0.95, "exact").low)


@pytest.mark.parametrize("ci", ["percentile", "normal", "bca"])
def test_one_patient_never_gives_an_interval_without_width(ci: str) -> None:
    labels, probabilities = perfect(12)
    labels[:3] = (labels[:3] + 1) % 3
    found = estimates(labels, probabilities, 0, Drawing("patient", ci=ci), np.zeros(12, np.int64))
    accuracy = found["accuracy"]
    assert accuracy.exact and accuracy.low < 0.1 and accuracy.high > 0.99 and accuracy.value == 0.75
    assert all(one.low is None or one.high - one.low > 0.5 for one in found.values())


def test_an_interval_with_width_is_the_bootstrap_s() -> None:
    labels, probabilities = perfect(30)
    labels[0] = 1
    assert not any(one.exact for name, one in estimates(labels, probabilities, 0).items() if name in ("accuracy", "recall:1"))
