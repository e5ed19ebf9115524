"""Cases of arq and SAQ that need no fleet, run where the systems are installed.

    python -m tests.integrations.workers.apart_cases CASE URL

Each case enqueues, lets the system's own worker run in this process until nothing is left to do,
and asserts.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import sys
from typing import Any

import arq
import saq
from arq.connections import RedisSettings
from arq.jobs import Job, JobStatus

import lualock
from lualock import aio, jobs
from lualock.integrations import arq as arq_integration
from lualock.integrations import saq as saq_integration
from tests.support.faults import Fault, FaultProxy

locks: aio.Locks


class Graph(lualock.LockedJob):
    """A job as a class."""

    lock_unique = "queued"

    @classmethod
    async def perform(cls, repo_id: int) -> str:
        return f"graph of {repo_id}"


async def arq_class(url: str) -> None:
    """A class has its own name in arq; ``context()`` is what arq's functions get as ``ctx``."""
    seen: list[Any] = []

    @locks.job(key="look")
    async def look(number: int) -> None:
        seen.append(arq_integration.context()["job_id"])

    functions = [arq_integration.locked(Graph), arq_integration.locked(look)]
    pool = await arq.create_pool(RedisSettings.from_dsn(url))
    entry: Any = await arq_integration.enqueue(pool, functions[0], 7)
    looked: Any = await arq_integration.enqueue(pool, functions[1], 7)
    await arq.Worker(functions, redis_pool=pool, burst=True, poll_delay=0.01).async_run()
    assert await entry.result.result(timeout=5) == "graph of 7"
    assert seen == [looked.job_id]
    await pool.aclose()


async def arq_same_id(url: str) -> None:
    """A job with an id that arq already has is refused, and the first job keeps its reservation."""
    graph = arq_integration.locked(Graph)
    pool = await arq.create_pool(RedisSettings.from_dsn(url))
    assert await arq_integration.enqueue(pool, graph, 7, _job_id="mine")
    other = await arq_integration.enqueue(pool, graph, 8, _job_id="mine")
    third = await arq_integration.enqueue(pool, graph, 7)
    for entry in (other, third):
        assert isinstance(entry, jobs.Refused)
        assert (entry.job_id, entry.state) == ("mine", "queued")
    await pool.aclose()


async def arq_same_id_together(url: str) -> None:
    """Of many producers that push the same id at the same time one succeeds."""
    callbacks: list[int] = []

    @locks.job(unique="queued", on_enqueue_failed=callbacks.append)
    async def look(number: int) -> None: ...

    function = arq_integration.locked(look)
    pool = await arq.create_pool(RedisSettings.from_dsn(url))
    entries = await asyncio.gather(
        *(arq_integration.enqueue(pool, function, 7, _job_id="mine") for _ in range(20))
    )
    assert [bool(entry) for entry in entries].count(True) == 1
    assert callbacks == [7] * 19
    third = await arq_integration.enqueue(pool, function, 7)
    assert isinstance(third, jobs.Refused), "the queued one has its reservation"
    await pool.aclose()


async def arq_same_id_begun(url: str) -> None:
    """If the first job of an id began just when a second one was to be pushed, the second keeps no
    reservation."""
    begun, free = asyncio.Event(), asyncio.Event()

    @locks.job(key=lambda *args: [*args], unique="queued")
    async def look(number: int) -> None:
        begun.set()
        await free.wait()

    function = arq_integration.locked(look)
    pool = await arq.create_pool(RedisSettings.from_dsn(url))
    worker = arq.Worker([function], redis_pool=pool, burst=True, poll_delay=0.01)
    assert await arq_integration.enqueue(pool, function, 7, _job_id="mine")
    running = asyncio.create_task(worker.async_run())
    await begun.wait()
    found = [JobStatus.not_found]  # as it was a moment ago
    status = Job.status

    async def early(job: Job) -> JobStatus:
        return found.pop() if found else await status(job)

    Job.status = early
    assert not await arq_integration.enqueue(pool, function, 7, _job_id="mine")
    free.set()
    await running
    assert await arq_integration.enqueue(pool, function, 7)
    await pool.aclose()


