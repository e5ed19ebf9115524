"""A deploy that changes the name of a job's lock: the previous and the new code exclude each other,
and no two runs ever wait for each other."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

import lualock
from lualock import jobs
from tests.jobs.test_jobs import Log, as_job, job_class
from tests.support.delivery import Queue, held, reservation_of
from tests.support.servers import Server
from tests.support.waiting import wait_until
from tests.support.world import World, settle


class Versions:
    """The same job before, during and after the deploy."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.log = Log()
        self.running: list[int] = []

        def plain(shop: int) -> None:
            self.log.append(shop)
            self.running.append(world.client.incr("running"))
            time.sleep(0.001)  # let the other runs try
            world.client.decr("running")

        async def coroutine(shop: int) -> None:
            self.log.append(shop)
            self.running.append(world.client.incr("running"))
            await asyncio.sleep(0.001)
            world.client.decr("running")

        self.body: Any = coroutine if world.asynchronous else plain

    def queue(self, **options: Any) -> Queue:
        return Queue(self.world, self.world.connect().job(**options)(self.body))

    def all(self, **options: Any) -> tuple[Queue, Queue, Queue]:
        """Make the previous code, the code of the deploy that changes the name, and the code after
        it."""
        return (
            self.queue(key=lambda shop: f"old-{shop}", **options),
            self.queue(
                key=lambda shop: f"new-{shop}", previous_key=lambda shop: f"old-{shop}", **options
            ),
            self.queue(key=lambda shop: f"new-{shop}", **options),
        )


@pytest.fixture
def versions(api: World) -> Versions:
    """A job in three versions."""
    return Versions(api)


async def test_neighbours_exclude_each_other(versions: Versions) -> None:
    """While one version's job runs, no job of a version that may be deployed beside it runs."""
    old, both, new = versions.all()
    for runs, refused in ((old, both), (both, old), (both, new), (new, both), (both, both)):
        versions.log.clear()
        leases = [await settle(lock.acquire()) for lock in _locks(runs, 1)]
        assert await refused.attempt("b", None, 1) is None
        assert versions.log == []
        await refused.attempt("b", None, 2)
        for lease in leases:
            assert lease.held
            await settle(lease.release())
        await refused.attempt("b", None, 1)
        assert versions.log == [2, 1]
        for lock in (*_locks(both, 1), *_locks(both, 2)):
            assert not held(versions.world, lock.key)


def _locks(queue: Queue, *args: Any) -> list[Any]:
    work = queue.work
    return list(work.job.whole_lock(work._locks_for(work.asynchronous), args, {}).parts)


async def test_a_refusal_gives_the_other_name_back(versions: Versions) -> None:
    """A job that gets one lock and is refused the other leaves nothing held, and its callback gets
    the holder."""
    holders = Log()
    _, both, _ = versions.all(on_skipped=lambda shop, holder: holders.append(holder))
    first, last = _locks(both, 1)
    lease = await settle(last.acquire())
    await both.attempt("b", None, 1)
    assert holders == [(await settle(last.inspect())).holder]
    assert not held(versions.world, first.key)
    later = versions.all(policy=jobs.Retry(3))[1]
    with pytest.raises(jobs.RetryLater):
        await later.attempt("b", None, 1)
    assert not held(versions.world, first.key)
    await settle(lease.release())


async def test_they_wait_in_one_order(versions: Versions) -> None:
    """Many runs of all versions at once all end: there is no circle of waiting."""
    queues = versions.all(policy=jobs.Wait(20))
    for two in (queues[:2], queues[1:]):
        both = list(enumerate(two))
        await asyncio.gather(
            *(q.attempt(f"{n}-{i}", None, 1, beside=True) for n in range(12) for i, q in both)
        )
    assert len(versions.log) == 48
    assert set(versions.running) == {1}


