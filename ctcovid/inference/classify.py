"""Scans through one model or several: decoded ahead while the networks work, joined to one judgement per scan."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from ctcovid.inference.batcher import Answer, Batcher
from ctcovid.inference.checked_scan import CheckedScan, RefusedScanError, read_checked
from ctcovid.inference.flags import flags_of
from ctcovid.inference.temperature import calibrated
from ctcovid.models.registry import TrainedModel
from ctcovid.scans.findings import Finding
from ctcovid.scans.scan import Scan
from ctcovid.scans.window import Window

# Scans that are read while another is classified; each of them is in memory.
AHEAD = 2


@dataclass(frozen=True)
class VolumeJudgement:
    """One volume of a scan: the model's name, the volume's number, the names of its ends, and its probabilities, float64 (classes,)."""

    model: str
    number: int
    first_slice: str
    last_slice: str
    probabilities: np.ndarray


@dataclass(frozen=True)
class ScanJudgement:
    """What one model or several say of a scan.

    Attributes
    ----------
    probabilities : float64 (classes,), the mean over the models of the mean over their volumes
    predicted : the class with the highest one
    spread : standard deviation over the models of the predicted class's probability; 0 with one
    agreement : share of all volumes whose own highest class is the scan's
    slices : how many were used, or dropped only because they fill no volume
    flags : what should make one doubt it
    volumes : of every model
    """

    scan: Scan
    probabilities: np.ndarray
    predicted: int
    spread: float
    agreement: float
    slices: int
    flags: list[Finding]
    volumes: list[VolumeJudgement]


@dataclass(frozen=True)
class Refused:
    """A scan that was not checked, with the codes of the reasons and a sentence."""

    scan: Scan
    codes: tuple[str, ...]
    reason: str


Form = tuple[int, Window]


@dataclass
class _Open:
    """A scan that is being classified, or was refused, with the answers by the number of the model."""

    scan: Scan
    read: dict[Form, CheckedScan] | RefusedScanError
    answers: dict[int, Answer] = field(default_factory=dict)

    def known(self, models: int) -> bool:
        return isinstance(self.read, RefusedScanError) or len(self.answers) == models


def classify(
    scans: Iterable[Scan], models: Sequence[TrainedModel], workers: int, raw: bool = False, done: Callable[[Scan], None] = lambda scan: None
) -> Generator[ScanJudgement | Refused, None, None]:
    """Judge scans, in their order, each given as soon as it is known; `workers` slices are decoded at a time.

    Memory holds `AHEAD` scans, the one that is classified, and volumes for one pass, whatever the number of scans.

    Parameters
    ----------
    models : of the same classes in the same order; their depths, sizes and windows may differ
    raw : leave the models' softmax as it is, without their temperatures
    done : called by the thread that has read a scan, whether it could or not
    """
    fewest = max(model.depth for model in models)
    forms: list[Form] = list(dict.fromkeys((model.size, model.window) for model in models))
    batchers = [Batcher(model.network) for model in models]
    # By model, the scans that it has not answered about.
    asked: list[deque[_Open]] = [deque() for _ in models]
    waiting: deque[_Open] = deque()

    def ready() -> Iterator[ScanJudgement | Refused]:
        while waiting and waiting[0].known(len(models)):
            yield _joined(waiting.popleft(), models, raw)

    def heard(number: int, answers: list[Answer]) -> None:
        for answer in answers:
            asked[number].popleft().answers[number] = answer

    # Two pools: a scan that waits for its slices must not keep them from being decoded.
    with ThreadPoolExecutor(workers) as slices, ThreadPoolExecutor(AHEAD) as readers:

        def read(scan: Scan) -> dict[Form, CheckedScan] | RefusedScanError:
            try:
                return {form: read_checked(scan, *form, slices, fewest) for form in forms}
            except RefusedScanError as error:
                return error
            finally:
                done(scan)

        for scan, found in _ahead(read, scans, readers):
            one = _Open(scan, found)
            waiting.append(one)
            if not isinstance(found, RefusedScanError):
                for number, model in enumerate(models):
                    asked[number].append(one)
                    heard(number, batchers[number].add(found[model.size, model.window].volumes(model.depth)))
            yield from ready()
        for number, batcher in enumerate(batchers):
            heard(number, batcher.finish())
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


def _joined(one: _Open, models: Sequence[TrainedModel], raw: bool) -> ScanJudgement | Refused:
    if isinstance(one.read, RefusedScanError):
        return Refused(one.scan, one.read.codes, str(one.read))
    volumes: list[VolumeJudgement] = []
    means: list[np.ndarray] = []
    flags: dict[str, Finding] = {}
    for place, model in enumerate(models):
        answer = one.answers[place]
        checked = one.read[model.size, model.window]
        each = answer.probabilities if raw else calibrated(answer.probabilities, model.temperature)
        means.append(each.mean(0))
        for number, probabilities in enumerate(each):
            first = number * model.depth
            volumes.append(VolumeJudgement(model.name, number, checked.names[first], checked.names[first + model.depth - 1], probabilities))
        for finding in flags_of(one.scan, checked, model, answer.features):
            flags.setdefault(finding.code, finding)
    shares = np.mean(means, axis=0)
    predicted = int(shares.argmax())
    agreement = float(np.mean([volume.probabilities.argmax() == predicted for volume in volumes]))
    spread = float(np.std([mean[predicted] for mean in means]))
    slices = max(len(checked.slices) for checked in one.read.values())
    return ScanJudgement(one.scan, shares, predicted, spread, agreement, slices, list(flags.values()), volumes)
