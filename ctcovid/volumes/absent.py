"""Whether a volumes file is there at all: said before h5py and numpy are imported."""

from __future__ import annotations

from pathlib import Path

from ctcovid.base.errors import InputError


def require_volumes(path: Path) -> None:
    """Raises InputError if there is nothing at this path, with the command that makes or finishes it."""
    if not path.exists():
        begun = path.with_name(path.name + ".partial").exists()
        remedy = "Run the same ctcovid prepare command again to finish it" if begun else "Make it with ctcovid prepare ./CC-CCII"
        raise InputError(f"No such volumes file: {path}. {remedy}, or name another with --data.")
