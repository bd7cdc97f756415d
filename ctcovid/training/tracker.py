"""What happens between two steps of an epoch: their outcomes are read, a checkpoint is saved, and all processes agree on stopping."""

from __future__ import annotations

import math

from ctcovid.base.console import Advance
from ctcovid.base.errors import CtcovidError
from ctcovid.distributed.session import Session
from ctcovid.training.checkpoint import Saving
from ctcovid.training.step import Outcome, Step, Stepper
from ctcovid.volumes.batches import VolumeSet

# Steps in a row without a finite loss and gradient after which training is given up.
MOST_SKIPPED = 3


class StepTracker:
    """Follows the steps of one epoch.

    On a GPU a step is read only after the next one was started, so that the GPU never waits for the program. A signal that all processes
    read with step n therefore ends the epoch after step n + 1. On a CPU it ends it after step n.

    A checkpoint needs the last step to be read, and may be due in one process alone. That process knows of the signal before the others
    do, and makes step n + 1 with them.

    Attributes
    ----------
    stopped : whether a signal was read; the epoch then ends after this step or the next
    """

    def __init__(self, stepper: Stepper, train_set: VolumeSet, session: Session, saving: Saving, advance: Advance) -> None:
        self.ahead, self.progress = stepper.ahead, stepper.state.progress
        self.train_set, self.session, self.saving, self.advance = train_set, session, saving, advance
        self.stopped = False
        self._unread: Step | None = None

    @property
    def number(self) -> int:
        """How many steps of the epoch were made, whether or not the last one has been read."""
        return self.progress.step + (self._unread is not None)

    def add(self, step: Step) -> bool:
        """Take in the step that was just made; whether the epoch stops after it."""
        if self._unread is not None:
            self.stopped = self._read(self._unread)
        self._unread = step
        if self.stopped:
            self._read_last()
            return True
        due = self.saving.due()
        if due or not self.ahead:
            self.stopped = self._read_last()
            if due and not self.stopped:
                self.saving.save()
        # On a GPU the other processes have started the next step before they read the signal.
        return self.stopped and not self.ahead

    def finish(self) -> None:
        """Read what was not read yet, after the last step."""
        self.stopped = self._read_last() or self.stopped

    def _read_last(self) -> bool:
        step, self._unread = self._unread, None
        return step is not None and self._read(step)

    def _read(self, step: Step) -> bool:
        """Add a step to the progress, which so counts what was read; whether it brought a signal."""
        outcome = step.read()
        self._count(outcome, step)
        self.advance(len(step.indices), self.progress.note())
        stop = self.session.stop
        if outcome.stopped is not None and stop.received is None:
            stop.received = outcome.stopped
        return outcome.stopped is not None

    def _count(self, outcome: Outcome, step: Step) -> None:
        """Add a step to the progress.

        Raises CtcovidError after several steps without a finite loss and gradient. The weights are those before them.
        """
        progress, volumes = self.progress, len(step.indices)
        progress.step += 1
        if not outcome.skipped:
            progress.skipped_in_a_row = 0
            progress.loss_sum += outcome.loss * volumes
            progress.correct += outcome.correct
            progress.seen += volumes
            return
        progress.skipped += 1
        progress.skipped_in_a_row += 1
        what = f"the gradient's norm is {outcome.norm}" if math.isfinite(outcome.loss) else f"the loss is {outcome.loss}"
        where = f"epoch {progress.epoch + 1}, step {progress.step}: {what}, with {self.train_set.named(step.indices)}"
        if progress.skipped_in_a_row >= MOST_SKIPPED:
            raise CtcovidError(
                f"The training has diverged: {MOST_SKIPPED} steps in a row had no finite loss and gradient, the last in {where}. "
                "Try a lower --learning-rate, or check these volumes."
            )
        self.session.console.warn(f"{where}. The step is skipped, {progress.skipped:,} so far.")
