"""From the decoded slices of a scan to its row in volumes.h5: what is wrong with it, what stays of it, and where that is written down."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from ctcovid.base.errors import InputError, counted
from ctcovid.scans.findings import ERROR, INFO, KEPT, SCAN_DROPPED, Finding
from ctcovid.scans.kind import SEGMENTED
from ctcovid.scans.quality import Unusable, Verdict, dropped_instead, judge
from ctcovid.scans.scan import Scan
from ctcovid.scans.slice_summary import SliceSummary
from ctcovid.volumes.encode import Chunk, Encoded, Probed
from ctcovid.volumes.layout import ScanRow


@dataclass(frozen=True)
class Wishes:
    """What is wanted of scans.

    depth : slices per volume
    images : "complete", "segmented" or "all"
    on_problem : "repair", "drop" or "stop"
    lesions : names of slices with lesions by scan, where others are not wanted
    """

    depth: int
    images: str
    on_problem: str
    lesions: dict[str, set[str]] | None = None


def judged(scan: Scan, probed: Probed, slices: list[Encoded], wishes: Wishes) -> tuple[ScanRow, list[Chunk]]:
    """A scan's row, with its findings and without its part, and the slices that stay, head to feet; none where it is left out.

    Raises InputError at a scan with a problem where that was wished for.
    """
    verdict = verdict_of(scan, probed.colour, [one.look if isinstance(one, Chunk) else one for one in slices])
    verdict = _as_wished(scan, verdict, wishes)
    if 0 < len(verdict.kept) < wishes.depth:
        message = f"{counted(len(verdict.kept), 'slice')} only, and a volume of depth {wishes.depth} takes more."
        verdict = replace(verdict, findings=(*verdict.findings, Finding("too-few-slices", INFO, message, KEPT)))
    form = probed.form
    checks: dict[str, Any] = {"height": form.height, "width": form.width, "bits": form.bits}
    if scan.geometry is not None:
        checks["slice_spacing"] = scan.geometry.spacing[2]
    if verdict.findings:
        checks["findings"] = [asdict(finding) for finding in verdict.findings]
    chunks = [one for place in verdict.kept if isinstance(one := slices[place], Chunk)]
    text = json.dumps(checks, ensure_ascii=False)
    return ScanRow(scan.id, scan.patient, scan.label, "", 0, len(chunks), verdict.kind, scan.source, text, crc32=0), chunks


def verdict_of(scan: Scan, colour: bool, looks: list[SliceSummary | Unusable]) -> Verdict:
    """What is wrong with a scan and what stays of it, by its files, by whether its pictures are in `colour`, and by its slices."""
    # Where the files say how slices lie in the patient, their order is not to be doubted.
    verdict = judge(scan.names, [_numbered(scan, place, one) for place, one in enumerate(looks)], ordered=scan.placed)
    dropped = any(finding.action == SCAN_DROPPED for finding in scan.findings)
    verdict = replace(verdict, findings=(*scan.findings, *verdict.findings), kept=() if dropped else verdict.kept)
    if colour:
        finding = Finding("not-a-chest", ERROR, "Not a CT scan of a chest: its pictures are in colour.", SCAN_DROPPED)
        verdict = replace(verdict, findings=(*verdict.findings, finding), kept=())
    return verdict


def _numbered(scan: Scan, place: int, slice_: SliceSummary | Unusable) -> SliceSummary | Unusable:
    """Says of a file with one DICOM slice, which is not named, which it is."""
    if isinstance(slice_, SliceSummary) or scan.stack is None or scan.stack.reader != "dicom":
        return slice_
    return replace(slice_, message=f"slice {scan.names[place]}: {slice_.message}")


def _as_wished(scan: Scan, verdict: Verdict, wishes: Wishes) -> Verdict:
    needy = [finding for finding in verdict.findings if finding.action != KEPT]
    if needy and wishes.on_problem == "stop":
        what = needy[0].message.rstrip(".")
        raise InputError(f"{scan.folder}: {needy[0].code}: {what}. Mend it, list the scan for --exclude, or pass --on-problem repair.")
    if wishes.on_problem == "drop":
        verdict = dropped_instead(verdict)
    if verdict.kept and wishes.images not in (verdict.kind, "all"):
        others = tuple(finding for finding in verdict.findings if finding.code != SEGMENTED)
        message = f"A {verdict.kind} scan, where {wishes.images} ones were asked for."
        return replace(verdict, findings=(*others, Finding(verdict.kind, INFO, message, SCAN_DROPPED)), kept=())
    if wishes.lesions is not None and any(source.startswith(f"{scan.label}/") for source in wishes.lesions):
        listed = wishes.lesions.get(scan.source, set())
        kept = tuple(place for place in verdict.kept if scan.slices[place].stem in listed)
        if kept or not verdict.kept:
            return replace(verdict, kept=kept)
        finding = Finding("no-lesions", INFO, "None of its slices is in the list of those with lesions.", SCAN_DROPPED)
        return replace(verdict, findings=(*verdict.findings, finding), kept=())
    return verdict


def findings_of(rows: Iterable[ScanRow]) -> list[tuple[ScanRow, Finding]]:
    """What was found in each scan, whichever run has found it."""
    found = []
    for row in rows:
        for item in json.loads(row.checks).get("findings", []):
            found.append((row, Finding(**{**item, "slices": tuple(item["slices"])})))
    return found


def reasons_of(rows: Iterable[ScanRow]) -> dict[str, str]:
    """By source, why a scan is left out for what is wrong with it."""
    reasons: dict[str, str] = {}
    for row, finding in findings_of(rows):
        if finding.action == SCAN_DROPPED and finding.severity != INFO:
            reasons.setdefault(row.source, finding.message)
    return reasons
