"""The jobs that every system runs, written once.

A body is a generator, so that the same lines are a plain function for one system and a coroutine
function for another: it yields the seconds to sleep, or an awaitable of a coroutine. The first
argument, ``where``, is the name of the test's system: each has locks of its own, unless a test
needs a common one.
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
    """A declared job: its body, its options, its locks, and whether it is a class."""

    body: Body
    options: dict[str, Any]
    locks: lualock.Locks
    is_class: bool


_declared: list[Declared] = []


class Flop(Exception):
    """The exception of a job that should be retried, if its system has no exception for that."""


flop: Callable[[], Exception] = Flop


def task(
    *, server: lualock.Locks = locks, is_class: bool = False, **options: Any
) -> Callable[[Body], Body]:
    """Declare a job."""

    def declare(body: Body) -> Body:
        name = body.__name__
        events = {"on_skipped": "failed", "on_expired": "expired", "on_enqueue_failed": "refused"}
        callbacks = {option: _recorder(event, name) for option, event in events.items()}
        told_all = {"key": _key(name)} | callbacks | options
        _declared.append(Declared(body, told_all, server, is_class))
        return body

    return declare


def _key(name: str) -> Callable[..., str]:
    return lambda where, *args, **kwargs: lock_name(name, where)


def _recorder(event: str, job: str) -> Callable[..., None]:
    """Return a callback that records its arguments."""
    return lambda *args, **kwargs: diary.write(event, job, *args, **kwargs)


def jobs(module: str, *, asynchronous: bool, classes: bool = True) -> dict[str, Any]:
    """Return all jobs under their locks, as an app's module has them; without ``classes`` the
    classes are functions."""
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
    """Make the same job as a class, with its callbacks under the names of resque-lock."""
    options = job.options
    members = {name: staticmethod(options[option]) for option, name in CALLBACKS.items()}
    members |= {"perform": staticmethod(function), "lock": staticmethod(options["key"])}
    unique = options.get("unique")
    settings = {
        "locks": job.locks,
        "lock_timeout": options.get("ttl"),
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
    """Record a run from its start to its end."""
    lease = current_lease()
    diary.write("start", job, *args, fence=0 if lease is None else lease.fence)
    yield
    diary.write("end", job, *args)


@task()
def exclusive(where: str, number: int, hold: float = 0.002) -> Steps:
    """Run one at a time, whatever the number."""
    with turn("exclusive", where, number):
        yield hold
    return number


@task(is_class=True)
def superfluous(where: str, shop: str, *, pages: int = 1) -> Steps:
    """Find the lock held."""
    with turn("superfluous", where, shop):
        yield 0.0


@task(is_class=True, unique="both")
def unwanted(where: str, shop: str, *, pages: int = 1) -> Steps:
    """Be refused when it is enqueued."""
    with turn("unwanted", where, shop):
        yield 0.0


@task(is_class=True, ttl=0.2)
def overdue(where: str, shop: str, *, pages: int = 1) -> Steps:
    """Take longer than the lease."""
    with turn("overdue", where, shop):
        yield 0.4


@task(server=away, when_unavailable="run")
def careless(where: str, shop: str, *, pages: int = 1) -> Steps:
    """Run without the lock."""
    with turn("careless", where, shop):
        yield 0.0


@task(server=away, when_unavailable="skip")
def cautious(where: str, shop: str, *, pages: int = 1) -> Steps:
    """Do not run without the lock."""
    with turn("cautious", where, shop):
        yield 0.0


def _deployed(name: str, where: str, number: int) -> Steps:
    with turn(name, where, number):
        yield 0.02


@task(policy=Wait(60), key=lambda where, number: f"old:{where}")
def before(where: str, number: int) -> Steps:
    """Run the code from before a deploy that changes the lock's name."""
    return _deployed("before", where, number)


@task(
    policy=Wait(60),
    key=lambda where, number: f"new:{where}",
    previous_key=lambda where, number: f"old:{where}",
)
def during(where: str, number: int) -> Steps:
    """Run the code of that deploy."""
    return _deployed("during", where, number)


