"""One acquisition under way: what was sent, what is known, and until when it goes on."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from lualock._core.keys import display_name
from lualock._protocol.abandon import ENQUEUE
from lualock._protocol.effects import (
    MIN_REQUEST_S,
    AwaitMessage,
    Connect,
    Effect,
    RunScript,
    SendScript,
    Steps,
)
from lualock._protocol.exchange import still_unknown
from lualock._protocol.replies import Held, conflict
from lualock._protocol.request import AcquireRequest, LeaseState
from lualock._protocol.server_clock import LATE_MAX, ServerClock, jumps
from lualock.errors import LockError, LockUnavailable, NotAcquired, QueueFull
from lualock.scripts import SCRIPTS

ACQUIRE = SCRIPTS["acquire"]
CLAIM = SCRIPTS["claim"]
CLAIM_MS = 2500
"""How long a waiter that was given the lock has until it must have claimed it; also in Lua."""


CHECK_MAX_S = 60.0
"""How rarely the last of many waiters looks again; the queue's key lives three times as long."""


CHECK_AT_END, CHECK_LEAST_S, CHECK_BEHIND_S = 8, 1.0, 0.5
"""How many in front look when the lease ends, all but two of them no more often than that; those
behind them do too, but no more often than that for each who is before them."""


GRACE_S = 0.08
"""When a newcomer looks once more; from 60 ms on (also in Lua) it is told when it becomes first."""


CHECK_LATE_S = 0.005
"""How long after the end of a lease its successor looks, so that it does not look too early."""


RETRY_MIN_S, RETRY_MAX_S = 0.01, 0.5
"""Pauses between the attempts to reach a server that is away."""


PATIENCE_S = 60.0
"""How long a waiter without a timeout bears a server that is away before it gives up; who has had
no answer at all yet does not wait for a server."""


