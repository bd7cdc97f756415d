"""The phantom's chest: lesions where the radiology has them, and no global figure that tells the classes apart."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from scipy.ndimage import distance_transform_edt
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import RepeatedStratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ctcovid.phantom.chest import ScanKey, Slice, chest, slices_of_chest
from ctcovid.phantom.dataset import Parameters, plan
from ctcovid.phantom.lesions import DIFFICULTY
from ctcovid.scans.classes import CLASS_ORDER
from ctcovid.scans.kind import is_masked

SIZE, SLICES = 64, 20


@pytest.fixture(scope="module")
def scans() -> dict[str, list[list[Slice]]]:
    return {label: [list(slices_of_chest(label, SLICES, SIZE, ScanKey(patient=patient))) for patient in range(5)] for label in CLASS_ORDER}


@pytest.mark.parametrize("label", CLASS_ORDER)
def test_phantom_is_uint8_of_the_size_asked_for_with_a_mask_of_the_same_shape(label: str) -> None:
    pixels, lesions = chest(label, 5, 40)
    assert (pixels.dtype, pixels.shape) == (np.uint8, (5, 40, 40))
    assert (lesions.dtype, lesions.shape) == (np.bool_, (5, 40, 40))


def test_same_numbers_make_the_same_scan_and_scans_of_a_patient_differ() -> None:
    one, again, other = (chest("CP", 6, 48, ScanKey(3, 1, scan))[0] for scan in (0, 0, 1))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_normal_has_no_lesion_and_the_others_have_them_in_several_slices(scans: dict[str, list[list[Slice]]]) -> None:
    assert not any(item.lesion.any() for scan in scans["Normal"] for item in scan)
    for label in ("NCP", "CP"):
        assert all(sum(item.lesion.any() for item in scan) >= 2 for scan in scans[label])


def test_lesions_lie_inside_the_lungs_and_are_denser(scans: dict[str, list[list[Slice]]]) -> None:
    for label in ("NCP", "CP"):
        for scan in scans[label]:
            pixels, lesion, lung = (np.stack([getattr(item, name) for item in scan]) for name in ("pixels", "lesion", "lung"))
            assert not (lesion & ~lung).any()
            assert np.median(pixels[lesion]) > np.median(pixels[lung & ~lesion]) + 10


def test_covid_lies_nearer_to_the_pleura_and_pneumonia_is_denser(scans: dict[str, list[list[Slice]]]) -> None:
    """Li et al. 2021, Sec. 3.4: ground glass in the subpleural area against blocks of consolidation."""
    depth, grey = {}, {}
    for label in ("NCP", "CP"):
        depths = [distance_transform_edt(item.lung)[item.lesion] for scan in scans[label] for item in scan]
        depth[label] = float(np.mean(np.concatenate(depths)))
        grey[label] = np.percentile(np.concatenate([item.pixels[item.lesion] for scan in scans[label] for item in scan]), 75)
    assert depth["NCP"] < 0.8 * depth["CP"]
    assert grey["CP"] > grey["NCP"] + 20


def test_covid_is_in_both_lungs_and_low_more_often_than_not(scans: dict[str, list[list[Slice]]]) -> None:
    both, low = [], []
    for scan in scans["NCP"]:
        lesion = np.stack([item.lesion for item in scan])
        both.append(lesion[:, :, : SIZE // 2].any() and lesion[:, :, SIZE // 2 :].any())
        low.append(np.average(np.arange(SLICES), weights=lesion.sum((1, 2))) > SLICES * 0.45)
    assert np.mean(both) > 0.5
    assert np.mean(low) > 0.5


def test_the_easier_the_larger_and_denser_are_lesions() -> None:
    areas, greys = [], []
    for difficulty in (0.0, 1.0):
        pixels, lesions = zip(*(chest("NCP", 16, SIZE, ScanKey(1, patient), difficulty) for patient in range(3)), strict=True)
        areas.append(np.mean(lesions))
        greys.append(np.mean(np.stack(pixels)[np.stack(lesions)]))
    assert areas[0] > 2 * areas[1]
    assert greys[0] > greys[1]


def test_vessels_go_on_from_slice_to_slice() -> None:
    """Bright spots in a lung lie over bright spots of the next thin slice far more often than chance has it."""
    stack = list(slices_of_chest("Normal", 200, 128, ScanKey(patient=1)))[80:100]
    again, chance = [], []
    for one, two in pairwise(stack):
        inside = one.lung & two.lung & (distance_transform_edt(one.lung) > 3) & (distance_transform_edt(two.lung) > 3)
        here, there = (item.pixels[inside] > 130 for item in (one, two))
        again.append(np.mean(there[here]))
        chance.append(np.mean(there))
    assert np.mean(again) > 4 * np.mean(chance)


def test_no_phantom_passes_for_a_masked_scan(scans: dict[str, list[list[Slice]]]) -> None:
    assert not any(is_masked(item.pixels) for several in scans.values() for scan in several for item in scan)


@pytest.mark.parametrize("difficulty", [0.0, DIFFICULTY])
def test_no_global_figure_tells_the_classes_apart(difficulty: float) -> None:
    """Mean grey, sizes, positions, noise, zoom and number of slices: a linear classifier stays near chance (1/3, 0.5).

    So it does with the mean of the lungs. At 0 it is what the demo trains with.
    """
    size, slices = 48, 8
    figures, lungs, labels = [], [], []
    for scan in plan(Parameters(patients=24, seed=3, scans=1)):
        stack = list(slices_of_chest(scan.label, slices, size, ScanKey(3, scan.patient), difficulty))
        pixels = np.stack([item.pixels for item in stack]).astype(float)
        lung = np.stack([item.lung for item in stack])
        body, area, places = pixels > 150, lung.sum((1, 2)), np.arange(size)
        figures.append(
            [
                pixels.mean(),
                pixels.std(),
                body.mean(),
                lung.mean(),
                np.average(np.arange(slices), weights=area),
                lung.any((1, 2)).mean(),
                np.abs(np.diff(pixels[:, :, :8], axis=2)).mean(),
                np.average(places, weights=body.sum((0, 1))),
                np.average(places, weights=body.sum((0, 2))),
                pixels[:, :4, :4].mean(),
                scan.slices,
            ]
        )
        lungs.append([pixels[lung].mean()])
        labels.append(scan.label)
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    folds = RepeatedStratifiedKFold(n_splits=4, n_repeats=3, random_state=0)
    for some in (np.array(figures), np.array(lungs)):
        for scoring, most in (("accuracy", 0.48), ("roc_auc_ovr", 0.66)):
            assert cross_val_score(classifier, some, np.array(labels), cv=folds, scoring=scoring).mean() < most
