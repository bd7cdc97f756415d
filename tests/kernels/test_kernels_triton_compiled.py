"""The Triton kernels compile for GPUs, also on a machine without one: their interpreter takes what the compiler refuses."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor

from ctcovid.kernels.native import Affine

if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("Triton interprets here, it does not compile", allow_module_level=True)
triton = pytest.importorskip("triton", reason="Triton is not installed")
if torch.cuda.is_available():
    pytest.skip("the kernels run on the GPU itself", allow_module_level=True)
compiler = pytest.importorskip("triton.backends.compiler")
ASTSource = pytest.importorskip("triton.compiler").ASTSource
if tuple(int(part) for part in triton.__version__.split(".")[:2]) < (3, 4):
    pytest.skip(f"Triton {triton.__version__} takes other arguments for what is compiled without a GPU", allow_module_level=True)
triton_passes = pytest.importorskip("ctcovid.kernels.triton_passes")

# Bytes of a vector that a thread reads at a time, as the compiler writes it.
VECTOR = "ld.global.v4.b32"
NAMES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.uint8: "*u8"}


def _type(value: Tensor | float) -> str:
    if isinstance(value, Tensor):
        return NAMES[value.dtype]
    return "fp32" if isinstance(value, float) else "i32" if abs(value) < 1 << 31 else "i64"


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """The assembly of each kernel that would be launched, specialised as Triton does it, for an H100 (9.0)."""
    found: dict[str, list[str]] = {}

    def launch(kernel: Any, programs: int, like: Tensor, *arguments: Any, **settings: Any) -> None:
        assert 0 < programs < 1 << 31
        signature, constants, attributes = {}, dict(settings), {}
        for number, (parameter, value) in enumerate(zip(kernel.params, arguments, strict=False)):
            name, general = parameter.name, parameter.do_not_specialize
            if isinstance(value, Tensor) or value != 1 or general:
                signature[name] = _type(value)
                if isinstance(value, Tensor) or (isinstance(value, int) and value % 16 == 0 and not general):
                    attributes[number,] = [["tt.divisibility", 16]]
            else:
                signature[name], constants[name] = "constexpr", 1
        signature |= dict.fromkeys(settings, "constexpr")
        positions = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
        source = ASTSource(kernel, signature, constexprs=positions, attrs=attributes)
        made = triton.compile(source, target=compiler.GPUTarget("cuda", 90, 32))
        found.setdefault(kernel.__name__, []).append(made.asm["ptx"])

    monkeypatch.setattr(triton_passes, "_launch", launch)
    monkeypatch.setattr(triton_passes, "_processors", lambda device: 132)
    return found


def empty(*sizes: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """A tensor without memory, so that it can be of any size."""
    return torch.empty(sizes, dtype=dtype, device="meta")


def every_pass(batch: int, dtype: torch.dtype) -> None:
    x, channels = empty(batch, 128, 128, 4, 64, dtype=dtype), empty(64, dtype=torch.float32)
    other, affine = empty(batch, 4, 128, 128, 64, dtype=dtype).permute(0, 2, 3, 1, 4), Affine(channels, channels)
    triton_passes.moments(x)
    triton_passes.affine(channels, channels, channels, channels, 1e-5)
    triton_passes.factors(affine, channels, channels, channels, channels, 100)
    triton_passes.normalise(x, affine, x, other)
    triton_passes.reduce(other, x, other, affine, channels)
    triton_passes.backward(other, x, None, affine, (channels, channels, channels), False)
    triton_passes.backward(other, x, other, affine, (channels, channels, channels), True)
    logical = x.permute(0, 3, 1, 2, 4)
    pooled, tap, _, _ = triton_passes.pool(logical, channels, measure=True)
    triton_passes.pool(logical, channels, measure=False, taps=False, relu=True)
    triton_passes.unpool(pooled, tap, logical, channels, channels)


def test_every_kernel_compiles_and_reads_whole_vectors(compiled: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    every_pass(32, torch.bfloat16)
    weight = empty(64, 64, 3, 3, 3, dtype=torch.float32).to(memory_format=torch.channels_last_3d)
    triton_passes.unband(triton_passes.band(weight, (2, 64, 2, 64), 1, 1, torch.bfloat16), torch.empty_like(weight), 1, 1)
    of_channels = {"affine", "factors", "running"}
    monkeypatch.setattr(torch.autograd.graph, "increment_version", lambda tensor: None)
    channels = empty(64, dtype=torch.float32)
    triton_passes.update_running((channels, channels), channels, channels, 0.1, 100)
    assert len(compiled) == 10 + len(of_channels)
    assert [name for name, kinds in compiled.items() for ptx in kinds if VECTOR not in ptx and name not in of_channels] == []
    triton_passes.patches(empty(32, 512, 512, 1), (256, 256, 56), (7, 7), (2, 2), (3, 3))
    assert "st.global.v4.b32" in compiled["patches"][0]


def test_more_elements_than_32_bits_can_number_compile_too(compiled: dict[str, list[str]]) -> None:
    assert empty(1024, 128, 128, 4, 64).numel() > 1 << 31
    every_pass(1024, torch.float32)
    assert len(compiled) == 10
