"""A program that is ended from outside cleans up, unless it is to go on."""

import signal

import pytest

from models.interrupts import end_as_interrupted


@pytest.fixture(params=[signal.SIGTERM, signal.SIGHUP])
def end(request: pytest.FixtureRequest) -> signal.Signals:
    return request.param


def test_an_end_from_outside_is_an_interrupt(end: signal.Signals) -> None:
    signal.signal(end, signal.SIG_DFL)
    end_as_interrupted()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(end)


def test_what_is_ignored_stays_so(end: signal.Signals) -> None:
    signal.signal(end, signal.SIG_IGN)
    end_as_interrupted()
    signal.raise_signal(end)
    assert signal.getsignal(end) is signal.SIG_IGN
