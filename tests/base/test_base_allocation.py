"""Freed memory is used again."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ctcovid.base.allocation import keep_freed_memory

LAYERS = """
import resource, sys
import numpy as np
from ctcovid.base.allocation import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory(1 << 30)
def layer():
    return np.ones(1 << 24, np.float32)
for _ in range(10):
    layer()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    layer()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not keep_freed_memory(32 << 20, 256 << 20), reason="the C library is not glibc")
def test_memory_that_one_layer_frees_is_the_next_ones_without_new_pages() -> None:
    """Ten times 64 MiB are 163,840 pages of 4 KiB."""
    made = {}
    for way in ("usual", "kept"):
        done = subprocess.run([sys.executable, "-c", LAYERS, way], capture_output=True, text=True, check=True)
        made[way] = int(done.stdout)
    assert made["kept"] < 100 < made["usual"]