async def arq_plain_function(url: str) -> None:
    """A plain function is refused at once; arq, which runs coroutine functions only, would refuse
    it late."""
    try:
        arq_integration.locked(locks.job(key="x")(lambda: None))
    except (lualock.InvalidArgument, TypeError):
        return
    raise AssertionError("a plain function was taken")


class Outer:
    """A job that calls another one, whose lock is held, and itself, with its own ``ctx``."""

    def __init__(self, integration: Any) -> None:
        self.errors: list[jobs.RetryLater] = []
        self.done: list[bool] = []

        @locks.job(key="inner", policy=jobs.Retry(60))
        async def inner() -> None: ...

        @locks.job(key=lambda first: "outer" if first else "inner", policy=jobs.Retry(60))
        async def outer(first: bool) -> None:
            for call in (self.inner, functools.partial(self.outer, first=False)):
                try:
                    await call(dict(integration.context()))
                except jobs.RetryLater as later:
                    self.errors.append(later)
            self.done.append(True)

        self.inner: Any = integration.locked(inner)
        self.outer: Any = integration.locked(outer)
        self.functions = [self.inner, self.outer]

    def check(self) -> None:
        assert self.done == [True]
        assert [later.job_id for later in self.errors] == [None, None]


async def arq_one_job_calls_another(url: str) -> None:
    """The inner job is not a delivery, although it gets the outer one's ``ctx``."""
    outer = Outer(arq_integration)
    pool = await arq.create_pool(RedisSettings.from_dsn(url))
    async with locks.lock("inner"):
        await arq_integration.enqueue(pool, outer.outer, True)
        await arq.Worker(outer.functions, redis_pool=pool, burst=True, poll_delay=0.01).async_run()
    outer.check()
    await pool.aclose()


async def arq_last_try(url: str) -> None:
    """The worker or the function says which try is the last, without another setting."""
    for most, function_most in ((2, None), (7, None), (5, 2)):
        held: list[bool] = []

        @locks.job(key="x", keep_lock_on_retry=True)
        async def look() -> None:
            raise arq.Retry

        async def after(ctx: Any, held: list[bool] = held) -> None:
            held.append(await locks.lock("x").locked())

        pool = await arq.create_pool(RedisSettings.from_dsn(url))
        function = arq.func(arq_integration.locked(look), name="look", max_tries=function_most)
        await arq_integration.enqueue(pool, look, _function="look")
        worker = arq.Worker(
            [function],
            redis_pool=pool,
            burst=True,
            poll_delay=0.01,
            max_tries=most,
            after_job_end=after,
        )
        await worker.async_run()
        assert held == [True] * ((function_most or most) - 1) + [False], held
        await pool.aclose()


async def arq_interrupted(url: str) -> None:
    """A job that arq cancels when its worker stops keeps its lock, because arq runs it again; a job
    that is aborted, takes too long, or is not retried does not."""
    for end in ("stopped", "aborted", "too long", "tried no more"):
        begun = asyncio.Event()

        @locks.job(key="x", keep_lock_on_retry=True)
        async def look(begun: asyncio.Event = begun) -> None:
            begun.set()
            await asyncio.sleep(60)

        pool = await arq.create_pool(RedisSettings.from_dsn(url))
        function = arq.func(arq_integration.locked(look), name="look")
        entry: Any = await arq_integration.enqueue(pool, look, _function="look")
        runs = arq.Worker(
            [function],
            redis_pool=pool,
            poll_delay=0.01,
            handle_signals=False,
            allow_abort_jobs=True,
            job_timeout=1 if end == "too long" else 60,
            retry_jobs=end != "tried no more",
        )
        task = asyncio.create_task(runs.async_run())
        await begun.wait()
        if end == "aborted":
            await entry.result.abort(timeout=30)
        elif end == "too long":
            with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
                await entry.result.result(timeout=30)
        if end in ("aborted", "too long"):
            # arq cancels all that still goes on when it closes, also what it writes at a job's end.
            while not all(job.done() for job in runs.tasks.values()):  # noqa: ASYNC110 - arq has no event
                await asyncio.sleep(0.01)
        await runs.close()
        await asyncio.wait([task])
        assert await locks.lock("x").locked() == (end == "stopped"), end
        pool = await arq.create_pool(RedisSettings.from_dsn(url))
        await pool.flushdb()
        await pool.aclose()


