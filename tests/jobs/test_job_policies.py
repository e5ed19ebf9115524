"""Policies: what happens to a job whose lock is held."""

from __future__ import annotations

import asyncio
import pickle
import signal
import sys
import textwrap
import threading
from typing import Any

import pytest

import lualock
from lualock import jobs
from tests.jobs.test_jobs import Log, as_job
from tests.support.delivery import Queue, held, reservation_of, watched
from tests.support.world import World, settle


class Work:
    """A job's body of either kind that notes its runs and can be held up."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.log = Log()
        self.gates: dict[int, threading.Event] = {}

    def body(self) -> Any:
        """Return the function or coroutine function."""

        def plain(number: int) -> int:
            self.log.append(number)
            if number in self.gates:
                assert self.gates[number].wait(10)
            return number

        async def coroutine(number: int) -> int:
            self.log.append(number)
            if number in self.gates:
                assert await asyncio.to_thread(self.gates[number].wait, 10)
            return number

        return coroutine if self.world.asynchronous else plain

    def queue(self, **options: Any) -> Queue:
        """Make a queue of jobs that share one lock."""
        return Queue(self.world, self.world.connect().job(key="x", **options)(self.body()))

    async def running(self, queue: Queue, number: int) -> asyncio.Task[Any]:
        """Start the run of that number, which goes on until :meth:`end`."""
        self.gates[number] = threading.Event()
        task = asyncio.create_task(queue.attempt(f"id-{number}", None, number, beside=True))
        await self.world.until(lambda: number in self.log)
        return task

    def end(self, number: int) -> None:
        """Let that run end."""
        self.gates[number].set()


@pytest.fixture
def work(api: World) -> Work:
    """A job's body."""
    return Work(api)


async def test_retry_later(work: Work) -> None:
    """The job system delivers the job again; without a system the call raises RetryLater."""
    queue = work.queue(policy=jobs.Retry(delay=7), on_skipped=lambda *a: work.log.note("failed"))
    first = await work.running(queue, 1)
    with pytest.raises(jobs.RetryLater, match=r"held by .* tried again in 7 s") as caught:
        await queue.attempt("b", None, 2)
    assert (caught.value.delay_s, caught.value.job_id) == (7, "b")
    assert caught.value.holder
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.delay_s, again.job_id, str(again)) == (7, "b", str(caught.value))
    with pytest.raises(jobs.RetryLater) as caught:
        await settle(queue.job(2))
    assert (caught.value.delay_s, caught.value.job_id) == (7, None)
    assert isinstance(caught.value, lualock.NotAcquired)
    work.end(1)
    assert await first == 1
    assert await queue.attempt("b", None, 2) == 2
    assert work.log == [1, 2]


async def test_retry_later_keeps_the_reservation(work: Work) -> None:
    """A unique job that comes back later stays unique until then; a dropped one does not."""
    queue = work.queue(policy=jobs.Retry(delay=600), unique="queued", queue_ttl=1000)
    first = await work.running(queue, 1)
    entry = await queue.put(2)
    key = reservation_of(queue.work.lock((2,)))
    work.world.client.pexpire(key, 5_000)
    with pytest.raises(jobs.RetryLater):
        await queue.deliver()
    assert 1_590_000 < work.world.client.pttl(key) <= 1_600_000
    assert (await queue.put(2)).job_id == entry.job_id
    work.end(1)
    await first
    assert await queue.attempt(entry.job_id, entry.token, 2) == 2
    assert not held(work.world, key)

    dropping = work.queue(unique="queued")
    second = await work.running(dropping, 3)
    await dropping.put(4)
    await dropping.deliver()
    assert not held(work.world, key)
    work.end(3)
    await second


async def test_wait(work: Work) -> None:
    """A job that waits runs when its turn has come, and releases its reservation then."""
    queue = work.queue(policy=jobs.Wait(10), unique="queued")
    first = await work.running(queue, 1)
    await queue.put(2)
    lock = queue.work.lock((2,))
    second = asyncio.create_task(queue.deliver(beside=True))
    await work.world.until_waiters(lock, 1)
    assert held(work.world, reservation_of(lock))  # it has not begun
    work.end(1)
    assert list(await asyncio.gather(first, second)) == [1, 2]
    assert not held(work.world, reservation_of(lock))
    assert not held(work.world, lock.key)


