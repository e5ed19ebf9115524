"""Layer 2: what is sent, in which order, and what each reply means. Sans-IO.

Every operation is a generator that yields steps and is sent their replies. It has no socket, no
clock and no randomness of its own; the drivers have them, so one logic serves threads, asyncio
and the simulator. Rules that hold here:

* A driver sends the reply of a :class:`Call` in, or throws whatever went wrong in: every
  exception, but never ``GeneratorExit``, which Python raises when nobody will finish a generator.
* Every script is idempotent by token. A call whose reply was lost is sent once more, on a fresh
  connection; when that fails too the outcome is unknown, and the error says so.
* A deadline is counted from *before* the request was sent, so it never ends after the server's.
* When acquiring is interrupted after something was sent, the token is released before the
  interruption goes on. A failure of that release never replaces what interrupted.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeVar

from lualock.errors import KeyConflict, LeaseLost, LockError, LockUnavailable, NotAcquired
from lualock.keys import display_name
from lualock.options import split_about
from lualock.script import SCRIPTS, Script

ACQUIRE = SCRIPTS["acquire"]
RELEASE = SCRIPTS["release"]
EXTEND = SCRIPTS["extend"]
INSPECT = SCRIPTS["inspect"]

# How often a waiter looks again, at most and at least (the interim rule: hand-over by the release
# script, which needs no looking, replaces it).
RECHECK_MIN_S = 0.005
RECHECK_MAX_S = 0.25


@dataclass(slots=True)
class Call:
    """Run one script on one key. Its reply is sent in as redis-py parsed it.

    A ``compensating`` call cleans up after an interruption: the driver carries it out even while
    its own task is being cancelled.
    """

    script: Script
    key: bytes
    args: tuple[bytes, ...]
    compensating: bool = False


@dataclass(slots=True)
class Wait:
    """Let ``seconds`` pass. The reply is ``None``."""

    seconds: float


Step = Call | Wait
T = TypeVar("T")
Steps = Generator[Step, Any, T]
Clock = Callable[[], float]


@dataclass(slots=True)
class Grant:
    """What an acquisition won. ``deadline`` is on the driver's clock, in seconds."""

    fence: int
    deadline: float


@dataclass(frozen=True, slots=True)
class LockInfo:
    """Who has a lock, as the server said it. All times in seconds.

    ``held`` is false for a free lock, and then the rest is empty. ``remaining_s`` is ``None`` for
    a lock that somebody stripped of its expiry by hand (it would last for ever).
    """

    name: str
    held: bool
    holder: str | None = None
    metadata: str = ""
    fence: int | None = None
    held_s: float | None = None
    remaining_s: float | None = None


def _millis(value: int) -> bytes:
    return b"%d" % value


def _seconds(ttl_ms: int) -> float | None:
    return None if ttl_ms < 0 else ttl_ms / 1000


def conflict(key: bytes) -> KeyConflict:
    """The error for a key that is not a lock's."""
    return KeyConflict(
        f"the key {display_name(key)!r} holds something that lualock did not write; nothing was "
        "changed. Delete that key, or choose another name or prefix for the lock"
    )


def _resend(step: Call, error: LockUnavailable) -> Steps[Any]:
    """Send a call again, once, where its reply was lost; else raise what went wrong."""
    if not error.outcome_unknown:
        raise error
    try:
        return (yield step)
    except LockUnavailable as second:
        if second.outcome_unknown:
            raise
        # Whatever became of the second request, the first may have been carried out.
        text = f"{error}; and asking again failed: {second}"
        raise LockUnavailable(text, outcome_unknown=True) from second


@dataclass(slots=True)
class Ask:
    """One acquisition: the lock, the token and what the lease shall be."""

    name: str | bytes
    key: bytes
    token: bytes
    ttl_ms: int
    about: bytes


def acquire(ask: Ask, clock: Clock, wait_s: float | None) -> Steps[Grant]:
    """Take the lock, waiting up to ``wait_s`` seconds (``None``: for ever; 0: one try).

    :raises NotAcquired: somebody else still had it when the time was over.
    :raises KeyConflict: the key holds something else.
    :raises LockUnavailable: the server did not answer, or answered that it cannot.
    """
    step = Call(ACQUIRE, ask.key, (ask.token, _millis(ask.ttl_ms), ask.about))
    give_up = None if wait_s is None else clock() + wait_s
    pause_s = RECHECK_MIN_S
    unanswered = False
    try:
        while True:
            sent, unanswered = clock(), True
            try:
                reply = yield step
            except LockUnavailable as error:
                reply = yield from _resend(step, error)
            if isinstance(reply, bytes):
                return Grant(int(reply), sent + ask.ttl_ms / 1000)
            outcome = reply[0]
            if outcome == b"owned":
                # A repeat of a request that had been carried out: the lease began earlier.
                return Grant(int(reply[2]), sent + reply[1] / 1000)
            if outcome != b"held":
                raise conflict(ask.key)
            left_s = _seconds(reply[1])
            now, unanswered = clock(), False
            if give_up is not None and now >= give_up:
                raise _not_acquired(ask.name, reply)
            # The lock may be released early, and it is free at the latest when the lease ends.
            nap_s = pause_s if left_s is None else min(pause_s, left_s + 0.001)
            if give_up is not None:
                nap_s = min(nap_s, give_up - now)
            yield Wait(nap_s)
            pause_s = min(pause_s * 2, RECHECK_MAX_S)
    except (GeneratorExit, NotAcquired, KeyConflict):
        raise
    except BaseException as error:
        refused = isinstance(error, LockError) and not getattr(error, "outcome_unknown", False)
        if unanswered and not refused:
            yield from _give_back(ask.key, ask.token)
        raise