class Attempt:
    """One acquisition under way: what was sent, what is known, and until when to go on."""

    # What an acquisition at the first try never touches stands here, not in each instance.
    queued = False
    answered_at = 0.0
    began_at = 0.0  # when the first look was sent
    grace_until = 0.0  # until then nobody tells it that it is first
    since = 0.0  # when the first of those looks was sent that are not answered
    reply: list[Any] | None = None  # the last that said who has the lock
    ticket = b""
    seen_fence = b""  # the fence it had then
    place: bytes
    kind: type[RunScript] = SendScript  # of the next look: the reply to the first is not urgent
    in_flight: RunScript | None = None  # the last request that could take the lock
    orphan: RunScript | None = None  # one before it, whose reply will never come
    give_up_at = math.inf
    until: float | None = None  # one try has the connection's own time
    outstanding = True  # whether the server may have something under our token

    def __init__(self, request: AcquireRequest, server: ServerClock, wait_s: float | None) -> None:
        self.request = request
        self.server = server
        self.clock = clock = server.clock
        self.wait_s = wait_s
        self.sent_at = clock()
        if wait_s is not None:
            self.give_up_at = self.sent_at + wait_s
            self.until = self.give_up_at if wait_s else None

    def connect(self) -> Steps[None]:
        """Make the first connection: it tells the server's time, which every request needs."""
        self.outstanding = False
        try:
            yield Connect(self.until)
        except LockError as error:
            yield from self.retry_until_deadline(lambda: Connect(self.until), error)
        self.sent_at, self.outstanding = self.clock(), True

    def acquire(self) -> RunScript:
        """The request that takes the lock if it is free."""
        request = self.request
        expires, deadline = self._deadline()
        parts = (request.key, request.token, b"%d" % request.ttl_ms, deadline, request.holder_info)
        self.in_flight = step = RunScript(ACQUIRE, parts, self.until, expires=expires)
        return step

    def _deadline(self) -> tuple[float, bytes]:
        """Until when the reply to a request that is sent now is waited for, here and there."""
        usual, deadline = self.server.usual(self.sent_at)
        if self.until is None or usual < self.until:
            return usual, deadline
        expires = max(self.until, self.sent_at + MIN_REQUEST_S)
        return expires, self.server.deadline(expires, self.sent_at)

    def read_answer(self, reply: bytes | list[Any]) -> LeaseState | None:
        """What its reply means; ``None``: somebody has it, and there is time to wait."""
        if self.in_flight is not None and self.in_flight.doubled:
            self.mark_lost()
        self.in_flight = None
        if type(reply) is bytes:
            if self.sent_at > self.server.stale_at:
                self.server.compare(self.sent_at, self.clock(), int(reply))
            lease_id = reply + self.request.token
            deadline = self.sent_at + self.request.ttl_ms / 1000
            return LeaseState(int(reply), deadline, lease_id=lease_id)
        assert isinstance(reply, list)
        if reply[0] == b"owned":
            # A repeat of a request that had been carried out: the lease may have begun earlier.
            return LeaseState(int(reply[2]), self.sent_at + reply[1] / 1000)
        self.outstanding = False
        if reply[0] != b"held":
            raise conflict(self.request.key)
        self.reply, self.answered_at = reply, self.clock()
        if self.wait_s == 0:
            raise self._refusal(NotAcquired, None)
        return None

    def check_queue(self, channel: bytes) -> RunScript:
        """The request that takes the lock if it is our turn, or has a place in the queue."""
        request = self.request
        if not self.ticket:
            self.ticket = b"%b%d %b %b" % (
                request.token,
                request.ttl_ms,
                channel,
                request.holder_info,
            )
            self.place = request.priority_base
        self.sent_at, self.outstanding = self.clock(), True
        if not self.began_at:
            self.began_at = self.sent_at
        expires, deadline = self._deadline()
        parts = (
            request.key,
            request.queue,
            self.ticket,
            self.place,
            request.max_waiters,
            request.fair,
            deadline,
        )
        kind, self.kind = self.kind, RunScript
        if self.in_flight is None:
            self.since = self.sent_at
        else:
            self.mark_lost()
        self.in_flight = step = kind(ENQUEUE, parts, self.until, expires=expires)
        return step

    def read_queue_answer(self, reply: bytes | list[Any]) -> LeaseState | None:
        """What its reply means; ``None``: it is not our turn yet."""
        self.mark_answered()
        if type(reply) is bytes:
            return LeaseState(int(reply), self.sent_at + self.request.ttl_ms / 1000, True)
        assert isinstance(reply, list)
        if reply[0] == b"queued":
            now = self.clock()
            if not self.queued:
                self.queued, self.grace_until = True, now + GRACE_S
            self.reply, self.answered_at = reply, now
            self.seen_fence, self.place = reply[4], reply[6]
            return None
        if reply[0] == b"owned":
            return LeaseState(int(reply[2]), self.sent_at + reply[1] / 1000, True)
        self.outstanding = False
        if reply[0] != b"full":
            raise conflict(self.request.key)
        self.reply, self.answered_at = reply, self.clock()
        raise self._refusal(QueueFull, reply[4])

    def mark_given(self) -> None:
        """A message gave us the lock: so the look that was out, if it was the only one, arrived."""
        if self.orphan is not None:
            self.mark_lost()
        self.mark_answered()

    def mark_answered(self) -> None:
        """The request that was out is answered; but a copy of it may be under way still."""
        if self.in_flight is not None and self.in_flight.doubled:
            self.mark_lost()
        self.in_flight = None

    def possible_orphan(self) -> RunScript | None:
        """The last request that may be under way still."""
        self.mark_lost()
        return self.orphan

    def mark_lost(self) -> None:
        """The request that is out may be under way still when we have gone on: as the last one, it
        stands for those before it, so it does not matter any more by which connection it went."""
        if self.in_flight is not None:
            if self.orphan is not None:
                self.in_flight.via = None
            self.orphan, self.in_flight = self.in_flight, None

    def resend_after_late(self, make: Callable[[], Effect], reply: list[Any]) -> Steps[Any]:
        """Ask again where the server found our request late: now we know its time better."""
        for _ in range(LATE_MAX):
            now = self.clock()
            self.mark_answered()
            self.outstanding = self.queued or self.orphan is not None
            if now >= self.give_up_at:
                if self.reply is not None:
                    raise self._refusal(NotAcquired, self.reply[5] if self.queued else None)
                raise LockUnavailable(
                    f"could not acquire lock {display_name(self.request.name)!r} in time: the "
                    "request reached the server too late. Try again, or wait longer"
                )
            self.server.compare(self.sent_at, now, int(reply[1]))
            self.sent_at, self.outstanding = self.clock(), True
            try:
                reply = yield make()
            except LockError as error:
                reply = yield from self.retry_until_deadline(make, error)
            if reply[0] != b"late":
                return reply
        self.mark_answered()
        self.outstanding = self.queued or self.orphan is not None
        raise jumps()

    def claim(self, kind: type[RunScript], message: bytes) -> RunScript:
        """The request that makes a lease that was given to us last its whole ttl."""
        request = self.request
        parts = (request.key, message[:16] + request.token, b"%d" % request.ttl_ms)
        return kind(CLAIM, parts, self.until, lazy=kind is SendScript)

    def next_check_s(self) -> float:
        """How long to wait for a message before looking again."""
        assert self.reply is not None
        left_ms, ahead = self.reply[1], self.reply[5]
        next_check_s: float = CHECK_MAX_S
        if left_ms >= 0:
            # When the lease ends by itself, it is the first's turn, and then the second's; those
            # before us may have died with the holder, and whoever looks passes over the dead.
            # Counted from the request, for its reply may have been read only now.
            left_s = left_ms / 1000 - (self.clock() - self.sent_at)
            next_check_s = max(0.0, left_s) + CHECK_LATE_S * (ahead + 1)
            if ahead > 1:
                near = ahead < CHECK_AT_END
                next_check_s = max(next_check_s, CHECK_LEAST_S if near else CHECK_BEHIND_S * ahead)
        if ahead > 0:
            # Who becomes first is told, but a message can be lost, and whoever was told may have
            # died since: everybody looks, rarely, so that many cost little.
            next_check_s = min(next_check_s, CLAIM_MS / 1000 * 2 ** min(max(1, ahead - 1), 8))
        if (grace_s := self.grace_until - self.clock()) > 0:
            # Also who is first: one of a higher priority may come, and have gone again.
            next_check_s = min(next_check_s, grace_s)
        # Those who came together need not look together.
        next_check_s = min(next_check_s, CHECK_MAX_S * (1 - ahead % 8 / 32))
        return min(next_check_s, self.left_s())

    def mark_first(self, left_ms: int) -> None:
        """A message says that we are first now, and for how long the lock is held."""
        assert self.reply is not None
        self.reply[1], self.reply[5] = left_ms, 0
        self.sent_at = self.answered_at = self.clock()

    def left_s(self) -> float:
        """How much of the caller's time is left."""
        return math.inf if self.give_up_at == math.inf else max(0.0, self.give_up_at - self.clock())

    def check_time(self) -> None:
        """Give up if the time is over."""
        if self.clock() >= self.give_up_at:
            assert self.reply is not None
            raise self._refusal(NotAcquired, self.reply[5])

    def _refusal(self, kind: type[NotAcquired], ahead: int | None) -> NotAcquired:
        assert self.reply is not None
        _, ttl_ms, held_ms, holder_info, *_ = self.reply
        held = Held(ttl_ms, held_ms, holder_info, self.answered_at, ahead)
        limit = int(self.request.max_waiters) if kind is QueueFull else 0
        return held.refusal(
            self.request.name, self.clock(), kind, wait_s=self.wait_s, max_waiters=limit
        )

    def retry_until_deadline(self, make: Callable[[], Effect], error: LockError) -> Steps[Any]:
        """Repeat a step that failed, for as long as the server is away and there is time.

        :raises LockError: it is of no use, or the time is over.
        """
        pause_s = RETRY_MIN_S
        # What the server may have of us but for this request.
        before = self.queued or self.orphan is not None
        unknown: LockUnavailable | None = None
        while True:
            if not isinstance(error, LockUnavailable):
                self.outstanding = before  # a definite answer: the request had no effect
                raise error
            now = self.clock()
            # A connection that broke says nothing of the next one: once more, and at once.
            at_once = unknown is None and error.outcome_unknown
            if error.outcome_unknown:
                unknown = error
                self.mark_lost()
            self.mark_answered()
            if not self._may_retry(now, error, at_once):
                self.outstanding = before or unknown is not None
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
        """Whether to go on trying to reach the server."""
        if error._lasts:
            return False
        if self.wait_s == 0 or self.give_up_at == math.inf:
            return at_once or (self.reply is not None and now - self.answered_at < PATIENCE_S)
        return now < self.give_up_at