async def test_a_wait_that_times_out(work: Work) -> None:
    """A job that has waited too long is dropped, or handled as then= says."""
    log = Log()
    dropped = work.queue(policy=jobs.Wait(0.01), on_skipped=lambda number: log.note(number))
    later = work.queue(policy=jobs.Wait(0.01, then=jobs.Retry(3)))
    first = await work.running(dropped, 1)
    assert await dropped.attempt("b", None, 2) is None
    assert log == [(2,)]
    with pytest.raises(jobs.RetryLater) as caught:
        await later.attempt("b", None, 2)
    assert caught.value.delay_s == 3
    assert work.world.waiters(dropped.work.lock((1,))) == 0
    work.end(1)
    await first
    assert work.log == [1]


async def test_a_plain_lock_excludes_jobs(work: Work) -> None:
    """A web request that has the lock keeps every job out, and a job keeps it out."""
    queue = work.queue(policy=jobs.Wait(10), unique="both")
    plain = work.world.connect().lock("x")
    lease = await settle(plain.acquire())
    waiting = asyncio.create_task(queue.attempt("a", None, 1, beside=True))
    await work.world.until_waiters(plain, 1)
    assert work.log == []
    work.gates[1] = threading.Event()
    await settle(lease.release())
    await work.world.until(lambda: work.log == [1])
    assert await settle(plain.try_acquire()) is None
    assert (await settle(plain.inspect())).metadata == "job a"
    work.end(1)
    await waiting
    lease = await settle(plain.try_acquire())
    await settle(lease.release())


async def test_replace(api: World) -> None:
    """The running job gets a stop request, and the other one runs after it; no other holder gets
    one."""
    log = Log()

    def asked() -> Any:
        return jobs.current_lease().release_requested()

    async def coroutine(number: int) -> bool:
        log.append(number)
        while number == 1 and not await asked():
            pass
        return bool(await asked())

    def plain(number: int) -> bool:
        log.append(number)
        while number == 1 and not asked():
            pass
        return bool(asked())

    body = coroutine if api.asynchronous else plain
    queue = Queue(api, api.connect().job(key="x", policy=jobs.Replace(wait=10))(body))
    first = asyncio.create_task(queue.attempt("a", None, 1, beside=True))
    await api.until(lambda: log == [1])
    second = asyncio.create_task(queue.attempt("b", None, 2, beside=True))
    assert list(await asyncio.gather(first, second)) == [True, False]
    assert not api.client.exists(b"lualock:{x}:stop_requests")
    assert await queue.attempt("c", None, 2) is False  # it was free: no holder gets a request
    assert jobs.current_lease() is None


async def test_the_last_of_several_replaces(work: Work) -> None:
    """Of the jobs that wait to replace one run, only the last one runs."""
    failed = Log()
    queue = work.queue(policy=jobs.Replace(wait=10), on_skipped=lambda number: failed.note(number))
    lock = queue.work.lock((1,))
    first = await work.running(queue, 1)
    others = []
    for number in (2, 3, 4):
        others.append(asyncio.create_task(queue.attempt(f"id-{number}", None, number, beside=True)))
        await work.world.until_waiters(lock, len(others))
    work.end(1)
    assert list(await asyncio.gather(first, *others)) == [1, None, None, 4]
    assert work.log == [1, 4]
    assert sorted(failed) == [(2,), (3,)]
    assert not work.world.client.exists(b"lualock:{x}:stop_requests")


async def test_the_last_of_several_is_killed(work: Work) -> None:
    """If the last of several jobs that wait to replace a run is killed, the one before it runs."""
    code = """
        import sys, lualock
        from lualock import jobs
        job = lualock.connect(sys.argv[1]).job(key="x", policy=jobs.Replace(wait=60))
        job(lambda: None)()
    """
    queue = work.queue(policy=jobs.Replace(wait=10))
    lock = queue.work.lock((1,))
    first = await work.running(queue, 1)
    second = asyncio.create_task(queue.attempt("b", None, 2, beside=True))
    await work.world.until_waiters(lock, 1)
    command = [sys.executable, "-c", textwrap.dedent(code), work.world.server.url]
    last = await asyncio.create_subprocess_exec(*command)
    await work.world.until_waiters(lock, 2)
    last.kill()
    await last.wait()
    work.end(1)
    assert list(await asyncio.gather(first, second)) == [1, 2]