async def test_they_wait_in_one_order_when_the_deploy_is_taken_back(versions: Versions) -> None:
    """If the previous name of one version is the new name of the other, no two runs wait for each
    other."""
    world, wait = versions.world, jobs.Wait(5)
    there = versions.queue(key="b", previous_key="a", policy=wait)
    back = versions.queue(key="a", previous_key="b", policy=wait)
    a = there.work._locks_for(there.work.asynchronous).lock("a")
    lease = await settle(a.acquire())

    async def queued(count: int) -> None:
        await world.until(lambda: world.client.zcard(a.key + b":waiters") == count)

    first = asyncio.ensure_future(there.attempt("first", None, 1, beside=True))
    await queued(1)
    second = asyncio.ensure_future(back.attempt("second", None, 2, beside=True))
    await queued(2)
    await settle(lease.release())
    await asyncio.gather(first, second)
    assert versions.log == [1, 2]


@pytest.mark.full
async def test_the_first_lock_is_kept_while_the_run_waits_for_the_second(api: World) -> None:
    """However long a run waits for its second lock, it keeps the first; its ttl begins with the
    job."""
    locks = api.connect()
    one, two = locks.lock("one"), locks.lock("two")
    left: list[int] = []
    expired: list[str] = []

    def look() -> None:
        left.extend(api.client.pttl(lock.key) for lock in (one, two))

    def over() -> bool:
        return not api.client.exists(one.key) and not api.client.exists(two.key)

    def plain() -> None:
        look()
        while not over():
            time.sleep(0.01)

    async def coroutine() -> None:
        look()
        await api.until(over)

    made = locks.job(
        key="two",
        previous_key="one",
        ttl=0.5,
        policy=jobs.Wait(20),
        on_expired=lambda: expired.append("expired"),
    )
    queue = Queue(api, made(coroutine if api.asynchronous else plain))
    lease = await settle(two.acquire())
    run = asyncio.ensure_future(queue.attempt("a", None, beside=True))
    await api.until(lambda: held(api, one.key))
    since = time.monotonic()
    await api.until(lambda: time.monotonic() > since + 1.2)
    assert held(api, one.key)
    await settle(lease.release())
    await run
    assert all(300 < ms <= 500 for ms in left)
    assert len(left) == 2
    assert expired == ["expired"]


async def test_a_job_that_lost_one_lock_while_it_waited_waits_for_it_again(
    versions: Versions,
) -> None:
    """A run that lost its first lock while it waited does not begin before it has both again."""
    world = versions.world
    both = versions.queue(key="two", previous_key="one", policy=jobs.Wait(20))
    one, two = _locks(both, 1)
    lease = await settle(two.acquire())
    run = asyncio.ensure_future(both.attempt("a", None, 1, beside=True))
    await world.until(lambda: world.client.zcard(two.key + b":waiters") == 1)
    world.client.delete(one.key)
    other = await settle(one.acquire())
    await settle(lease.release())
    await world.until(lambda: world.client.zcard(one.key + b":waiters") == 1)
    assert versions.log == []
    assert not held(world, two.key)
    await settle(other.release())
    await run
    assert versions.log == [1]
    assert not held(world, one.key)
    assert not held(world, two.key)


def test_of_two_producers_one_is_not_refused(locks: lualock.Locks) -> None:
    """If the previous name of one version is the new name of the other, and both enqueue at once,
    one of them succeeds."""

    def job() -> None:
        """A job's body."""

    made = locks.job(key="b", previous_key="a", unique="queued")(job)
    back = locks.job(key="a", previous_key="b", unique="queued")(job)
    steps = {
        name: jobs.adapter(each)._entry(locks, (), {}).reserve(name, None)
        for name, each in (("made", made), ("back", back))
    }
    results: dict[str, Any] = {}
    replies: dict[str, Any] = dict.fromkeys(steps)
    while len(results) < 2:
        for name in [name for name in steps if name not in results]:
            send = steps[name].throw if isinstance(replies[name], Exception) else steps[name].send
            try:
                action = send(replies[name])
            except StopIteration as done:
                results[name] = done.value
                continue
            try:
                replies[name] = action()
            except Exception as error:
                replies[name] = error
    assert sorted(map(bool, results.values())) == [False, True]


