"""The estimate of the server's clock, and what follows from it for late requests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import lualock
from lualock._protocol import AcquireRequest, RunScript, ServerClock, Steps, acquire
from lualock._protocol.effects import DRIVER_WRITES, MIN_REQUEST_S
from lualock._protocol.server_clock import DRIFT, LATE_MAX
from lualock.jobs import verbs
from lualock.scripts import SCRIPTS
from tests.support.steps import sent

SERVER_US = 1_700_000_000_000_000


def _server(now: float = 10.0) -> ServerClock:
    server = ServerClock(lambda: now, 5.0)
    # Sent at 10.0, received at 10.2: between these the server's clock was at SERVER_US.
    server.compare(10.0, 10.2, SERVER_US)
    return server


def _times(*times: float) -> ServerClock:
    clock: Iterator[float] = iter(times)
    server = ServerClock(lambda: next(clock), 5.0)
    server.compare(0.0, 0.0, SERVER_US)
    return server


def _stamped(server: ServerClock, until: float | None = None) -> RunScript:
    parts = [b"lock", b"t" * 22, b"1000", DRIVER_WRITES, b"me"]
    return sent(RunScript(SCRIPTS["acquire"], parts, until), server)


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
    server = _times(11.0, 11.04, 11.1, 11.1)
    server.compare(10.0, 10.2, SERVER_US)
    first, second, third = (_stamped(server) for _ in range(3))
    assert (first.sent_at, first.expires) == (11.0, 16.0)
    assert first.parts[3] == server.deadline(16.0, 11.0)
    assert (second.sent_at, second.expires, second.parts[3]) == (11.04, 16.0, first.parts[3])
    assert (third.expires, third.parts[3]) == (16.1, server.deadline(16.1, 11.1))
    server.compare(20.0, 20.0, SERVER_US)
    assert _stamped(server).parts[3] == server.deadline(16.1, 11.1)  # by the new comparison


def test_a_deadline_is_never_after_the_caller_s_end() -> None:
    """A request expires when its caller stops waiting, if that is sooner; at the earliest after the
    time that each request has."""
    server = _times(1.0, 1.0)
    for until, expires in ((2.0, 2.0), (0.5, 1.0 + MIN_REQUEST_S)):
        call = _stamped(server, until)
        assert call.expires == expires
        assert call.parts[3] == server.deadline(expires, 1.0)


def test_the_time_of_sending_is_never_late() -> None:
    """A job's request for its reservation carries the server's time at which it is sent."""
    server = _times(3.0)
    arguments = b"t" * 22, b"1000", DRIVER_WRITES, b"me", b"0", DRIVER_WRITES
    call = sent(RunScript(verbs.RESERVE, [b"lock", b"reservation", *arguments]), server)
    assert call.parts[4] == server.deadline(8.0, 3.0)
    assert call.parts[7] == server.deadline(3.0, 3.0)


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


def _request() -> AcquireRequest:
    return AcquireRequest("x", b"k", b"q", b"t" * 22, 30_000, b"me", b"0", b"0", crowded=False)


def _late(steps: Steps[object], server: ServerClock) -> RunScript:
    return sent(steps.send([b"late", b"%016d" % (SERVER_US + 3600_000_000)]), server)


def test_late_by_the_clock_alone() -> None:
    """After the server's clock is set forward, a request is late once, and its repetition is
    not."""
    server = _times(0.0, 0.1, 0.2, 0.3)
    steps = acquire(_request(), server, 60.0)
    first = sent(next(steps), server)
    second = _late(steps, server)
    assert second.parts[1] == first.parts[1]
    assert int(second.parts[3]) > SERVER_US + 3600_000_000
    with pytest.raises(StopIteration):
        steps.send(b"1795468272410195")


def test_late_when_the_time_is_over() -> None:
    """A request that is late because it took too long is not repeated."""
    server = _times(0.0, 0.0, 3.0)
    steps = acquire(_request(), server, 2.0)
    sent(next(steps), server)
    with pytest.raises(lualock.LockUnavailable, match="reached the server too late"):
        _late(steps, server)


def test_late_each_time() -> None:
    """If requests are late after each comparison of the clocks, the acquisition ends with an
    error."""
    server = _times(*(n / 10 for n in range(20)))
    steps = acquire(_request(), server, None)
    sent(next(steps), server)
    for _ in range(LATE_MAX):
        _late(steps, server)
    with pytest.raises(lualock.LockUnavailable, match="clock is unstable"):
        _late(steps, server)
