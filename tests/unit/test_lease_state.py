"""The end of a lease: each event, the races, and that it is never later than on the server."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lualock
from lualock import _protocol as protocol
from lualock._core.lease import LeaseBase
from lualock._core.lock_options import LockOptions
from lualock._protocol import (
    CLAIM_MS,
    AcquireRequest,
    AwaitMessage,
    LeaseState,
    Pipeline,
    RunScript,
    Steps,
)
from tests.support.interleaving import interleaved

NEVER = -math.inf


class Claim:
    """A claim whose reply comes when the test says so."""

    def __init__(self) -> None:
        self.reply: Any = None

    def poll(self) -> Any:
        return self.reply


CLAIM = Claim()


def _state(**fields: Any) -> LeaseState:
    return LeaseState(1, b"lease", fields.pop("deadline", 10.0), **fields)


def _claimed() -> LeaseState:
    return _state(claim=CLAIM, claimed_deadline=40.0)


def _shorten(state: LeaseState, ttl_s: float) -> Any:
    """Send a request for a sooner end at time 0, as ``extend`` does."""
    state.next_revision()
    return state.shorten_to(ttl_s, ttl_s)


def _release_failed(state: LeaseState) -> None:
    state.begin_release()
    state.release_unknown()


# Each event.

EVENTS: list[tuple[str, LeaseState, Callable[[LeaseState], Any], dict[str, Any]]] = [
    ("a later end", _state(), lambda s: s.extended(15.0, 0), {"deadline": 15.0}),
    ("no later end", _state(), lambda s: s.extended(5.0, 0), {}),
    (
        "a later end, and the claim is not needed",
        _claimed(),
        lambda s: s.extended(15.0, 0),
        {"deadline": 15.0, "claim": None},
    ),
    ("an end of an earlier revision", _state(revision=1), lambda s: s.extended(15.0, 0), {}),
    (
        "a sooner end of an earlier revision",
        _state(revision=1),
        lambda s: s.extended(5.0, 0),
        {"deadline": 5.0},
    ),
    (
        "an end after a failed release",
        _state(deadline=NEVER),
        lambda s: s.extended(15.0, 0),
        {},
    ),
    ("a revision", _state(), lambda s: s.next_revision(), {"revision": 1}),
    ("a release", _state(), lambda s: s.begin_release(), {"revision": 1}),
    (
        "a release that failed",
        _claimed(),
        lambda s: s.release_unknown(),
        {"deadline": NEVER, "claim": None},
    ),
    (
        "a request for a sooner end",
        _claimed(),
        lambda s: s.shorten_to(3.0, 3.0),
        {"deadline": 3.0, "at_most_s": 3.0, "claim": None, "revision": 1},
    ),
    (
        "a request beside one for a sooner end",
        _state(deadline=2.0, at_most_s=2.0),
        lambda s: s.shorten_to(3.0, 3.0),
        {"revision": 1},
    ),
    (
        "a request that may end sooner, because of a claim",
        _claimed(),
        lambda s: s.shorten_to(20.0, 20.0),
        {"at_most_s": 20.0, "claim": None, "revision": 1},
    ),
    (
        "its reply",
        _state(),
        lambda s: s.shortened(s.shorten_to(3.0, 3.0)),
        {"deadline": 3.0, "revision": 1},
    ),
    (
        "a claim",
        _claimed(),
        lambda s: s.claim_confirmed(CLAIM),
        {"deadline": 40.0, "claim": None},
    ),
    (
        "a claim of a lease that lasts longer",
        replace(_claimed(), deadline=50.0),
        lambda s: s.claim_confirmed(CLAIM),
        {"claim": None},
    ),
    (
        "a claim that was refused",
        _claimed(),
        lambda s: s.claim_refused(CLAIM),
        {"lost": True, "claim": None},
    ),
    ("a claim without an answer", _claimed(), lambda s: s.claim_unanswered(), {"claim": None}),
    (
        "an extension after the claim",
        _claimed(),
        lambda s: s.claim_superseded(),
        {"claimed_deadline": 0.0},
    ),
    ("released", _state(), lambda s: s.mark_released(), {"released": True}),
    ("passed on", _state(), lambda s: s.mark_passed_on(), {"passed_on": True}),
    ("lost", _state(), lambda s: s.mark_lost(), {"lost": True}),
    ("found again", _state(lost=True), lambda s: s.mark_held(), {}),
]


@pytest.mark.parametrize(
    ("before", "event", "changed"), [row[1:] for row in EVENTS], ids=[row[0] for row in EVENTS]
)
def test_what_an_event_changes(
    before: LeaseState, event: Callable[[LeaseState], Any], changed: dict[str, Any]
) -> None:
    """An event changes these fields, and no other."""
    state = replace(before)
    event(state)
    assert state == replace(before, **({"lost": False} | changed))


def test_what_an_extension_can_promise() -> None:
    """An extension promises no more than a request for a sooner end would leave of it."""
    state = _state(claimed_deadline=40.0)
    assert state.may_outlast(39.0)
    assert not state.may_outlast(40.0)
    state.claim_superseded()
    assert not state.may_outlast(10.0)
    assert state.certain_until(1.0, 30.0) == 31.0
    state.shorten_to(5.0, 5.0)
    assert state.certain_until(1.0, 30.0) == 6.0


# Two at the same time.


def test_a_sooner_end_of_another_is_not_undone() -> None:
    """The reply to a request for a sooner end does not lift the limit of another one."""
    state = _state()
    first = _shorten(state, 5.0)
    second = _shorten(state, 3.0)
    state.shortened(first)
    assert (state.deadline, state.at_most_s) == (3.0, 3.0)
    state.shortened(second)
    assert state.at_most_s == 5.0


def test_a_late_claim() -> None:
    """The reply to a claim, read after a request for a sooner end, changes nothing."""
    state = _claimed()
    _shorten(state, 3.0)
    assert not state.claim_confirmed(CLAIM)
    assert not state.claim_refused(CLAIM)
    assert state.deadline == 3.0
    assert not state.lost


def test_a_late_renewal() -> None:
    """The reply to a renewal that was sent before a sooner end sets no later end, whether it is
    read before or after the reply to that."""
    for answered in (False, True):
        state = _state()
        sent_at = state.revision
        shortening = _shorten(state, 3.0)
        if answered:
            state.shortened(shortening)
            state.next_revision()
        state.extended(30.0, sent_at)
        assert state.deadline == 3.0
        state.extended(30.0, state.revision)
        assert state.deadline == 30.0


def test_a_release_that_fails_while_a_renewal_is_in_flight() -> None:
    """After a failed release no reply, however late, makes the lease held again."""
    state = _claimed()
    sent_at = state.revision
    _release_failed(state)
    for revision in (sent_at, state.revision):
        state.extended(30.0, revision)
        assert state.is_release_unknown
    assert not state.claim_confirmed(CLAIM)
    assert state.is_release_unknown


def _interleaved(
    where: str, work: Callable[[LeaseState], Any], other: Callable[[LeaseState], Any]
) -> Iterator[LeaseState]:
    """Yield the state after ``work``, with ``other`` between any two instructions of ``where``."""
    for at in itertools.count(1):
        state = _claimed()
        if not interleaved(
            at,
            where,
            lambda state=state: work(state),  # type: ignore[misc]
            lambda state=state: other(state),  # type: ignore[misc]
            patience_s=0.02,
        ):
            assert at > 5  # Python 3.13 makes one instruction of two
            return
        yield state


def test_a_release_that_fails_while_the_reply_to_a_renewal_is_read() -> None:
    """A release that fails in another thread leaves nothing held, at whatever point it does."""
    for state in _interleaved("extended", lambda s: s.extended(30.0, 0), _release_failed):
        assert state.is_release_unknown


def test_a_sooner_end_while_the_reply_to_a_renewal_is_read() -> None:
    """A sooner end that another thread requests counts, at whatever point it does, also if the
    renewal was sent when that request had just begun."""
    for shorten in (_shorten, lambda s, ttl_s: s.shorten_to(ttl_s, ttl_s)):
        for state in _interleaved(
            "extended",
            lambda s: s.extended(30.0, 0),
            lambda s, shorten=shorten: shorten(s, 3.0),  # type: ignore[misc]
        ):
            assert state.deadline == 3.0


def test_two_equal_sooner_ends_at_the_same_time() -> None:
    """Of two threads that request the same sooner end, the one whose request was answered does not
    undo what the other one promised, at whatever point they meet."""

    def work(state: LeaseState) -> None:
        state.shortened(_shorten(state, 3.0))

    for where in ("_shorten", "shorten_to", "shortened"):
        for state in _interleaved(where, work, lambda s: _shorten(s, 3.0)):
            assert (state.deadline, state.at_most_s) == (3.0, 3.0)


def test_two_threads_read_the_reply_to_a_claim() -> None:
    """The reply counts once: a second thread that has read it, too, undoes no sooner end."""
    for confirmed in (True, False):
        answers: list[bool] = []

        def read(state: LeaseState, confirmed: bool = confirmed, answers: Any = answers) -> None:
            answers.append((state.claim_confirmed if confirmed else state.claim_refused)(CLAIM))

        def other(state: LeaseState, read: Any = read) -> None:
            read(state)
            _shorten(state, 3.0)

        where = "claim_confirmed" if confirmed else "claim_refused"
        for state in _interleaved(where, read, other):
            assert state.deadline == 3.0
            assert state.lost is not confirmed
            assert sorted(answers) == [False, True]
            answers.clear()


# The end that is believed, beside that on a server.

TTL_S = 4.0


@dataclass
class Server:
    """The lease on the server."""

    ends_at: float


@dataclass(eq=False)
class Sent:
    """A copy of a request: the server executes it at any time, or never."""

    verb: str
    ttl_s: float = 0.0
    shorten: bool = False
    reply: bytes | None = None

    def execute(self, server: Server, now: float) -> None:
        """Do what the script does, and keep the reply."""
        if server.ends_at == NEVER and self.verb != "claim":
            self.reply = b"already"
        elif now >= server.ends_at:
            self.reply = b"missing"
        elif self.verb in ("release", "abandon"):
            server.ends_at, self.reply = NEVER, b"released"
        else:
            ends_at = now + self.ttl_s
            server.ends_at = ends_at if self.shorten else max(ends_at, server.ends_at)
            self.reply = b"claimed" if self.verb == "claim" else b"extended"


@dataclass(eq=False)
class Call:
    """What the holder or the renewing thread does, and the copies that may answer its request."""

    steps: Steps[Any]
    done: Callable[[Any], object] = lambda _: None
    step: Any = None
    copies: list[Sent] = field(default_factory=list)


class History:
    """A lease with requests in flight; a message granted it, or it was acquired at once."""

    def __init__(self, *, granted: bool) -> None:
        self.now = 0.0
        self.clock: Callable[[], float] = lambda: self.now
        self.calls: list[Call] = []
        self.release: Call | None = None
        self.claim, self.claim_sent = Claim(), Sent("claim", TTL_S)
        self.sent = [self.claim_sent] if granted else []
        self.server = Server(CLAIM_MS / 1000 if granted else TTL_S)
        self.state = LeaseState(1, b"", self.server.ends_at)
        if granted:
            self.state = replace(self.state, claim=self.claim, claimed_deadline=TTL_S)
        request = AcquireRequest(
            *("x", b"key", b"queue", b"t" * 22, int(TTL_S * 1000), b"", b"0", b"0"),
            crowded=False,
        )
        self.lease = LeaseBase(request, self.state, self, None, LockOptions(renew=False))

    def resubscribe(self) -> None:
        """Do nothing: no channel is subscribed."""

    def act(self, action: str, which: int, amount: int) -> None:
        """Let one thing happen to one of the calls or requests."""
        waiting = [sent for sent in self.sent if sent.reply is None]
        if action == "time passes":
            self.now += amount / 4
        elif action == "extend":
            self.begin(Call(self.lease._extend(amount * 250)))
        elif action == "renew":
            self.renew()
        elif action == "release" and self.release is None:
            steps = self.lease._release()
            if steps is not None:
                self.release = Call(steps)
                self.begin(self.release)
        elif action == "execute" and waiting:
            waiting[which % len(waiting)].execute(self.server, self.now)
        elif action == "answer claim":
            self.claim.reply = self.claim_sent.reply
        elif action == "lose claim":
            self.claim.reply = lualock.LockUnavailable("lost", outcome_unknown=True)
        elif self.calls:
            self.go_on(self.calls[which % len(self.calls)], action)

    def renew(self) -> None:
        """Begin to renew the lease, as :class:`LeaseRenewer` does."""
        revision = self.state.revision
        extension = self.lease._request, self.state, self.lease._full_ttl_ms

        def done(outcomes: list[Any]) -> None:
            if isinstance(outcomes[0], float):
                self.state.extended(outcomes[0], revision)
            elif not isinstance(outcomes[0], lualock.LockUnavailable):
                self.lease._mark_lost(outcomes[0])

        self.begin(Call(protocol.extend_all([extension], self.clock, 1.0), done))

    def begin(self, call: Call) -> None:
        """Send the first request of a call."""
        self.calls.append(call)
        self.advance(call, lambda: next(call.steps))

    def go_on(self, call: Call, action: str) -> None:
        """Let an answer come, get lost, or be impossible; or send a second copy."""
        replies = [sent.reply for sent in call.copies if sent.reply is not None]
        if isinstance(call.step, AwaitMessage):
            self.advance(call, lambda: call.steps.send(None))
        elif action == "answer" and replies:
            reply: Any = [replies[-1]] if isinstance(call.step, Pipeline) else replies[-1]
            self.advance(call, lambda: call.steps.send(reply))
        elif action == "answer at once":
            call.copies[-1].execute(self.server, self.now)
            self.go_on(call, "answer")
        elif action == "lose":
            lost = lualock.LockUnavailable("lost", outcome_unknown=True)
            self.advance(call, lambda: call.steps.throw(lost))
        elif action == "give up":
            while call in self.calls:
                self.go_on(call, "lose")
        elif action == "not sent" and len(call.copies) == 1 and not replies:
            self.sent.remove(call.copies[0])
            self.advance(call, lambda: call.steps.throw(lualock.LockUnavailable("not sent")))
        elif action == "double" and isinstance(call.step, RunScript):
            call.step.doubled = True
            self.send(call, call.step)

    def advance(self, call: Call, step: Callable[[], Any]) -> None:
        """Let a call read its answer, and send its next request."""
        call.copies = []
        try:
            call.step = step()
        except (StopIteration, lualock.LockError) as end:
            self.calls.remove(call)
            if isinstance(end, StopIteration):
                call.done(end.value)
            if call is self.release:
                self.release = None
        else:
            if not isinstance(call.step, AwaitMessage):
                self.send(call, call.step)

    def send(self, call: Call, step: Any) -> None:
        """Send one copy of a request."""
        script = step.calls[0] if isinstance(step, Pipeline) else step
        copy = Sent(script.script.name)
        if copy.verb == "extend":
            copy.ttl_s, copy.shorten = int(script.parts[3]) / 1000, script.parts[4] == b"1"
        self.sent.append(copy)
        call.copies.append(copy)


ACTIONS = (
    *("time passes", "extend", "extend", "renew", "execute", "execute", "answer"),
    *("answer at once", "answer at once", "answer at once", "lose", "give up", "not sent"),
    *("double", "release", "answer claim", "lose claim"),
)
"""Those that lead further stand here more often."""

HAPPENING = st.tuples(
    st.sampled_from(ACTIONS), st.integers(0, 3), st.sampled_from([1, 2, 3, 6, 12, 24])
)


def _check_end(granted: bool, happenings: list[tuple[str, int, int]]) -> None:
    history = History(granted=granted)
    for happening in happenings:
        history.act(*happening)
        if history.release is None:
            left_s = history.server.ends_at - history.now
            assert history.lease.remaining() <= max(0.0, left_s), happening


@settings(max_examples=500, deadline=None)
@given(st.booleans(), st.lists(HAPPENING, min_size=5, max_size=20))
def test_the_end_is_never_later_than_on_the_server(
    granted: bool, happenings: list[tuple[str, int, int]]
) -> None:
    """Whatever requests are late, lost, doubled or executed in another order, a lease ends here no
    later than on the server. While it is being released it promises nothing."""
    _check_end(granted, happenings)


HISTORIES: dict[str, tuple[bool, str]] = {
    "a sooner end counts as soon as it is sent": (False, "extend 1, execute"),
    "a sooner end is executed after a later one": (
        False,
        "extend 1, extend 24, answer at once/1, execute",
    ),
    "a sooner end is executed after a later one that was sent later": (
        False,
        "extend 1, extend 24, execute/1, execute, answer, answer",
    ),
    "a second copy of a sooner end is executed late": (
        False,
        "extend 1, double, answer at once, extend 24, answer at once, execute",
    ),
    "a sooner end without an answer is executed": (False, "extend 1, execute, give up"),
    "a later one is answered, and a sooner one was not sent": (
        False,
        "extend 2, extend 1, answer at once/1, not sent",
    ),
    "a sooner end was not sent, and another one is executed": (
        True,
        "extend 2, execute, extend 1, answer claim, not sent/1, renew, answer at once, "
        "answer at once, not sent",
    ),
    "one of two equal ends is answered, and the other executed late": (
        True,
        "lose claim, extend 2, extend 2, answer at once, extend 24, answer at once/1, execute/1",
    ),
    "a renewal is answered after a sooner end": (
        False,
        "renew, execute, extend 1, answer at once/1, answer",
    ),
    "a renewal is answered after a failed release": (
        False,
        "release, renew, not sent, answer at once/1, answer at once",
    ),
    "an extension is answered after a failed release": (
        False,
        "extend 1, release, not sent/1, answer at once, answer at once",
    ),
    "a claim is answered after a failed release": (
        True,
        "execute, release, execute, give up, answer claim",
    ),
}
"""Each with whether a message granted the lease, and what happens: ``action amount/which``."""


@pytest.mark.parametrize(("granted", "happenings"), HISTORIES.values(), ids=HISTORIES)
def test_a_history(granted: bool, happenings: str) -> None:
    """The same for some orders of events that need a guard each."""
    parsed = []
    for happening in happenings.split(", "):
        words, _, which = happening.partition("/")
        action = words.rstrip(" 0123456789")
        parsed.append((action, int(which or 0), int(words[len(action) :] or 1)))
    _check_end(granted, parsed)