async def test_unique_over_a_deploy(versions: Versions) -> None:
    """A job that the previous code enqueued refuses one of the new code, and the other way round;
    both run."""
    old, both, new = versions.all(unique="both")
    for first, second in ((old, both), (both, old), (both, new), (new, both)):
        entry = await first.put(1)
        refused = await second.put(1)
        assert refused.job_id == entry.job_id
        for lock in _locks(both, 1):
            assert not held(versions.world, lock.key)
        second.pushed.extend(first.pushed)
        first.pushed.clear()
        await second.deliver()  # pushed by one version, run by another
        assert await second.put(1)
        second.pushed.clear()
        for lock in _locks(both, 1):
            versions.world.client.delete(reservation_of(lock))


async def test_a_dropped_job_releases_both_reservations(versions: Versions) -> None:
    """A unique job that is dropped at either lock keeps no reservation."""
    both = versions.all(unique="queued")[1]
    for lock in _locks(both, 1):
        lease = await settle(lock.acquire())
        await both.put(1)
        assert await both.deliver() is None
        assert not any(held(versions.world, reservation_of(each)) for each in _locks(both, 1))
        await settle(lease.release())
    assert versions.log == []


async def test_a_retry_keeps_both(versions: Versions) -> None:
    """A lock that is kept for a retry is kept under both names, and both are free at the end."""
    attempts = Log()

    def failing(shop: int) -> None:
        attempts.append(shop)
        if len(attempts) == 1:
            raise KeyError

    versions.body = as_job(versions.world, failing)
    both = versions.all(keep_lock_on_retry=True)[1]
    with pytest.raises(KeyError):
        await both.attempt("a", None, 1, will_retry=lambda error: 5)
    assert all(held(versions.world, lock.key) for lock in _locks(both, 1))
    await both.attempt("a", None, 1)
    assert not any(held(versions.world, lock.key) for lock in _locks(both, 1))


async def test_versions_by_number(versions: Versions) -> None:
    """key_version= is part of a name made of arguments; previous_key= may be an earlier number."""
    versions.body = as_job(versions.world, lambda shop: None)
    versions.body.__name__ = versions.body.__qualname__ = "rebuild"
    zero, one = versions.queue(), versions.queue(key_version=1, previous_key=0)
    assert {lock.key for lock in _locks(one, 1)} == {
        zero.work.lock((1,)).key,
        versions.queue(key_version=1).work.lock((1,)).key,
    }
    assert one.work.lock((1,)).key == versions.queue(key_version=1).work.lock((1,)).key
    assert len(_locks(versions.queue(key_version=1, previous_key=1), 1)) == 1
    by_value = versions.queue(key=lambda shop: shop % 10, key_version=2, previous_key=1)
    assert len({lock.key for lock in _locks(by_value, 1)}) == 2
    assert by_value.work.lock((1,)).key == by_value.work.lock((11,)).key


async def test_a_class_s_versions(api: World) -> None:
    """lock_previous_key is a lock_key_version, a name, or a classmethod of the arguments."""
    locks = api.connect()

    def keys(**members: Any) -> set[bytes]:
        queue = Queue(api, job_class(api, locks, lambda shop: None, **members))
        return {lock.key for lock in _locks(queue, 7)}

    zero, one = keys(), keys(lock_key_version=1)
    assert zero != one
    assert keys(lock_key_version=1, lock_previous_key=0) == zero | one
    assert keys(lock_previous_key="before") == zero | {locks.lock("before").key}
    by_shop = keys(lock_previous_key=staticmethod(lambda shop: f"b{shop}"))
    assert by_shop == zero | {locks.lock("b7").key}
    log = Log()
    job = job_class(api, locks, lambda shop: log.append(shop), lock_previous_key="before")
    lease = await settle(locks.lock("before").acquire())
    await settle(job.run(7))
    await settle(lease.release())
    await settle(job.run(8))
    assert log == [8]


