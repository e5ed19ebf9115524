"""Every time of the public API is a number of seconds or a ``timedelta``."""

from __future__ import annotations

import inspect
import re
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import is_dataclass
from datetime import timedelta
from typing import Any, NamedTuple

import pytest
import redis
import redis.asyncio

import lualock
from lualock import aio, embedded, fencing, jobs, testing
from lualock.fencing import aio as fencing_aio
from tests.jobs.test_jobs import as_job
from tests.support.delivery import Queue, reservation_of
from tests.support.world import World, settle

MODULES = lualock, aio, jobs, embedded, fencing, fencing_aio, testing

TIME = re.compile(r"(.*_)?(ttl|timeout|delay|wait|hold|in|interval|lasts|seconds)")
"""The names of parameters that are times."""

Use = Callable[[World, Any], Awaitable[float | None]]


class Time(NamedTuple):
    """A parameter that is a time: how to use it, and the seconds that it then counts as."""

    use: Use
    seconds: float = 30.0
    spread: float = 0.0
    checked: bool = True
    """Whether a value that is not a time is refused. (Otherwise the error is only logged.)"""


TIMES: dict[str, Time] = {}


def of(*names: str, **more: Any) -> Callable[[Use], Use]:
    """Register how parameters are used; a name is that of the callable, a dot, the parameter's."""

    def register(use: Use) -> Use:
        TIMES.update({name: Time(use, **more) for name in names})
        return use

    return register


def _of_class(found: type, owner: str) -> Iterator[tuple[str, str, str]]:
    if issubclass(found, Exception):
        return
    calls = {"": found}
    for name, member in inspect.getmembers(found):
        if callable(member) and (not name.startswith("_") or name == "__call__"):
            calls[f".{name}"] = member
    for call, member in calls.items():
        for parameter in inspect.signature(member).parameters.values():
            yield f"{owner}{call}", parameter.name, str(parameter.annotation)
    if not is_dataclass(found):
        for name, annotation in inspect.get_annotations(found).items():
            if not name.startswith("_"):
                yield owner, name, str(annotation)


def parameters() -> set[tuple[str, str, str]]:
    """All parameters of the public API: of which callable, their name and their annotation."""
    found: set[tuple[str, str, str]] = set()
    for module in MODULES:
        for name in getattr(module, "__all__", ["fenced_set"]):
            one = getattr(module, name)
            if inspect.isclass(one):
                found.update(_of_class(one, name))
            elif inspect.isfunction(one):
                for parameter in inspect.signature(one).parameters.values():
                    found.add((name, parameter.name, str(parameter.annotation)))
    return found


@of("Locks.lock.ttl")
async def lock_ttl(world: World, value: Any) -> float:
    return float(world.connect().lock("x", value).ttl)


@of("Lock.derived.ttl")
async def derived(world: World, value: Any) -> float:
    return float(world.connect().lock("x").derived(b":y", value).ttl)


@of("Locks.lock_at.ttl")
async def lock_at(world: World, value: Any) -> float:
    locks = world.connect()
    return float(locks.lock_at(locks.lock("x").key, value).ttl)


@of("Locks.lock.max_hold")
async def max_hold(world: World, value: Any) -> float:
    lease = await settle(world.connect().lock("x", max_hold=value).acquire())
    return float(lease._options.max_hold_s)


@of("Locks.lock.hold_at_least")
async def hold_at_least(world: World, value: Any) -> float:
    lease = await settle(world.connect().lock("x", hold_at_least=value).acquire())
    return float(lease._options.hold_at_least_s)


@of("Locks.adopt.max_hold")
async def adopt(world: World, value: Any) -> float:
    locks = world.connect()
    handle = (await settle(locks.lock("x").acquire())).handle()
    lease = await settle(locks.adopt(handle, max_hold=value))
    return float(lease._options.max_hold_s)


@of("connect.ttl")
async def connect(world: World, value: Any) -> float:
    return float(world.connect(ttl=value).lock("x").ttl)


@of("Locks.ttl")
async def locks_ttl(world: World, value: Any) -> float:
    if world.asynchronous:
        return aio.Locks(redis.asyncio.Redis(), ttl=value).lock("x").ttl
    return lualock.Locks(redis.Redis(), ttl=value).lock("x").ttl


@of("Lock.acquire.timeout", seconds=0.25)
async def acquire(world: World, value: Any) -> float:
    lock = world.connect().lock("x")
    await settle(lock.acquire())
    with pytest.raises(lualock.NotAcquired) as refused:
        await settle(lock.acquire(timeout=value))
    return float(re.findall("within (.*?) s", str(refused.value))[0])


@of("Lease.wait_lost.timeout", seconds=0.25)
async def wait_lost(world: World, value: Any) -> float:
    lease = await settle(world.connect().lock("x").acquire())
    began_at = time.monotonic()
    assert not await settle(lease.wait_lost(timeout=value))
    return min(time.monotonic() - began_at + 0.001, 0.25)


