"""The jobs that every system runs, written once.

A body is a generator, so that the same lines are a plain function for one system and a coroutine
function for another: it yields for how many seconds it wants to sleep, or what is to be awaited
where there is something to await. The first argument, ``where``, is the name of the test's system:
each has locks of its own, unless a test wants it otherwise.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import signal
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import lualock
from lualock.jobs import Coalesce, Contention, Replace, Retry, Wait, as_function, current_lease
from tests.integrations.workers.diary import Diary, lock_name

Steps = Generator[Any, Any, Any]
Body = Callable[..., Steps]

SOON_S = 0.5
"""When a job that finds its lock held comes back."""
KEPT_S = 2.0
"""For how long a lock is kept after the last attempt has failed."""

locks = lualock.connect(os.environ["LUALOCK_URL"])
diary = Diary(os.environ["LUALOCK_DIARY"])

away = lualock.connect("redis://127.0.0.1:1")
"""The locks of a server that cannot be reached."""


@dataclass
class Declared:
    """A job: its body, what ``locks.job`` is told, and of which locks; or it is a class."""

    body: Body
    options: dict[str, Any]
    locks: lualock.Locks
    is_class: bool


_declared: list[Declared] = []


class Flop(Exception):
    """What a job raises that is to be retried, where its system has no exception for that."""


flop: Callable[[], Exception] = Flop


def task(
    *, server: lualock.Locks = locks, is_class: bool = False, **options: Any
) -> Callable[[Body], Body]:
    """Declare a job."""

    def declare(body: Body) -> Body:
        name = body.__name__
        told = {"on_skipped": "failed", "on_expired": "expired", "on_enqueue_failed": "refused"}
        callbacks = {option: _tell(event, name) for option, event in told.items()}
        told_all = {"key": _key(name)} | callbacks | options
        _declared.append(Declared(body, told_all, server, is_class))
        return body

    return declare


def _key(name: str) -> Callable[..., str]:
    return lambda where, *args, **kwargs: lock_name(name, where)


def _tell(event: str, job: str) -> Callable[..., None]:
    """A callback that writes down with what it was called."""
    return lambda *args, **kwargs: diary.write(event, job, *args, **kwargs)


def jobs(module: str, *, asynchronous: bool, classes: bool = True) -> dict[str, Any]:
    """All of them behind their locks, as an app's module would have them; without ``classes``
    those that are some as functions."""
    made = {}
    for job in _declared:
        function = (_coroutine if asynchronous else _plain)(job.body)
        function.__module__ = module
        if not job.is_class:
            made[function.__name__] = job.locks.job(**job.options)(function)
        else:
            whole = _locked_job(function, job)
            made[function.__name__] = whole if classes else as_function(whole)
    return made


CALLBACKS = {
    "on_skipped": "lock_failed",
    "on_expired": "lock_expired_before_release",
    "on_enqueue_failed": "loner_enqueue_failed",
}


def _locked_job(function: Callable[..., Any], job: Declared) -> type[lualock.LockedJob]:
    """The same job as a class, with its callbacks under their old names."""
    told = job.options
    members = {name: staticmethod(told[option]) for option, name in CALLBACKS.items()}
    members |= {"perform": staticmethod(function), "lock": staticmethod(told["key"])}
    unique = told.get("unique")
    settings = {
        "locks": job.locks,
        "lock_timeout": told.get("ttl"),
        "loner": unique == "both",
        "lock_unique": None if unique == "both" else unique,
        "__module__": function.__module__,
    }
    return type(function.__name__, (lualock.LockedJob,), settings | members)


def _plain(body: Body) -> Callable[..., Any]:
    @functools.wraps(body)
    def run(*args: Any, **kwargs: Any) -> Any:
        steps, value = body(*args, **kwargs), None
        try:
            while True:
                value = steps.send(value)
                if isinstance(value, float):
                    time.sleep(value)
                    value = None
        except StopIteration as done:
            return done.value

    return run


def _coroutine(body: Body) -> Callable[..., Any]:
    @functools.wraps(body)
    async def run(*args: Any, **kwargs: Any) -> Any:
        steps, value = body(*args, **kwargs), None
        try:
            while True:
                value = steps.send(value)
                if isinstance(value, float):
                    await asyncio.sleep(value)
                    value = None
                elif inspect.isawaitable(value):
                    value = await value
        except StopIteration as done:
            return done.value

    return run


@contextmanager
def turn(job: str, *args: Any) -> Iterator[None]:
    """A run that comes to its end, in the diary."""
    lease = current_lease()
    diary.write("start", job, *args, fence=0 if lease is None else lease.fence)
    yield
    diary.write("end", job, *args)


@task()
def exclusive(where: str, number: int, hold: float = 0.002) -> Steps:
    """One at a time, whatever the number."""
    with turn("exclusive", where, number):
        yield hold
    return number


@task(is_class=True)
def superfluous(where: str, shop: str, *, pages: int = 1) -> Steps:
    """Finds its lock held."""
    with turn("superfluous", where, shop):
        yield 0.0


@task(is_class=True, unique="both")
def unwanted(where: str, shop: str, *, pages: int = 1) -> Steps:
    """Is not even enqueued."""
    with turn("unwanted", where, shop):
        yield 0.0


@task(is_class=True, ttl=0.2)
def overdue(where: str, shop: str, *, pages: int = 1) -> Steps:
    """Takes longer than its lease."""
    with turn("overdue", where, shop):
        yield 0.4


@task(server=away, when_unavailable="run")
def careless(where: str, shop: str, *, pages: int = 1) -> Steps:
    """Runs without its lock."""
    with turn("careless", where, shop):
        yield 0.0


@task(server=away, when_unavailable="skip")
def cautious(where: str, shop: str, *, pages: int = 1) -> Steps:
    """Does not run without its lock."""
    with turn("cautious", where, shop):
        yield 0.0


def _deployed(name: str, where: str, number: int) -> Steps:
    with turn(name, where, number):
        yield 0.02


@task(policy=Wait(60), key=lambda where, number: f"old:{where}")
def before(where: str, number: int) -> Steps:
    """Code from before a deploy that changes the lock's name."""
    return _deployed("before", where, number)


