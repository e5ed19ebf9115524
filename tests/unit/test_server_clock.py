"""The estimate of the server's clock, and what follows from it for late requests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import lualock
from lualock._protocol import AcquireRequest, Connect, RunScript, ServerClock, Steps, acquire
from lualock._protocol.server_clock import DRIFT, LATE_MAX

SERVER_US = 1_700_000_000_000_000


def _server(now: float = 10.0) -> ServerClock:
    server = ServerClock(lambda: now, 5.0)
    # Sent at 10.0, received at 10.2: between these the server's clock was at SERVER_US.
    server.compare(10.0, 10.2, SERVER_US)
    return server


def test_a_deadline_is_never_late() -> None:
    """When a deadline has passed here, it has passed at the server, at whatever moment the server
    read its clock."""
    server = _server()
    for looked in (10.0, 10.1, 10.2):
        offset_us = SERVER_US - looked * 1e6
        until_us = int(server.deadline(12.0, 10.2))
        assert until_us <= 12.0 * 1e6 + offset_us
        assert until_us > 11.7 * 1e6 + offset_us
    # Clocks drift apart: the older the comparison, the earlier the deadline.
    assert int(server.deadline(1012.0, 1010.2)) <= SERVER_US + 1001.8e6 - 1000 * DRIFT * 1e6
    assert len(server.deadline(12.0, 10.2)) == 16


def test_one_deadline_serves_for_a_while() -> None:
    """A deadline that is used again is earlier than necessary, never later, and not for long."""
    server = _server()
    first = server.usual(11.0)
    assert first == (16.0, server.deadline(16.0, 11.0))
    assert server.usual(11.04) == first
    assert server.usual(11.1) == (16.1, server.deadline(16.1, 11.1))
    server.compare(20.0, 20.0, SERVER_US)
    assert server.usual(11.1) == (16.1, server.deadline(16.1, 11.1))  # by the new comparison


def test_a_server_time_is_never_placed_too_late() -> None:
    """The local time of a server's time is never later than the true one."""
    server = _server()
    for looked in (10.0, 10.1, 10.2):
        passed = server.at_earliest(SERVER_US + 1_000_000, 12.0)
        assert passed is not None
        assert looked + 0.7 < passed <= looked + 1.0
    assert server.at_earliest(SERVER_US + 5_000_000, 12.0) is None  # in the future: a clock stepped


def test_a_better_comparison_is_taken() -> None:
    """A new comparison of the clocks counts only if it is tighter than the present one."""
    server = _server()
    before = server.deadline(20.0, 11.0)
    server.refine(10.0, 11.0, SERVER_US)  # no better
    assert server.deadline(20.0, 11.0) == before
    server.refine(10.9, 11.0, SERVER_US + 950_000)
    assert server.deadline(20.0, 11.0) > before
    assert 11.0 < server.stale_at < 60.0
    assert server.known
    assert not ServerClock(lambda: 0.0, 5.0).known


def _request() -> AcquireRequest:
    return AcquireRequest("x", b"k", b"q", b"t" * 22, 30_000, b"me", b"0", b"0", crowded=False)


def _times(*times: float) -> ServerClock:
    clock: Iterator[float] = iter(times)
    server = ServerClock(lambda: next(clock), 5.0)
    server.compare(0.0, 0.0, SERVER_US)
    return server


def test_the_first_acquisition_reads_the_time_first() -> None:
    """The first acquisition reads the server's time before its request, which needs a deadline."""
    server = ServerClock(lambda: 0.0, 5.0)
    steps = acquire(_request(), server, None)
    assert isinstance(next(steps), Connect)
    server.compare(0.0, 0.0, SERVER_US)
    call = steps.send(None)
    assert isinstance(call, RunScript)
    assert call.parts[3] == b"%016d" % (SERVER_US + 5_000_000)
    assert call.expires == 5.0


def test_a_deadline_is_the_caller_s_if_that_is_sooner() -> None:
    """A request expires when its caller gives up, if that is sooner."""
    call = next(acquire(_request(), _times(0.0, 0.0), 2.0))
    assert isinstance(call, RunScript)
    assert call.expires == 2.0
    assert call.parts[3] == b"%016d" % (SERVER_US + 2_000_000)


def _late(steps: Steps[object]) -> RunScript:
    step = steps.send([b"late", b"%016d" % (SERVER_US + 3600_000_000)])
    assert isinstance(step, RunScript)
    return step


def test_late_by_the_clock_alone() -> None:
    """After the server's clock is set forward, a request is late once, and its repetition is
    not."""
    steps = acquire(_request(), _times(0.0, 0.1, 0.2, 0.3), 60.0)
    first = next(steps)
    second = _late(steps)
    assert isinstance(first, RunScript)
    assert second.parts[1] == first.parts[1]
    assert int(second.parts[3]) > SERVER_US + 3600_000_000
    with pytest.raises(StopIteration):
        steps.send(b"1795468272410195")


def test_late_when_the_time_is_over() -> None:
    """A request that is late because it took too long is not repeated."""
    steps = acquire(_request(), _times(0.0, 3.0), 2.0)
    next(steps)
    with pytest.raises(lualock.LockUnavailable, match="reached the server too late"):
        _late(steps)


def test_late_each_time() -> None:
    """If requests are late after each comparison of the clocks, the acquisition ends with an
    error."""
    steps = acquire(_request(), _times(*(n / 10 for n in range(20))), None)
    next(steps)
    for _ in range(LATE_MAX):
        _late(steps)
    with pytest.raises(lualock.LockUnavailable, match="clock is unstable"):
        _late(steps)
