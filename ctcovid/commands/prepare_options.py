"""Which options of ctcovid prepare go together, and what comes of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ctcovid.base.cluster import require_engine
from ctcovid.base.errors import UsageError
from ctcovid.options.prepare import Options
from ctcovid.reports.tables import Table
from ctcovid.volumes.split import parse_shares


@dataclass(frozen=True)
class Summary:
    """What was prepared: rows of the table by class and split, the scans that had to be left out, and what was found wrong.

    `output` is None where only a check or a plan was asked for.
    """

    output: Path | None
    table: Table
    failed: list[str]
    quality: Table

    def document(self) -> dict[str, Any]:
        output = {"output": str(self.output)} if self.output else {}
        return {**output, "table": records(self.table), "failed": self.failed, "quality": records(self.quality)}


def require_sense(options: Options) -> tuple[float, float, float]:
    """Shares of the parts.

    Raises UsageError where options exclude each other.
    """
    given = {
        "--split": "split" in options.given,
        "--split-file": options.split_file is not None,
        "--same-as": options.same_as is not None,
        "--balance": options.balance,
        "--check": options.check,
        "--plan": options.plan,
        "--append": options.append,
        "--overwrite": options.overwrite,
    }
    for pair in (("--split", "--split-file"), ("--split", "--same-as"), ("--split-file", "--same-as"), ("--check", "--plan")):
        if all(given[name] for name in pair):
            raise UsageError(f"{pair[0]} and {pair[1]} exclude each other. Give one of them.")
    for one, others in (
        ("--balance", ("--split-file", "--same-as")),
        ("--append", ("--balance", "--same-as", "--check", "--plan", "--overwrite")),
    ):
        for other in others:
            if given[one] and given[other]:
                raise UsageError(f"{one} and {other} exclude each other. Give one of them.")
    if options.defects is not None and not options.plan:
        raise UsageError("--defects goes with --plan. To leave listed scans out, pass --exclude.")
    require_engine(options.executor)
    return parse_shares(options.split)


def records(table: Table) -> list[dict[str, Any]]:
    """Rows as they stand in JSON."""
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]
