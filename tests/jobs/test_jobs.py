"""Jobs: one run at a time, and callbacks that report what happened, as functions and coroutines."""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import logging
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

import lualock
from lualock import aio, jobs
from lualock.jobs.decorator import JobMaker
from lualock.jobs.locked_job import _OF_THE_DECORATOR
from tests.support.waiting import wait_until
from tests.support.world import World, settle


class Log(list[Any]):
    """What happened, in order."""

    def note(self, *what: Any, **named: Any) -> None:
        self.append((*what, named) if named else what)


def as_job(api: World, work: Callable[..., Any]) -> Callable[..., Any]:
    """Make of the work what this world's API runs: a function or a coroutine function.

    It uses no variable of the function around it, so it needs no ``key=``.
    """
    if not api.asynchronous and not work.__code__.co_freevars:
        return work

    def plain(*args: Any, _work: Any = work, **kwargs: Any) -> Any:
        return _work(*args, **kwargs)

    async def coroutine(*args: Any, _work: Any = work, **kwargs: Any) -> Any:
        await asyncio.sleep(0)
        return _work(*args, **kwargs)

    job: Any = coroutine if api.asynchronous else plain
    job.__name__, job.__qualname__ = work.__name__, work.__qualname__
    job.__signature__ = inspect.signature(work)
    return cast("Callable[..., Any]", job)


@pytest.fixture
def locks(api: World) -> Any:
    """The locks of the API."""
    return api.connect()


def job_class(api: World, locks: Any, work: Callable[..., Any], **members: Any) -> Any:
    """Make a LockedJob of this world's API with these members."""
    body = as_job(api, work)
    return type(
        "Rebuild", (lualock.LockedJob,), {"locks": locks, "perform": staticmethod(body)} | members
    )


async def test_a_job_runs_and_frees_its_lock(api: World, locks: Any) -> None:
    """The result is the job's; meanwhile the lock is held, afterwards it is free."""
    job: Any = None

    def work(repo_id: int) -> str:
        held = api.client.get(job.lock_for(repo_id).key)
        assert held
        assert held.startswith(b"H")
        return f"graph {repo_id}"

    job = job_class(api, locks, work)
    assert await settle(job.run(17)) == "graph 17"
    assert not await settle(job.locked(17))


async def test_a_run_keeps_nothing_alive(api: World, locks: Any) -> None:
    """The arguments of a run are freed at its end, without the collector."""

    class Argument:
        """An argument that can be seen to be freed."""

    job = locks.job(key="x")(as_job(api, lambda argument: None))
    argument = Argument()
    seen = weakref.ref(argument)
    gc.collect()
    gc.disable()
    try:
        await settle(job(argument))
        del argument
        assert seen() is None
    finally:
        gc.enable()


async def test_a_held_job_does_not_run(api: World, locks: Any) -> None:
    """The second run is dropped; lock_failed gets its arguments, and the holder if it has a
    parameter for it."""
    log = Log()

    def lock_failed(*args: Any, holder: str, **kwargs: Any) -> str:
        log.note("failed", args, kwargs, holder)
        return "busy"

    def work(repo_id: int, depth: int = 3) -> None:
        log.note("ran", repo_id)

    job = job_class(api, locks, work, lock_failed=staticmethod(lock_failed))
    lease = await settle(job.lock_for(17).acquire())
    assert await settle(job.locked(17))
    assert await settle(job.run(17, depth=3)) == "busy"
    holder = (await settle(job.lock_for(17).inspect())).holder
    assert log == [("failed", (17,), {"depth": 3}, holder)]
    assert await settle(job.run(18)) is None
    await settle(lease.release())
    assert await settle(job.run(17)) is None
    assert log[1:] == [("ran", 18), ("ran", 17)]


