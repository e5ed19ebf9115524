"""The end of a lease: each event, the races, and that it is never later than on the server."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from lualock._protocol import (
    LeaseState,
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
        {"deadline": 3.0, "at_most_s": 3.0, "claim": None},
    ),
    (
        "a request beside one for a sooner end",
        _state(deadline=2.0, at_most_s=2.0),
        lambda s: s.shorten_to(3.0, 3.0),
        {},
    ),
    (
        "a request that may end sooner, because of a claim",
        _claimed(),
        lambda s: s.shorten_to(20.0, 20.0),
        {"at_most_s": 20.0, "claim": None},
    ),
    (
        "its reply",
        _state(),
        lambda s: s.shortened(s.shorten_to(3.0, 3.0)),
        {"deadline": 3.0},
    ),
    ("it was not sent", _claimed(), lambda s: s.not_shortened(s.shorten_to(3.0, 3.0)), {}),
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
    """A request that was not sent undoes no sooner end that another one has set since, and its
    reply does not lift the limit of another one."""
    state = _state()
    first = _shorten(state, 5.0)
    second = _shorten(state, 3.0)
    state.not_shortened(first)
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
            assert at > 10
            return
        yield state


def test_a_release_that_fails_while_the_reply_to_a_renewal_is_read() -> None:
    """A release that fails in another thread leaves nothing held, at whatever point it does."""
    for state in _interleaved("extended", lambda s: s.extended(30.0, 0), _release_failed):
        assert state.is_release_unknown


def test_a_sooner_end_while_the_reply_to_a_renewal_is_read() -> None:
    """A sooner end that another thread requests counts, at whatever point it does."""
    for state in _interleaved(
        "extended", lambda s: s.extended(30.0, 0), lambda s: _shorten(s, 3.0)
    ):
        assert state.deadline == 3.0


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
