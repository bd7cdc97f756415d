"""Adding scans to a volumes file: its settings still apply, and its patients keep their parts."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from ctcovid.base.errors import InputError, UsageError, listing
from ctcovid.scans.privacy import Pseudonyms
from ctcovid.scans.scan import Scan
from ctcovid.scans.window import parse_window
from ctcovid.volumes.layout import awaited_parts
from ctcovid.volumes.reader import VolumesFile
from ctcovid.volumes.verdicts import is_read_again


def carried_over(file: VolumesFile, given: dict[str, Any]) -> dict[str, Any]:
    """The settings that `file` was prepared with, by option name; `given` are the options that the user gave.

    Raises UsageError if a given one differs, or if the choice of the file's scans depended on all of them.
    """
    settings = file.settings
    if settings.get("balance") or settings.get("split") == "same-as":
        raise UsageError(f"{file.path} was prepared with --balance or --same-as, which choose among all scans. Prepare all of them again.")
    names = ("split", "seed", "images", "on_problem", "keep_ids")
    held = {"depth": file.depth, "size": file.size, "positive": file.positive, "window": str(file.window)}
    held |= {name: settings[name] for name in names if name in settings}
    if "window" in given:
        given = {**given, "window": str(parse_window(given["window"]))}
    for name, value in held.items():
        if name in given and given[name] != value:
            option = name.replace("_", "-")
            wanted = "" if given[name] is True else f" {given[name]}"
            raise UsageError(
                f"{file.path} was prepared with {option} {value}: --{option}{wanted} does not fit. Omit it, or name another --output."
            )
    return {name: value for name, value in held.items() if (name, value) != ("split", "file")}


def require_same_choice(file: VolumesFile, lesions: str | None, parts: dict[str, str] | None) -> None:
    """Raises UsageError if --lesions or --split-file was given for the file but not now, or now but not then.

    Raises InputError if `parts` would move a patient of the file. `lesions` is the hash of the list.
    """
    settings = file.settings
    if settings.get("lesions") != lesions:
        raise UsageError(
            f"{file.path} was prepared with {'another' if settings.get('lesions') else 'no'} --lesions. Give the same as for that run."
        )
    by_file = settings.get("split") == "file"
    if by_file != (parts is not None):
        how = "by a list, so pass --split-file with the new patients" if by_file else f"{settings.get('split')}, so omit --split-file"
        raise UsageError(f"The patients of {file.path} were split {how}.")
    known = parts_of(file)
    moved = [f"patient {one}: in {known[one]}, not in {part}" for one, part in (parts or {}).items() if known.get(one, part) != part]
    if moved:
        raise InputError(f"Patients of {file.path} cannot change their part:\n{listing(moved)}\nCorrect these lines.")


def require_same_salt(file: VolumesFile, salt: Path) -> None:
    """Raises InputError if patients of the file would get other pseudonyms than in the file, and so perhaps other parts."""
    mark = file.settings.get("pseudonyms")
    if mark and not (salt.exists() and Pseudonyms(salt).mark == mark):
        raise InputError(f"{salt} is not the salt of the pseudonyms in {file.path}. Restore it, or prepare all scans again.")


def not_there_yet(file: VolumesFile, scans: list[Scan]) -> list[Scan]:
    """Scans that the file neither holds nor has left out for good.

    Raises InputError if one has a class that the file does not have.
    """
    known = {row.source for row in (*file.rows, *(row for row in file.left_out if not is_read_again(row)))}
    new = [scan for scan in scans if scan.source not in known]
    strange = sorted({scan.label for scan in new} - set(file.classes))
    if strange:
        raise InputError(
            f"{file.path} has the classes {', '.join(file.classes)}, and the new scans also {', '.join(strange)}. "
            "A model is trained for the classes of its file. Prepare all scans again, with another --output."
        )
    return new


def parts_of(file: VolumesFile) -> dict[str, str]:
    """Part by patient, also of patients whose scans could not be read so far."""
    return {**awaited_parts(file.settings), **{row.patient: row.split for row in file.rows}}


def joined_listing(file: VolumesFile, listing_hash: str) -> str:
    """A hash of what the file was made from and of what is added."""
    return hashlib.sha256(f"{file.fingerprint} {listing_hash}".encode()).hexdigest()
