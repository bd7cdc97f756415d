"""A file that is damaged at random is read or refused in a sentence, whatever its kind: no other exception, crash, hang or memory."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from damage import KINDS, damaged, outcome
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the limits of time and memory are those of Linux")
# Files of each kind; a longer run is that of damage.py.
FILES = 20


@pytest.fixture(scope="module", params=KINDS)
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, bytes]:
    path = tmp_path_factory.mktemp("sound") / KINDS[request.param].name
    KINDS[request.param].make(path)
    # In this process, so that what it imports is there for all.
    KINDS[request.param].read(path)
    return request.param, path, path.read_bytes()


@seed(18)
@settings(max_examples=FILES, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
@given(number=st.integers(0, 1 << 30))
def test_damaged_file_is_read_or_refused(sound: tuple[str, Path, bytes], number: int) -> None:
    name, path, content = sound
    path.write_bytes(damaged(content, number))
    assert outcome(KINDS[name], path) in ("read", "refused"), f"seed {number}"
