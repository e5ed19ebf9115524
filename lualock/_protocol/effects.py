"""Define the effects: what a protocol generator asks its driver to do."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from inspect import GEN_CLOSED, getgeneratorstate
from typing import Any, Protocol, TypeVar

from lualock.scripts import Script

MIN_REQUEST_S = 0.02
"""The least time for a request that is sent when its time is nearly or just over."""

DRIVER_WRITES = b""
"""Stands for an argument that the driver writes: a deadline, or the time when it sends the
request."""


@dataclass(slots=True)
class RunScript:
    """Run one script. Its result is the parsed reply.

    If no reply comes for a while, the driver also sends the request on a fresh connection, and the
    first reply counts. The call is ``doubled`` then: the other copy may still be in flight.

    ``parts``: the script's keys, then its arguments. It is a list if the driver writes some of them
    (:data:`DRIVER_WRITES`) when it sends the request.
    ``until`` (on the driver's clock): how long to wait for the reply, at least
    :data:`MIN_REQUEST_S`; ``None``: as long as the connection's settings allow.
    ``compensating``: the call cleans up. The driver executes it even while its own caller is being
    cancelled. If the server does not answer soon after ``until`` (or now, if that is earlier), the
    driver goes on in the background.
    ``lazy``: the call may be sent together with the next one on its connection, if that comes
    within a fraction of a second. Its reply may be read late, so it must not need to be sent again:
    it includes the script's source.
    ``sent_at`` and ``expires`` (on the driver's clock): set by the driver when it sends a request
    with a deadline. When it has expired the server, by its own clock, refuses it.
    ``via``: set by the driver to the connection that the call was sent on.
    ``moot``: the call is not sent again if the server has forgotten its script, because a request
    that undoes it was sent meanwhile.
    """

    script: Script
    parts: Sequence[bytes]
    until: float | None = None
    compensating: bool = False
    lazy: bool = False
    sent_at: float = 0.0
    expires: float = math.inf
    via: Any = None
    moot: bool = False
    doubled: bool = False


class SendScript(RunScript):
    """Send a call, and do not wait. The result is a :class:`PendingReply`."""

    __slots__ = ()


class PendingReply(Protocol):
    """The reply to a :class:`SendScript`, which may not have come yet."""

    def poll(self) -> Any:
        """Return the reply, or ``None`` if it has not come yet. Never waits.

        A reply that is an error, or that will never come, is a ``LockError``. It is not raised: its
        traceback and this reply would keep each other alive, and so the caller's frames.
        """


@dataclass(slots=True)
class Pipeline:
    """Run many scripts in one round trip.

    The result is a list with a reply or a ``LockError`` for each. If the connection breaks, all of
    them failed. ``until`` is as for :class:`RunScript`. None of the calls has a deadline.
    """

    calls: list[RunScript]
    until: float | None = None


@dataclass(slots=True)
class CleanupLater:
    """Execute ``call`` in the background when ``orphan`` has expired.

    A request whose reply was lost may arrive after the call that undoes it. There is nothing to do
    if both were sent on one connection, which keeps their order.
    """

    call: RunScript
    orphan: RunScript


@dataclass(slots=True)
class Subscribe:
    """Receive messages for ``token`` from now on. The result is the channel.

    Repeating it is cheap: the driver only checks that the connection still exists. ``anew``: use
    another connection than until now, because that one may lead to the wrong server.
    """

    token: bytes
    until: float | None = None
    anew: bool = False


@dataclass(slots=True)
class AwaitMessage:
    """Wait for ``seconds``, or less if a message for ``token`` comes.

    The result is ``None`` if the time has passed, else the message: a fence (the lock was given to
    the token), or ``b""`` (messages may have been lost: check the queue). For ``b"="`` and a number
    of milliseconds (the token is first, and the lock is held for so long) the driver returns the
    message, or itself waits no longer than that and ``CHECK_LATE_S``.
    """

    seconds: float
    token: bytes | None = None


Effect = RunScript | Pipeline | CleanupLater | Subscribe | AwaitMessage
T = TypeVar("T")
Steps = Generator[Effect, Any, T]
Clock = Callable[[], float]


def relayed(steps: Steps[T], perform: Callable[[Effect], Steps[Any]]) -> Steps[T]:
    """Run a protocol, and replace each of its effects by the steps that ``perform`` returns."""
    error: BaseException | None = None
    try:
        while True:
            try:
                step = steps.send(None) if error is None else steps.throw(error)
                error = None
                while True:
                    step = steps.send((yield from perform(step)))
            except BaseException as caught:
                # The steps handle all but their own end, also an interruption between two of these
                # lines.
                if getgeneratorstate(steps) != GEN_CLOSED and type(caught) is not GeneratorExit:
                    error = caught
                elif isinstance(caught, StopIteration):
                    result: T = caught.value
                    return result
                else:
                    raise
    finally:
        error = None  # otherwise the error and this frame keep each other alive


def watched(steps: Steps[T], on_step: Callable[[], object]) -> Steps[T]:
    """Run a protocol, and call ``on_step`` before each of its steps is carried out.

    The state of a lease may change already when a request is sent.
    """

    def perform(step: Effect) -> Steps[Any]:
        on_step()
        return (yield step)

    return relayed(steps, perform)