async def test_the_last_of_several_gives_up(work: Work) -> None:
    """The running job is requested to stop for as long as any of them waits."""
    queue = work.queue(policy=jobs.Replace(wait=10))
    brief = work.queue(policy=jobs.Replace(wait=0.3))
    lock = queue.work.lock((1,))
    lease = await settle(lock.acquire())
    second = asyncio.create_task(queue.attempt("b", None, 2, beside=True))
    await work.world.until_waiters(lock, 1)
    assert await settle(lease.release_requested())
    await brief.attempt("c", None, 3)
    assert await settle(lease.release_requested())
    await settle(lease.release())
    assert await second == 2
    assert work.log == [2]
    assert not work.world.client.exists(b"lualock:{x}:stop_requests")


async def test_a_holder_that_does_not_stop(work: Work) -> None:
    """A holder that does not stop goes on, and the stop request is withdrawn, because no job runs
    instead."""
    queue = work.queue(policy=jobs.Replace(wait=0.05, then=jobs.Retry(2)))
    first = await work.running(queue, 1)
    with pytest.raises(jobs.RetryLater):
        await queue.attempt("b", None, 2)
    assert not work.world.client.exists(b"lualock:{x}:stop_requests")
    work.end(1)
    await first


async def test_request_release(work: Work) -> None:
    """Any caller can request the release, and any holder finds the request by its lease."""
    locks = work.world.connect()
    lock = locks.lock("x")
    assert not await settle(lock.request_release())
    lease = await settle(lock.acquire())
    assert not await settle(lease.release_requested())
    assert await settle(lock.request_release(expires_in=30))
    assert await settle(lease.release_requested())
    assert 29_000 < work.world.client.pttl(lock.key + b":stop_requests") <= 30_000
    await settle(lease.release())
    lease = await settle(lock.acquire())
    assert not await settle(lease.release_requested())
    await settle(lease.release())
    with pytest.raises(lualock.InvalidArgument, match="expires_in must be"):
        await settle(lock.request_release(expires_in=0))


async def test_coalesce(work: Work) -> None:
    """However many jobs come while one runs, one run follows, and it begins after the last has
    come."""
    failed = Log()
    queue = work.queue(policy=jobs.Coalesce(), on_skipped=lambda number: failed.append(number))
    lock = queue.work.lock((1,))
    for turn in (10, 20):
        first = await work.running(queue, turn)
        trailing = asyncio.create_task(queue.attempt(f"a{turn}", None, turn + 1, beside=True))
        await work.world.until(lambda: held(work.world, reservation_of(lock)))
        await asyncio.gather(
            *(queue.attempt(f"{turn + n}", None, turn + n, beside=True) for n in range(2, 10))
        )
        work.end(turn)
        assert list(await asyncio.gather(first, trailing)) == [turn, turn + 1]
        assert not held(work.world, reservation_of(lock))
    assert work.log == [10, 11, 20, 21]
    assert sorted(failed) == [*range(12, 20), *range(22, 30)]


async def test_fifty_jobs_coalesce_into_one(work: Work) -> None:
    """Of fifty jobs that come at once while one runs, exactly one runs."""
    queue = work.queue(policy=jobs.Coalesce())
    first = await work.running(queue, 0)
    others = [
        asyncio.create_task(queue.attempt(f"{n}", None, n, beside=True)) for n in range(1, 51)
    ]
    await work.world.until(lambda: sum(task.done() for task in others) == 49)
    work.end(0)
    await asyncio.gather(first, *others)
    assert len(work.log) == 2


async def test_a_job_that_comes_while_the_trailing_one_runs(work: Work) -> None:
    """The trailing run has begun, perhaps too early for the newcomer, so another one follows it."""
    queue = work.queue(policy=jobs.Coalesce())
    lock = queue.work.lock((1,))
    first = await work.running(queue, 1)
    work.gates[2] = threading.Event()
    second = asyncio.create_task(queue.attempt("b", None, 2, beside=True))
    await work.world.until(lambda: held(work.world, reservation_of(lock)))
    work.end(1)
    await work.world.until(lambda: work.log == [1, 2])
    third = asyncio.create_task(queue.attempt("c", None, 3, beside=True))
    await work.world.until(lambda: held(work.world, reservation_of(lock)))
    work.end(2)
    assert list(await asyncio.gather(first, second, third)) == [1, 2, 3]


