"""Requests that are sent more than once, and replies that may answer another one of them."""

from __future__ import annotations

from typing import Any

import pytest

import lualock
from lualock import _protocol as protocol
from lualock._protocol import (
    AcquireRequest,
    AwaitMessage,
    LeaseState,
    RunScript,
    SendScript,
    ServerClock,
    Subscribe,
)
from lualock._transport import codec
from lualock.scripts import SCRIPTS

TOKEN, LOCK, QUEUE = b"t" * 22, b"p:{x}", b"p:{x}:waiters"
FENCE = b"1000000000000001"


class Clock:
    """A clock that goes when it is told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """The client's clock."""
    return Clock()


@pytest.fixture
def server(clock: Clock) -> ServerClock:
    """What is known of the server's."""
    server = ServerClock(clock, 5.0)
    server.compare(0.0, 0.0, 10**15)
    return server


def _request() -> AcquireRequest:
    return AcquireRequest("x", LOCK, QUEUE, TOKEN, 30_000, b"me", b"0", b"0", b"1", crowded=False)


def _result(steps: protocol.Steps[Any], reply: Any) -> Any:
    with pytest.raises(StopIteration) as end:
        steps.send(reply)
    return end.value.value


def test_requests_of_one_lease_are_told_apart() -> None:
    """A doubled reply to a release must not be taken for the reply to the hand-over behind it: of
    one token and lease each request has a proof that no other has."""
    lease = FENCE + TOKEN
    calls = [
        RunScript(SCRIPTS["acquire"], (LOCK, TOKEN, b"30000", FENCE, b"me")),
        RunScript(SCRIPTS["claim"], (LOCK, lease, b"30000")),
        RunScript(SCRIPTS["extend"], (LOCK, QUEUE, lease, b"30000", b"0")),
        RunScript(SCRIPTS["adopt"], (LOCK, TOKEN, TOKEN, b"30000", FENCE, b"me")),
        RunScript(SCRIPTS["release"], (LOCK, lease)),
        RunScript(SCRIPTS["hand_over"], (LOCK, QUEUE, lease, b"1")),
        RunScript(SCRIPTS["abandon"], (LOCK, QUEUE, TOKEN, b"", b"1", b"")),
    ]
    proofs = {codec.pack(call)[1] for call in calls}
    assert len(proofs) == len(calls)


def test_a_late_try_counts_from_its_first(server: ServerClock, clock: Clock) -> None:
    """The token is all that proves a reply to acquire: after a late try it may answer an earlier
    one, whose lease began before the last was sent."""
    steps = protocol.acquire(_request(), server, None)
    next(steps)
    clock.now = 1.0
    again = steps.send([b"late", 10**15 + 500_000])
    assert isinstance(again, RunScript)
    clock.now = 2.0
    grant = _result(steps, FENCE)
    assert grant.deadline == 30.0


def test_a_sooner_end_that_was_sent_twice(clock: Clock) -> None:
    """The other copy of a request to shorten a lease may arrive at any time, so that nothing that
    follows lets the lease promise more."""
    grant = LeaseState(int(FENCE), FENCE + TOKEN, 30.0)
    steps = protocol.extend(_request(), grant, 10_000, clock)
    step = next(steps)
    assert isinstance(step, RunScript)
    step.doubled = True
    assert _result(steps, b"extended") == 10.0
    clock.now = 1.0
    steps = protocol.extend(_request(), grant, 30_000, clock)
    next(steps)
    assert _result(steps, b"extended") == 11.0


def test_an_error_is_believed_where_it_is_proved(server: ServerClock) -> None:
    """Nothing proves that an error answers a posted look, so the waiter looks again, and waits."""

    class Stray:
        """A reply that is an error, perhaps to another request."""

        def poll(self) -> Any:
            raise lualock.LockUnavailable("out of memory")

    steps = protocol.acquire(_request(), server, None)
    next(steps)
    assert isinstance(steps.send([b"held", 1000, 0, b"other"]), Subscribe)
    look = steps.send(b"channel")
    assert type(look) is SendScript
    assert isinstance(steps.send(Stray()), AwaitMessage)
    assert isinstance(steps.send(None), Subscribe)
    again = steps.send(b"channel")
    assert isinstance(again, RunScript)
    assert type(again) is not SendScript
    assert again.script.name == "wait"


@pytest.mark.parametrize("fresh", [True, False], ids=["a token of its own", "the job's token"])
def test_a_refusal_after_two_sendings(server: ServerClock, *, fresh: bool) -> None:
    """Of a lease that is taken over under a job's token the first copy may have taken it, and the
    job's retry taken it over since: then nothing says that it had ended."""
    steps = protocol.adopt(_request(), b"o" * 22, server, fresh=fresh)
    step = next(steps)
    assert isinstance(step, RunScript)
    step.doubled = True
    with pytest.raises(lualock.LeaseLost if fresh else lualock.LockUnavailable) as refused:
        steps.send(b"missing")
    assert getattr(refused.value, "outcome_unknown", False) is not fresh
