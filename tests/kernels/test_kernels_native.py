"""native.py: the compiled library is taken only where it is the one that is meant."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest

from ctcovid.kernels import native

SOURCES = [Path(native.__file__).with_name(name) for name in ("_passes.cpp", "_convolutions.cpp")]
pytestmark = pytest.mark.skipif(not SOURCES[0].is_file(), reason="the C++ sources are not part of what is installed")
# The compiled functions, by the interface number that they were given.
FUNCTIONS = {4: "3d9b3d7007420281"}


def test_functions_that_change_get_another_interface_number() -> None:
    """An editable installation is not compiled again by itself, and a function that is called in an old way writes where it should not."""
    declared = re.findall(r'extern "C" ([^{]*)\{', "".join(source.read_text() for source in SOURCES))
    together = " ".join(" ".join(declared).replace("\\", "").split())
    digest = hashlib.sha256(together.encode()).hexdigest()[:16]
    assert {native._INTERFACE: digest} == FUNCTIONS, "raise the interface number, in native.py and _passes.cpp, and pin it here"


def test_the_number_is_the_same_on_both_sides() -> None:
    assert f"int interface() {{ return {native._INTERFACE}; }}" in SOURCES[0].read_text()