async def test_coalesce_without_a_worker_that_waits(work: Work) -> None:
    """With wait=0 the job that follows comes back later, and keeps its reservation meanwhile."""
    queue = work.queue(policy=jobs.Coalesce(wait=0, then=jobs.Retry(4)))
    lock = queue.work.lock((1,))
    first = await work.running(queue, 1)
    with pytest.raises(jobs.RetryLater) as caught:
        await queue.attempt("b", None, 2)
    assert caught.value.delay_s == 4
    assert 3_500_000 < work.world.client.pttl(reservation_of(lock)) <= 3_604_000
    assert await queue.attempt("c", None, 3) is None  # "b" waits for it
    with pytest.raises(jobs.RetryLater) as caught:  # still held when it comes back
        await queue.attempt("b", None, 2)
    assert [lease.name for lease in watched(queue)] == ["x"]  # the reservation is not renewed
    work.end(1)
    await first
    assert await queue.attempt("b", None, 2) == 2
    assert not held(work.world, reservation_of(lock))
    assert work.log == [1, 2]


async def test_coalesce_beside_unique(work: Work) -> None:
    """A unique job that is already queued is the one that follows."""
    queue = work.queue(policy=jobs.Coalesce(), unique="queued")
    first = await work.running(queue, 1)
    await queue.put(2)
    assert not await queue.put(3)
    assert await queue.attempt("d", None, 4) is None
    second = asyncio.create_task(queue.deliver(beside=True))
    await work.world.until_waiters(queue.work.lock((1,)), 1)
    work.end(1)
    assert list(await asyncio.gather(first, second)) == [1, 2]


async def test_coalesce_without_a_system(work: Work) -> None:
    """A plain call waits for its turn, and other jobs are dropped meanwhile."""
    queue = work.queue(policy=jobs.Coalesce())
    first = await work.running(queue, 1)
    with pytest.raises(jobs.RetryLater):  # no system delivers it again, so it keeps no reservation
        await settle(work.queue(policy=jobs.Coalesce(wait=0)).job(4))
    assert not held(work.world, reservation_of(queue.work.lock((1,))))
    second = asyncio.create_task(work.world.beside(lambda: queue.job(2)))
    await work.world.until_waiters(queue.work.lock((1,)), 1)
    assert await settle(queue.job(3)) is None
    work.end(1)
    assert list(await asyncio.gather(first, second)) == [1, 2]
    assert not held(work.world, reservation_of(queue.work.lock((1,))))


async def test_a_policy_function(work: Work) -> None:
    """A policy function gets the contention and returns a policy, or None to drop the job."""
    seen: list[jobs.Contention] = []

    def decide(situation: jobs.Contention) -> Any:
        seen.append(situation)
        return jobs.Retry(len(seen)) if situation.args[0] == 2 else None

    queue = work.queue(policy=decide)
    bad = work.queue(policy=lambda situation: "wait")
    first = await work.running(queue, 1)
    with pytest.raises(jobs.RetryLater) as caught:
        await queue.attempt("b", None, 2)
    assert caught.value.delay_s == 1
    assert await queue.attempt("c", None, 3) is None
    assert (seen[0].job_id, seen[0].args, seen[0].holder is None) == ("b", (2,), False)
    assert seen[0].remaining_s is not None
    assert 0 < seen[0].remaining_s <= 30
    with pytest.raises(lualock.InvalidArgument, match="a policy must be one of"):
        await bad.attempt("d", None, 4)
    work.end(1)
    await first


async def test_a_policy_of_a_user_s_own(work: Work) -> None:
    """An object with a method take() is a policy; its attempt says which job that is."""
    seen: list[Any] = []

    class Own:
        def take(self, attempt: jobs.Attempt) -> Any:
            seen.append((attempt.args, attempt.kwargs, attempt.job_id))
            return attempt.go_on(jobs.Retry(7))

    queue = work.queue(policy=Own())
    first = await work.running(queue, 1)
    with pytest.raises(jobs.RetryLater) as caught:
        await queue.attempt("b", None, 2)
    assert caught.value.delay_s == 7
    assert seen == [((2,), {}, "b")]
    work.end(1)
    await first


