"""A few fixed faults, injected into ctcovid prepare by a preloaded library; injected.py draws many, also for predict and explain."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import harness
import pytest

ROUNDS = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import harness
harness.warmed()
folder = Path(sys.argv[2]).resolve()
data, out = harness.make_data(folder / "data", patients=3), folder / "out"
command = ["prepare", data, "--size", 64, "-o", out / "v.h5"]
out.mkdir()
assert harness.run(command, folder, None).code == 0
right = harness.volumes_content(out / "v.h5")
faults = ("EIO", 40, 1, data), ("ENOSPC", 12, 0, out)
for name, at, count, where in faults:
    for path in out.iterdir():
        path.unlink()
    done = harness.run(command, folder, harness.Injection(name, at, count, (where,)))
    said = done.stderr
    assert done.code in (1, 4) or harness.volumes_content(out / "v.h5") == right, (name, done)
    assert "Traceback" not in said and "unexpected" not in said and "damaged" not in said, said
    again = harness.run(command + ["--append"] * (out / "v.h5").exists(), folder, None)
    assert again.code == 0 and harness.volumes_content(out / "v.h5") == right, (name, again)
    print(name, done.code, said.splitlines()[-1])
"""


def prepare(dataset: Path, output: Path, most_bytes: int) -> subprocess.CompletedProcess[str]:
    """`ctcovid prepare` that may write files of so many bytes only; 0 for no limit."""
    resource = pytest.importorskip("resource")
    limit = (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))) if most_bytes else None
    command = [sys.executable, "-m", "ctcovid", "prepare", dataset, "--size", "64", "-o", output, "--workers", "1"]
    return subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=limit)


def test_file_size_limit_is_named_and_scans_before_it_are_kept(tmp_path: Path) -> None:
    dataset = harness.make_data(tmp_path / "data", patients=3)
    whole = prepare(dataset, tmp_path / "whole.h5", 0)
    assert whole.returncode == 0, whole.stderr
    cut = prepare(dataset, tmp_path / "cut.h5", (tmp_path / "whole.h5").stat().st_size * 3 // 4)
    assert cut.returncode == 1 and "ulimit -f" in cut.stderr and "Traceback" not in cut.stderr
    again = prepare(dataset, tmp_path / "cut.h5", 0)
    assert again.returncode == 0 and "Resuming" in again.stderr
    assert harness.volumes_content(tmp_path / "cut.h5") == harness.volumes_content(tmp_path / "whole.h5")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="LD_PRELOAD is Linux's")
def test_prepare_loses_nothing_when_the_machine_fails(tmp_path: Path) -> None:
    shim = harness.compiled(tmp_path)
    if shim is None:
        pytest.skip("no C compiler")
    environment = {**os.environ, "LD_PRELOAD": str(shim), "FAULT_KINDS": ""}
    here = str(Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", ROUNDS, here, str(tmp_path)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    said = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert "o space is left" in said["ENOSPC"]
