"""Requests that are sent more than once, and replies that may answer another copy."""

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
from tests.support.steps import sent

TOKEN, LOCK, QUEUE = b"t" * 22, b"p:{x}", b"p:{x}:waiters"
FENCE = b"1000000000000001"


class Clock:
    """A clock that a test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """Return the client's clock."""
    return Clock()


@pytest.fixture
def server(clock: Clock) -> ServerClock:
    """Return the estimate of the server's clock."""
    server = ServerClock(clock, 5.0)
    server.compare(0.0, 0.0, 10**15)
    return server


def _request() -> AcquireRequest:
    return AcquireRequest("x", LOCK, QUEUE, TOKEN, 30_000, b"me", b"0", b"0", crowded=False)


def _result(steps: protocol.Steps[Any], reply: Any) -> Any:
    with pytest.raises(StopIteration) as end:
        steps.send(reply)
    return end.value.value


def test_requests_of_one_lease_have_different_proofs() -> None:
    """Each request of one token and lease has its own proof, so a doubled reply to a release is not
    taken for the reply to the hand-over after it."""
    lease = FENCE + TOKEN
    calls = [
        RunScript(SCRIPTS["acquire"], (LOCK, TOKEN, b"30000", FENCE, b"me")),
        RunScript(SCRIPTS["claim"], (LOCK, lease, b"30000")),
        RunScript(SCRIPTS["extend"], (LOCK, QUEUE, lease, b"30000", b"0")),
        RunScript(SCRIPTS["adopt"], (LOCK, TOKEN, TOKEN, b"30000", FENCE, b"me")),
        RunScript(SCRIPTS["release"], (LOCK, lease)),
        RunScript(SCRIPTS["hand_over"], (LOCK, QUEUE, lease)),
        RunScript(SCRIPTS["abandon"], (LOCK, QUEUE, TOKEN, b"", b"")),
    ]
    proofs = {codec.pack(call)[1] for call in calls}
    assert len(proofs) == len(calls)


def test_a_late_try_counts_from_its_first(server: ServerClock, clock: Clock) -> None:
    """A lease after a late try counts from the first try: the reply, which proves only the token,
    may answer that."""
    steps = protocol.acquire(_request(), server, None)
    sent(next(steps), server)
    clock.now = 1.0
    sent(steps.send([b"late", 10**15 + 500_000]), server)
    clock.now = 2.0
    state = _result(steps, FENCE)
    assert state.deadline == 30.0


def test_a_sooner_end_that_was_sent_twice(clock: Clock) -> None:
    """After a request for a sooner end that was sent twice no later request lets the lease promise
    more, since the copy may arrive at any time."""
    state = LeaseState(int(FENCE), FENCE + TOKEN, 30.0)
    steps = protocol.extend(_request(), state, 10_000, clock)
    step = next(steps)
    assert isinstance(step, RunScript)
    step.doubled = True
    assert _result(steps, b"extended") == 10.0
    clock.now = 1.0
    steps = protocol.extend(_request(), state, 30_000, clock)
    next(steps)
    assert _result(steps, b"extended") == 11.0


def test_an_error_is_believed_only_with_a_proof(server: ServerClock) -> None:
    """An error reply to a queue check that is sent without waiting proves nothing, so the waiter
    checks again."""

    class Stray:
        """A reply that is an error, perhaps to another request."""

        def poll(self) -> Any:
            return lualock.LockUnavailable("out of memory")

    steps = protocol.acquire(_request(), server, None)
    next(steps)
    assert isinstance(steps.send([b"held", 1000, 0, b"other"]), Subscribe)
    check = steps.send(b"channel")
    assert type(check) is SendScript
    assert isinstance(steps.send(Stray()), AwaitMessage)
    assert isinstance(steps.send(None), Subscribe)
    again = steps.send(b"channel")
    assert isinstance(again, RunScript)
    assert type(again) is not SendScript
    assert again.script.name == "wait"


@pytest.mark.parametrize("fresh", [True, False], ids=["a token of its own", "the job's token"])
def test_a_refusal_after_two_sendings(server: ServerClock, *, fresh: bool) -> None:
    """After two sendings a refusal does not prove a loss: the first copy may have kept the lock for
    a retry, which then took it over."""
    steps = protocol.adopt(_request(), b"o" * 22, server, fresh=fresh)
    step = sent(next(steps), server)
    step.doubled = True
    with pytest.raises(lualock.LeaseLost if fresh else lualock.LockUnavailable) as refused:
        steps.send(b"missing")
    assert getattr(refused.value, "outcome_unknown", False) is not fresh
