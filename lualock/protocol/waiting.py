"""How a lock is acquired: acquire, enqueue, claim, abandon, and the waiting between them.

The first try is one script. If somebody has the lock, the driver listens for messages and a
second script takes a place in the queue. From then on a message says whose turn it is; because a
message can be lost, every waiter also looks again by itself, the first in the queue when the
holder's lease ends, the others the more rarely the further back they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from lualock.errors import (
    KeyConflict,
    LockError,
    LockUnavailable,
    NotAcquired,
    QueueFull,
)
from lualock.protocol.holding import (
    CLAIM,
    ENQUEUE,
    forsake,
    give_back,
    lay,
    still_unknown,
)
from lualock.protocol.replies import Held, conflict
from lualock.protocol.server_clock import LATE_MAX, ServerClock, jumps
from lualock.protocol.steps import (
    LAST_WORD_S,
    Call,
    Listen,
    Pending,
    Post,
    Reach,
    Step,
    Steps,
    Wait,
)
from lualock.protocol.terms import Ask, Grant
from lualock.script import SCRIPTS

ACQUIRE = SCRIPTS["acquire"]

CLAIM_MS = 2500
"""How long a waiter that was given the lock has until it must have claimed it; also in Lua."""

LOOK_MAX_S = 60.0
"""How rarely the last of many waiters looks again; the queue's key lives three times as long."""

LOOK_AT_END, LOOK_LEAST_S, LOOK_BEHIND_S = 8, 1.0, 0.5
"""How many in front look when the lease ends, all but two of them no more often than that; those
behind them do too, but no more often than that for each who is before them."""

YOUNG_S = 0.08
"""When a newcomer looks once more; from 60 ms on (also in Lua) it is told when it becomes first."""

LOOK_LATE_S = 0.005
"""How long after the end of a lease its successor looks, so that it does not look too early."""

REPLY_S, CROWDED_REPLY_S = 0.01, 0.04
"""How long a waiter expects its turn before it reads what the server says of its place; and how
long where many waited the last time: of 64 processes, most would be woken just to read that."""

TRUSTED_S = 1.0
"""How long ago the last answer may be for a claim to be sent without waiting for its reply: since
then the connection may have died without a word."""

RETRY_MIN_S, RETRY_MAX_S = 0.01, 0.5
"""Pauses between the attempts to reach a server that is away."""

PATIENCE_S = 60.0
"""How long a waiter without a timeout bears a server that is away before it gives up; who has had
no answer at all yet does not wait for a server."""


def acquire(ask: Ask, server: ServerClock, wait_s: float | None) -> Steps[Grant]:
    """Take the lock, waiting up to ``wait_s`` seconds (``None``: for ever; 0: one try).

    :raises NotAcquired: somebody else still had it when the time was over.
    :raises QueueFull: as many wait already as the lock allows.
    :raises KeyConflict: the key holds something else.
    :raises LockUnavailable: the server did not answer, or answered that it cannot.
    """
    attempt = _Attempt(ask, server, wait_s)
    try:
        try:
            if not server.known:
                yield from attempt.reach()
            if wait_s == 0 or not ask.crowded:
                step = attempt.take()
                try:
                    reply = yield step
                except LockError as error:
                    reply = yield from attempt.persist(attempt.take, error)
                if type(reply) is list and reply[0] == b"late":
                    sent = attempt.sent
                    reply = yield from attempt.hurry(attempt.take, reply)
                    attempt.sent = sent  # the token is all that proves which of them it answers
                ask.grant = attempt.taken(reply)
            if ask.grant is None:
                ask.grant = yield from enqueue(attempt)
            if attempt.ghost is not None:
                # Now, for what becomes of the lease (it may be released, passed on or forgotten)
                # is not known; it takes away all but that.
                yield lay(ask, attempt.ghost)
            return ask.grant
        except NotAcquired as refused:
            told = None
            if attempt.unsettled:
                told = yield from abandon(attempt)
            raise (told or refused) from None
    except (GeneratorExit, KeyConflict):
        raise
    except BaseException:
        ask.grant = None
        # Also of who was refused: a look that went before the refused one may have come after it,
        # and have been answered with a place.
        ghost = attempt.possible_ghost()
        if attempt.unsettled or ghost is not None:
            yield from give_back(ask, attempt.ticket, ghost, attempt.until)
        raise