async def test_refresh_lock_extends_both(api: World) -> None:
    """Inside a run under two names both leases get their whole ttl again."""
    left: list[int] = []
    old, new = b"lualock:{old}", b"lualock:{new}"

    def look() -> None:
        left.extend(api.client.pttl(key) for key in (old, new))

    def shorten() -> None:
        for key in (old, new):
            api.client.pexpire(key, 5_000)

    async def coroutine() -> None:
        shorten()
        await job.refresh_lock()
        look()

    def plain() -> None:
        shorten()
        job.refresh_lock()
        look()

    made = api.connect().job(key="new", previous_key="old", ttl=60)
    job: Any = made(coroutine if api.asynchronous else plain)
    await settle(job())
    assert all(55_000 < ms <= 60_000 for ms in left)
    assert len(left) == 2


async def test_a_run_without_one_lock_has_neither(api: World, one_server: Server) -> None:
    """A run that cannot acquire one of its locks, and goes on without, keeps the other one from no
    other job."""
    locks = api.connect()
    first = min((locks.lock("old"), locks.lock("new")), key=lambda lock: lock.key)
    user = ["ACL", "SETUSER", "half", "on", ">pw", f"~{first.key.decode()}*", "&*", "+@all"]
    api.client.execute_command(*user)
    ran = Log()

    def plain() -> None:
        ran.append(held(api, first.key))

    async def coroutine() -> None:
        ran.append(held(api, first.key))

    try:
        limited = api.connect(one_server.tcp_url.replace("redis://", "redis://half:pw@"))
        made = limited.job(key="new", previous_key="old", ttl=30, when_unavailable="run")
        await api.beside(made(coroutine if api.asynchronous else plain))
    finally:
        api.client.execute_command("ACL", "DELUSER", "half")
    assert ran == [False]


@pytest.mark.parametrize("new", ["before the old one", "the new one"])
def test_a_run_with_two_locks_gets_stop_requests(one_server: Server, new: str) -> None:
    """A run with two locks gets stop requests, whichever of them it acquired first."""
    ran: list[str] = []
    with lualock.connect(one_server.url) as locks:

        @locks.job(key=new, previous_key="the old one", policy=jobs.Replace(10))
        def build(name: str) -> None:
            ran.append(name)
            if name == "first":
                wait_until(jobs.current_lease().release_requested)

        first = threading.Thread(target=build, args=("first",))
        first.start()
        wait_until(lambda: ran)
        build("second")
        first.join()
    assert ran == ["first", "second"]


@pytest.mark.parametrize("new", ["before the old one", "the new one"])
async def test_a_run_gets_stop_requests_of_other_versions(api: World, new: str) -> None:
    """The previous and the next version send their stop requests to the one name that they know."""
    locks, ran = api.connect(), Log()

    def plain() -> None:
        ran.append("first")
        wait_until(jobs.current_lease().release_requested)

    async def coroutine() -> None:
        ran.append("first")
        give_up = time.monotonic() + 5
        while not await jobs.current_lease().release_requested():
            assert time.monotonic() < give_up
            await asyncio.sleep(0.002)

    async def second() -> None:
        ran.append("second")

    for name in ("the old one", new):
        ran.clear()
        made = locks.job(key=new, previous_key="the old one")
        run = made(coroutine if api.asynchronous else plain)
        other = locks.job(key=name, policy=jobs.Replace(10))
        replace = other(second if api.asynchronous else lambda: ran.append("second"))
        first = asyncio.ensure_future(api.beside(run))
        await api.until(lambda: ran)
        await api.beside(replace)
        await first
        assert ran == ["first", "second"]


def test_what_cannot_be_used(locks: lualock.Locks) -> None:
    """Versions and previous keys that are not valid are refused."""

    def job() -> None:
        """A job's body."""

    for options in (
        {"key_version": -1},
        {"key_version": True},
        {"key_version": "1"},
        {"key": "whole", "key_version": 1},
        {"previous_key": -1},
        {"previous_key": 1.5},
    ):
        with pytest.raises(lualock.InvalidArgument):
            locks.job(**options)(job)
