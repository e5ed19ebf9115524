"""A wait without a timeout for a lock that its own thread, task or job holds is refused at once.

The leases here last two seconds and are not renewed, so that a wait that is not refused fails its
test instead of hanging it.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import pickle
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Any

import pytest

import lualock
from lualock import aio, jobs
from lualock._core.with_statement import blocks_on
from lualock._transport.endpoint import Endpoint
from lualock.integrations._in_thread import run_in_thread
from tests.jobs.test_jobs import as_job
from tests.support.delivery import Queue, held, reservation_of
from tests.support.servers import Server
from tests.support.waiting import wait_until
from tests.support.world import World, entered, settle

pytestmark = pytest.mark.slow

TTL = 2.0


def lock_of(world: World, locks: Any = None) -> Any:
    """Return a lock object of that name."""
    return (locks or world.connect()).lock("x", TTL)


@contextlib.asynccontextmanager
async def by_stack(manager: Any) -> Any:
    """Enter by an exit stack, which finds ``__exit__`` in the class."""
    if hasattr(manager, "__aenter__"):
        async with contextlib.AsyncExitStack() as stack:
            yield await stack.enter_async_context(manager)
    else:
        with contextlib.ExitStack() as plain:
            yield plain.enter_context(manager)


@contextlib.asynccontextmanager
async def of_lease(lock: Any, enter: Callable[..., Any] = entered) -> Any:
    """Enter the block of a lease that was acquired before."""
    async with enter(await settle(lock.acquire(timeout=5))) as lease:
        yield lease


WAYS: dict[str, Callable[[Any], Any]] = {
    "lock": entered,
    "lock on a stack": by_stack,
    "lease": of_lease,
    "lease on a stack": partial(of_lease, enter=by_stack),
}


async def enter_and_leave(lock: Any) -> None:
    """Enter and leave a whole block."""
    async with entered(lock):
        pass


async def acquire(lock: Any) -> Any:
    """Acquire a lease by name."""
    return await settle(lock.acquire())


@pytest.mark.parametrize("way", WAYS)
async def test_inside_its_own_block(api: World, way: str) -> None:
    """A second lock object of the name, even of other ``Locks``, is refused without a request; the
    block goes on, and its end frees the lock."""
    lock = lock_of(api)
    others = [lock, lock_of(api, lock._locks), lock_of(api)]
    for wait in (acquire, enter_and_leave):
        async with WAYS[way](lock) as lease:
            api.client.config_resetstat()
            for other in others:
                with pytest.raises(
                    lualock.SelfDeadlock,
                    match=r"^could not wait for lock 'x': this (thread|task) is inside",
                ) as refused:
                    await wait(other)
                assert refused.value.name == "x"
            assert api.calls("evalsha") + api.calls("eval") == 0
            lease.check()
        for other in others:
            await enter_and_leave(other)
    copy = pickle.loads(pickle.dumps(refused.value))
    assert (str(copy), copy.name) == (str(refused.value), "x")


async def test_with_a_timeout(api: World) -> None:
    """A wait with a timeout is not refused: the server refuses it when the time is over."""
    lock = lock_of(api)
    async with entered(lock):
        for timeout in (0, 0.05):
            with pytest.raises(lualock.NotAcquired):
                await settle(lock.acquire(timeout=timeout))
        assert await settle(lock.try_acquire()) is None


async def test_another_lock(api: World) -> None:
    """Another name, prefix or database is another lock."""
    lock = lock_of(api)
    locks = lock._locks
    where = api.server.url + ("&" if "?" in api.server.url else "?") + "db=1"
    async with entered(lock):
        await enter_and_leave(locks.lock("y", TTL))
        await enter_and_leave(lock_of(api, api.connect(prefix="other")))
        await enter_and_leave(lock_of(api, api.connect(where)))


@pytest.mark.parametrize("end", ["released", "passed on", "lost"])
@pytest.mark.parametrize("way", WAYS)
async def test_a_lease_that_has_ended(api: World, way: str, end: str) -> None:
    """A block whose lease has ended goes on, and refuses no waiter."""
    lock = lock_of(api)
    try:
        async with WAYS[way](lock) as lease:
            if end == "released":
                await settle(lease.release())
            elif end == "passed on":
                adopted = await settle(lock._locks.adopt(lease.handle()))
                await settle(adopted.release())
            else:
                await settle(lease.extend(0.02))
                await api.until(lambda: lease.lost)
            await enter_and_leave(lock)
    except lualock.LeaseLost:
        assert end == "lost"


@pytest.mark.full
@pytest.mark.parametrize("error", [None, ZeroDivisionError, KeyboardInterrupt])
@pytest.mark.parametrize("way", WAYS)
async def test_nothing_stays_behind(
    api: World, way: str, error: type[BaseException] | None
) -> None:
    """After any end of a block its lock can be waited for, and nothing is kept of its objects."""
    lock = lock_of(api)
    server, key = lock._locks._endpoint.server, lock.key
    with contextlib.suppress(ZeroDivisionError, KeyboardInterrupt):
        async with WAYS[way](lock) as lease:
            with pytest.raises(lualock.SelfDeadlock):
                await settle(lock.acquire())
            if error is not None:
                raise error
    assert key not in blocks_on(server).listed
    await enter_and_leave(lock)
    seen = weakref.ref(lease)
    del lease, lock
    gc.collect()
    assert seen() is None
    assert key not in blocks_on(server).listed


async def test_a_lock_entered_by_name_and_dropped(api: World) -> None:
    """A lock object that was entered by name and dropped is not renewed."""
    lock = lock_of(api)
    lease = await settle((lock.__aenter__ if api.asynchronous else lock.__enter__)())
    seen = weakref.ref(lease)
    del lease, lock
    gc.collect()
    assert seen() is None


async def test_methods_by_name_of_two_lock_objects(api: World) -> None:
    """``__exit__`` by name ends the block that began on its own object."""
    first, second = lock_of(api), lock_of(api)
    begin, end = ("__aenter__", "__aexit__") if api.asynchronous else ("__enter__", "__exit__")
    lost = await settle(getattr(first, begin)())
    await settle(lost.extend(0.02))
    await api.until(lambda: lost.lost)
    lease = await settle(getattr(second, begin)())
    with pytest.raises(lualock.LeaseLost):
        await settle(getattr(first, end)(None, None, None))
    lease.check()
    await settle(getattr(second, end)(None, None, None))
    assert not await settle(first.locked())


async def test_another_thread_or_task(api: World) -> None:
    """Another thread or task, even a child task, waits and gets the lock when the block has
    ended."""
    lock = lock_of(api)
    async with entered(lock):
        waiting = asyncio.ensure_future(api.beside(lambda: lock_of(api).acquire()))
        await api.until_waiters(lock, 1)
    await settle((await waiting).release())


def test_a_thread_that_has_the_ident_of_a_dead_one(thread_api: World) -> None:
    """A thread with the ident of a dead one may wait for the lock that the dead one entered."""
    lock = thread_api.connect().lock("x", 30)
    begins = threading.Thread(target=lock.__enter__)
    begins.start()
    begins.join()
    results: list[Any] = []

    def wait() -> None:
        if threading.get_ident() != begins.ident:
            return
        try:
            results.append(lock.acquire())
        except lualock.LockError as error:
            results.append(error)

    for _ in range(1000):  # a new thread gets the stack, and so the ident, of a joined one
        waits = threading.Thread(target=wait)
        waits.start()
        if waits.ident == begins.ident:
            break
        waits.join()
    else:
        pytest.skip("this system does not use idents again")
    wait_until(lambda: results or thread_api.waiters(lock) == 1)
    lock.__exit__(None, None, None)
    waits.join()
    assert isinstance(results[0], lualock.Lease)
    results[0].release()


@pytest.fixture
def thread_api(one_server: Server) -> Iterator[World]:
    """Return the world of the API for threads."""
    with one_server.client() as client:
        world = World(one_server, asynchronous=False, resp=3, client=client)
        yield world
        world.close()


async def test_the_plain_lock_in_two_coroutines(thread_api: World) -> None:
    """A blocking wait in a second coroutine is refused: it would stop the loop that the first one
    needs."""
    lock = lock_of(thread_api)
    inside, leave = asyncio.Event(), asyncio.Event()

    async def first() -> None:
        with lock:
            inside.set()
            await leave.wait()

    task = asyncio.create_task(first())
    await inside.wait()
    with pytest.raises(lualock.SelfDeadlock, match="this thread"):
        lock.acquire()
    leave.set()
    await task
    await enter_and_leave(lock)


async def test_a_plain_wait_in_a_task_that_is_inside(thread_api: World) -> None:
    """A blocking wait is refused if a task of its thread is in a block of the lock; an ended task
    does not count."""
    plain = lock_of(thread_api)
    async with aio.connect(thread_api.server.url) as locks:
        lock = lock_of(thread_api, locks)
        async with lock:
            with pytest.raises(lualock.SelfDeadlock, match="this thread"):
                plain.acquire()
            waiting = asyncio.create_task(asyncio.to_thread(plain.acquire))
            await thread_api.until_waiters(plain, 1)
        (await waiting).release()
        await asyncio.create_task(lock.__aenter__())
        refuse = partial(lock._locks._blocks.refuse_own_wait, lock.key)
        outlived = asyncio.create_task(asyncio.to_thread(refuse))
        await outlived
        refuse()
        await lock.__aexit__(None, None, None)


async def test_a_task_that_waits_inside_its_plain_block(thread_api: World) -> None:
    """An asyncio wait in the task of a blocking block is refused; a task that began inside it gets
    the lock after the block."""
    lock = lock_of(thread_api)
    async with aio.connect(thread_api.server.url) as locks:
        other = locks.lock("x", TTL)
        with lock:
            for wait in (acquire, enter_and_leave):
                with pytest.raises(lualock.SelfDeadlock, match="this task"):
                    await wait(other)
            child = asyncio.create_task(acquire(other))
            await thread_api.until_waiters(lock, 1)
        await (await child).release()


def test_a_forked_child(thread_api: World) -> None:
    """A forked child does not count as inside the blocks of its parent: it waits and gets the
    lock."""
    lock = lock_of(thread_api)
    with lock:
        if not (child := os.fork()):
            status = 1
            with contextlib.suppress(BaseException):
                lock.acquire().release()
                status = 0
            os._exit(status)
        wait_until(lambda: thread_api.waiters(lock) == 1)
    assert os.waitpid(child, 0)[1] == 0


ENDLESS = {
    "Wait": jobs.Wait(None),
    "Coalesce": jobs.Coalesce(),
    "then": jobs.Wait(0.01, jobs.Wait(None)),
}
DEFINITE = {
    "none": (None, None),
    "Retry": (jobs.Retry(1), jobs.RetryLater),
    "Wait": (jobs.Wait(0.05), None),
    "Replace": (jobs.Replace(0.05), None),
    "Coalesce": (jobs.Coalesce(0.05), jobs.RetryLater),
    "Coalesce later": (jobs.Coalesce(0), jobs.RetryLater),
}


class Nested:
    """A job that calls itself, or something else, once."""

    def __init__(self, world: World, call: Callable[[], Any] | None = None, **options: Any) -> None:
        self.answers: list[Any] = []
        call = call or (lambda: self.job(False))

        async def coroutine(outer: bool = True) -> str:
            if outer:
                await self._note(call)
            return "ran"

        def plain(outer: bool = True) -> str:
            if outer:
                # What a plain job calls returns no coroutine, so this one never waits.
                with contextlib.suppress(StopIteration):
                    self._note(call).send(None)
            return "ran"

        locks = world.connect()
        body = coroutine if world.asynchronous else plain
        self.job: Any = locks.job(key="x", ttl=TTL, **options)(body)
        self.lock = self.job.lock_for()

    async def _note(self, call: Callable[[], Any]) -> None:
        try:
            self.answers.append(await settle(call()))
        except lualock.LockError as error:
            self.answers.append(type(error))


@pytest.mark.parametrize("policy", ENDLESS)
async def test_a_job_that_would_wait_for_itself(api: World, policy: str) -> None:
    """A job that would wait for itself is refused at once, and goes on without a reservation."""
    nested = Nested(api, policy=ENDLESS[policy])
    assert await settle(nested.job()) == "ran"
    assert nested.answers == [lualock.SelfDeadlock]
    assert not held(api, nested.lock.key)
    assert not held(api, reservation_of(nested.lock))
    assert nested.lock.key not in nested.lock._locks._blocks.listed


async def test_coalesce_checks_first(api: World) -> None:
    """A refused ``Coalesce`` takes no reservation, which would drop another job."""

    def call() -> Any:
        api.client.config_resetstat()
        return nested.job(False)

    nested = Nested(api, call, policy=jobs.Coalesce())
    for _ in range(2):  # the first time the server learns the scripts
        assert await settle(nested.job()) == "ran"
    assert nested.answers == [lualock.SelfDeadlock] * 2
    assert api.calls("evalsha") + api.calls("eval") == 2  # the inner try, the outer release


@pytest.mark.parametrize("policy", DEFINITE)
async def test_a_job_that_calls_itself(api: World, policy: str) -> None:
    """A policy that does not wait for ever gives its usual answer to a job that calls itself."""
    chosen, answer = DEFINITE[policy]
    nested = Nested(api, policy=chosen)
    assert await settle(nested.job()) == "ran"
    assert nested.answers == [answer]


async def test_a_job_that_takes_its_lock_by_name(api: World) -> None:
    """A run counts as a block of its lock, and ends as one."""
    nested = Nested(api, lambda: lock_of(api).acquire())
    for _ in range(2):
        assert await settle(nested.job()) == "ran"
    assert nested.answers == [lualock.SelfDeadlock] * 2
    await enter_and_leave(nested.lock)


async def test_a_job_that_calls_another(api: World) -> None:
    """A job may wait for another job with another key."""
    locks = api.connect()
    other: Any = locks.job(key="y", policy=jobs.Wait(None))(as_job(api, lambda: "the other"))
    nested = Nested(api, other, policy=jobs.Wait(None))
    assert await settle(nested.job()) == "ran"
    assert nested.answers == ["the other"]


async def test_two_runs_beside_each_other(api: World) -> None:
    """A second run in another thread or task waits for the first and runs after it."""
    begun, ends = threading.Event(), threading.Event()

    async def coroutine(number: int) -> int:
        begun.set()
        await asyncio.to_thread(ends.wait, 5)
        return number

    def plain(number: int) -> int:
        begun.set()
        ends.wait(5)
        return number

    body: Any = coroutine if api.asynchronous else plain
    job: Any = api.connect().job(key="x", ttl=TTL, policy=jobs.Wait(None))(body)
    runs = [asyncio.create_task(api.beside(partial(job, 1)))]
    await api.until(begun.is_set)
    runs.append(asyncio.create_task(api.beside(partial(job, 2))))
    await api.until_waiters(job.lock_for(1), 1)
    ends.set()
    assert await asyncio.gather(*runs) == [1, 2]


async def test_a_plain_job_in_a_thread(thread_api: World) -> None:
    """A job that runs in a worker thread is inside its lock there; the loop's thread is not."""
    nested = Nested(thread_api, policy=jobs.Wait(None))
    assert await run_in_thread(jobs.adapter(nested.job), (), {}, None) == "ran"
    assert nested.answers == [lualock.SelfDeadlock]


