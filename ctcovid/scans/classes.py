"""Names of classes, in the order of tables and figures, and the positive one among them."""

from __future__ import annotations

from collections.abc import Iterable

from ctcovid.base.errors import InputError, did_you_mean

# The archive's own names, in the paper's order of tables and figures.
CLASS_ORDER = ("NCP", "CP", "Normal")


def class_order(names: Iterable[str]) -> list[str]:
    """Class names: NCP, CP and Normal first where they are present, others after them by name."""
    present = set(names)
    known = [name for name in CLASS_ORDER if name in present]
    others = present - set(known)
    if others:
        # Imported here because it imports the decoders of scans, which predictions in a CSV do not need.
        from ctcovid.scans.contents import natural_key

        known += sorted(others, key=natural_key)
    return known


def positive_class(classes: list[str], wanted: str | None) -> str:
    """The class that precision and recall refer to: `wanted`, or the first.

    Raises InputError if there is no such class.
    """
    if wanted is None:
        return classes[0]
    if wanted not in classes:
        raise InputError(f"--positive {wanted}: no such class. The data have {', '.join(classes)}.{did_you_mean(wanted, classes)}")
    return wanted