@task(policy=Wait(60), key=lambda where, number: f"new:{where}")
def after(where: str, number: int) -> Steps:
    """Run the code of the deploy after it."""
    return _deployed("after", where, number)


@task(policy=Retry(SOON_S))
def mortal(where: str, number: int) -> Steps:
    """Never end in the first run, which has a lease as it is by default."""
    first = not diary.count("mortal", where, "start")
    with turn("mortal", where, number):
        yield 600.0 if first else 0.0


def _never_done(name: str, where: str) -> Steps:
    first = not diary.count(name, where, "start")
    with turn(name, where):
        yield 600.0 if first else 0.0


@task()
def struck(where: str) -> Steps:
    """Be killed in the first run, under a main process that sees it."""
    return _never_done("struck", where)


@task()
def requeued(where: str) -> Steps:
    """Be killed in the first run, and then put back into the queue."""
    return _never_done("requeued", where)


@task(unique="queued", policy=Wait(600))
def waiting(where: str) -> Steps:
    """Be ended while it waits for its lock."""
    diary.write("start", "waiting", where)
    yield 0.0


@task()
def limited(where: str) -> Steps:
    """Take longer than Celery allows."""
    return _never_done("limited", where)


@task()
def terminated(where: str) -> Steps:
    """Be revoked while it runs, with ``terminate=True``."""
    return _never_done("terminated", where)


@task()
def lingering(where: str) -> Steps:
    """Catch the signal to end, and go on for a while."""
    before = signal.signal(signal.SIGTERM, lambda *_: diary.write("asked", "lingering", where))
    with turn("lingering", where):
        while not diary.count("lingering", where, "go"):
            yield 0.02
    signal.signal(signal.SIGTERM, before)


@task(policy=Retry(SOON_S))
def patient(where: str, number: int) -> Steps:
    """Come back later while another one runs."""
    with turn("patient", where, number):
        yield 0.2


def _and_say_so(job: str) -> Callable[[Contention], Retry]:
    """Record the contention, and come back later: a policy function."""

    def policy(situation: Contention) -> Retry:
        diary.write("later", job, *situation.args, **situation.kwargs)
        return Retry(SOON_S)

    return policy


@task(policy=_and_say_so("stubborn"))
def stubborn(where: str) -> Steps:
    """Come back again and again, fail, and still have an attempt left."""
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
    """Fail at first, and keep the lock until the retry."""
    return _flaky("holding", where)


@task(keep_lock_on_retry=True, policy=Retry(SOON_S))
def hopeless(where: str) -> Steps:
    """Fail at every attempt, and keep the lock until the last one."""
    diary.write("start", "hopeless", where)
    yield 0.0
    raise flop()


@task(keep_lock_on_retry=False, policy=Retry(SOON_S))
def freeing(where: str) -> Steps:
    """Fail at first, and free the lock until the retry."""
    return _flaky("freeing", where)


@task(keep_lock_on_failure=True, queue_ttl=KEPT_S)
def keeping(where: str) -> Steps:
    """Fail for good, and keep the lock for a while."""
    diary.write("start", "keeping", where)
    yield 0.0
    raise ValueError("for good")


@task(unique="queued", policy=_and_say_so("single"))
def single(where: str, number: int) -> Steps:
    """Be queued at most once."""
    with turn("single", where, number):
        yield 0.0


@task(policy=Coalesce(wait=0, then=Retry(SOON_S)))
def coalesced(where: str, number: int) -> Steps:
    """Run once more, however many come while it runs; end when a file says so."""
    with turn("coalesced", where, number):
        while not diary.count("coalesced", where, "go"):
            yield 0.02


@task(policy=Replace(wait=60))
def replaced(where: str, number: int) -> Steps:
    """Run until a stop request comes, the first time."""
    with turn("replaced", where, number):
        lease = current_lease()
        assert lease is not None
        while number == 1 and not (yield lease.release_requested()):
            yield 0.02


@task(unique="queued")
def removable(where: str, number: int) -> Steps:
    """Be removed from the queue before it runs, the first time."""
    with turn("removable", where, number):
        yield 0.0
