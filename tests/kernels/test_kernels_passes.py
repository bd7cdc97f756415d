"""passes.py: which passes take a tensor, and what is said where a GPU has none."""

from __future__ import annotations

import sys

import gpu_stand_in
import pytest
import torch

from ctcovid.kernels import choice, native, passes


@pytest.fixture
def _on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passes, "GPUS", {"cpu"})
    monkeypatch.setattr(passes, "_found", {(torch.device("cpu"), dtype): gpu_stand_in for dtype in passes.TYPES})


def test_without_triton_torch_does_the_work_and_that_is_said_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("triton_passes", "triton_kernels", "triton_pooling", "triton_check"):
        monkeypatch.delitem(sys.modules, f"ctcovid.kernels.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.setattr(passes, "GPUS", {"cpu"})
    monkeypatch.setattr(passes, "_found", {})
    monkeypatch.setattr(choice, "_said", set())
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert not passes.usable(torch.zeros(1)) and not passes.usable(torch.zeros(1))
    assert not passes.usable(torch.zeros(1, dtype=torch.bfloat16))
    said = capsys.readouterr().err
    assert said.startswith("Warning: Triton is not installed (") and said.count("\n") == 1
    assert said.endswith("so torch's own operations are used, which are slower.\n")


@pytest.mark.usefixtures("_on_gpu")
def test_a_gpu_takes_float32_and_bfloat16_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(passes.on_gpu(torch.zeros(1, dtype=dtype)) for dtype in (torch.float32, torch.bfloat16))
    assert not any(passes.on_gpu(torch.zeros(1, dtype=dtype)) for dtype in (torch.float64, torch.float16))
    assert not passes.on_gpu(torch.zeros(1, device="meta"))
    monkeypatch.setenv(choice.VARIABLE, "torch")
    assert not passes.usable(torch.zeros(1))


def test_a_cpu_has_the_compiled_passes_alone() -> None:
    x = torch.zeros(1)
    assert not passes.on_gpu(x)
    assert passes.gpu(x) is None
    assert passes.usable(x) == native.usable(x)


@pytest.mark.usefixtures("_on_gpu")
def test_a_residual_that_does_not_fit_is_refused_before_memory_is_touched() -> None:
    x = torch.zeros(1, 2, 2, 2, 4)
    with pytest.raises(ValueError, match="cannot be added"):
        passes.normalise(x, native.Affine(torch.ones(4), torch.ones(4)), torch.zeros(1, 2, 2, 2, 5))