async def arq_tries_nothing_again(url: str) -> None:
    """With ``retry_jobs=False`` a job that wants to come back has failed, and keeps no
    reservation."""

    @locks.job(key="x", unique="queued", policy=jobs.Retry(60))
    async def look() -> None: ...

    function = arq_integration.locked(look)
    pool = await arq.create_pool(RedisSettings.from_dsn(url))
    async with locks.lock("x"):
        assert await arq_integration.enqueue(pool, function)
        runs = arq.Worker(
            [function], redis_pool=pool, burst=True, poll_delay=0.01, retry_jobs=False
        )
        await runs.async_run()
    assert runs.jobs_failed == 1
    assert await arq_integration.enqueue(pool, function)
    await pool.aclose()


async def arq_locks_away(url: str) -> None:
    """A job that is not tried again has failed because its lock was held, also if its reservation
    cannot be released."""
    pool = await arq.create_pool(RedisSettings.from_dsn(url))
    path = (await pool.config_get("unixsocket"))["unixsocket"]
    with FaultProxy(path) as proxy:
        async with aio.connect(proxy.url) as mine:

            @mine.job(key="x", unique="queued", policy=jobs.Retry(60))
            async def look() -> None: ...

            function = arq_integration.locked(look)
            async with locks.lock("x"):
                entry: Any = await arq_integration.enqueue(pool, function)
                proxy.choose = {"release": Fault("drop request")}.get
                runs = arq.Worker(
                    [function], redis_pool=pool, burst=True, poll_delay=0.01, retry_jobs=False
                )
                await runs.async_run()
            assert proxy.met
            failed = await entry.result.result_info()
            assert isinstance(failed.result, jobs.RetryLater), failed.result
    await pool.aclose()


async def arq_away(url: str) -> None:
    """A job that cannot be sent back has failed, and keeps no reservation."""

    @locks.job(key="x", unique="queued", policy=jobs.Retry(60))
    async def look() -> None: ...

    async def refuse(*_: Any) -> None:
        raise ConnectionError("arq's server")

    function = arq_integration.locked(look)
    pool = await arq.create_pool(RedisSettings.from_dsn(url))
    async with locks.lock("x"):
        entry: Any = await arq_integration.enqueue(pool, function)
        pool.decr = refuse
        await arq.Worker([function], redis_pool=pool, burst=True, poll_delay=0.01).async_run()
    failed = await entry.result.result_info()
    assert isinstance(failed.result, ConnectionError), failed.result
    assert await arq_integration.enqueue(pool, function)
    await pool.aclose()


def worker(queue: Any, functions: list[Any], **options: Any) -> Any:
    """Make a worker without its sweep, which takes a job that is just being taken as stuck."""
    queue.sweep = nothing
    return saq.Worker(queue, functions, burst=True, dequeue_timeout=0.5, **options)


async def nothing(*_: Any) -> list[str]:
    return []


async def saq_class(url: str) -> None:
    """A class has its own name in SAQ; plain functions run in a thread."""
    seen: list[Any] = []

    @locks.job(key="look")
    def look(number: int) -> None:
        seen.append(saq_integration.context()["job"].key)

    functions = [saq_integration.locked(Graph), saq_integration.locked(look)]
    queue = saq.Queue.from_url(url, name="cases")
    entry: Any = await saq_integration.enqueue(queue, functions[0], repo_id=7)
    looked: Any = await saq_integration.enqueue(queue, functions[1], number=7)
    await worker(queue, functions).start()
    await entry.result.refresh(1)
    assert entry.result.result == "graph of 7"
    assert seen == [looked.job_id]
    await queue.disconnect()


