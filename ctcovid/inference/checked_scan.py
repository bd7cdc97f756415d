"""A scan on disk to the slices for a network, checked and repaired as prepare does."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np

from ctcovid.base.errors import InputError, counted
from ctcovid.models.training_slices import slice_hash
from ctcovid.scans.absent import MACHINE_FAULT
from ctcovid.scans.findings import ERROR, SCAN_DROPPED, Finding
from ctcovid.scans.quality import Unusable
from ctcovid.scans.read import square
from ctcovid.scans.scan import Scan
from ctcovid.scans.slice_summary import SliceSummary
from ctcovid.scans.window import Window
from ctcovid.volumes.encode import probe_scan, summarised_slices
from ctcovid.volumes.verdicts import verdict_of


class RefusedScanError(InputError):
    """A scan that cannot be predicted; `codes` are the codes of the reasons."""

    def __init__(self, message: str, codes: tuple[str, ...]) -> None:
        super().__init__(message)
        self.codes = codes


@dataclass(frozen=True)
class CheckedScan:
    """A scan as a network gets it.

    Attributes
    ----------
    slices : uint8 (S, size, size), head to feet, without dropped ones
    kept : positions of these slices in the scan
    names : of these slices
    own_size : height and width of a slice in the files
    kind : "complete" or "segmented"
    findings : what is unusual about the scan, and what was repaired
    hashes : of the slices
    """

    slices: np.ndarray
    kept: tuple[int, ...]
    names: tuple[str, ...]
    own_size: tuple[int, int]
    kind: str
    findings: tuple[Finding, ...]
    hashes: tuple[bytes, ...] = ()

    def volumes(self, depth: int) -> np.ndarray:
        """The non-overlapping depth-n volumes, uint8 (N, depth, size, size); the tail is dropped (Li et al. 2021, Sec. 2.2)."""
        count = len(self.slices) // depth
        return self.slices[: count * depth].reshape(count, depth, *self.slices.shape[1:])


def read_checked(scan: Scan, size: int, window: Window, pool: Executor, fewest: int = 1) -> CheckedScan:
    """Read and check a scan, with slices decoded by the threads of `pool`.

    Raises RefusedScanError if it cannot be read, shows no chest, or has fewer than `fewest` slices, the depth of a volume.
    """
    if not scan.slices:
        reasons = [finding for finding in scan.findings if finding.severity == ERROR]
        raise RefusedScanError(scan.refusal, tuple(finding.code for finding in reasons))
    if len(scan.slices) < fewest:
        raise _too_few(scan, len(scan.slices), fewest)
    probed = probe_scan(scan)
    if probed.fault:
        raise RefusedScanError(probed.fault, (MACHINE_FAULT,))
    if probed.colour:
        raise _refused(scan, verdict_of(scan, True, []).findings)
    scale = probed.form.scale

    def decoded(piece: Scan) -> list[tuple[SliceSummary, np.ndarray] | Unusable]:
        return [one if isinstance(one, Unusable) else (one[0], square(one[1], size)) for one in summarised_slices(piece, scale, window)]

    slices = [one for some in pool.map(decoded, scan.pieces(1)) for one in some]
    verdict = verdict_of(scan, False, [one if isinstance(one, Unusable) else one[0] for one in slices])
    if not verdict.kept:
        raise _refused(scan, verdict.findings)
    if len(verdict.kept) < fewest:
        raise _too_few(scan, len(verdict.kept), fewest)
    pixels = np.empty((len(verdict.kept), size, size), np.uint8)
    for number, position in enumerate(verdict.kept):
        one = slices[position]
        assert not isinstance(one, Unusable)
        pixels[number] = one[1]
    names = tuple(scan.names[position] for position in verdict.kept)
    height, width = probed.form.height, probed.form.width
    # Here, because scans are read by threads of their own while another is classified.
    hashes = tuple(map(slice_hash, pixels))
    return CheckedScan(pixels, verdict.kept, names, (height, width), verdict.kind, verdict.findings, hashes)


def _refused(scan: Scan, findings: tuple[Finding, ...]) -> RefusedScanError:
    reasons = [finding for finding in findings if finding.action == SCAN_DROPPED]
    said = " ".join(finding.message for finding in reasons)
    where = "" if str(scan.folder) in said else f"{scan.folder}: "
    return RefusedScanError(f"{where}{said}", tuple(dict.fromkeys(finding.code for finding in reasons)))


def _too_few(scan: Scan, count: int, fewest: int) -> RefusedScanError:
    message = f"{scan.folder}: {counted(count, 'slice')}, but the model takes volumes of {fewest}. Give the whole scan, or another model."
    return RefusedScanError(message, ("too-few-slices",))
