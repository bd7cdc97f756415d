"""Figures are whole PNG files, or none."""

from __future__ import annotations

import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import find_objects, label

from ctcovid.reports.figures import confusion, curve, figure, literal

DOTS = 150


def pixels(path: Path) -> np.ndarray:
    """The picture as float RGB; the folder holds nothing else."""
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"), dtype=float)


def test_a_figure_has_the_size_that_was_asked_for(tmp_path: Path) -> None:
    with figure(tmp_path / "a.png", 3, 2) as drawn:
        drawn.subplots().plot([0, 1])
        assert not (tmp_path / "a.png").exists()
    assert pixels(tmp_path / "a.png").shape == (2 * DOTS, 3 * DOTS, 3)


def test_a_figure_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), figure(tmp_path / "a.png", 3, 2):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_a_figure_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("old")
    with figure(tmp_path / "a.png", 1, 1):
        pass
    assert pixels(tmp_path / "a.png").shape == (DOTS, DOTS, 3)


@pytest.mark.parametrize("what", ["loss", "accuracy"])
@pytest.mark.parametrize("valid", [[0.9, 0.6, 0.5], [None, None, None], [0.9, None, 0.5]])
def test_curves_show_training_and_where_there_is_one_validation(tmp_path: Path, what: str, valid: list[float | None]) -> None:
    """Li et al. 2021, Figs. 8 and 9: blue for training, orange for validation."""
    curve(tmp_path / "curve.png", what, [1, 2, 3], [0.8, 0.5, 0.3], valid)
    red, _, blue = np.moveaxis(pixels(tmp_path / "curve.png"), 2, 0)
    assert red.shape == (4 * DOTS, 6 * DOTS)
    assert (blue - red > 60).sum() > 100
    assert ((red - blue > 100).sum() > 100) == any(value is not None for value in valid)


@pytest.mark.parametrize("classes", [["NCP", "CP", "Normal"], ["NCP", "Normal"]])
def test_the_confusion_matrix_darkens_with_the_share_of_the_true_class(tmp_path: Path, classes: list[str]) -> None:
    """Li et al. 2021, Fig. 6: normalised by row, so a small class found as well as a large one is as dark."""
    counts = np.diag([1000, 10, 100][: len(classes)])
    path = tmp_path / "confusion.png"
    confusion(path, counts, classes, "r3d18")
    picture = pixels(path)
    side = 2.2 + 0.9 * len(classes)
    assert picture.shape == (round(side * DOTS), round((side + 0.6) * DOTS), 3)
    dark = np.abs(picture - [8, 48, 107]).max(2) < 3
    areas = [area for area in find_objects(label(dark)[0]) if dark[area].shape[1] > 0.5 * DOTS]
    # One square for each class, all of a size, from the upper left to the lower right.
    assert len(areas) == len(classes)
    heights, widths = (np.array([area[axis].stop - area[axis].start for area in areas]) for axis in (0, 1))
    assert np.ptp(heights) <= 2
    assert np.abs(heights - widths).max() <= 2
    for upper, lower in pairwise(areas):
        assert upper[0].stop <= lower[0].start + 1
        assert upper[1].stop <= lower[1].start + 1


def test_a_class_without_volumes_stays_blank(tmp_path: Path) -> None:
    confusion(tmp_path / "confusion.png", np.array([[5, 1, 0], [0, 6, 0], [0, 0, 0]]), ["NCP", "CP", "Normal"], "r3d18")
    assert pixels(tmp_path / "confusion.png").std() > 0


@pytest.mark.parametrize("name", ["ünïcode-肺", "肺炎", "a\tb", "scan-\udcff", "😷"])
def test_names_that_the_font_lacks_are_drawn_without_a_warning_and_stay_distinct(name: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number, names in enumerate(([name, "CP"], [name.replace(name[-1], "\u4e00"), "CP"])):
            (tmp_path / str(number)).mkdir()
            confusion(tmp_path / str(number) / "a.png", np.eye(2, dtype=int), names, f"Model {name}")
    assert not np.array_equal(pixels(tmp_path / "0" / "a.png"), pixels(tmp_path / "1" / "a.png"))


def test_a_character_is_named_only_where_the_font_lacks_it() -> None:
    assert literal("ünïcode-肺\nβ 95 %") == "ünïcode-[U+80BA]\nβ 95 %"
    assert literal("$x$") == r"\$x\$"