@task(
    policy=Wait(60),
    key=lambda where, number: f"new:{where}",
    previous_key=lambda where, number: f"old:{where}",
)
def during(where: str, number: int) -> Steps:
    """The code of that deploy."""
    return _deployed("during", where, number)


@task(policy=Wait(60), key=lambda where, number: f"new:{where}")
def after(where: str, number: int) -> Steps:
    """The code of the next one."""
    return _deployed("after", where, number)


@task(policy=Retry(SOON_S))
def mortal(where: str, number: int) -> Steps:
    """The first run never ends, and has a lease as it is by default."""
    first = not diary.count("mortal", where, "start")
    with turn("mortal", where, number):
        yield 600.0 if first else 0.0


def _never_done(name: str, where: str) -> Steps:
    first = not diary.count(name, where, "start")
    with turn(name, where):
        yield 600.0 if first else 0.0


@task()
def struck(where: str) -> Steps:
    """The process of its first run is killed, and the process above that sees it."""
    return _never_done("struck", where)


@task()
def requeued(where: str) -> Steps:
    """The process of its first run is killed, and the job is put back into its queue for that."""
    return _never_done("requeued", where)


@task(unique="queued", policy=Wait(600))
def waiting(where: str) -> Steps:
    """Is ended while it waits for its lock."""
    diary.write("start", "waiting", where)
    yield 0.0


@task()
def limited(where: str) -> Steps:
    """Takes longer than Celery allows."""
    return _never_done("limited", where)


@task()
def terminated(where: str) -> Steps:
    """Is revoked while it runs, with the order to kill it."""
    return _never_done("terminated", where)


@task()
def lingering(where: str) -> Steps:
    """Is told to end, and takes its time."""
    before = signal.signal(signal.SIGTERM, lambda *_: diary.write("asked", "lingering", where))
    with turn("lingering", where):
        while not diary.count("lingering", where, "go"):
            yield 0.02
    signal.signal(signal.SIGTERM, before)


@task(policy=Retry(SOON_S))
def patient(where: str, number: int) -> Steps:
    """Comes back later while another runs."""
    with turn("patient", where, number):
        yield 0.2


def _and_say_so(job: str) -> Callable[[Contention], Retry]:
    """A policy of its own."""

    def policy(situation: Contention) -> Retry:
        diary.write("later", job, *situation.args, **situation.kwargs)
        return Retry(SOON_S)

    return policy


@task(policy=_and_say_so("stubborn"))
def stubborn(where: str) -> Steps:
    """Comes back again and again, fails, and has an attempt left."""
    return _flaky("stubborn", where)


def _flaky(name: str, where: str) -> Steps:
    first = not diary.count(name, where, "start")
    diary.write("start", name, where)
    yield 0.5
    if first:
        raise flop()
    diary.write("end", name, where)


@task(keep_lock_on_retry=True, policy=Retry(SOON_S))
def holding(where: str) -> Steps:
    """Fails at first, and keeps its lock until it is tried again."""
    return _flaky("holding", where)


@task(keep_lock_on_retry=True, policy=Retry(SOON_S))
def hopeless(where: str) -> Steps:
    """Fails whenever it is tried, and keeps its lock until it was for the last time."""
    diary.write("start", "hopeless", where)
    yield 0.0
    raise flop()


@task(keep_lock_on_retry=False, policy=Retry(SOON_S))
def freeing(where: str) -> Steps:
    """Fails at first, and lets others have its lock until it is tried again."""
    return _flaky("freeing", where)


@task(keep_lock_on_failure=True, queue_ttl=KEPT_S)
def keeping(where: str) -> Steps:
    """Fails for good, and its lock stays for a while."""
    diary.write("start", "keeping", where)
    yield 0.0
    raise ValueError("for good")


@task(unique="queued", policy=_and_say_so("single"))
def single(where: str, number: int) -> Steps:
    """At most one is queued."""
    with turn("single", where, number):
        yield 0.0


@task(policy=Coalesce(wait=0, then=Retry(SOON_S)))
def coalesced(where: str, number: int) -> Steps:
    """Runs once more, however many come while it runs; and runs until it is told to go."""
    with turn("coalesced", where, number):
        while not diary.count("coalesced", where, "go"):
            yield 0.02


@task(policy=Replace(wait=60))
def replaced(where: str, number: int) -> Steps:
    """The first runs until it is asked to stop."""
    with turn("replaced", where, number):
        lease = current_lease()
        assert lease is not None
        while number == 1 and not (yield lease.release_requested()):
            yield 0.02


@task(unique="queued")
def removable(where: str, number: int) -> Steps:
    """The first is removed from its queue before it runs."""
    with turn("removable", where, number):
        yield 0.0
