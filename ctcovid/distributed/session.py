"""What travels through every step of a command that several processes may run together."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from ctcovid.base.console import Console
from ctcovid.base.errors import StoppedError
from ctcovid.base.signals import StopAwaitedError, StopRequest
from ctcovid.distributed.ranks import Ranks


@dataclass(frozen=True)
class Session:
    """What always travels together. The device is not here: each Network knows its own.

    Attributes
    ----------
    console : where messages and results go
    stop : notes a stopping signal, while `listening`
    ranks : this process among those that work together
    workers : how many worker processes or threads read for this process
    """

    console: Console
    stop: StopRequest
    ranks: Ranks
    workers: int

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Note stopping signals while the block runs, those of the other processes too."""
        with self.stop:
            self.ranks.tell_of(self.stop)
            yield

    @contextlib.contextmanager
    def heeding(self) -> Iterator[None]:
        """End the block if a stop was requested while it waited for volumes that do not come.

        Raises StoppedError if there are other processes: they wait for a step that this one cannot make.
        """
        try:
            yield
        except StopAwaitedError as error:
            if self.ranks.size > 1:
                done = "The volumes do not come. The same command with --resume continues from the last checkpoint."
                raise StoppedError(str(self.stop.error(done))) from error

    @property
    def stops_alone(self) -> bool:
        """Whether a signal came to a single process. Several processes may not all know of it yet, and agree in their next exchange."""
        return self.stop.received is not None and self.ranks.size == 1
