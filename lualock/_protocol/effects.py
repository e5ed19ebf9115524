"""What a protocol asks of a driver."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from lualock.scripts import Script

MIN_REQUEST_S = 0.02
"""How long a request may take that is sent when the time is nearly, or just, over."""


@dataclass(slots=True)
class RunScript:
    """Run one script. Its reply is sent in as it was parsed.

    ``parts`` are the script's keys and then its arguments. With ``until`` (on the driver's clock)
    the reply is waited for no longer than that (but for :data:`MIN_REQUEST_S` in any case), else as
    long as the connection's settings say. A ``compensating`` call cleans up: the driver carries it
    out even while its own caller is being cancelled, and goes on with it in the background where
    the server does not answer soon after ``until``, or after now if that is earlier. A ``lazy`` one
    may leave together with what is sent next on its connection, if that is within a fraction of a
    second. Nobody may look at its reply for long, so it must not need to be sent again: it brings
    the script's source with it.

    Where no reply comes for a while, the driver sends the request on a fresh connection, too, and
    the first reply counts. The call is ``doubled`` then: whatever the reply says, the other copy
    may be under way still.

    ``expires`` (on the driver's clock) is when the server, by its own clock, refuses the request at
    the latest. ``via`` is the driver's: the connection that it was sent on. A ``moot`` call is not
    sent again where the server has forgotten its script: what undoes it has been sent since.
    """

    script: Script
    parts: tuple[bytes, ...]
    until: float | None = None
    compensating: bool = False
    lazy: bool = False
    expires: float = math.inf
    via: Any = None
    moot: bool = False
    doubled: bool = False


class SendScript(RunScript):
    """Send a call, and go on without waiting. The reply is a :class:`PendingReply`."""

    __slots__ = ()


class PendingReply(Protocol):
    """The reply to a :class:`SendScript`, when it has come."""

    def poll(self) -> Any:
        """The reply, or ``None`` while it has not come. Never waits.

        :raises LockUnavailable: it will never come.
        """


@dataclass(slots=True)
class Pipeline:
    """Run many scripts in one round trip. The reply is a list with a reply or a ``LockError`` for
    each; if the connection breaks, all of them failed. ``until`` as for a call."""

    calls: list[RunScript]
    until: float | None = None


@dataclass(slots=True)
class CleanupLater:
    """Make ``call`` when ``orphan`` has expired, behind the caller's back.

    A call whose reply never came may be under way still, and arrive after what was to undo it.
    There is nothing to do where both went over one connection, which keeps their order.
    """

    call: RunScript
    orphan: RunScript


@dataclass(slots=True)
class Connect:
    """See to it that there is a connection, and so that the server's time is known."""

    until: float | None = None


@dataclass(slots=True)
class Subscribe:
    """See to it that messages for ``token`` are heard from now on. The reply is the channel.

    Asked for again while it listens already, it costs next to nothing: the driver makes sure that
    the connection is still there. ``anew``: by another connection than until now, for that one may
    be to the wrong server.
    """

    token: bytes
    until: float | None = None
    anew: bool = False


@dataclass(slots=True)
class AwaitMessage:
    """Let ``seconds`` pass, or less if a message for ``token`` comes.

    The reply is ``None`` when the time has passed, else the message: a fence (the lock was given
    to the token), or ``b""`` (look again; also when messages may have been lost). ``b"="`` and a
    number of milliseconds (the token is first, and the lock held for so long) is handed on too, or
    the driver itself waits no longer than that and ``LOOK_LATE_S``.
    """

    seconds: float
    token: bytes | None = None


Effect = RunScript | Pipeline | CleanupLater | Connect | Subscribe | AwaitMessage
T = TypeVar("T")
Steps = Generator[Effect, Any, T]
Clock = Callable[[], float]


def watched(steps: Steps[T], look: Callable[[], object]) -> Steps[T]:
    """The same protocol; ``look`` is called before each of its steps is carried out, for what is
    known of a lease may change already when a request is sent."""
    try:
        step = next(steps)
        while True:
            look()
            try:
                reply = yield step
            except BaseException as error:
                step = steps.throw(error)
            else:
                step = steps.send(reply)
    except StopIteration as done:
        result: T = done.value
        return result