def undo(ask: Ask) -> Steps[None]:
    """Give back what was won, where the caller was interrupted before it heard of it."""
    if ask.grant is not None:
        yield from give_back(ask, b"", None)


def enqueue(attempt: _Attempt) -> Steps[Grant]:
    """Take a place in the queue, and wait for the turn."""
    token = attempt.ask.token
    listen, wait = Listen(token, attempt.until), Wait(0.0, token)
    reply_s = CROWDED_REPLY_S if attempt.ask.crowded else REPLY_S
    while True:
        try:
            channel = yield listen
        except LockError as error:
            attempt.may_linger()  # a look whose reply was not waited for
            channel = yield from attempt.persist(lambda: listen, error)
        told, listen.anew = None, False
        look = partial(attempt.look, channel)
        try:
            step = look()
            reply = yield step
            if type(step) is Post:
                # Where a lock goes round fast it is our turn soon. Who is not woken just to read
                # that it has a place leaves that time to the holder.
                wait.seconds = min(reply_s, attempt.left_s())
                told = yield wait
                if told is not None and told[:1] == b"=":
                    told = b""  # what it says, our look says better
                if not told:
                    reply = _answer_to(reply)
        except LockError as error:
            reply = yield from attempt.persist(look, error)
        if not told:
            if reply is None:
                continue  # ask again, and wait for the reply
            if reply[0] == b"late":
                reply = yield from attempt.hurry(look, reply)
            grant = attempt.looked(reply)
            if grant is not None:
                return grant
            if told is not None:
                continue  # told to look again
            wait.seconds = attempt.nap_s()
            told = yield wait
            while told is not None and told[:1] == b"=":
                attempt.first(int(told[1:]))
                wait.seconds = attempt.nap_s()
                told = yield wait
        if told is None:
            attempt.check_time()
        # A fence that is no greater than what the lock had when we looked is an old message: that
        # turn passed, unclaimed, before.
        elif told[:16] > attempt.seen:
            grant = yield from claim(attempt, told)
            if grant is not None:
                return grant
            # Perhaps it came from a server that is no primary any more: it repeats what is said
            # at the new one, which knows of nobody who listens.
            listen.anew = True


def _answer_to(look: Pending) -> Any:
    """The reply to a look that was posted; ``None``: it has not come, or never will. An error says
    nothing: that it answers this very request is made sure of only where somebody waits for it."""
    try:
        return look.poll()
    except LockError:
        return None


def claim(attempt: _Attempt, told: bytes) -> Steps[Grant | None]:
    """A message says that the lock was given to us: claim it. ``None``: that came too late."""
    attempt.arrived()
    fence, ttl_s = int(told[:16]), attempt.ask.ttl_ms / 1000
    if told[16:] == b"+":
        return Grant(fence, attempt.since + ttl_s, True)  # we took it ourselves
    # It was given for CLAIM_MS or the ttl, and the message says when.
    now, given_us, server = attempt.clock(), int(told[16:]), attempt.server
    if now > server.stale_at:
        server.refine(attempt.began, now, given_us)
    given = server.passed(given_us, now)
    certain = given + min(ttl_s, CLAIM_MS / 1000) if given is not None else now
    # Where no look has been answered yet, the message itself shows that one arrived.
    alive = now - (attempt.answered if attempt.queued else attempt.sent) < TRUSTED_S
    if alive and certain - now > min(ttl_s, CLAIM_MS / 1000) / 2:
        # There is time enough to begin at once, and read the reply to the claim later.
        try:
            pending = yield attempt.claim(Post, told)
        except LockUnavailable:
            pass
        else:
            return Grant(fence, certain, True, pending, now + ttl_s)
    step = attempt.claim(Call, told)
    attempt.sent = attempt.clock()
    try:
        reply = yield step
    except LockError as error:
        reply = yield from attempt.persist(lambda: step, error)
    if reply != b"claimed":
        return None
    return Grant(fence, attempt.sent + ttl_s, True)