@of("Lease.extend.ttl", seconds=90)
async def extend(world: World, value: Any) -> float:
    lease = await settle(world.connect().lock("x").acquire())
    await settle(lease.extend(value))
    return float(lease._ttl_ms) / 1000


def left_s(world: World, key: bytes | str) -> float:
    """Return when a key expires, by the server's own account."""
    left_ms: int = world.client.pttl(key)
    return left_ms / 1000


@of("Lock.request_release.expires_in", spread=20)
async def request_release(world: World, value: Any) -> float:
    lock = world.connect().lock("x")
    await settle(lock.acquire())
    assert await settle(lock.request_release(expires_in=value))
    return left_s(world, lock.key + b":stop_requests")


@of("fenced_set.ttl", spread=20)
async def fenced_set(world: World, value: Any) -> float:
    if world.asynchronous:
        async with redis.asyncio.Redis.from_url(world.url()) as client:
            await fencing_aio.fenced_set(client, "k", "v", fence=1, ttl=value)
    else:
        fencing.fenced_set(world.client, "k", "v", fence=1, ttl=value)
    return left_s(world, "k")


@of("LockKit.held_elsewhere.ttl", "OtherProcess.ttl", spread=20)
async def held_elsewhere(world: World, value: Any) -> float:
    with testing.LockKit(world.url()) as kit, kit.held_elsewhere("x", ttl=value):
        return left_s(world, kit.lock("x").key)


@of("LockKit.advance.seconds", spread=20)
async def advance(world: World, value: Any) -> float:
    lock = world.connect().lock("x", ttl=90)
    await settle(lock.acquire())
    with testing.LockKit(world.url()) as kit:
        kit.advance(value)
    return 90 - left_s(world, lock.key)


@of(*(f"{policy}.wait" for policy in ("Wait", "Replace", "Coalesce")), "Retry.delay")
async def policies(world: World, value: Any) -> float | None:
    stored = {
        *(kind(value).wait for kind in (jobs.Wait, jobs.Replace, jobs.Coalesce)),
        jobs.Retry(value).delay,
    }
    (only,) = stored
    assert not isinstance(only, timedelta)
    return only


def work() -> None:
    """Do nothing: the body of a job."""


def queue_of(world: World, **options: Any) -> Queue:
    """Return the queue of a job."""
    return Queue(world, world.connect().job(key="x", **options)(as_job(world, work)))


def job_class(world: World, **members: Any) -> Any:
    """Return a job as a class."""
    members |= {"perform": staticmethod(work), "locks": world.connect()}
    return type("Job", (lualock.LockedJob,), members)


@of("JobMaker.__call__.ttl", "LockedJob.lock_timeout")
async def job_ttl(world: World, value: Any) -> float:
    made = [
        *(queue_of(world, ttl=ttl).work for ttl in (value, lambda: value)),
        jobs.adapter(job_class(world, lock_timeout=value)),
    ]
    (found,) = {job.lock().ttl for job in made}
    return found


@of("JobMaker.__call__.max_hold", "LockedJob.lock_max_hold")
async def max_hold_of_a_job(world: World, value: Any) -> float:
    made = [queue_of(world, max_hold=value).work]
    made.append(jobs.adapter(job_class(world, lock_max_hold=value)))
    (found,) = {job.lock()._options.max_hold_s for job in made}
    assert found is not None
    return found


@of("JobMaker.__call__.hold_at_least", "LockedJob.lock_hold_at_least")
async def hold_at_least_of_a_job(world: World, value: Any) -> float:
    made = [queue_of(world, hold_at_least=value).work]
    made.append(jobs.adapter(job_class(world, lock_hold_at_least=value)))
    (found,) = {job.lock()._options.hold_at_least_s for job in made}
    assert found is not None
    return found


@of("JobMaker.__call__.queue_ttl", "LockedJob.lock_queue_ttl")
async def queue_ttl(world: World, value: Any) -> float:
    made = [queue_of(world, queue_ttl=value).work]
    made.append(jobs.adapter(job_class(world, lock_queue_ttl=value)))
    (found,) = {job.job.options.queue_ttl_s for job in made}
    return found


@of("JobAdapter.enqueue.delay", "JobAdapter.enqueue_async.delay", spread=20)
async def enqueue(world: World, value: Any) -> float:
    queue = queue_of(world, unique="queued", queue_ttl=100)
    assert await queue.put(delay=value)
    return left_s(world, reservation_of(queue.work.lock())) - 100


@of("JobAdapter.confirm.delay", "JobAdapter.confirm_async.delay", spread=20)
async def confirm(world: World, value: Any) -> float:
    queue = queue_of(world, unique="queued", queue_ttl=100)
    reserved = await settle(queue.verb("reserve")(job_id="a"))
    assert await settle(queue.verb("confirm")(token=reserved.token, delay=value))
    return left_s(world, reservation_of(queue.work.lock())) - 100


