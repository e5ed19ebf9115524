"""The verbs of jobs, sans-IO as :mod:`lualock.protocol`: reserve, start, died; and
request_release, release_requested, withdraw, by which a holder is asked to stop.

A queued job has a *place*: a lock of its own beside the one that it has while it runs, and like it
in everything, so that ``extend``, ``release`` and renewal are there already. What is new is what
looks at both at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lualock import script
from lualock.errors import LockError, LockUnavailable, NotAcquired
from lualock.keys import queue_key
from lualock.options import split_about
from lualock.protocol import Ask, Call, Grant, Reach, ServerClock, Steps, conflict, resend, take
from lualock.protocol.replies import Held
from lualock.protocol.server_clock import LATE_MAX, jumps

SCRIPTS = script.load(Path(__file__).with_name("scripts"), include_from=script.FOLDER)
RESERVE = SCRIPTS["reserve"]
START = SCRIPTS["start"]
DIED = SCRIPTS["died"]
REQUEST_RELEASE = SCRIPTS["request_release"]
RELEASE_REQUESTED = SCRIPTS["release_requested"]
WITHDRAW = SCRIPTS["withdraw"]


class Taken(NotAcquired):
    """A refusal that also says which job has the lock: ``metadata`` is what its holder said."""

    metadata = ""
    running = True
    """Whether it is the running lock that is held, and not just the place of a queued job."""


def _taken(ask: Ask, key: bytes, server: ServerClock, reply: Any) -> LockError:
    if reply[0] not in (b"held", b"queued", b"running"):
        return conflict(key)
    now = server.clock()
    error = Held(reply[1], reply[2], reply[3], now).refusal(ask.name, now, Taken)
    assert isinstance(error, Taken)
    error.metadata = split_about(reply[3])[1]
    error.running = reply[0] != b"queued"
    return error


def place_key(lock: bytes) -> bytes:
    """The key of the place for a lock's key."""
    return lock + b":job"


def asked_key(lock: bytes) -> bytes:
    """The key of the request to release for a lock's key."""
    return lock + b":asked"


def reserve(ask: Ask, lock: bytes, server: ServerClock, *, alone: bool) -> Steps[Grant]:
    """Take a place: ``ask`` is for that, ``lock`` the key of the lock of those who run.

    :param alone: be refused also while one runs.
    :raises Taken: another job has it, or one runs.
    """

    def make(deadline: bytes) -> Call:
        now = server.clock()
        sent = server.deadline(now, now)
        told = ask.token, b"%d" % ask.ttl_ms, deadline, ask.about, b"1" if alone else b"0", sent
        return Call(RESERVE, (lock, ask.key, *told))

    return take(ask, server, make, lambda reply: _taken(ask, lock, server, reply), fresh=False)


def start(ask: Ask, owner: bytes, server: ServerClock) -> Steps[Grant]:
    """Take the lock for a job, and give up the place that it has under the token ``owner``.

    :raises Taken: somebody else has it; the place stays as it is.
    """

    def make(deadline: bytes) -> Call:
        place = place_key(ask.key)
        keys = ask.key, place, ask.queue, queue_key(place)
        told = ask.token, b"%d" % ask.ttl_ms, deadline, ask.about, owner
        return Call(START, (*keys, *told))

    return take(ask, server, make, lambda reply: _taken(ask, ask.key, server, reply))


def died(ask: Ask, job: str, owner: bytes, holder: bytes) -> Steps[bool]:
    """Release the lock of a run whose process is dead; whether there was such a run.

    :param job: the metadata of its lease.
    :param holder: how the holder of its lease begins; empty where that is not known.
    :raises LockUnavailable: the server did not answer.
    """
    parts = ask.key, ask.queue, job.encode(), owner, holder
    reply = yield from _again(Call(DIED, parts))
    if isinstance(reply, list):
        raise conflict(ask.key)
    return reply in (b"released", b"handed_over")


def request_release(ask: Ask, lasts_ms: int, server: ServerClock) -> Steps[bool]:
    """Ask whoever has the lock to stop, for as long as ``ask`` waits for it; whether anybody has.

    :raises LockUnavailable: the server did not answer.
    """
    if not server.known:
        yield Reach()
    failed = False
    for _ in range(LATE_MAX + 2):
        sent = server.clock()
        expires, deadline = server.usual(sent)
        parts = ask.key, asked_key(ask.key), ask.token, b"%d" % lasts_ms, deadline
        try:
            reply = yield Call(REQUEST_RELEASE, parts, expires=expires)
        except LockUnavailable as error:
            if failed or not error.outcome_unknown:
                raise
            failed = True
            continue
        if reply[0] == b"late":
            server.compare(sent, server.clock(), int(reply[1]))
            continue
        if reply != b"free" and reply[0] != b"asked":
            raise conflict(ask.key)
        return bool(reply != b"free")
    raise jumps()


def release_requested(key: bytes, fence: int, token: bytes) -> Steps[bool]:
    """Whether the holder of a lease is asked to release it.

    :raises LockUnavailable: the server did not answer.
    """
    reply = yield from _again(Call(RELEASE_REQUESTED, (asked_key(key), b"%016d" % fence, token)))
    if isinstance(reply, list):
        raise conflict(asked_key(key))
    return bool(reply == b"requested")


def withdraw(ask: Ask) -> Steps[bool]:
    """Take a request back; false if somebody else has asked since, and waits for the lock.

    :raises LockUnavailable: the server did not answer.
    """
    reply = yield from _again(Call(WITHDRAW, (asked_key(ask.key), ask.queue, ask.token)))
    return bool(reply != b"superseded")


def _again(step: Call) -> Steps[Any]:
    """The reply to a call; where it was lost, to a second one."""
    try:
        return (yield step)
    except LockUnavailable as error:
        return (yield from resend(step, error))
