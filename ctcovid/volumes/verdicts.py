"""From the decoded slices of a scan to its row in volumes.h5: what is wrong with it, and which slices are kept."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from ctcovid.base.errors import InputError, counted
from ctcovid.base.faults import MachineFaultError
from ctcovid.scans.absent import MACHINE_FAULT, read_again
from ctcovid.scans.findings import ERROR, INFO, KEPT, SCAN_DROPPED, Finding
from ctcovid.scans.kind import COMPLETE, SEGMENTED
from ctcovid.scans.quality import Unusable, Verdict, check, without_repairs
from ctcovid.scans.scale import GREY
from ctcovid.scans.scan import Scan
from ctcovid.scans.slice_summary import SliceSummary
from ctcovid.volumes.encode import Chunk, Encoded, Probed
from ctcovid.volumes.layout import ScanRow


@dataclass(frozen=True)
class Criteria:
    """Which scans and slices are kept.

    Attributes
    ----------
    depth : slices per volume
    images : "complete", "segmented" or "all"
    on_problem : "repair", "drop" or "stop"
    lesions : names of slices with lesions by scan, if others are dropped
    """

    depth: int
    images: str
    on_problem: str
    lesions: dict[str, set[str]] | None = None


def check_scan(scan: Scan, probed: Probed, slices: list[Encoded], criteria: Criteria) -> tuple[ScanRow, list[Chunk]]:
    """A scan's row, with its findings and without its part, and its kept slices, head to feet; none if it is left out.

    Raises InputError if the scan has a problem and `criteria.on_problem` is "stop".
    """
    summaries = [one.summary if isinstance(one, Chunk) else one for one in slices]
    verdict = verdict_of(scan, probed.colour, [Unusable(MACHINE_FAULT, probed.fault)] if probed.fault else summaries)
    verdict = _with_criteria(scan, verdict, criteria)
    if 0 < len(verdict.kept) < criteria.depth:
        message = f"Only {counted(len(verdict.kept), 'slice')}, too few for a volume of depth {criteria.depth}."
        verdict = replace(verdict, findings=(*verdict.findings, Finding("too-few-slices", INFO, message, KEPT)))
    form = probed.form
    in_hounsfield = any(one.summary.hounsfield is not None for one in slices if isinstance(one, Chunk))
    scale = GREY if scan.stack and scan.stack.reader == "volume" and not in_hounsfield else form.scale
    checks: dict[str, Any] = {"height": form.height, "width": form.width, "bits": scale.bits, "scaling": scale.name}
    if scan.geometry is not None:
        checks["slice_spacing"] = scan.geometry.spacing[2]
    if verdict.findings:
        checks["findings"] = [asdict(finding) for finding in verdict.findings]
    chunks = [one for position in verdict.kept if isinstance(one := slices[position], Chunk)]
    text = json.dumps(checks, ensure_ascii=False)
    return ScanRow(scan.id, scan.patient, scan.label, "", 0, len(chunks), verdict.kind, scan.source, text, crc32=0), chunks


def verdict_of(scan: Scan, colour: bool, summaries: list[SliceSummary | Unusable]) -> Verdict:
    """What is wrong with a scan and what is kept of it, by its files, by whether its pictures are in `colour`, and by its slices."""
    if faults := [one for one in summaries if isinstance(one, Unusable) and one.code == MACHINE_FAULT]:
        # What is wrong with such a scan, and whether anything is, only another run can tell.
        return Verdict((Finding(MACHINE_FAULT, ERROR, faults[0].message, SCAN_DROPPED),), (), COMPLETE)
    # Positions from the files are more reliable than the order found from the pictures.
    slices = [_numbered(scan, position, one) for position, one in enumerate(summaries)]
    verdict = check(scan.names, slices, scan.positioned, scan.findings, scan.unread)
    if colour:
        finding = Finding("not-a-chest", ERROR, "Not a CT scan of a chest: its pictures are in colour.", SCAN_DROPPED)
        verdict = replace(verdict, findings=(*verdict.findings, finding), kept=())
    return verdict


def _numbered(scan: Scan, position: int, slice_: SliceSummary | Unusable) -> SliceSummary | Unusable:
    """Adds the slice's number to the message about a DICOM file, which does not name the file."""
    if isinstance(slice_, SliceSummary) or scan.stack is None or scan.stack.reader != "dicom":
        return slice_
    return replace(slice_, message=f"slice {scan.names[position]}: {slice_.message}")


def _with_criteria(scan: Scan, verdict: Verdict, criteria: Criteria) -> Verdict:
    problems = [finding for finding in verdict.findings if finding.action != KEPT]
    if problems and criteria.on_problem == "stop":
        what = problems[0].message.rstrip(".")
        if problems[0].code == MACHINE_FAULT:
            raise MachineFaultError(f"{scan.folder}: {what}.")
        raise InputError(f"{scan.folder}: {problems[0].code}: {what}. Repair it, list the scan in --exclude, or pass --on-problem repair.")
    if criteria.on_problem == "drop":
        verdict = without_repairs(verdict)
    if verdict.kept and criteria.images not in (verdict.kind, "all"):
        others = tuple(finding for finding in verdict.findings if finding.code != SEGMENTED)
        message = f"A {verdict.kind} scan, but --images asks for {criteria.images} ones."
        return replace(verdict, findings=(*others, Finding(verdict.kind, INFO, message, SCAN_DROPPED)), kept=())
    if criteria.lesions is not None and any(source.startswith(f"{scan.label}/") for source in criteria.lesions):
        listed = criteria.lesions.get(scan.source, set())
        kept = tuple(position for position in verdict.kept if scan.slices[position].stem in listed)
        if kept or not verdict.kept:
            return replace(verdict, kept=kept)
        finding = Finding("no-lesions", INFO, "None of its slices is in the list of slices with lesions.", SCAN_DROPPED)
        return replace(verdict, findings=(*verdict.findings, finding), kept=())
    return verdict


def findings_of(rows: Iterable[ScanRow]) -> list[tuple[ScanRow, Finding]]:
    """The findings of each scan, from whichever run."""
    found = []
    for row in rows:
        for item in json.loads(row.checks).get("findings", []):
            found.append((row, Finding(**{**item, "slices": tuple(item["slices"])})))
    return found


def is_read_again(row: ScanRow) -> bool:
    """Whether a scan is left out of this run only: the machine failed, or files of it were absent."""
    return read_again(finding for _, finding in findings_of([row]))


def reasons_of(rows: Iterable[ScanRow]) -> dict[str, str]:
    """By source, why a scan is left out, if something is wrong with it."""
    reasons: dict[str, str] = {}
    for row, finding in findings_of(rows):
        if finding.action == SCAN_DROPPED and finding.severity != INFO:
            reasons.setdefault(row.source, finding.message)
    return reasons