def _give_back(key: bytes, token: bytes) -> Steps[None]:
    """Release a token of which nobody knows whether it holds the lock. Never raises."""
    try:
        yield Call(RELEASE, key, (token,), compensating=True)
    except GeneratorExit:
        raise
    except BaseException:
        # What interrupted before is what the caller must see. Unreleased, the lock is free again
        # when its lease ends.
        return


def _not_acquired(name: str | bytes, reply: list[Any]) -> NotAcquired:
    left_s, held_s = _seconds(reply[1]), reply[2] / 1000
    holder, _ = split_about(reply[3])
    ends = "and its lease has no end" if left_s is None else f"its lease ends in {left_s:.3f} s"
    return NotAcquired(
        f"lock {display_name(name)!r} is held by {holder} for {held_s:.3f} s; "
        f"{ends} unless renewed",
        name=display_name(name),
        holder=holder,
        held_s=held_s,
        remaining_s=left_s,
    )


def _lost(
    name: str | bytes, key: bytes, reply: bytes | list[Any], verb: str
) -> LeaseLost | KeyConflict:
    shown = display_name(name)
    if isinstance(reply, bytes):
        return LeaseLost(
            f"the lease of lock {shown!r} had ended before it was {verb}; nobody has the lock",
            name=shown,
        )
    if reply[0] != b"held":
        return conflict(key)
    holder, _ = split_about(reply[1])
    return LeaseLost(
        f"the lease of lock {shown!r} had ended before it was {verb}; {holder} has the lock now",
        name=shown,
        holder=holder,
    )


def release(name: str | bytes, key: bytes, token: bytes) -> Steps[None]:
    """Give the lock back. A repeat of a release that happened is a release that happened.

    :raises LeaseLost: the lease had ended before; nothing was changed.
    """
    step = Call(RELEASE, key, (token,))
    try:
        try:
            reply = yield step
        except LockUnavailable as error:
            reply = yield from _resend(step, error)
    except (GeneratorExit, LockError):
        raise
    except BaseException:
        yield from _give_back(key, token)
        raise
    if reply != b"released" and reply != b"already":
        raise _lost(name, key, reply, "released")


def leave(steps: Steps[None], body_error: BaseException | None) -> Steps[None]:
    """Release at the end of a ``with`` body, without ever hiding what the body raised."""
    try:
        yield from steps
    except LockError as error:
        if body_error is None:
            raise
        note(body_error, f"and then: {error}")


def note(error: BaseException, text: str) -> None:
    """Attach a line to an exception, as :meth:`BaseException.add_note` does from Python 3.11."""
    if hasattr(error, "add_note"):
        error.add_note(text)
    else:
        vars(error)["__notes__"] = [*getattr(error, "__notes__", []), text]


def extend(name: str | bytes, key: bytes, token: bytes, ttl_ms: int, clock: Clock) -> Steps[float]:
    """Let the lease last ``ttl_ms`` from now on; returns its deadline on the driver's clock.

    :raises LeaseLost: the lease had ended, or was released, before; nothing was changed.
    """
    step = Call(EXTEND, key, (token, _millis(ttl_ms)))
    sent = clock()
    try:
        reply = yield step
    except LockUnavailable as error:
        reply = yield from _resend(step, error)
    if reply == b"extended":
        return sent + ttl_ms / 1000
    raise _lost(name, key, reply, "extended")


def inspect(name: str | bytes, key: bytes) -> Steps[LockInfo]:
    """Say who has the lock."""
    step = Call(INSPECT, key, ())
    try:
        reply = yield step
    except LockUnavailable as error:
        reply = yield from _resend(step, error)
    shown = display_name(name)
    if reply == b"free":
        return LockInfo(shown, held=False)
    if reply[0] != b"held":
        raise conflict(key)
    holder, metadata = split_about(reply[4])
    return LockInfo(
        shown,
        held=True,
        holder=holder,
        metadata=metadata,
        fence=int(reply[3]),
        held_s=reply[2] / 1000,
        remaining_s=_seconds(reply[1]),
    )
