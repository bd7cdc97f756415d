"""Names of output files and folders that every file system takes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

# In bytes. File systems allow 255, which must also hold what temporary names add.
LONGEST = 180


def shortened(name: str, longest: int = LONGEST) -> str:
    """`name`, or its beginning and a hash if it takes more bytes."""
    encoded = os.fsencode(name)
    if len(encoded) <= longest:
        return name
    return f"{encoded[: longest - 11].decode(errors='ignore')}-{hashlib.sha256(encoded).hexdigest()[:10]}"


def distinct(names: Sequence[str], fallbacks: Sequence[str]) -> list[str]:
    """The names, shortened; those that are equal are replaced by their `fallbacks`, and still equal ones get a number."""
    found: list[str] = []
    taken: set[str] = set()
    for name, fallback in zip(names, fallbacks, strict=True):
        chosen, number = shortened(name if names.count(name) == 1 else fallback), 1
        while chosen.lower() in taken:
            number += 1
            chosen = f"{shortened(fallback)}-{number}"
        taken.add(chosen.lower())
        found.append(chosen)
    return found
