"""ctcovid models: a plan that can be added up."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ctcovid.base.console import Console
from ctcovid.commands import models

GMAC = ("GMAC plain", "GMAC folded", "GMAC chosen")


def plan(name: str, depth: int) -> models.Plan:
    made = models.run(models.Options(cost=name, depth=depth, size=64), Console(quiet=True, results=False))
    assert isinstance(made, models.Plan)
    return made


@pytest.mark.parametrize("name", ["r3d18", "r2plus1d18", "tv_r2plus1d_18", "tv_swin3d_t"])
@pytest.mark.parametrize("depth", [4, 16])
def test_each_column_of_the_plan_adds_up_to_its_total(name: str, depth: int) -> None:
    table = plan(name, depth).table()
    *layers, total = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    for column in GMAC:
        numbers = [str(layer[column]) for layer in layers]
        if column == "GMAC folded" and name.startswith("tv_"):
            assert {*numbers, total[column]} == {"-"}
        else:
            # Each is rounded to a thousandth.
            assert sum(map(float, numbers)) == pytest.approx(float(total[column]), abs=0.001 * len(layers))


def test_a_stem_that_runs_plain_is_counted_with_one_channel_of_three() -> None:
    stem = plan("r3d18", 16).layers[0]
    assert stem["chosen"] == "plain" and stem["gmac_chosen"] == pytest.approx(stem["gmac_plain"] / 3)


def test_the_document_holds_the_totals(capsys: pytest.CaptureFixture[str]) -> None:
    models.run(models.Options(cost="r3d18"), Console(quiet=True, json=True))
    document: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert document["totals"] == pytest.approx({"gmac_plain": 50.785, "gmac_folded": 19.596, "gmac_chosen": 19.596}, abs=1e-3)
    assert document["totals"]["gmac_chosen"] == pytest.approx(sum(layer["gmac_chosen"] for layer in document["layers"]))


def test_the_plan_says_that_it_counts_convolutions_alone() -> None:
    assert "Only convolutions are counted." in plan("r3d18", 4).table().text()
    assert "most of the work of tv_swin3d_t is in linear layers and attention" in plan("tv_swin3d_t", 4).table().text()
