"""native.py: the compiled library is called with the arguments that its functions take, or not at all."""

from __future__ import annotations

import ctypes
import re
import subprocess
from pathlib import Path

import pytest
import torch

from ctcovid.kernels import native

FOLDER = Path(native.__file__).parent

needs_compiled = pytest.mark.skipif(native.compiled is None, reason="no compiler was at hand when ctcovid was installed")
pytestmark = pytest.mark.skipif(not (FOLDER / "_passes.cpp").is_file(), reason="the C++ sources are not part of what is installed")


def exported(file: str) -> list[str]:
    """The prototypes of the functions that a C++ file exports."""
    source = " ".join((FOLDER / file).read_text().replace("\\\n", "\n").split())
    found = re.findall(r"EXPORT\((\w+), (\w+?)(_##type)?, ([^)]*)\)", source)
    return [f"{result} {name}{'_T' if each else ''}({parameters})" for result, name, each, parameters in found]


def test_the_table_holds_the_prototypes_of_the_c_sources() -> None:
    assert exported("_passes.cpp") == list(native.PASSES)
    other_processors = [native.SUPPORTED]
    assert exported("_convolutions.cpp") == [native.SUPPORTED, *native.CONVOLUTIONS, *other_processors]
    assert 'extern "C"' not in "".join((FOLDER / file).read_text() for file in ("_passes.cpp", "_convolutions.cpp"))


def test_passes_exist_once_for_each_type() -> None:
    assert native.for_each_type(["void f_T(const T *x, T *y, float *z)"]) == [
        "void f_float32(const float *x, float *y, float *z)",
        "void f_bfloat16(const bf16 *x, bf16 *y, float *z)",
    ]


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ("i64 rows", ctypes.c_int64),
        ("int relu", ctypes.c_int),
        ("const i64 grid[8]", native._Numbers(8)),
        ("const float *x", native._Memory(torch.float32)),
        ("bf16 *y", native._Memory(torch.bfloat16)),
    ],
)
def test_argument_types_follow_from_the_prototypes(declared: str, expected: object) -> None:
    assert native.parameter_type(declared) == expected


def test_a_type_that_is_not_known_is_not_guessed() -> None:
    with pytest.raises(KeyError):
        native.parameter_type("double x")


@needs_compiled
def test_a_library_that_was_compiled_from_these_sources_is_taken() -> None:
    found = native.load(native.LIBRARY)
    assert found is not None
    assert len(found.moments_float32.argtypes) == 6
    assert found.convolutions_supported.argtypes == []


@needs_compiled
@pytest.mark.parametrize("change", [("i64 rows, i64 C", "i64 C, i64 rows"), ("int threads", "i64 threads"), ("moments_T", "mean_T")])
def test_a_library_that_was_compiled_from_other_prototypes_is_refused(change: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """An editable installation does not compile again by itself, and a function with old arguments writes where it should not."""
    monkeypatch.setattr(native, "PASSES", [one.replace(*change) for one in native.PASSES])
    assert native.load(native.LIBRARY) is None


def test_what_is_not_our_library_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.so").write_text("no library")
    assert native.load(tmp_path / "text.so") is None
    # From before libraries knew their prototypes.
    (tmp_path / "old.cpp").write_text('extern "C" int interface() { return 4; }\nextern "C" void moments_float32() {}\n')
    try:
        subprocess.run(["g++", "-shared", "-fPIC", "-o", tmp_path / "old.so", tmp_path / "old.cpp"], check=True)
    except FileNotFoundError:
        pytest.skip("no compiler here")
    assert native.load(tmp_path / "old.so") is None


@needs_compiled
def test_tensors_of_another_type_or_device_are_refused_before_memory_is_touched() -> None:
    mean, var = torch.zeros(3), torch.zeros(3)
    for x in (torch.zeros(4, 3, dtype=torch.float64), torch.zeros(4, 3, device="meta")):
        with pytest.raises(ctypes.ArgumentError, match=r"expects torch\.float32 on the CPU"):
            native.call("moments_float32", x, 4, 3, mean, var)
    with pytest.raises(TypeError):
        native.call("moments_float32", mean, 4, 3, mean)
    with pytest.raises(ctypes.ArgumentError, match="expects 8 numbers, not 2"):
        native.call("normalise_float32", torch.zeros(4, 3), None, (1, 2), 4, 3, 0, mean, var, True, torch.zeros(4, 3))
