"""Check functions that run under a lock, so that their work ends before the lock is released."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any, ParamSpec, TypeVar

from lualock.errors import InvalidArgument

_GENERATOR_CONTEXTS = contextlib._GeneratorContextManager, contextlib._AsyncGeneratorContextManager
# Other iterators, such as an open file, are results: they call no function of the program.
_UNFINISHED = AsyncGenerator, Awaitable, Generator, Future, filter, map

P = ParamSpec("P")
R = TypeVar("R")


def is_kind(test: Callable[[object], bool], function: Any) -> bool:
    """Return whether a function, or a partial or object that is called like one, is of a kind."""
    while isinstance(function, partial):
        function = function.func
    return test(function) or (callable(function) and test(type(function).__call__))


def is_generator_function(function: Any) -> bool:
    """Return whether a call only makes a generator or an asynchronous generator."""
    return is_kind(inspect.isgeneratorfunction, function) or is_kind(
        inspect.isasyncgenfunction, function
    )


def check_function(function: Any, *, asynchronous: bool) -> str:
    """Check that a lock of this API can decorate a function; return its name.

    :raises InvalidArgument: it cannot.
    """
    problem = _problem(function, asynchronous=asynchronous)
    name = getattr(function, "__qualname__", None) or f"this {type(function).__name__}"
    if problem:
        raise InvalidArgument(f"could not decorate {name}: {problem}")
    return str(name)


def _problem(function: Any, *, asynchronous: bool) -> str | None:
    if isinstance(function, staticmethod | classmethod):
        kind = type(function).__name__
        return f"@{kind} goes above the lock. Swap the two"
    if not callable(function) or isinstance(function, type):
        return "a lock decorates functions. Use a with statement"
    if is_generator_function(function):
        return (
            "it is a generator function, and a call only makes a generator, so the lock would be "
            "released before the body runs. Use a with statement inside it, or iterate over it in "
            "a function that the lock decorates"
        )
    if is_kind(inspect.iscoroutinefunction, function) == asynchronous:
        return None
    if asynchronous:
        return (
            "it is a plain function, and locks of lualock.aio decorate coroutine functions. Use a "
            "lock of lualock.connect(), or declare it as 'async def'"
        )
    return (
        "it is a coroutine function, and a call only makes a coroutine, so the lock would be "
        "released before the body runs. Use a lock of lualock.aio.connect()"
    )


def check_result(result: object, name: str) -> None:
    """Check that a function returned a result, and not work that is still to be done.

    :raises InvalidArgument: it returned an awaitable, a future, a generator, ``map`` or ``filter``,
        or a context manager that a generator makes.
    """
    if isinstance(result, _GENERATOR_CONTEXTS):
        raise InvalidArgument(
            f"could not finish {name}: it returned a context manager, whose body would run without "
            "the lock. Put the lock below @contextmanager, as a with statement inside the function"
        )
    if isinstance(result, _UNFINISHED):
        if isinstance(result, Coroutine | Generator):
            with suppress(Exception):  # it refuses to end, or it runs
                result.close()
        raise InvalidArgument(
            f"could not finish {name}: it returned a {type(result).__name__}, which would run "
            "without the lock. Finish it inside the function: await it in an 'async def', iterate "
            "over it, or wait for its result"
        )
