"""A session notes signals while it listens, and only then."""

from __future__ import annotations

import signal

import pytest

from ctcovid.base.console import Console
from ctcovid.base.process_info import ProcessInfo
from ctcovid.base.signals import StopRequest
from ctcovid.distributed.ranks import Ranks
from ctcovid.distributed.session import Session


@pytest.mark.parametrize("size", [1, 2])
def test_a_single_process_stops_at_once_and_several_have_to_agree(size: int) -> None:
    session = Session(Console(quiet=True), StopRequest(), Ranks(ProcessInfo(0, size)), 1)
    usual = signal.getsignal(signal.SIGUSR1)
    with session.listening():
        assert not session.stops_alone
        signal.raise_signal(signal.SIGUSR1)
        assert session.stop.received == signal.SIGUSR1
        assert session.stops_alone == (size == 1)
    assert signal.getsignal(signal.SIGUSR1) == usual
