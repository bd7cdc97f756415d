"""The run card: a JSON file with the command, its settings, machine, inputs and outputs, and how it ended."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
import platform
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from ctcovid.base.errors import InputError, StoppedError
from ctcovid.base.files import resolved, write_json

PACKAGES = ("ctcovid", "torch", "torchvision", "numpy", "h5py", "pillow", "scipy", "scikit-learn", "pandas", "safetensors")


class RunCard:
    """The record of one run, written to `path` when the run starts and replaced when it ends.

    Parameters
    ----------
    path : of the card
    command : name of the command
    settings : resolved settings by name
    sources : where each setting came from: "option", "environment", "file" or "default"
    """

    def __init__(self, path: Path, command: str, settings: dict[str, Any], sources: dict[str, str]) -> None:
        self.path = path
        self.content: dict[str, Any] = {
            "command": command,
            "arguments": sys.argv[1:],
            "settings": {
                name: {"value": value, "source": sources.get(name, "default")} for name, value in settings.items() if name != "sources"
            },
            "versions": versions(),
            "git": _git_commit(),
            "host": {"name": socket.gethostname(), "system": platform.platform(), "cpus": os.cpu_count()},
            "slurm": {name: value for name, value in sorted(os.environ.items()) if name.startswith("SLURM_JOB") or name == "SLURM_PROCID"},
            "device": None,
            "seed": settings.get("seed"),
            "inputs": [],
            "outputs": [],
            "began": now(),
            "ended": None,
            "status": "running",
        }

    @contextlib.contextmanager
    def recording(self) -> Iterator[RunCard]:
        """Write the card now, and again with times and status when the block ends, with or without an exception."""
        self.write()
        try:
            yield self
            self.content["status"] = "done"
        except BaseException as error:
            stopped = isinstance(error, StoppedError | KeyboardInterrupt)
            self.content["status"] = "stopped" if stopped else "failed"
            self.content["error"] = str(error) or type(error).__name__
            raise
        finally:
            self.content["ended"] = now()
            # A command that replaces its whole folder may have removed the card's folder before it failed. If it failed or was stopped,
            # its own reason, such as a full disk, says more than that the card cannot be written either.
            with contextlib.nullcontext() if self.content["status"] == "done" else contextlib.suppress(OSError, InputError):
                if self.path.parent.is_dir():
                    self.write()

    def write(self) -> None:
        """Write the card as it stands."""
        write_json(self.path, self.content)

    def input(self, path: Path, fingerprint: str | None = None) -> None:
        """Add an input with its hash: `fingerprint`, or the SHA-256 of a file or of all files of a folder."""
        digest = fingerprint or f"sha256:{sha256(path)}"
        self.content["inputs"].append({"path": str(resolved(path)), "hash": digest})

    def output(self, path: Path) -> None:
        """Add an output."""
        self.content["outputs"].append(str(path))


def now() -> str:
    """The time with its zone, to the second."""
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def sha256(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of the files that a folder holds, in hexadecimal."""
    if path.is_dir():
        return sha256_of(item for item in path.iterdir() if item.is_file())
    digest = hashlib.sha256()
    _add(digest, path)
    return digest.hexdigest()


def sha256_of(files: Iterable[Path]) -> str:
    """SHA-256 of the names and contents of files, each taken once, in hexadecimal; equal to that of a folder that holds only these."""
    digest = hashlib.sha256()
    for path in sorted(set(files)):
        digest.update(path.name.encode(errors="surrogateescape"))
        _add(digest, path)
    return digest.hexdigest()


def _add(digest: hashlib._Hash, path: Path) -> None:
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages whose version can change a result."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _git_commit() -> str | None:
    """The commit of ctcovid itself, if it runs from a checkout."""
    checkout = Path(__file__).parents[2]
    if not (checkout / ".git").exists():
        return None
    try:
        answer = subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None
