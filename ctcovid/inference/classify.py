"""Scans through one or several models: decoded ahead while the networks compute, averaged to one prediction per scan."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from ctcovid.base.faults import machine_fault
from ctcovid.inference.batcher import Batcher, Outputs
from ctcovid.inference.checked_scan import CheckedScan, RefusedScanError, read_checked
from ctcovid.inference.flags import flags_of
from ctcovid.inference.temperature import calibrated
from ctcovid.models.registry import TrainedModel
from ctcovid.scans.absent import MACHINE_FAULT
from ctcovid.scans.findings import Finding
from ctcovid.scans.scan import Scan
from ctcovid.scans.window import Window

# Scans that are read while another is classified; each is in memory.
AHEAD = 2


@dataclass(frozen=True)
class VolumePrediction:
    """One volume of a scan: the model's name, the volume's number, the names of its ends, and its probabilities, float64 (classes,)."""

    model: str
    number: int
    first_slice: str
    last_slice: str
    probabilities: np.ndarray


@dataclass(frozen=True)
class ScanPrediction:
    """Prediction of one or several models for a scan.

    Attributes
    ----------
    probabilities : float64 (classes,), the mean over the models of the mean over their volumes
    predicted : the class with the highest one
    spread : standard deviation over the models of the predicted class's probability; 0 with one
    agreement : share of all volumes whose own highest class is the scan's
    slices : how many were used, or dropped only because they do not fill a volume
    flags : reasons to doubt the prediction
    volumes : of every model
    """

    scan: Scan
    probabilities: np.ndarray
    predicted: int
    spread: float
    agreement: float
    slices: int
    flags: list[Finding]
    volumes: list[VolumePrediction]


@dataclass(frozen=True)
class Refused:
    """A scan that was not predicted, with the codes of the reasons and a sentence."""

    scan: Scan
    codes: tuple[str, ...]
    reason: str


Form = tuple[int, Window]


@dataclass
class _Open:
    """A scan that is being classified, or was refused, with the outputs by index of the model."""

    scan: Scan
    read: dict[Form, CheckedScan] | RefusedScanError
    outputs: dict[int, Outputs] = field(default_factory=dict)

    def complete(self, models: int) -> bool:
        return isinstance(self.read, RefusedScanError) or len(self.outputs) == models


def classify(
    scans: Iterable[Scan], models: Sequence[TrainedModel], workers: int, raw: bool = False, done: Callable[[Scan], None] = lambda scan: None
) -> Generator[ScanPrediction | Refused, None, None]:
    """Predictions for scans, in their order, each yielded as soon as it is known; `workers` slices are decoded at a time.

    Memory holds `AHEAD` scans, the one that is classified, and the volumes of one pass, however many scans there are.

    Parameters
    ----------
    models : of the same classes in the same order; their depths, sizes and windows may differ
    raw : return the models' softmax without temperature scaling
    done : called after each scan was read or refused, by the thread that read it
    """
    fewest = max(model.depth for model in models)
    forms: list[Form] = list(dict.fromkeys((model.size, model.window) for model in models))
    batchers = [Batcher(model.network) for model in models]
    # By model, the scans without outputs so far.
    pending: list[deque[_Open]] = [deque() for _ in models]
    waiting: deque[_Open] = deque()

    def ready() -> Iterator[ScanPrediction | Refused]:
        while waiting and waiting[0].complete(len(models)):
            yield _joined(waiting.popleft(), models, raw)

    def collect(number: int, finished: list[Outputs]) -> None:
        for outputs in finished:
            pending[number].popleft().outputs[number] = outputs

    # Two pools: scans that wait for their slices must not occupy the threads that decode them.
    with ThreadPoolExecutor(workers) as slices, ThreadPoolExecutor(AHEAD) as readers:

        def read(scan: Scan) -> dict[Form, CheckedScan] | RefusedScanError:
            try:
                return {form: read_checked(scan, *form, slices, fewest) for form in forms}
            except RefusedScanError as error:
                return error
            except (OSError, MemoryError, RuntimeError) as error:
                if fault := machine_fault(error):
                    return RefusedScanError(fault.told(scan.folder), (MACHINE_FAULT,))
                raise
            finally:
                done(scan)

        for scan, found in _ahead(read, scans, readers):
            one = _Open(scan, found)
            waiting.append(one)
            if not isinstance(found, RefusedScanError):
                for number, model in enumerate(models):
                    pending[number].append(one)
                    collect(number, batchers[number].add(found[model.size, model.window].volumes(model.depth)))
            yield from ready()
        for number, batcher in enumerate(batchers):
            collect(number, batcher.finish())
        yield from ready()


def _ahead(
    read: Callable[[Scan], dict[Form, CheckedScan] | RefusedScanError], scans: Iterable[Scan], readers: ThreadPoolExecutor
) -> Iterator[tuple[Scan, dict[Form, CheckedScan] | RefusedScanError]]:
    rest = iter(scans)
    reading: deque[tuple[Scan, Future[dict[Form, CheckedScan] | RefusedScanError]]] = deque()
    try:
        while True:
            for scan in islice(rest, AHEAD - len(reading)):
                reading.append((scan, readers.submit(read, scan)))
            if not reading:
                return
            scan, future = reading.popleft()
            yield scan, future.result()
    finally:
        for _, future in reading:
            future.cancel()


def _joined(one: _Open, models: Sequence[TrainedModel], raw: bool) -> ScanPrediction | Refused:
    if isinstance(one.read, RefusedScanError):
        return Refused(one.scan, one.read.codes, str(one.read))
    volumes: list[VolumePrediction] = []
    means: list[np.ndarray] = []
    flags: dict[str, Finding] = {}
    for index, model in enumerate(models):
        outputs = one.outputs[index]
        checked = one.read[model.size, model.window]
        each = outputs.probabilities if raw else calibrated(outputs.probabilities, model.temperature)
        means.append(each.mean(0))
        for number, probabilities in enumerate(each):
            first = number * model.depth
            ends = checked.names[first], checked.names[first + model.depth - 1]
            volumes.append(VolumePrediction(model.name, number, *ends, probabilities))
        for finding in flags_of(one.scan, checked, model, outputs.features):
            flags.setdefault(finding.code, finding)
    shares = np.mean(means, axis=0)
    predicted = int(shares.argmax())
    agreement = float(np.mean([volume.probabilities.argmax() == predicted for volume in volumes]))
    spread = float(np.std([mean[predicted] for mean in means]))
    slices = max(len(checked.slices) for checked in one.read.values())
    return ScanPrediction(one.scan, shares, predicted, spread, agreement, slices, list(flags.values()), volumes)
