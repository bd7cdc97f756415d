"""The benchmark of the networks measures each variant by itself, and loses nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import networks
import pytest
import torch

CPU = torch.device("cpu")
SMALL = ("ctcovid float32", "r3d18", 4, 32, 2, CPU, 300)


def found(ours: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    variants = {"ctcovid": {"batch": 2, **ours}, "plain float32": {"batch": 2, **other}}
    return {"arch": "r3d18", "depth": 4, "size": 32, "peaks": {"torch.float32": 1e11}, "gmac_folded": 0.1, "variants": variants}


def test_memory_of_a_step_does_not_depend_on_what_the_process_that_asked_has_taken() -> None:
    before = networks.child("step", *SMALL)["memory"]
    # More than the step itself takes: 33 million float32 weights, their gradients and Adam's two moments.
    ballast = torch.ones(400_000_000)
    after = networks.child("step", *SMALL)["memory"]
    assert len(ballast) * 4 > before > 4 * 4 * 33_031_619
    assert after == pytest.approx(before, rel=0.1)


def test_a_table_can_be_shown_whatever_was_measured() -> None:
    fast = {"forward": 0.1, "step": 0.2, "memory": {"memory": 0}}
    slow = {"forward": 0.2, "step": 0.4, "memory": {"memory": 10**9}}
    assert "| 1000 | - |" in networks.table(found(fast, slow))
    assert "| 200.0 | - | 400.0 | - |" in networks.table(found({"memory": {"failed": "crashed"}}, slow))
    assert "| 200.0 | 2.00 | 400.0 | 2.00 |" in networks.table(found(fast, slow))


def test_figures_are_written_before_they_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(found: dict[str, Any]) -> str:
        raise ZeroDivisionError

    monkeypatch.setattr(networks, "measure", lambda *_: {"figures": 1})
    monkeypatch.setattr(networks, "table", broken)
    monkeypatch.setattr(
        sys, "argv", ["networks.py", "--size", "32", "--batch", "2", "--device", "cpu", "--json", str(tmp_path / "all.json")]
    )
    with pytest.raises(ZeroDivisionError):
        networks.main()
    assert json.loads((tmp_path / "all.json").read_text())["results"] == [{"figures": 1}]


def test_what_a_crashed_variant_said_is_cut_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    words = "RuntimeError: " + "volumes | " * 40
    monkeypatch.setattr(networks.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], -11, "", f"more\n{words}\n"))
    said = networks.child("step", *SMALL)["failed"]
    assert said.startswith("crashed (signal 11) RuntimeError: volumes") and said.endswith(" …")
    assert len(said) <= 120 and "|" not in said


@pytest.mark.parametrize(
    "arguments",
    [
        ["--rounds", "0"],
        ["--size", "0"],
        ["--depth", "4", "0"],
        ["--batch", "0"],
        ["--batch", "-1"],
        ["--patience", "0"],
        ["--batch", "1", "--size", "32"],
        ["--device", "tpu"],
        ["--device", "cuda:99"],
        ["--json", "absent/all.json"],
        ["--json", "."],
    ],
)
def test_what_cannot_be_measured_is_a_usage_error_before_anything_is(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measured(*_: object) -> None:
        raise AssertionError("measured")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(networks, "measure", measured)
    monkeypatch.setattr(sys, "argv", ["networks.py", *arguments])
    with pytest.raises(SystemExit) as caught:
        networks.main()
    assert caught.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("networks.py: error: ")
