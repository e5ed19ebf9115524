"""How the orders of events are carried out: in this thread, or in this task.

They are generators of things to call; what each returns (or, in asyncio, what awaiting it gives) is
sent back in, what it raises is thrown back in.
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
    """Carry a run out in this thread."""
    error: BaseException | None = None
    try:
        while True:
            try:
                action = actions.send(None) if error is None else actions.throw(error)
                error = None
                while True:
                    reply = action()
                    if inspect.iscoroutine(reply):
                        raise _never_awaited(action, reply)
                    action = actions.send(reply)
            except BaseException as broke:
                # What the order of events returned or raised itself ends it; all else, also what
                # breaks in between two of these lines, is its to deal with.
                if getgeneratorstate(actions) != GEN_CLOSED:
                    error = broke
                elif isinstance(broke, StopIteration):
                    result: T = broke.value
                    return result
                else:
                    raise
    finally:
        error = None  # or it and this frame would keep each other alive


def _never_awaited(action: Any, reply: Any) -> InvalidArgument:
    """What a plain job, or plain code that enqueues one, calls must be done when it returns."""
    reply.close()
    function = getattr(action, "func", action)
    return InvalidArgument(
        f"{getattr(function, '__qualname__', function)} returned a coroutine, and nothing here "
        "awaits it: a job that does is 'async def', and is enqueued by such as enqueue_async()"
    )


async def drive_async(actions: Actions[T]) -> T:
    """Carry a run out in this task; callbacks may be plain functions or coroutine functions."""
    try:
        action = next(actions)
        while True:
            try:
                reply = action()
                if inspect.isawaitable(reply):
                    reply = await reply
            except GeneratorExit:
                raise
            except BaseException as error:
                action = actions.throw(error)
            else:
                action = actions.send(reply)
    except StopIteration as done:
        result: T = done.value
        return result


def quietly(action: Action) -> Actions[Any]:
    """Do it; a lock's error is logged, and the result then ``None``."""
    try:
        return (yield action)
    except LockError as error:
        log.warning("cleaning up after a job's lock: %s", error)
        return None