async def test_a_class_s_policy(work: Work) -> None:
    """lock_policy of a LockedJob counts, and is inherited."""
    members = {"perform": staticmethod(work.body()), "lock": staticmethod(lambda number: "x")}
    base: Any = type("Base", (lualock.LockedJob,), {"lock_policy": jobs.Retry(6)})
    job: Any = type("Job", (base,), members | {"locks": work.world.connect()})
    queue = Queue(work.world, job)
    first = await work.running(queue, 1)
    with pytest.raises(jobs.RetryLater) as caught:
        await settle(job.run(2))
    assert caught.value.delay_s == 6
    work.end(1)
    await first


def test_what_cannot_be_used(locks: lualock.Locks) -> None:
    """A value that is not a policy is refused when the job is declared."""
    for bad in ("wait", jobs.Wait, 5):
        with pytest.raises(lualock.InvalidArgument, match="a policy must be one of"):
            locks.job(policy=bad)(test_what_cannot_be_used)
        with pytest.raises(lualock.InvalidArgument, match="a policy must be one of"):
            type("Bad", (lualock.LockedJob,), {"lock_policy": bad})
        with pytest.raises(lualock.InvalidArgument, match="a policy must be one of"):
            jobs.Wait(5, then=bad)
    kinds: list[Any] = [jobs.Replace, jobs.Retry, jobs.Wait, jobs.Coalesce]
    for kind in kinds:
        for wait in ODD:
            with pytest.raises(lualock.InvalidArgument, match=r"^(delay|wait) must be"):
                kind(wait)
    for kind in kinds[:2]:
        for wait in (None, 367 * 86_400):
            with pytest.raises(lualock.InvalidArgument, match=r"^(delay|wait) must be"):
                kind(wait)


ODD: tuple[Any, ...] = (
    *(-1, "5", float("nan"), float("inf"), 10**400, True),
    [5],
)
"""What is no time to wait."""


@pytest.mark.parametrize("verb", ["later", "wait", "request_release"])
async def test_a_policy_function_with_an_odd_delay(api: World, verb: str) -> None:
    """A delay that is not valid is refused before anything is sent, and nothing stays behind."""

    odds = list(ODD)

    class Odd:
        def take(self, attempt: jobs.Attempt) -> Any:
            if verb == "request_release":
                yield from attempt.request_release(attempt.lock._request(), odds.pop())
            yield from getattr(attempt, verb)(odds.pop())

    def work() -> None:
        """A job's body."""

    made = api.connect().job(key="x", policy=Odd())
    queue = Queue(api, made(as_job(api, work)))
    lease = await settle(queue.work.lock().acquire())
    while odds:
        with pytest.raises(lualock.InvalidArgument, match=r"^(delay|timeout|expires_in) must be"):
            await queue.attempt("a", None)
    assert api.client.keys() == [queue.work.lock().key]
    await settle(lease.release())


class Ended(Exception):
    """The exception that a job system raises in a job that takes too long."""


async def end_while_it_waits(queue: Queue, token: str, delay_s: float | None) -> None:
    """End a delivery from outside while it waits: by a cancellation or by a signal."""
    world, lock = queue.world, queue.work.lock((1,))

    def attempt() -> Any:
        return queue.attempt("a", token, 2, will_retry=lambda error: delay_s)

    if world.asynchronous:
        task = asyncio.create_task(attempt())
        await world.until_waiters(lock, 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return

    def end(*_: object) -> None:
        raise Ended

    def strike() -> None:
        while not world.waiters(lock):
            pass
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)

    before = signal.signal(signal.SIGALRM, end)
    striker = threading.Thread(target=strike)
    striker.start()
    try:
        with pytest.raises(Ended):
            await attempt()
    finally:
        striker.join()
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize(
    "options", [{"policy": jobs.Coalesce()}, {"policy": jobs.Wait(30), "unique": "queued"}]
)
async def test_a_waiting_job_is_ended(work: Work, options: dict[str, Any]) -> None:
    """A job that is cancelled or timed out while it waits releases its reservation; one that its
    system tries again keeps it, without renewal."""
    queue = work.queue(queue_ttl=100, **options)
    lock = queue.work.lock((1,))
    lease = await settle(work.world.connect().lock("x").acquire())
    for delay_s in (None, 60.0):
        token = (await queue.put(2)).token
        await end_while_it_waits(queue, token, delay_s)
        assert watched(queue) == []
        assert held(work.world, reservation_of(lock)) == (delay_s is not None)
    assert 155_000 < work.world.client.pttl(reservation_of(lock)) <= 160_000
    await settle(lease.release())
    assert work.log == []
