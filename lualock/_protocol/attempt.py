"""Keep the state of one acquisition: the requests in flight, the last answer, the time left."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

from lualock._core.keys import display_name
from lualock._protocol.abandon import WAIT
from lualock._protocol.effects import (
    DRIVER_WRITES,
    AwaitMessage,
    Effect,
    RunScript,
    SendScript,
    Steps,
)
from lualock._protocol.in_flight import InFlight
from lualock._protocol.lease_state import LeaseState
from lualock._protocol.replies import Held, conflict
from lualock._protocol.request import AcquireRequest, owned
from lualock._protocol.resend import still_unknown
from lualock._protocol.schedule import YOUNG_S, next_check_s
from lualock._protocol.server_clock import LATE_MAX, ServerClock, jumps
from lualock.errors import LockError, LockUnavailable, NotAcquired, QueueFull
from lualock.scripts import SCRIPTS

log = logging.getLogger("lualock")

ACQUIRE = SCRIPTS["acquire"]
CLAIM = SCRIPTS["claim"]

RETRY_MIN_S, RETRY_MAX_S = 0.01, 0.5
"""Pauses between the attempts to reach a server that does not answer."""

LONG_WAIT_S = 5.0
"""After how long a place in the queue the holder is logged, once."""

PATIENCE_S = 60.0
"""How long a waiter without a timeout retries while the server does not answer. A caller that has
had no answer at all does not retry."""


class Attempt(InFlight):
    """One acquisition: the requests in flight, the last answer, and the time left."""

    # Class attributes, because an acquisition at the first try needs none of these.
    queued = False
    answered_at = 0.0
    sent_at = 0.0  # when the last request for the queue, or a claim, was made
    began_at = 0.0  # when the first request for the queue was sent
    young_until = 0.0  # until then no message tells this waiter that it has become first
    oldest_sent_at = 0.0  # when the oldest unanswered request was sent
    log_at = math.inf  # when the wait is long: then the queue is checked, and the holder logged
    held_reply: list[Any] | None = None  # the last reply that names the holder
    channel = b""  # of messages
    ticket = b""
    score: bytes  # of the ticket in the queue; until the first answer, the lowest of its priority
    seen_fence = b""  # the lock's fence at the last check
    check_effect: type[RunScript] = SendScript  # for the next check: the first is not urgent
    give_up_at = math.inf
    requests_end_at: float | None = None  # ``None``: as long as the connection allows
    needs_cleanup = False  # whether the server may know the token from an answered request

    def __init__(self, request: AcquireRequest, server: ServerClock, wait_s: float | None) -> None:
        self.request = request
        self.server = server
        self.clock = clock = server.clock
        self.wait_s = wait_s
        if wait_s is not None:
            self.give_up_at = clock() + wait_s
            self.requests_end_at = self.give_up_at if wait_s else None

    def acquire(self) -> RunScript:
        """Make the request that takes the lock if it is free."""
        request = self.request
        ttl_ms, holder_info = b"%d" % request.ttl_ms, request.holder_info
        parts = [request.key, request.token, ttl_ms, DRIVER_WRITES, holder_info]
        self.in_flight = step = RunScript(ACQUIRE, parts, self.requests_end_at)
        return step

    def read_answer(self, reply: bytes | list[Any]) -> LeaseState | None:
        """Read the reply to :meth:`acquire`; ``None``: the lock is held, so wait."""
        sent = self.in_flight
        assert sent is not None
        self.needs_cleanup = True
        if sent.doubled:
            self.mark_lost()
        self.in_flight = None
        if type(reply) is bytes:
            if sent.sent_at > self.server.stale_at:
                self.server.compare(sent.sent_at, self.clock(), int(reply))
            deadline = sent.sent_at + self.request.ttl_ms / 1000
            return LeaseState(int(reply), reply + self.request.token, deadline)
        assert isinstance(reply, list)
        if reply[0] == b"owned":
            # An earlier copy of the request was executed: the lease may have begun earlier.
            return owned(self.request, reply, sent.sent_at)
        self.needs_cleanup = False
        if reply[0] != b"held":
            raise conflict(self.request.key)
        self.held_reply, self.answered_at = reply, self.clock()
        if self.wait_s == 0:
            raise self._refusal(NotAcquired, None)
        return None

    def check_queue(self) -> RunScript:
        """Make the request that takes the lock if it is this waiter's turn, else a place."""
        request = self.request
        if not self.ticket:
            words = request.token, request.ttl_ms, self.channel, request.holder_info
            self.ticket = b"%b%d %b %b" % words
            self.score = request.priority_base
        self.sent_at = self.clock()
        if not self.began_at:
            self.began_at = self.sent_at
        parts = [request.key, request.queue, self.ticket, self.score]
        parts += request.max_waiters, DRIVER_WRITES
        effect, self.check_effect = self.check_effect, RunScript
        if self.in_flight is None:
            self.oldest_sent_at = self.sent_at
        else:
            self.mark_lost()
        self.in_flight = step = effect(WAIT, parts, self.requests_end_at)
        return step

    def read_queue_answer(self, reply: bytes | list[Any]) -> LeaseState | None:
        """Read the reply to :meth:`check_queue`; ``None``: it is not this waiter's turn yet."""
        self.needs_cleanup = True
        self.mark_answered()
        if type(reply) is bytes:
            deadline = self.sent_at + self.request.ttl_ms / 1000
            return LeaseState(int(reply), reply + self.request.token, deadline, self.queued)
        assert isinstance(reply, list)
        if reply[0] == b"queued":
            now = self.clock()
            if not self.queued:
                self.queued, self.young_until = True, now + YOUNG_S
                self.log_at = now + LONG_WAIT_S
            self.held_reply, self.answered_at = reply, now
            self.seen_fence, self.score = reply[4], reply[6]
            if now >= self.log_at:
                self._log_wait(now)
            return None
        if reply[0] == b"owned":
            return owned(self.request, reply, self.sent_at, waited=True)
        self.needs_cleanup = False
        if reply[0] != b"full":
            raise conflict(self.request.key)
        self.held_reply, self.answered_at = reply, self.clock()
        raise self._refusal(QueueFull, reply[4])

    def mark_granted(self) -> None:
        """Note that a message granted the lock, so a request has arrived: which one, if several
        are in flight, is unknown."""
        self.needs_cleanup = True
        if self.orphan is not None:
            self.mark_lost()
        self.mark_answered()

    def resend_after_late(self, make: Callable[[], Effect], reply: list[Any]) -> Steps[Any]:
        """Compare the clocks and repeat a request that the server rejected as late."""
        for _ in range(LATE_MAX):
            now, late = self.clock(), self.in_flight
            assert late is not None
            self.mark_answered()
            self.needs_cleanup = self.queued or self.orphan is not None
            if now >= self.give_up_at:
                if self.held_reply is not None:
                    raise self._refusal(NotAcquired, self.held_reply[5] if self.queued else None)
                raise LockUnavailable(
                    f"could not acquire lock {display_name(self.request.name)!r} in time: the "
                    "request reached the server too late. Try again, or wait longer"
                )
            self.server.compare(late.sent_at, now, int(reply[1]))
            try:
                reply = yield make()
            except LockError as error:
                reply = yield from self.retry_until_deadline(make, error)
            if reply[0] != b"late":
                return reply
        self.mark_answered()
        self.needs_cleanup = self.queued or self.orphan is not None
        raise jumps()

    def claim(self, effect: type[RunScript], lease_id: bytes) -> RunScript:
        """Make the request that extends a lease, which a message granted, to its whole ttl."""
        parts = (self.request.key, lease_id, b"%d" % self.request.ttl_ms)
        return effect(CLAIM, parts, self.requests_end_at, lazy=effect is SendScript)

    def next_check_s(self) -> float:
        """Return how long to wait for a message before the next check of the queue."""
        assert self.held_reply is not None
        left_ms, ahead = self.held_reply[1], self.held_reply[5]
        now = self.clock()
        # Counted from the request, because its reply may have been read late.
        lease_left_s = None if left_ms < 0 else left_ms / 1000 - (now - self.sent_at)
        check_s = next_check_s(ahead, lease_left_s, self.young_until - now)
        return min(check_s, self.left_s(), max(0.0, self.log_at - now))

    def mark_first(self, left_ms: int) -> None:
        """Note the message that this waiter is first now, and for how long the lock is held."""
        assert self.held_reply is not None
        self.held_reply[1], self.held_reply[5] = left_ms, 0
        self.sent_at = self.answered_at = self.clock()

    def left_s(self) -> float:
        """Return how much of the caller's time is left."""
        return math.inf if self.give_up_at == math.inf else max(0.0, self.give_up_at - self.clock())

    def check_time(self) -> None:
        """Give up if the caller's time is over."""
        if self.clock() >= self.give_up_at:
            assert self.held_reply is not None
            raise self._refusal(NotAcquired, self.held_reply[5])

    def _log_wait(self, now: float) -> None:
        assert self.held_reply is not None
        self.log_at = math.inf
        name, state = display_name(self.request.name), self._held(self.held_reply[5]).describe(now)
        log.info("still waiting for lock %r after %.1f s: %s", name, now - self.began_at, state)

    def _held(self, ahead: int | None) -> Held:
        assert self.held_reply is not None
        _, ttl_ms, held_ms, holder_info, *_ = self.held_reply
        return Held(ttl_ms, held_ms, holder_info, self.answered_at, ahead)

    def _refusal(self, kind: type[NotAcquired], ahead: int | None) -> NotAcquired:
        limit = int(self.request.max_waiters) if kind is QueueFull else 0
        return self._held(ahead).refusal(
            self.request.name, self.clock(), kind, wait_s=self.wait_s, max_waiters=limit
        )

    def retry_until_deadline(self, make: Callable[[], Effect], error: LockError) -> Steps[Any]:
        """Repeat a request that failed, while the server does not answer and time is left.

        :raises LockError: a retry cannot succeed, or the time is over.
        """
        pause_s = RETRY_MIN_S
        # Whether the server may know the token from another request.
        needed_cleanup = self.queued or self.orphan is not None
        unknown: LockUnavailable | None = None
        while True:
            if not isinstance(error, LockUnavailable):
                # A definite answer: the request had no effect.
                self.needs_cleanup = needed_cleanup
                raise error
            now = self.clock()
            # A broken connection says nothing about the next one: repeat at once.
            at_once = unknown is None and error.outcome_unknown
            if error.outcome_unknown:
                unknown = error
                self.mark_lost()
            self.mark_answered()
            if not self._may_retry(now, error, at_once):
                self.needs_cleanup = needed_cleanup or unknown is not None
                if unknown is None or unknown is error:
                    raise error
                raise still_unknown(unknown, error) from error
            if not at_once:
                yield AwaitMessage(min(pause_s, self.give_up_at - now))
                pause_s = min(pause_s * 2, RETRY_MAX_S)
            self.sent_at = self.clock()
            try:
                return (yield make())
            except LockError as again:
                error = again

    def _may_retry(self, now: float, error: LockUnavailable, at_once: bool) -> bool:
        """Return whether to go on trying to reach the server."""
        if not error.retryable:
            return False
        if self.wait_s == 0 or self.give_up_at == math.inf:
            return at_once or (self.held_reply is not None and now - self.answered_at < PATIENCE_S)
        return now < self.give_up_at
