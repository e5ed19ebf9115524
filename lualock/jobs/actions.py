"""The trampoline that carries out a job's generator of actions, in this thread or in this task.

The generators yield things to call. What a call returns (in asyncio, what awaiting it returns) is
sent back in, and what it raises is thrown back in.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Generator
from inspect import GEN_CLOSED, getgeneratorstate
from typing import Any

from lualock._protocol import T
from lualock.errors import InvalidArgument, LockError

log = logging.getLogger("lualock.jobs")

Action = Callable[[], Any]
Actions = Generator[Action, Any, T]


def drive(actions: Actions[T]) -> T:
    """Carry out actions in this thread."""
    try:
        _carry_out(actions, awaits=False).send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    raise AssertionError("a coroutine that awaits nothing ends at once")


async def drive_async(actions: Actions[T]) -> T:
    """Carry out actions in this task; callbacks may be plain functions or coroutine functions."""
    return await _carry_out(actions, awaits=True)


async def _carry_out(actions: Actions[T], *, awaits: bool) -> T:
    """Carry out actions to their end: the one trampoline, for both APIs.

    :param awaits: await what is awaitable. Without it this coroutine never suspends, so that plain
        code can run it.
    """
    error: BaseException | None = None
    try:
        while True:
            try:
                action = actions.send(None) if error is None else actions.throw(error)
                error = None
                while True:
                    reply = action()
                    if awaits:
                        if inspect.isawaitable(reply):
                            reply = await reply
                    elif inspect.iscoroutine(reply):
                        raise _never_awaited(action, reply)
                    action = actions.send(reply)
            except BaseException as caught:
                # What the generator itself returned or raised ends it. It handles everything else,
                # also an interruption between two of these lines.
                if getgeneratorstate(actions) != GEN_CLOSED:
                    error = caught
                elif isinstance(caught, StopIteration):
                    result: T = caught.value
                    return result
                else:
                    raise
    finally:
        error = None  # otherwise the error and this frame keep each other alive


def _never_awaited(action: Any, reply: Any) -> InvalidArgument:
    """Return the error for a call in a plain job, or while enqueueing, that made a coroutine."""
    reply.close()
    function = getattr(action, "func", action)
    return InvalidArgument(
        f"could not call {getattr(function, '__qualname__', function)}: it returned a coroutine, "
        "and nothing here awaits it. Declare the job as 'async def', and enqueue it with a method "
        "such as enqueue_async()"
    )


def quietly(action: Action) -> Actions[Any]:
    """Carry out an action; log the error of a lock, and return ``None`` then."""
    try:
        return (yield action)
    except LockError as error:
        log.warning("could not clean up after a job's lock: %s", error)
        return None
