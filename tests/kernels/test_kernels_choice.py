"""choice.py: CTCOVID_KERNELS=torch turns off what is not torch's own, and a fall back is said once."""

from __future__ import annotations

import pytest
import torch

from ctcovid.base.errors import UsageError
from ctcovid.base.process_info import ProcessInfo
from ctcovid.kernels import choice, convolutions, native


def test_the_variable_turns_compiled_passes_and_convolutions_off(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(1, 2, 2, 2, 3, dtype=torch.bfloat16)
    monkeypatch.delenv(choice.VARIABLE, raising=False)
    assert native.usable(x) == (native.compiled is not None)
    assert convolutions.usable(x) == convolutions.supported
    monkeypatch.setenv(choice.VARIABLE, "torch")
    assert not native.usable(x)
    assert not convolutions.usable(x)


def test_another_value_of_the_variable_is_an_error_that_says_what_to_do() -> None:
    assert not choice.plain_torch({})
    assert not choice.plain_torch({choice.VARIABLE: ""})
    with pytest.raises(UsageError, match=r"CTCOVID_KERNELS=Torch: unknown value\. Use CTCOVID_KERNELS=torch, or unset"):
        choice.plain_torch({choice.VARIABLE: "Torch"})


def test_a_fall_back_is_said_once_and_by_the_first_process_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(choice, "_said", set())
    for _ in range(2):
        choice.warn_once("Slow.")
    assert capsys.readouterr().err == "Warning: Slow.\n"
    monkeypatch.setattr(choice, "process_info", lambda: ProcessInfo(rank=1, size=2))
    choice.warn_once("Slower.")
    assert capsys.readouterr().err == ""
