"""The verbs of jobs, sans-IO as :mod:`lualock._protocol`: reserve, start, died; and
request_release, release_requested, withdraw, by which a holder is asked to stop.

A queued job has a *place*: a lock of its own beside the one that it has while it runs, and like it
in everything, so that ``extend``, ``release`` and renewal are there already. What is new is what
looks at both at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lualock import scripts as script
from lualock._core.keys import waiters_key
from lualock._core.options import split_holder_info
from lualock._protocol import (
    AcquireRequest,
    LeaseState,
    RunScript,
    ServerClock,
    Steps,
    conflict,
    take,
)
from lualock._protocol.exchange import ask_again
from lualock._protocol.replies import Held
from lualock.errors import LockError, NotAcquired

SCRIPTS = script.load(Path(__file__).with_name("scripts"), include_from=script.FOLDER)
RESERVE = SCRIPTS["reserve"]
START = SCRIPTS["start"]
DIED = SCRIPTS["died"]


class Taken(NotAcquired):
    """A refusal that also says which job has the lock: ``metadata`` is what its holder said."""

    metadata = ""
    running = True
    """Whether it is the running lock that is held, and not just the place of a queued job."""


def _taken(request: AcquireRequest, key: bytes, server: ServerClock, reply: Any) -> LockError:
    if reply[0] not in (b"held", b"queued", b"running"):
        return conflict(key)
    now = server.clock()
    error = Held(reply[1], reply[2], reply[3], now).refusal(request.name, now, Taken)
    assert isinstance(error, Taken)
    error.metadata = split_holder_info(reply[3])[1]
    error.running = reply[0] != b"queued"
    return error


def reservation_key(lock: bytes) -> bytes:
    """The key of the place for a lock's key."""
    return lock + b":reservation"


def reserve(
    request: AcquireRequest, lock: bytes, server: ServerClock, *, alone: bool
) -> Steps[LeaseState]:
    """Take a place: ``request`` is for that, ``lock`` the key of the lock of those who run.

    :param alone: be refused also while one runs.
    :raises Taken: another job has it, or one runs.
    """

    def make(deadline: bytes) -> RunScript:
        now = server.clock()
        sent = server.deadline(now, now)
        told = (
            request.token,
            b"%d" % request.ttl_ms,
            deadline,
            request.holder_info,
            b"1" if alone else b"0",
            sent,
        )
        return RunScript(RESERVE, (lock, request.key, *told))

    return take(
        request, server, make, lambda reply: _taken(request, lock, server, reply), fresh=False
    )


def start(request: AcquireRequest, owner: bytes, server: ServerClock) -> Steps[LeaseState]:
    """Take the lock for a job, and give up the place that it has under the token ``owner``.

    :raises Taken: somebody else has it; the place stays as it is.
    """

    def make(deadline: bytes) -> RunScript:
        place = reservation_key(request.key)
        keys = request.key, place, request.queue, waiters_key(place)
        told = request.token, b"%d" % request.ttl_ms, deadline, request.holder_info, owner
        return RunScript(START, (*keys, *told))

    return take(request, server, make, lambda reply: _taken(request, request.key, server, reply))


def died(request: AcquireRequest, job: str, owner: bytes, holder: bytes) -> Steps[bool]:
    """Release the lock of a run whose process is dead; whether there was such a run.

    :param job: the metadata of its lease.
    :param holder: how the holder of its lease begins; empty where that is not known.
    :raises LockUnavailable: the server did not answer.
    """
    parts = request.key, request.queue, job.encode(), owner, holder
    reply = yield from ask_again(RunScript(DIED, parts))
    if isinstance(reply, list):
        raise conflict(request.key)
    return reply in (b"released", b"handed_over")