async def test_a_delivery_that_would_wait_for_itself(api: World) -> None:
    """A refused call leaves the reservation of a queued job in place."""
    nested = Nested(api, unique="both", policy=jobs.Coalesce())
    queue = Queue(api, nested.job)
    assert await queue.put()
    assert await queue.deliver() == "ran"
    assert nested.answers == [lualock.SelfDeadlock]
    assert await queue.put()


def test_addresses_of_one_server() -> None:
    """One server is one address and database, however written; with Sentinel, one service and its
    sentinels."""
    import redis

    def server(named: Any) -> str:
        if isinstance(named, str):
            return Endpoint.of_url(named).server
        return Endpoint.of_client(named, asynchronous=False).server

    def service(name: str, *ports: int) -> str:
        make: Any = redis.Sentinel
        return server(make([("127.0.0.1", port) for port in ports]).master_for(name))

    plain = server("redis://h:7/2")
    assert plain == server("redis://me:pw@h:7?db=2") == server(redis.Redis("h", 7, 2))
    assert server("redis://") == server(redis.Redis())
    assert service("a", 1, 2) == service("a", 2, 1)
    others = {plain, server("redis://h:7"), server("redis://h:8/2"), server("redis://g:7/2")}
    others |= {server("unix:///h"), server("unix:///h?db=1")}
    others |= {service("a", 1, 2), service("a", 1), service("b", 1)}
    assert len(others) == 9


@contextlib.contextmanager
def guarded(lock: Any) -> Iterator[None]:
    """Enter a lock for the caller."""
    with lock:
        yield


def test_a_block_in_a_context_manager_of_the_program(thread_api: World) -> None:
    """The caller of a generator's block is inside the block."""
    lock = lock_of(thread_api)
    with guarded(lock), pytest.raises(lualock.SelfDeadlock):
        lock.acquire()


def test_a_block_that_a_call_left_open_in_a_thread_of_a_pool(thread_api: World) -> None:
    """A call with a context of its own may wait for a block that an earlier call left open on its
    thread."""
    lock = lock_of(thread_api)
    first, second = guarded(lock), guarded(lock)
    with ThreadPoolExecutor(1) as pool, ThreadPoolExecutor(1) as other:
        pool.submit(copy_context().run, first.__enter__).result()
        waiting = pool.submit(copy_context().run, second.__enter__)
        wait_until(lambda: thread_api.waiters(lock) == 1)
        other.submit(copy_context().run, first.__exit__, None, None, None).result()
        assert waiting.result(5) is None
        pool.submit(copy_context().run, second.__exit__, None, None, None).result()
    with lock:
        pass
