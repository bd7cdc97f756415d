"""A closed stream, or one whose encoding lacks letters, costs no result and gives no traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import sys
from pathlib import Path
from ctcovid.base.console import Console
from ctcovid.base.streams import abandon_stdout, settle_streams, stdout_is_closed
from ctcovid.reports.tables import Table
settle_streams()
console = Console(json=sys.argv[1] == "json")
name = "\\u4e2d\\U0001f600\\x9b \\udcff"
console.say(f"About {name}")
console.result(Table(["scan"], [[name]]), {"scan": name})
with open("file.bin", "wb") as file:
    import os
    assert file.fileno() > 2
    os.write(1, b"library on 1"), os.write(2, b"library on 2")
Path("closed.txt").write_text(str(stdout_is_closed()))
abandon_stdout()
"""


@pytest.mark.parametrize("closed", ["", "1", "2", "0 1 2"])
def test_closed_streams_leave_every_file_as_it_was_written(closed: str, tmp_path: Path) -> None:
    line = [sys.executable, "-c", CODE, "table"]
    done = subprocess.run(line, preexec_fn=lambda: [os.close(int(one)) for one in closed.split()], cwd=tmp_path, timeout=60, check=False)
    assert done.returncode == 0
    assert (tmp_path / "file.bin").read_bytes() == b""
    assert (tmp_path / "closed.txt").read_text() == str("1" in closed)


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii", "gbk", "cp1252"])
def test_letters_that_an_encoding_lacks_are_replaced_and_json_stays_json(encoding: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    for kind in ("table", "json"):
        line = [sys.executable, "-c", CODE, kind]
        done = subprocess.run(line, capture_output=True, env=environment, cwd=tmp_path, timeout=60, check=True)
        out, told = done.stdout.decode(encoding), done.stderr.decode(encoding)
        assert "Traceback" not in told and "\\x9b \\xff" in told and "\x9b" not in told + out
        if kind == "json":
            assert json.loads(out.removesuffix("library on 1")) == {"scan": "\u4e2d\U0001f600\x9b \\xff"}
        else:
            assert "\\x9b \\xff" in out
            assert ("\u4e2d" if encoding in ("utf-8", "gbk") else "\\u4e2d") in out


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_stream_that_takes_nothing_ends_without_a_traceback(stream: str, tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: full}
        done = subprocess.run([sys.executable, "-m", "ctcovid", "models"], text=True, cwd=tmp_path, timeout=60, check=False, **pipes)
    if stream == "stdout":
        assert (
            done.returncode == 1 and "o space is left" in done.stderr and "Traceback" not in done.stderr and "Exception" not in done.stderr
        )
    else:
        assert done.returncode == 0 and "r3d18" in done.stdout