async def test_a_dropped_job_without_a_callback_is_logged(
    api: World, locks: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The log of a dropped job names the holder of its lock."""
    job = job_class(api, locks, lambda: None)
    await settle(job.lock_for().acquire())
    with caplog.at_level(logging.INFO, logger="lualock.jobs"):
        assert await settle(job.run()) is None
    assert "Rebuild did not run" in caplog.text
    assert "MainThread" in caplog.text


async def test_exactly_the_arguments(api: World, locks: Any) -> None:
    """A callback without `holder`, and a job with an argument of that name, get the job's
    arguments."""
    log = Log()
    plain = job_class(
        api, locks, lambda a, b=2: None, lock_failed=staticmethod(lambda *a, **k: log.note(a, k))
    )
    own = job_class(
        api,
        locks,
        lambda holder="x": None,
        lock_failed=staticmethod(lambda holder="x": log.note(holder)),
    )
    await settle(plain.lock_for(1).acquire())
    await settle(own.lock_for().acquire())
    await settle(plain.run(1, b=2))
    await settle(own.run())
    assert log == [((1,), {"b": 2}), ("x",)]


async def test_expired_before_release(api: World, locks: Any) -> None:
    """The callback of a run that outlives its lease is called once, with its arguments, and the
    result stands."""
    log = Log()

    def work(repo_id: int) -> str:
        api.client.delete(job.lock_for(repo_id).key)
        return "late"

    job = job_class(
        api,
        locks,
        work,
        lock_timeout=30,
        lock_expired_before_release=staticmethod(lambda *args: log.note("expired", *args)),
    )
    assert await settle(job.run(17)) == "late"
    assert log == [("expired", 17)]


async def test_expired_and_taken_over(api: World, locks: Any) -> None:
    """The late run gets the callback, and the new holder's lock stays as it is."""
    log = Log()
    other: Any = None

    def work() -> None:
        api.client.delete(job.lock_for().key)
        with lualock.connect(api.server.url) as plain:
            nonlocal other
            other = plain.lock(b"the job", ttl=30).acquire(timeout=5)

    job = job_class(
        api,
        locks,
        work,
        lock=staticmethod(lambda: "the job"),
        lock_expired_before_release=staticmethod(lambda: log.note("expired")),
    )
    await settle(job.run())
    assert log == [("expired",)]
    assert other.held
    assert (await settle(job.lock_for().inspect())).fence == other.fence


async def test_a_real_expiry_by_the_clock(api: World, locks: Any) -> None:
    """lock_timeout is the server's ttl: when it has passed the run is expired."""
    log = Log()

    def work() -> None:
        key = job.lock_for().key
        while api.client.exists(key):
            pass

    job = job_class(
        api,
        locks,
        work,
        lock_timeout=0.05,
        lock_expired_before_release=staticmethod(lambda: log.note("expired")),
    )
    await settle(job.run())
    assert log == [("expired",)]


async def test_not_expired_when_released_or_unknown(api: World, locks: Any) -> None:
    """Only the server's reply makes a run expired, not a reply that never came."""
    log = Log()

    def work() -> str:
        # The server is gone when the run wants to release.
        job.lock_for()._locks._driver.endpoint.settings["path"] = "/tmp/lualock-no-such-socket"
        api.client.client_kill_filter(_type="normal", skipme=True)
        return "done"

    own = api.connect()
    job = job_class(
        api,
        own,
        work,
        lock_expired_before_release=staticmethod(lambda: log.note("expired")),
    )
    assert await settle(job.run()) == "done"
    assert log == []


@pytest.mark.parametrize("gone", [False, True], ids=["in time", "expired"])
@pytest.mark.parametrize("callback_raises", [False, True])
async def test_the_job_s_own_error_survives(
    api: World,
    locks: Any,
    gone: bool,
    callback_raises: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whatever release and callbacks do, the job's error goes on; theirs is attached to it."""

    def work() -> None:
        if gone:
            api.client.delete(job.lock_for().key)
        raise ZeroDivisionError("the job's own")

    def expired() -> None:
        if callback_raises:
            raise KeyError("the callback's")

    job = job_class(api, locks, work, lock_expired_before_release=staticmethod(expired))
    with pytest.raises(ZeroDivisionError, match="the job's own") as caught:
        await settle(job.run())
    notes = " ".join(getattr(caught.value, "__notes__", []))
    assert ("ended by force, before it was released" in notes) == gone
    assert ("the callback's" in notes) == (gone and callback_raises)
    assert ("expiry callback" in caplog.text) == (gone and callback_raises)
    assert not await settle(job.locked())


async def test_a_callback_s_error_is_raised_when_the_job_succeeded(api: World, locks: Any) -> None:
    """A callback that raises is not lost, and leaves nothing held."""

    def broken(*args: Any) -> None:
        raise KeyError("the callback's")

    def work() -> None:
        api.client.delete(job.lock_for().key)

    job = job_class(
        api,
        locks,
        work,
        lock_failed=staticmethod(broken),
        lock_expired_before_release=staticmethod(broken),
    )
    with pytest.raises(KeyError, match="the callback's"):
        await settle(job.run())
    assert not await settle(job.locked())
    lease = await settle(job.lock_for().acquire())
    with pytest.raises(KeyError, match="the callback's"):
        await settle(job.run())
    assert lease.held
    await settle(lease.release())
    assert not await settle(job.locked())


async def test_refresh_lock(api: World, locks: Any) -> None:
    """Inside the run, refresh_lock gives the lease its whole ttl again, and the run is not
    expired."""
    log = Log()
    left: list[int] = []

    async def refreshing() -> None:
        api.client.pexpire(job.lock_for().key, 5000)
        await settle(job.refresh_lock())
        left.append(api.client.pttl(job.lock_for().key))

    def refreshing_plainly() -> None:
        api.client.pexpire(job.lock_for().key, 5000)
        job.refresh_lock()
        left.append(api.client.pttl(job.lock_for().key))

    job: Any = type(
        "Refreshing",
        (lualock.LockedJob,),
        {
            "locks": locks,
            "lock_timeout": 60,
            "perform": staticmethod(refreshing if api.asynchronous else refreshing_plainly),
            "lock_expired_before_release": staticmethod(lambda: log.note("expired")),
        },
    )
    await settle(job.run())
    assert 55_000 < left[0] <= 60_000
    assert log == []


async def test_refresh_lock_is_owner_checked(api: World, locks: Any) -> None:
    """Code outside of the run cannot refresh its lock, and a lost lease is not refreshed."""
    job = job_class(api, locks, lambda: 1 / 0, lock_timeout=60)
    with pytest.raises(ZeroDivisionError):
        await settle(job.run())
    await settle(job.lock_for().acquire())
    api.client.pexpire(job.lock_for().key, 5000)
    with pytest.raises(lualock.LeaseLost, match="part of no run"):
        await settle(job.refresh_lock())
    assert api.client.pttl(job.lock_for().key) <= 5000

    async def losing() -> None:
        api.client.delete(lost.lock_for().key)
        await settle(lost.refresh_lock())

    def losing_plainly() -> None:
        api.client.delete(lost.lock_for().key)
        lost.refresh_lock()

    lost: Any = type(
        "Losing",
        (lualock.LockedJob,),
        {"locks": locks, "perform": staticmethod(losing if api.asynchronous else losing_plainly)},
    )
    with pytest.raises(lualock.LeaseLost, match="before it was extended"):
        await settle(lost.run())


async def test_settings_are_inherited(api: World, locks: Any) -> None:
    """A subclass has its parent's timeout and callbacks, and a lock of its own."""
    log = Log()
    parent = job_class(
        api,
        locks,
        lambda *args: log.note("ran", *args),
        lock_timeout=77,
        lock_failed=staticmethod(lambda *args: log.note("failed", *args)),
    )
    child: Any = type("Child", (parent,), {})
    assert child.lock_for(1).ttl == 77
    assert child.lock_for(1).key != parent.lock_for(1).key
    await settle(parent.lock_for(1).acquire())
    await settle(child.run(1))
    await settle(child.lock_for(1).acquire())
    await settle(child.run(1))
    assert log == [("ran", 1), ("failed", 1)]


async def test_a_timeout_computed_from_the_arguments(api: World, locks: Any) -> None:
    """lock_timeout as a classmethod gets the job's arguments; None means renewed."""
    job: Any = type(
        "Job",
        (job_class(api, locks, lambda minutes: None),),
        {"lock_timeout": classmethod(lambda cls, minutes: minutes * 60 if minutes else None)},
    )
    assert job.lock_for(2).ttl == 120
    assert job.lock_for(None).ttl == 30
    assert "renewed" in repr(job.lock_for(None))
    with pytest.raises(lualock.InvalidArgument, match=r"the ttl of job .+Job must be"):
        await settle(job.run(-1))
    assert api.client.keys("*") == []


async def test_lock_and_identifier(api: World, locks: Any) -> None:
    """lock() returns the whole name, as of plain locks; identifier() is a part of a class's own
    name."""
    named = job_class(api, locks, lambda a: None, lock=staticmethod(lambda a: f"graph-{a}"))
    assert named.lock_for(1).key == locks.lock("graph-1").key
    one = job_class(api, locks, lambda a, b: None, identifier=staticmethod(lambda a, b: a))
    assert one.lock_for(1, 2).key == one.lock_for(1, 3).key
    assert one.lock_for(1, 2).key != one.lock_for(2, 2).key
    all_one = job_class(api, locks, lambda a: None, identifier=staticmethod(lambda a: None))
    assert all_one.lock_for(1).key == all_one.lock_for(2).key
    bad = job_class(api, locks, lambda: None, lock=staticmethod(lambda: 7))
    with pytest.raises(lualock.InvalidArgument, match="must be str or bytes, not int"):
        await settle(bad.run())


async def test_one_run_among_many(api: World, locks: Any) -> None:
    """Of many starts at once one runs, and the callback of the others is called."""
    log = Log()
    inside = asyncio.Event()
    done = asyncio.Event()

    async def work() -> str:
        inside.set()
        await done.wait()
        return "ran"

    def plain_work() -> str:
        async def wait() -> None:
            await work()

        asyncio.run_coroutine_threadsafe(wait(), loop).result(10)
        return "ran"

    loop = asyncio.get_running_loop()
    job: Any = type(
        "Job",
        (lualock.LockedJob,),
        {
            "locks": locks,
            "perform": staticmethod(work if api.asynchronous else plain_work),
            "lock_failed": staticmethod(lambda: log.note("failed")),
        },
    )
    first = asyncio.create_task(api.beside(job.run))
    await inside.wait()
    await asyncio.gather(*(api.beside(job.run) for _ in range(10)))
    assert log == [("failed",)] * 10
    done.set()
    assert await first == "ran"
    assert not await settle(job.locked())


async def test_cancelling_a_job_frees_its_lock(one_server: Any) -> None:
    """A cancelled coroutine job is cancelled, and its lock is free."""
    async with aio.connect(one_server.url) as locks:
        inside = asyncio.Event()

        @locks.job(key="x")
        async def work() -> None:
            inside.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(work())
        await inside.wait()
        assert await work.locked()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not await work.locked()


async def test_the_decorator(api: World, locks: Any) -> None:
    """A decorated function is called as before, runs once at a time, and has its lock."""
    log = Log()

    def add(a: int, b: int = 2) -> int:
        """Add."""
        return a + b

    job = locks.job(
        ttl=60,
        on_skipped=lambda a, b=2, holder=None: log.note("failed", a, b, holder is not None),
        on_expired=lambda a, b=2: log.note("expired", a, b),
    )(as_job(api, add))
    assert await settle(job(1, b=3)) == 4
    assert job.__name__ == "add"
    assert job.lock_for(1).ttl == 60
    assert job.lock_for(1).key == job.lock_for(a=1, b=2).key
    lease = await settle(job.lock_for(1).acquire())
    assert await settle(job.locked(1))
    assert await settle(job(1)) is None
    assert log == [("failed", 1, 2, True)]
    await settle(lease.release())
    with pytest.raises(TypeError, match=r"^job .+: missing a required argument"):
        await settle(job())
    with pytest.raises(lualock.InvalidArgument, match="argument 'a'"):
        await settle(job(object()))


async def test_the_decorator_s_key_and_ttl(api: World, locks: Any) -> None:
    """key= may be a name, or a function that returns a name or a value; ttl= may be a function."""

    def work(a: int) -> None:
        """Nothing: its name and its argument count."""

    body = as_job(api, work)
    assert locks.job(key="one")(body).lock_for(5).key == locks.lock("one").key
    assert locks.job(key=lambda a: f"n-{a}")(body).lock_for(5).key == locks.lock("n-5").key
    by_value = locks.job(key=lambda a: a % 10)(body)
    assert by_value.lock_for(5).key == by_value.lock_for(15).key != by_value.lock_for(6).key
    with pytest.raises(lualock.InvalidArgument, match="key returned None"):
        locks.job(key=lambda a: None)(body).lock_for(5)
    assert locks.job(ttl=lambda a: a)(body).lock_for(5).ttl == 5
    assert locks.job(body).lock_for(5).ttl == 30


def test_the_decorator_refuses(locks: Any) -> None:
    """The decorator refuses a bad option at once, not at the first call."""
    wrong: list[dict[str, Any]] = [{"ttl": 0}, {"ttl": "5"}, {"key": 7}]
    wrong += [{"on_skipped": "x"}, {"on_expired": 3}]
    for options in wrong:
        with pytest.raises(lualock.InvalidArgument):
            locks.job(**options)(_nothing)
    for thing in (7, functools.partial(print), object, _Callable()):
        with pytest.raises(lualock.InvalidArgument, match="decorates functions"):
            locks.job(thing)
    limit = lualock.connect("redis://h").lock("limit")
    for nameless in (functools.partial(print), _Callable()):  # the lock's wrapper has a name
        with pytest.raises(lualock.InvalidArgument, match="decorates functions"):
            locks.job(limit(nameless))
    assert locks.job(limit(_nothing)).lock_for().key == locks.job(_nothing).lock_for().key
    with pytest.raises(lualock.InvalidArgument, match="lock name for a lambda"):
        locks.job(lambda: None)
    assert locks.job(key="named")(lambda: 5)() == 5


def test_a_lock_is_no_function(api: World, locks: Any) -> None:
    """A lock can be called only as a decorator, so it is refused where a function is expected."""
    lock, body = locks.lock("x"), as_job(api, _nothing)
    text = "must be a function or None, not Lock"
    callbacks = {"on_skipped": "lock_failed", "on_expired": "lock_expired_before_release"}
    callbacks["on_enqueue_failed"] = "loner_enqueue_failed"
    of_job = {
        **dict.fromkeys(callbacks, text),
        "key": "must be a name or a function of the job's arguments, not Lock",
        "previous_key": "must be a name or a function of the job's arguments, not Lock",
        "ttl": "must be a number of seconds or a timedelta, not Lock",
        "policy": "must be one of lualock.jobs, .* or a plain function that returns one",
    }
    of_class = {
        **dict.fromkeys(callbacks.values(), text),
        "identifier": text,
        "lock": "must be a classmethod that returns the lock's name",
        "lock_policy": of_job["policy"],
        "lock_previous_key": "must be a name, a function of the job's arguments, or a version",
        "lock_timeout": of_job["ttl"],
        "locks": r"must be what lualock\.connect\(\) or",
    }
    for name, message in of_job.items():
        with pytest.raises(lualock.InvalidArgument, match=message):
            locks.job(**{name: lock})(body)
    for name, message in of_class.items():
        with pytest.raises(lualock.InvalidArgument, match=message):
            type("Job", (lualock.LockedJob,), {"perform": staticmethod(body), name: lock})
    with pytest.raises(lualock.InvalidArgument, match=f"on_lost {text}"):
        locks.lock("y", on_lost=lock)


def _nothing() -> None:
    """A job that does nothing."""


class _Callable:
    def __call__(self) -> None:
        """Not a function."""


def test_work_that_would_run_without_the_lock_is_refused(locks: Any) -> None:
    """A generator, or a coroutine that a plain function returns, runs after the call: too late."""

    def generator() -> Any:
        yield

    async def asynchronous() -> Any:
        yield

    for body in (generator, asynchronous):
        with pytest.raises(lualock.InvalidArgument, match="generator function"):
            locks.job(body)

    async def coroutine() -> None:
        raise AssertionError("it ran")

    @locks.job(key="x")  # type: ignore[untyped-decorator]  # `locks` is of either API
    def returns_one() -> Any:
        return coroutine()

    with pytest.raises(lualock.InvalidArgument, match="'async def'"):
        returns_one()
    assert not returns_one.locked()


async def test_work_that_would_go_on_without_the_lock_is_refused(api: World, locks: Any) -> None:
    """A generator, or a future, that a job returns outlives its lock."""

    async def asynchronous() -> Any:
        yield

    def generator() -> Any:
        yield

    def future() -> Any:
        made: asyncio.Future[None] = asyncio.Future()
        made.set_result(None)
        return made

    makes: list[Any] = [generator, asynchronous, future]
    job = job_class(api, locks, lambda: makes.pop()())
    while makes:
        with pytest.raises(lualock.InvalidArgument, match="would run without the lock"):
            await settle(job.run())
        assert not await settle(job.locked())


class AnObject:
    """An object that is called like a function, and is a coroutine or generator function."""

    async def __call__(self, *args: Any) -> Any:
        return "ran"


class Generates:
    """The same as a generator function."""

    def __call__(self) -> Any:
        yield


@pytest.mark.parametrize("name", ["function", "partial", "object"])
def test_whatever_is_a_coroutine_function_runs_as_one(name: str, one_server: Any) -> None:
    """A coroutine function, a partial of one, and an object whose __call__ is one all run as
    one."""

    async def perform(count: int, more: int = 1) -> Any:
        return count, more, bool(await Job.locked(count))

    bodies: dict[str, Any] = {
        "function": perform,
        "partial": functools.partial(perform, more=2),
        "object": AnObject(),
    }

    class Job(lualock.LockedJob):
        locks = lualock.connect(one_server.url)
        perform = staticmethod(bodies[name])
        identifier = staticmethod(lambda count, *more: count)

    wanted = {"function": (5, 1, True), "partial": (5, 2, True), "object": "ran"}
    assert asyncio.run(Job.run(5)) == wanted[name]
    assert not asyncio.run(Job.locked(5))


async def _coroutine_function(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("no code awaits it")


def test_a_coroutine_function_that_is_not_awaited(locks: Any) -> None:
    """A coroutine function is refused and named when the job is declared: as a callback of a plain
    job, and as key= or ttl= of any."""

    def body(n: int) -> None:
        """A plain job."""

    async def coroutine(n: int) -> None:
        """A job of the other kind."""

    for one in (_coroutine_function, functools.partial(_coroutine_function), AnObject()):
        for job, options in (
            (body, ("on_skipped", "on_expired", "ttl", "key", "previous_key")),
            (coroutine, ("ttl", "key", "previous_key")),
        ):
            for option in options:
                with pytest.raises(lualock.InvalidArgument, match=f"{option}.* must be a plain"):
                    locks.job(**{option: one})(job)
        if one is _coroutine_function:
            with pytest.raises(lualock.InvalidArgument, match="plain function that returns one"):
                locks.job(policy=one)(body)
    for option in ("lock_failed", "lock_expired_before_release", "lock", "identifier"):
        members = {"perform": staticmethod(body), option: staticmethod(_coroutine_function)}
        with pytest.raises(lualock.InvalidArgument, match=f"{option}.* must be a plain"):
            type("Job", (lualock.LockedJob,), members)
    for option in ("lock_timeout", "lock_previous_key"):
        members = {"perform": staticmethod(coroutine), option: staticmethod(_coroutine_function)}
        with pytest.raises(lualock.InvalidArgument, match=f"{option}.* must be a plain"):
            type("Job", (lualock.LockedJob,), members)
    for generates in (Generates(), functools.partial(Generates())):
        with pytest.raises(lualock.InvalidArgument, match="generator function"):
            type("Job", (lualock.LockedJob,), {"perform": staticmethod(generates)})


def test_what_cannot_be_decorated(locks: Any) -> None:
    """A function that would lock twice, would be no method any more, or has no signature is
    refused."""

    def body() -> None:
        """A job."""

    with pytest.raises(lualock.InvalidArgument, match="@staticmethod goes above"):
        locks.job(staticmethod(body))
    with pytest.raises(lualock.InvalidArgument, match="is a job already"):
        locks.job(locks.job(body))
    with pytest.raises(lualock.InvalidArgument, match="what its arguments are"):
        locks.job(key="x")(max)
    with pytest.raises(lualock.InvalidArgument, match="decorates functions"):
        locks.job(key="x")(dict.update)


async def test_whatever_its_arguments_are_called(api: World, locks: Any) -> None:
    """A job's arguments may have the names that lualock uses, in each way to declare it."""
    names = "self cls args kwargs holder key token job_id timeout body callback func name version"
    calls: list[Any] = []
    parameters = ", ".join(names.split())
    scope: dict[str, Any] = {"calls": calls}
    exec(f"def work({parameters}): calls.append(locals().copy())", scope)
    exec(f"def failed({parameters}): calls.append(locals().copy())", scope)
    scope["work"].__module__ = __name__
    arguments = {name: at for at, name in enumerate(names.split())}
    members = {"lock_failed": staticmethod(scope["failed"])}
    for job in (
        job_class(api, locks, scope["work"], **members),
        job_class(api, locks, scope["work"], **members, lock_timeout=staticmethod(lambda **_: 5)),
    ):
        calls.clear()
        lock = job.lock_for(**arguments)
        assert not await settle(job.locked(**arguments))
        await settle(job.run(**arguments))
        lease = await settle(lock.acquire())
        await settle(job.run(**arguments))
        await settle(lease.release())
        assert calls == [arguments, arguments]
    made = locks.job(on_skipped=scope["failed"])(as_job(api, scope["work"]))
    calls.clear()
    await settle(made(**arguments))
    lease = await settle(made.lock_for(**arguments).acquire())
    await settle(made(**arguments))
    await settle(lease.release())
    assert calls == [arguments, arguments]


async def test_callbacks_get_what_they_have_room_for(api: World, locks: Any) -> None:
    """The holder is passed only by the name of a callback's parameter of its own, never in the
    position of an argument."""
    calls = Log()

    def own(shop: int, *, holder: str) -> None:
        calls.append((shop, bool(holder)))

    def by_place(holder: int) -> None:
        calls.append(holder)

    def only_by_place(shop: int, holder: int = 0, /) -> None:
        calls.append((shop, holder))

    for callback, wanted in ((own, (7, True)), (by_place, 7), (only_by_place, (7, 0))):
        job = job_class(api, locks, lambda shop: None, lock_failed=staticmethod(callback))
        lease = await settle(job.lock_for(7).acquire())
        await settle(job.run(7))
        await settle(lease.release())
        assert calls.pop() == wanted

    def any_args(*args: Any, holder: str = "", **kwargs: Any) -> None:
        calls.append((args, holder, kwargs))

    def open_work(*args: Any, **kwargs: Any) -> None:
        """A job of any arguments."""

    job = job_class(api, locks, open_work, lock_failed=staticmethod(any_args))
    lease = await settle(job.lock_for(1, holder="mine").acquire())
    await settle(job.run(1, holder="mine"))
    await settle(lease.release())
    assert calls == [((1,), "mine", {})]


def test_a_class_refuses(locks: Any) -> None:
    """A job without perform, with one that needs an instance, or with a bad timeout is refused."""

    class Nothing(lualock.LockedJob):
        pass

    Nothing.locks = locks
    with pytest.raises(lualock.InvalidArgument, match="Nothing as a job: it has no perform"):
        Nothing.run()
    with pytest.raises(lualock.InvalidArgument, match="must be a classmethod"):
        type("Job", (lualock.LockedJob,), {"perform": lambda self: None})
    with pytest.raises(lualock.InvalidArgument, match=r"Job\.lock_timout: .*mean lock_timeout"):
        type("Job", (lualock.LockedJob,), {"lock_timout": 5})
    with pytest.raises(
        lualock.InvalidArgument, match=r"Job\.loners: it is not a setting of a LockedJob"
    ):
        type("Job", (lualock.LockedJob,), {"loners": 5})
    misspelt = type("Misspelt", (), {"lock_uniqe": "queued"})
    for bases in ((misspelt, lualock.LockedJob), (lualock.LockedJob, misspelt)):
        with pytest.raises(lualock.InvalidArgument, match=r"Job\.lock_uniqe: .*mean lock_unique"):
            type("Job", bases, {})
    mixin = type("Mixin", (), {"perform": lambda self: None})
    with pytest.raises(lualock.InvalidArgument, match="must be a classmethod"):
        type("Job", (mixin, lualock.LockedJob), {})
    wrong: dict[str, list[Any]] = {
        "lock_key_version": [-1, True, "1", None, 1.5],
        "lock_previous_key": [-1, True, 1.5, []],
        "lock": ["name", None],
        "identifier": ["x", 5],
        "lock_failed": [5],
        "lock_expired_before_release": ["me"],
        "loner_enqueue_failed": [5],
        "loner": ["x", 1],
        "locks": [5, "redis://localhost", lualock.connect],
    }
    for member, values in wrong.items():
        for value in values:
            with pytest.raises(lualock.InvalidArgument, match=f"{member} must be"):
                type("Job", (lualock.LockedJob,), {member: value})
    for bad in (0, "5", True, float("nan"), [5]):
        with pytest.raises(lualock.InvalidArgument, match="lock_timeout must be"):
            type("Job", (lualock.LockedJob,), {"lock_timeout": bad})


def test_a_class_refuses_the_decorator_s_names() -> None:
    """Each parameter of ``locks.job`` has another name in a class, and the error says which."""
    parameters = {*inspect.signature(JobMaker.__call__).parameters} - {"self", "body", "unknown"}
    assert {*_OF_THE_DECORATOR} == parameters
    for name, setting in _OF_THE_DECORATOR.items():
        assert hasattr(lualock.LockedJob, setting)
        with pytest.raises(lualock.InvalidArgument, match=rf"Job\.{name}: .*mean {setting}\?"):
            type("Job", (lualock.LockedJob,), {name: None})
    mixin = type("Mixin", (), {"key": "of its own", "ttl": 5})
    assert type("Job", (mixin, lualock.LockedJob), {})


def test_locks_of_a_class_may_be_made_later(locks: Any) -> None:
    """A descriptor that makes a class's locks is not called when the class is declared."""
    asked: list[str] = []

    class Later:
        def __get__(self, _: object, owner: type) -> Any:
            asked.append(owner.__name__)
            return locks

    class Job(lualock.LockedJob):
        locks = Later()

        @classmethod
        def perform(cls) -> int:
            return 7

    assert asked == []
    assert Job.run() == 7
    assert "Job" in asked


def test_one_locks_serves_functions_and_coroutines(one_server: Any) -> None:
    """The locks of either API decorate both kinds, and the two exclude each other."""
    for locks in (lualock.connect(one_server.url), aio.connect(one_server.url)):

        @locks.job(key="shared")
        def plain() -> str:
            return "plain"

        @locks.job(key="shared", on_skipped=lambda: "held")
        async def coroutine() -> Any:
            return await asyncio.to_thread(plain)

        assert plain() == "plain"
        assert asyncio.run(coroutine()) is None  # `plain` inside found the lock held
        lease = lualock.connect(one_server.url).lock("shared").acquire()
        assert asyncio.run(coroutine()) == "held"
        lease.release()


@pytest.fixture
def default(one_server: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """$LUALOCK_URL names the server, and nothing is connected yet."""
    from lualock.jobs import counterpart

    monkeypatch.setenv("LUALOCK_URL", one_server.url)
    monkeypatch.setattr(counterpart, "_default", None)
    yield
    assert counterpart._default is not None
    counterpart._default.close()


@pytest.mark.usefixtures("default")
def test_jobs_without_locks_use_the_default() -> None:
    """A job that names no locks uses lualock.connect() without arguments."""

    class Job(lualock.LockedJob):
        @classmethod
        def perform(cls) -> bool:
            return bool(cls.locked())

    assert Job.run() is True
    assert Job.locked() is False


@pytest.mark.parametrize("previous", [None, "old"])
async def test_a_run_that_hangs_loses_its_lock(api: World, previous: str | None) -> None:
    """With ``max_hold`` the lease of a run is renewed for so long, and no longer."""
    locks = api.connect(ttl=0.4)
    expired: list[bool] = []

    def taken() -> bool:  # a little longer than the holder believes
        return (api.client.get("lualock:{x}") or b"")[:1] == b"H"

    async def coroutine() -> None:
        assert await jobs.current_lease().wait_lost(5)
        await api.until(lambda: not taken())

    def plain() -> None:
        assert jobs.current_lease().wait_lost(5)
        wait_until(lambda: not taken())

    decorate = locks.job(
        key="x", max_hold=0.8, previous_key=previous, on_expired=lambda: expired.append(True)
    )
    started = time.monotonic()
    await settle(decorate(coroutine if api.asynchronous else plain)())
    assert expired == [True]
    assert 0.5 < time.monotonic() - started < 5


@pytest.mark.parametrize(("ttl", "max_hold"), [(5, 60), (None, 0), (None, "x"), (None, -1)])
def test_a_max_hold_that_cannot_be(ttl: Any, max_hold: Any) -> None:
    """It needs a lease that is renewed, and a time, as for a lock."""
    locks = lualock.connect("redis://localhost")
    with pytest.raises(lualock.InvalidArgument, match="max_hold"):
        locks.job(ttl=ttl, max_hold=max_hold, key="x")(lambda: None)
    named = {"lock_timeout": ttl, "lock_max_hold": max_hold, "perform": staticmethod(print)}
    with pytest.raises(lualock.InvalidArgument, match="max_hold"):
        type("Job", (lualock.LockedJob,), named)