async def saq_same_key(url: str) -> None:
    """A job with a key that SAQ already has is refused, and the first job keeps its reservation."""
    graph = saq_integration.locked(Graph)
    queue = saq.Queue.from_url(url, name="cases")
    assert await saq_integration.enqueue(queue, graph, repo_id=7, key="mine")
    other = await saq_integration.enqueue(queue, graph, repo_id=8, key="mine")
    third = await saq_integration.enqueue(queue, graph, repo_id=7)
    assert await saq_integration.enqueue(queue, graph, repo_id=8), (
        "the reservation of the refused one is free"
    )
    for entry in (other, third):
        assert isinstance(entry, jobs.Refused)
        assert (entry.job_id, entry.state) == ("mine", "queued")
    await queue.disconnect()


async def saq_own_delay(url: str) -> None:
    """A job that came back has its own delay for its own retries."""
    busy = await locks.lock("x").acquire()
    delays: list[float] = []

    @locks.job(key="x", policy=lambda contention: jobs.Retry(0))
    async def look() -> None:
        delays.append(saq_integration.context()["job"].retry_delay)

    async def free(ctx: Any) -> None:
        if busy.held and ctx["job"].meta:
            await busy.release()

    queue = saq.Queue.from_url(url, name="cases")
    function = saq_integration.locked(look)
    assert await saq_integration.enqueue(queue, function, retry_delay=7.0, retries=1)
    await worker(queue, [function], after_process=free).start()
    assert delays == [7.0]
    await queue.disconnect()


async def saq_one_job_calls_another(url: str) -> None:
    """The inner job is not a delivery, although it gets the outer one's ``ctx``."""
    outer = Outer(saq_integration)
    queue = saq.Queue.from_url(url, name="cases")
    async with locks.lock("inner"):
        await saq_integration.enqueue(queue, outer.outer, first=True)
        await worker(queue, outer.functions).start()
    outer.check()
    await queue.disconnect()


async def saq_comes_back_without_retries(url: str) -> None:
    """A job with ``retries=0`` comes back too, and is not tried again when it fails."""
    busy = await locks.lock("x").acquire()
    ran: list[int] = []

    @locks.job(key="x", policy=lambda contention: jobs.Retry(0))
    async def look() -> None:
        ran.append(1)
        raise ValueError

    async def free(ctx: Any) -> None:
        if busy.held:
            await busy.release()

    queue = saq.Queue.from_url(url, name="cases")
    function = saq_integration.locked(look)
    assert await saq_integration.enqueue(queue, function, retries=0)
    await worker(queue, [function], after_process=free).start()
    assert ran == [1]
    await queue.disconnect()


async def saq_interrupted(url: str) -> None:
    """A job that SAQ cancels keeps its lock only if SAQ runs it again: always when its worker
    stops, never when it is aborted."""
    for aborted, retries in ((True, 3), (False, 1)):
        begun = asyncio.Event()

        @locks.job(key="x", keep_lock_on_retry=True)
        async def look(begun: asyncio.Event = begun) -> None:
            begun.set()
            await asyncio.sleep(60)

        queue = saq.Queue.from_url(url, name="cases")
        function = saq_integration.locked(look)
        entry: Any = await saq_integration.enqueue(queue, function, retries=retries, timeout=0)
        runs = saq.Worker(queue, [function], timers={"abort": 1, "sweep": 3600})
        task = asyncio.create_task(runs.start())
        await begun.wait()
        if aborted:
            await asyncio.sleep(1)  # SAQ aborts only what has run for a second
            await entry.result.abort("not wanted")
            await entry.result.refresh(until_complete=30)
        else:
            runs.event.set()
            await task
        assert await locks.lock("x").locked() == (not aborted)
        await runs.stop()
        await task
        await queue.disconnect()


CASES = {
    case.__name__: case
    for case in (
        *(arq_class, arq_same_id, arq_same_id_together, arq_same_id_begun, arq_plain_function),
        *(arq_one_job_calls_another, arq_last_try, arq_interrupted),
        *(arq_tries_nothing_again, arq_locks_away, arq_away),
        *(saq_class, saq_same_key, saq_own_delay, saq_one_job_calls_another),
        *(saq_comes_back_without_retries, saq_interrupted),
    )
}


async def main(case: str, url: str) -> None:
    global locks
    async with aio.connect(url) as locks:
        Graph.locks = locks
        await CASES[case](url)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
