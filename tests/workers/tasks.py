"""The jobs that every system runs, written once.

A body is a generator that yields for how many seconds it wants to sleep, so that the same lines are
a plain function for one system and a coroutine function for another. The first argument, ``where``,
is the name of the test's system: each has locks of its own, unless a test wants it otherwise.
"""

from __future__ import annotations

import asyncio
import functools
import os
import time
from collections.abc import Callable, Generator
from typing import Any

import lualock
from tests.workers.diary import Diary

Body = Callable[..., Generator[float, None, Any]]

locks = lualock.connect(os.environ["LUALOCK_URL"])
diary = Diary(os.environ["LUALOCK_DIARY"])

_declared: list[tuple[Body, dict[str, Any]]] = []


def task(**options: Any) -> Callable[[Body], Body]:
    """Declare a job: its body, and what ``locks.job`` is told."""

    def declare(body: Body) -> Body:
        _declared.append((body, options))
        return body

    return declare


def tell(event: str, job: str) -> Callable[..., None]:
    """A callback that writes down with what it was called."""
    return lambda *args, **kwargs: diary.write(event, job, *args, **kwargs)


def jobs(module: str, *, asynchronous: bool) -> dict[str, Any]:
    """All of them behind their locks, as functions of an app's module."""
    made = {}
    for body, options in _declared:
        function = (_coroutine if asynchronous else _plain)(body)
        function.__module__ = module
        made[body.__name__] = locks.job(**options)(function)
    return made


def _plain(body: Body) -> Callable[..., Any]:
    @functools.wraps(body)
    def run(*args: Any, **kwargs: Any) -> Any:
        steps = body(*args, **kwargs)
        try:
            while True:
                time.sleep(next(steps))
        except StopIteration as done:
            return done.value

    return run


def _coroutine(body: Body) -> Callable[..., Any]:
    @functools.wraps(body)
    async def run(*args: Any, **kwargs: Any) -> Any:
        steps = body(*args, **kwargs)
        try:
            while True:
                await asyncio.sleep(next(steps))
        except StopIteration as done:
            return done.value

    return run


@task(key=lambda where, number, hold=0.0: f"exclusive:{where}", on_failed=tell("failed", "exclusive"))
def exclusive(where: str, number: int, hold: float = 0.0) -> Generator[float, None, int]:
    """One at a time, whatever the number."""
    with diary.turn("exclusive", where, number):
        yield hold
    return number


@task(timeout=0.2, on_expired=tell("expired", "overdue"))
def overdue(where: str, shop: str, *, pages: int = 1) -> Generator[float, None, None]:
    """Takes longer than its lease."""
    with diary.turn("overdue", where, shop):
        yield 0.4


@task(key=lambda where, *rest: f"mortal:{where}", on_failed=tell("failed", "mortal"))
def mortal(where: str, seconds: float) -> Generator[float, None, None]:
    """Is killed, with a lease as it is by default."""
    diary.write("start", "mortal", where, seconds)
    yield seconds
    diary.write("end", "mortal", where, seconds)
