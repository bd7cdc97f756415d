"""A device that is absent is an error; bfloat16 is taken only where it gains."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import ctcovid
from ctcovid.base.errors import UsageError
from ctcovid.models import device, registry
from ctcovid.models.architectures import ARCHITECTURES, architecture
from ctcovid.models.device import choose_device, choose_precision, deterministic_convolutions, settle

CPU = torch.device("cpu")


@pytest.fixture
def no_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.usefixtures("no_accelerator")
@pytest.mark.parametrize("wanted", ["cuda", "cuda:0", "cuda:3", "mps"])
def test_asking_for_an_absent_device_is_an_error_and_no_silent_fallback(wanted: str) -> None:
    with pytest.raises(UsageError, match=wanted):
        choose_device(wanted)
    with pytest.raises(UsageError, match=wanted):
        registry.build("r3d18", ["a", "b", "c"], wanted)


@pytest.mark.usefixtures("no_accelerator")
@pytest.mark.parametrize(("wanted", "why"), [("cpu:1", "one device"), ("cuda:1", "0 CUDA devices"), ("mps", "no Apple GPU")])
def test_why_a_device_is_absent_is_said_of_that_kind_of_device(wanted: str, why: str) -> None:
    with pytest.raises(UsageError, match=f"--device {wanted} is not available: .*{why}"):
        choose_device(wanted)


@pytest.mark.parametrize("wanted", ["", "gpu", "CPU", "cuda:", "cuda:x", "cuda:-1", "meta", "cpu:7"])
def test_an_unknown_device_is_a_usage_error(wanted: str) -> None:
    with pytest.raises(UsageError, match="--device"):
        choose_device(wanted)


def test_a_gpu_beyond_the_last_one_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda:1") == torch.device("cuda:1")
    assert choose_device("auto").type == "cuda"
    with pytest.raises(UsageError, match="cuda:2"):
        choose_device("cuda:2")


@pytest.mark.usefixtures("no_accelerator")
def test_auto_falls_back_on_the_cpu() -> None:
    assert choose_device("auto") == choose_device("cpu") == CPU


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_float32_is_always_available(name: str) -> None:
    assert choose_precision("float32", CPU, architecture(name)) == torch.float32


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name.startswith("tv_")])
def test_on_a_cpu_networks_that_do_not_fold_stay_in_float32(name: str) -> None:
    assert choose_precision("auto", CPU, architecture(name)) == torch.float32
    with pytest.raises(UsageError, match=f"bfloat16.*{name}"):
        choose_precision("bfloat16", CPU, architecture(name))


def test_a_model_in_a_notebook_does_not_change_how_its_process_allocates(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[int] = []
    monkeypatch.setattr(device, "keep_freed_memory", kept.append)
    registry.build("tv_mc3_18", ["a", "b", "c"], "cpu", "float32")
    assert kept == []
    settle(torch.device("cuda"))
    assert kept == []
    settle(CPU)
    assert kept == [device.LARGEST_KEPT]


def test_the_commands_that_compute_keep_freed_memory() -> None:
    """`demo` runs the others in its own process."""
    package = Path(ctcovid.__file__).parent
    calling = {path.relative_to(package).as_posix() for path in package.rglob("*.py") if "    settle(" in path.read_text()}
    assert calling == {f"commands/{name}.py" for name in ("train", "evaluate", "predict", "explain")}


@pytest.mark.parametrize("before", [True, False])
def test_deterministic_convolutions_end_with_what_asked_for_them(before: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", before)
    with pytest.raises(KeyError), deterministic_convolutions():
        assert torch.backends.cudnn.deterministic is True
        raise KeyError
    assert torch.backends.cudnn.deterministic is before