@of("Delivery.will_retry", "Delivery.result_retry", spread=20, checked=False)
async def retries(world: World, value: Any) -> float:
    queue = queue_of(world, keep_lock_on_retry=True, queue_ttl=100)
    await queue.attempt("a", None, will_retry=lambda _: value, result_retry=lambda _: value)
    return left_s(world, queue.work.lock().key) - 100


async def attempt_with(world: World, policy: Callable[[jobs.Attempt], Any]) -> BaseException:
    """Run a job whose lock is held, with a policy of its own; return its error."""

    class Policy:
        def take(self, attempt: jobs.Attempt) -> Any:
            return policy(attempt)

    queue = queue_of(world, policy=Policy())
    await settle(queue.work.lock().acquire())
    try:
        await queue.attempt("a", None)
    except lualock.InvalidArgument:
        raise
    except lualock.LockError as error:
        return error
    raise AssertionError("the job ran")


@of("Attempt.later.delay")
async def later(world: World, value: Any) -> float:
    error = await attempt_with(world, lambda attempt: attempt.later(value))
    assert isinstance(error, jobs.RetryLater)
    return error.delay_s


@of("Attempt.wait.timeout", seconds=0.25)
async def wait(world: World, value: Any) -> float:
    def refused(attempt: jobs.Attempt) -> Any:
        try:
            yield from attempt.wait(value)
        except lualock.NotAcquired as late:
            raise lualock.LockUnavailable(str(late)) from None

    error = await attempt_with(world, refused)
    return float(re.findall("within (.*?) s", str(error))[0])


@of("Attempt.refuse_own_wait.timeout", checked=False)
async def refuse_own_wait(world: World, value: Any) -> float:
    def policy(attempt: jobs.Attempt) -> Any:
        attempt.refuse_own_wait(value)
        return attempt.later(30)

    return getattr(await attempt_with(world, policy), "delay_s", 0.0)


@of("Attempt.request_release.expires_in", spread=20)
async def stop_request(world: World, value: Any) -> float:
    def policy(attempt: jobs.Attempt) -> Any:
        yield from attempt.request_release(attempt.lock._request(), value)
        yield from attempt.later(1)

    await attempt_with(world, policy)
    return left_s(world, world.connect().lock("x").key + b":stop_requests")


def test_every_time_is_declared_and_in_the_table() -> None:
    """A new time must accept both kinds; what lualock returns in seconds ends in ``_s``."""
    public = parameters()
    for owner, name, annotation in public:
        if TIME.fullmatch(name) or ("float" in annotation and not name.endswith("_s")):
            assert "Seconds" in annotation, f"{owner}.{name} is declared as {annotation}"
    assert {f"{owner}.{name}" for owner, name, kind in public if "Seconds" in kind} == {*TIMES}


def uses(*, checked: bool = False) -> pytest.MarkDecorator:
    """Parametrize a test with each use of the table, or with those whose values are checked."""
    found = {one.use.__name__: one for one in TIMES.values() if one.checked or not checked}
    return pytest.mark.parametrize("one", found.values(), ids=found)


class Overridden(timedelta):
    """A timedelta whose method returns another number than its value is."""

    def total_seconds(self) -> float:
        return 7.0


@uses()
async def test_both_kinds(api: World, one: Time) -> None:
    """A ``timedelta`` counts as its seconds, whatever a subclass of it says."""
    values = one.seconds, timedelta(seconds=one.seconds), Overridden(seconds=one.seconds)
    for value in values:
        api.client.flushall()
        found = await one.use(api, value)
        assert found == pytest.approx(one.seconds, abs=one.spread)


@uses(checked=True)
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("5", "number of seconds or a timedelta, not str"),
        (timedelta(seconds=-1), "not -1.0"),
        (Overridden(seconds=-1), "not -1.0"),
        (-(10**400), "not -inf"),
    ],
    ids=["text", "negative", "subclass", "huge"],
)
async def test_what_is_not_a_time(api: World, one: Time, value: Any, message: str) -> None:
    """A text is refused, and so is what is negative by its real number of seconds."""
    with pytest.raises(lualock.InvalidArgument, match=f"must be .*{message}"):
        await one.use(api, value)


def test_a_timeout_of_a_connection_is_a_number() -> None:
    """redis-py gets it as it is, so a ``timedelta`` is refused."""
    with pytest.raises(lualock.InvalidArgument, match="number of seconds, not timedelta"):
        lualock.connect(redis.Redis(socket_timeout=timedelta(seconds=5)))  # type: ignore[arg-type]


def test_a_timedelta_is_as_exact_as_a_number() -> None:
    """A ttl is rounded up to whole milliseconds; 0.1 s are 100 ms."""
    lock = lualock.connect("redis://h").lock
    assert lock("x", timedelta(milliseconds=100)).ttl == lock("x", 0.1).ttl == 0.1
    assert lock("x", timedelta(microseconds=1001)).ttl == 0.002
    with pytest.raises(lualock.InvalidArgument, match=r"ttl must be from 0\.001"):
        lock("x", timedelta(microseconds=1))