def abandon(attempt: _Attempt) -> Steps[NotAcquired | None]:
    """Leave the queue because the time is over. Says who has the lock, if that is known."""
    ask = attempt.ask
    if attempt.asked is not None:
        attempt.asked.moot = True
    try:
        reply = yield forsake(ask, attempt.ticket, attempt.until)
    except LockError:
        reply = None  # the driver goes on trying
    attempt.unsettled = False
    if not isinstance(reply, list) or reply[0] != b"left" or len(reply) == 1:
        return None
    now = attempt.clock()
    held = Held(reply[1], reply[2], reply[3], now, None if reply[4] < 0 else reply[4])
    return held.refusal(ask.name, now, NotAcquired)


class _Attempt:
    """One acquisition under way: what was sent, what is known, and until when to go on."""

    # What an acquisition at the first try never touches stands here, not in each instance.
    queued = False
    answered = 0.0
    began = 0.0  # when the first look was sent
    young_until = 0.0  # until then nobody tells it that it is first
    since = 0.0  # when the first of those looks was sent that are not answered
    reply: list[Any] | None = None  # the last that said who has the lock
    ticket = b""
    seen = b""  # the fence it had then
    place: bytes
    kind: type[Call] = Post  # of the next look: the reply to the first is not urgent
    asked: Call | None = None  # the last request that could take the lock, while unanswered
    ghost: Call | None = None  # one before it, whose reply will never come
    give_up = math.inf
    until: float | None = None  # one try has the connection's own time
    unsettled = True  # whether the server may have something under our token

    def __init__(self, ask: Ask, server: ServerClock, wait_s: float | None) -> None:
        self.ask = ask
        self.server = server
        self.clock = clock = server.clock
        self.once = wait_s == 0
        self.sent = clock()
        if wait_s is not None:
            self.give_up = self.sent + wait_s
            self.until = self.give_up if wait_s else None

    def reach(self) -> Steps[None]:
        """Make the first connection: it tells the server's time, which every request needs."""
        self.unsettled = False
        try:
            yield Reach(self.until)
        except LockError as error:
            yield from self.persist(lambda: Reach(self.until), error)
        self.sent, self.unsettled = self.clock(), True

    def take(self) -> Call:
        """The request that takes the lock if it is free."""
        ask = self.ask
        expires, deadline = self._deadline()
        parts = (ask.key, ask.token, b"%d" % ask.ttl_ms, deadline, ask.about)
        self.asked = step = Call(ACQUIRE, parts, self.until, expires=expires)
        return step

    def _deadline(self) -> tuple[float, bytes]:
        """Until when the reply to a request that is sent now is waited for, here and there."""
        usual, deadline = self.server.usual(self.sent)
        if self.until is None or usual < self.until:
            return usual, deadline
        expires = max(self.until, self.sent + LAST_WORD_S)
        return expires, self.server.deadline(expires, self.sent)

    def taken(self, reply: bytes | list[Any]) -> Grant | None:
        """What its reply means; ``None``: somebody has it, and there is time to wait."""
        if self.asked is not None and self.asked.doubled:
            self.may_linger()
        self.asked = None
        if type(reply) is bytes:
            if self.sent > self.server.stale_at:
                self.server.compare(self.sent, self.clock(), int(reply))
            named = reply + self.ask.token
            return Grant(int(reply), self.sent + self.ask.ttl_ms / 1000, named=named)
        assert isinstance(reply, list)
        if reply[0] == b"owned":
            # A repeat of a request that had been carried out: the lease may have begun earlier.
            return Grant(int(reply[2]), self.sent + reply[1] / 1000)
        self.unsettled = False
        if reply[0] != b"held":
            raise conflict(self.ask.key)
        self.reply, self.answered = reply, self.clock()
        if self.once:
            raise self._refusal(NotAcquired, None)
        return None

    def look(self, channel: bytes) -> Call:
        """The request that takes the lock if it is our turn, or has a place in the queue."""
        ask = self.ask
        if not self.ticket:
            self.ticket = b"%b%d %b %b" % (ask.token, ask.ttl_ms, channel, ask.about)
            self.place = ask.band
        self.sent, self.unsettled = self.clock(), True
        if not self.began:
            self.began = self.sent
        expires, deadline = self._deadline()
        parts = (ask.key, ask.queue, self.ticket, self.place, ask.max_waiters, ask.fair, deadline)
        kind, self.kind = self.kind, Call
        if self.asked is None:
            self.since = self.sent
        else:
            self.may_linger()
        self.asked = step = kind(ENQUEUE, parts, self.until, expires=expires)
        return step

    def looked(self, reply: bytes | list[Any]) -> Grant | None:
        """What its reply means; ``None``: it is not our turn yet."""
        self.answer_came()
        if type(reply) is bytes:
            return Grant(int(reply), self.sent + self.ask.ttl_ms / 1000, True)
        assert isinstance(reply, list)
        if reply[0] == b"queued":
            now = self.clock()
            if not self.queued:
                self.queued, self.young_until = True, now + YOUNG_S
            self.reply, self.answered = reply, now
            self.seen, self.place = reply[4], reply[6]
            return None
        if reply[0] == b"owned":
            return Grant(int(reply[2]), self.sent + reply[1] / 1000, True)
        self.unsettled = False
        if reply[0] != b"full":
            raise conflict(self.ask.key)
        self.reply, self.answered = reply, self.clock()
        raise self._refusal(QueueFull, reply[4])

    def arrived(self) -> None:
        """A message gave us the lock: so the look that was out, if it was the only one, arrived."""
        if self.ghost is not None:
            self.may_linger()
        self.answer_came()

    def answer_came(self) -> None:
        """The request that was out is answered; but a copy of it may be under way still."""
        if self.asked is not None and self.asked.doubled:
            self.may_linger()
        self.asked = None

    def possible_ghost(self) -> Call | None:
        """The last request that may be under way still."""
        self.may_linger()
        return self.ghost

    def may_linger(self) -> None:
        """The request that is out may be under way still when we have gone on: as the last one, it
        stands for those before it, so it does not matter any more by which connection it went."""
        if self.asked is not None:
            if self.ghost is not None:
                self.asked.via = None
            self.ghost, self.asked = self.asked, None

    def hurry(self, make: Callable[[], Step], reply: list[Any]) -> Steps[Any]:
        """Ask again where the server found our request late: now we know its time better."""
        for _ in range(LATE_MAX):
            now = self.clock()
            self.answer_came()
            self.unsettled = self.queued or self.ghost is not None
            if now >= self.give_up:
                if self.reply is not None:
                    raise self._refusal(NotAcquired, self.reply[5] if self.queued else None)
                raise LockUnavailable("the request reached the server when the time was over")
            self.server.compare(self.sent, now, int(reply[1]))
            self.sent, self.unsettled = self.clock(), True
            try:
                reply = yield make()
            except LockError as error:
                reply = yield from self.persist(make, error)
            if reply[0] != b"late":
                return reply
        self.answer_came()
        self.unsettled = self.queued or self.ghost is not None
        raise jumps()

    def claim(self, kind: type[Call], told: bytes) -> Call:
        """The request that makes a lease that was given to us last its whole ttl."""
        ask = self.ask
        parts = (ask.key, told[:16] + ask.token, b"%d" % ask.ttl_ms)
        return kind(CLAIM, parts, self.until, lazy=kind is Post)

    def nap_s(self) -> float:
        """How long to wait for a message before looking again."""
        assert self.reply is not None
        left_ms, ahead = self.reply[1], self.reply[5]
        nap_s: float = LOOK_MAX_S
        if left_ms >= 0:
            # When the lease ends by itself, it is the first's turn, and then the second's; those
            # before us may have died with the holder, and whoever looks passes over the dead.
            # Counted from the request, for its reply may have been read only now.
            left_s = left_ms / 1000 - (self.clock() - self.sent)
            nap_s = max(0.0, left_s) + LOOK_LATE_S * (ahead + 1)
            if ahead > 1:
                near = ahead < LOOK_AT_END
                nap_s = max(nap_s, LOOK_LEAST_S if near else LOOK_BEHIND_S * ahead)
        if ahead > 0:
            # Who becomes first is told, but a message can be lost, and whoever was told may have
            # died since: everybody looks, rarely, so that many cost little.
            nap_s = min(nap_s, CLAIM_MS / 1000 * 2 ** min(max(1, ahead - 1), 8))
        if (young_s := self.young_until - self.clock()) > 0:
            # Also who is first: one of a higher priority may come, and have gone again.
            nap_s = min(nap_s, young_s)
        # Those who came together need not look together.
        nap_s = min(nap_s, LOOK_MAX_S * (1 - ahead % 8 / 32))
        return min(nap_s, self.left_s())

    def first(self, left_ms: int) -> None:
        """A message says that we are first now, and for how long the lock is held."""
        assert self.reply is not None
        self.reply[1], self.reply[5] = left_ms, 0
        self.sent = self.answered = self.clock()

    def left_s(self) -> float:
        """How much of the caller's time is left."""
        return math.inf if self.give_up == math.inf else max(0.0, self.give_up - self.clock())

    def check_time(self) -> None:
        """Give up if the time is over."""
        if self.clock() >= self.give_up:
            assert self.reply is not None
            raise self._refusal(NotAcquired, self.reply[5])

    def _refusal(self, kind: type[NotAcquired], ahead: int | None) -> NotAcquired:
        assert self.reply is not None
        _, ttl_ms, held_ms, about, *_ = self.reply
        held = Held(ttl_ms, held_ms, about, self.answered, ahead)
        return held.refusal(self.ask.name, self.clock(), kind)

    def persist(self, make: Callable[[], Step], error: LockError) -> Steps[Any]:
        """Repeat a step that failed, for as long as the server is away and there is time.

        :raises LockError: it is of no use, or the time is over.
        """
        pause_s = RETRY_MIN_S
        # What the server may have of us but for this request.
        before = self.queued or self.ghost is not None
        unknown: LockUnavailable | None = None
        while True:
            if not isinstance(error, LockUnavailable):
                self.unsettled = before  # a definite answer: the request had no effect
                raise error
            now = self.clock()
            # A connection that broke says nothing of the next one: once more, and at once.
            at_once = unknown is None and error.outcome_unknown
            if error.outcome_unknown:
                unknown = error
                self.may_linger()
            self.answer_came()
            if not self._patient(now, error, at_once):
                self.unsettled = before or unknown is not None
                if unknown is None or unknown is error:
                    raise error
                raise still_unknown(unknown, error) from error
            if not at_once:
                yield Wait(min(pause_s, self.give_up - now))
                pause_s = min(pause_s * 2, RETRY_MAX_S)
            self.sent = self.clock()
            try:
                return (yield make())
            except LockError as again:
                error = again

    def _patient(self, now: float, error: LockUnavailable, at_once: bool) -> bool:
        """Whether to go on trying to reach the server."""
        if error._lasts:
            return False
        if self.once or self.give_up == math.inf:
            return at_once or (self.reply is not None and now - self.answered < PATIENCE_S)
        return now < self.give_up
