"""The lock of a job that fails, is tried again, is delivered twice or is killed, and of a job whose
server is unreachable."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

import lualock
from lualock import jobs
from lualock._transport.asyncio import background as asyncio_background
from lualock._transport.threads import background
from lualock.jobs import token_of
from tests.jobs.test_job_policies import ODD
from tests.jobs.test_jobs import Log, as_job
from tests.support.delivery import Queue, held, reservation_of, watched
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.world import World, on_one, settle


class OwnError(Exception):
    """The exception that the jobs here raise."""


class Interruption(BaseException):
    """An exception that ends a worker, as SystemExit does, but that asyncio lets pass."""


def queue_of(world: World, work: Callable[..., Any], locks: Any = None, **options: Any) -> Queue:
    """Make the queue of a job whose runs all share one lock."""
    made = (locks or world.connect()).job(key="x", **options)(as_job(world, work))
    return Queue(world, made)


def failing(times: int, log: Log) -> Callable[..., Any]:
    """Make a job that fails that many times, and then succeeds."""

    def work() -> str:
        log.append("ran")
        if len(log) <= times:
            raise OwnError(f"failure {len(log)}")
        return "done"

    return work


def again(error: BaseException) -> float | None:
    """Answer as a system that tries again in a minute."""
    return 60.0


async def test_the_lock_is_kept_for_the_retry(world: World) -> None:
    """Between its attempts the lock is kept; the next attempt gets it, with a greater fence."""
    log, leases = Log(), []

    def work() -> None:
        leases.append(jobs.current_lease())
        failing(2, log)()

    queue = queue_of(world, work, keep_lock_on_retry=True, queue_ttl=100)
    lock = queue.work.lock()
    for _ in range(2):
        with pytest.raises(OwnError):
            await queue.attempt("a", "t" * 22, will_retry=again)
        assert held(world, lock.key)
        assert 155_000 < world.client.pttl(lock.key) <= 160_000
        assert (await settle(lock.inspect())).metadata == "job a"
        assert await queue.attempt("b", "u" * 22) is None
        assert await settle(lock.try_acquire()) is None
        assert not leases[-1].held
        assert not leases[-1].lost
        assert watched(queue) == []
    await queue.attempt("a", "t" * 22, will_retry=again)
    assert len(log) == 3
    fences = [lease.fence for lease in leases]
    assert fences == sorted(set(fences))
    assert not held(world, lock.key)


async def test_a_waiter_for_a_lock_that_is_kept_for_a_retry(api: World) -> None:
    """The waiter gets a message when the retry begins, whose lease ends much earlier, and follows
    it."""
    log = Log()

    def work() -> None:
        log.append("ran")
        if len(log) == 1:
            raise OwnError
        while len(log) == 2:
            time.sleep(0.01)

    async def coroutine() -> None:
        log.append("ran")
        if len(log) == 1:
            raise OwnError
        await api.until(lambda: len(log) > 2)

    made = api.connect().job(key="x", keep_lock_on_retry=True, ttl=0.3)
    queue = Queue(api, made(coroutine if api.asynchronous else work))
    lock = queue.work.lock()
    with pytest.raises(OwnError):
        await queue.attempt("a", None, will_retry=again)
    waits = asyncio.ensure_future(api.beside(lock.acquire))
    await api.until_waiters(lock, 1)
    since = time.monotonic()  # a new waiter checks on its own
    await api.until(lambda: time.monotonic() > since + 0.15)
    run = asyncio.ensure_future(queue.attempt("a", None, beside=True))
    try:
        lease = await asyncio.wait_for(asyncio.shield(waits), 3)
    finally:
        log.append("over")
        await run
    await settle(lease.release())


async def test_the_lock_is_free_until_the_retry(world: World) -> None:
    """By default other jobs may run until the retry; a job that is unique when queued is queued
    again."""
    log = Log()
    queue = queue_of(world, failing(1, log), unique="both", queue_ttl=100)
    lock = queue.work.lock()
    entry = await queue.put(job_id="a")
    with pytest.raises(OwnError):
        await queue.deliver(will_retry=again)
    assert not held(world, lock.key)
    assert held(world, reservation_of(lock))
    assert 155_000 < world.client.pttl(reservation_of(lock)) <= 160_000
    assert (await queue.put()).job_id == "a"
    assert await queue.attempt("a", entry.token) == "done"
    assert not held(world, reservation_of(lock))
    plain = queue_of(world, failing(1, Log()))
    with pytest.raises(OwnError):
        await plain.attempt("b", None, will_retry=again)
    assert not held(world, reservation_of(lock))  # it is not unique, so it has no reservation


async def test_the_final_failure(world: World) -> None:
    """After the last attempt the lock is free, or kept for an operator."""
    for kept in (False, True):
        queue = queue_of(world, failing(1, Log()), keep_lock_on_failure=kept, queue_ttl=100)
        lock = queue.work.lock()
        with pytest.raises(OwnError):
            await queue.attempt("a", None)
        assert held(world, lock.key) == kept
    assert 95_000 < world.client.pttl(lock.key) <= 100_000
    assert await queue.attempt("b", None) is None
    assert await queue.attempt("a", None) == "done"  # an operator enqueued it again
    assert not held(world, lock.key)
    direct = queue_of(world, failing(1, Log()), keep_lock_on_failure=True)
    with pytest.raises(OwnError):
        await settle(direct.job())
    assert held(world, lock.key)


async def test_an_interrupted_job_has_not_failed(api: World) -> None:
    """A worker that is stopped frees the lock, also of a job that keeps it when it fails."""

    def work() -> None:
        raise Interruption

    queue = queue_of(api, work, keep_lock_on_failure=True)
    with pytest.raises(Interruption):
        await queue.attempt("a", None)
    assert not held(api, queue.work.lock().key)


async def test_what_the_system_does_not_count_as_a_failure(api: World) -> None:
    """An exception by which a job only instructs its system frees the lock at its end."""
    queue = queue_of(api, failing(9, Log()), keep_lock_on_failure=True)
    for kept in (False, True):
        with pytest.raises(OwnError):
            await queue.attempt("a", None, failed=lambda error, kept=kept: kept)
        assert held(api, queue.work.lock().key) == kept


async def test_a_result_that_asks_for_a_retry(api: World) -> None:
    """The result of a job may ask for a retry too, in a system that allows it."""
    queue = queue_of(api, lambda: "once more", keep_lock_on_retry=True, keep_lock_on_failure=True)
    lock = queue.work.lock()
    result = await queue.attempt("a", None, result_retry=lambda result: 5 if result else None)
    assert result == "once more"
    assert held(api, lock.key)
    await queue.attempt("a", None)
    assert not held(api, lock.key)


async def test_a_removed_retry(api: World) -> None:
    """A job that is revoked while its lock is kept for its retry frees it, and hands it over."""
    queue = queue_of(api, failing(1, Log()), keep_lock_on_retry=True)
    lock = queue.work.lock()
    with pytest.raises(OwnError):
        await queue.attempt("a", None, will_retry=again)
    # Its queue gave it no token, so a system knows only its id.
    await settle(queue.verb("cancel")(job_id="b", token=""))
    assert held(api, lock.key)
    await settle(queue.verb("cancel")(job_id="a", token=""))
    assert not held(api, lock.key)
    with pytest.raises(lualock.InvalidArgument, match="which job is cancelled"):
        await settle(queue.verb("cancel")())


async def test_delivered_twice(api: World) -> None:
    """Of two deliveries of one job at the same time one runs; the other comes later whatever the
    policy, because it is the only one if the first has died."""
    log = Log()
    queue: Any = None

    def work() -> None:
        log.append("ran")
        with lualock.connect(api.server.url) as locks:
            other = jobs.adapter(
                locks.job(key="x", on_skipped=lambda: log.note("failed"))(_nothing)
            )
            with pytest.raises(jobs.RetryLater) as caught:
                other.run((), {}, jobs.Delivery("a", "t" * 22))
            log.append(caught.value.delay_s)
            assert other.run((), {}, jobs.Delivery("b", "u" * 22)) is None

    queue = queue_of(api, work)
    await queue.attempt("a", "t" * 22)
    assert log == ["ran", 5.0, ("failed",)]
    lease = await settle(api.connect().lock("x", ttl=0.5, metadata="job a").acquire())
    with pytest.raises(jobs.RetryLater) as caught:
        await queue.attempt("a", None)
    assert 0 < caught.value.delay_s <= 0.55
    await settle(lease.release())


def _nothing() -> None:
    """A job's body."""


async def test_a_retry_that_is_not_known(api: World, caplog: pytest.LogCaptureFixture) -> None:
    """If the system cannot say whether it tries again, the lock is free and the job's error goes
    on."""

    def broken(error: BaseException) -> float:
        raise KeyError("the integration's")

    queue = queue_of(api, failing(1, Log()), keep_lock_on_retry=True, keep_lock_on_failure=True)
    with pytest.raises(OwnError):
        await queue.attempt("a", None, will_retry=broken)
    assert not held(api, queue.work.lock().key)
    assert "retried is not known" in caplog.text


@pytest.mark.parametrize("keep_lock", [True, False])
async def test_a_retry_after_an_odd_delay(
    api: World, caplog: pytest.LogCaptureFixture, keep_lock: bool
) -> None:
    """With a delay that is not valid the job's own error is raised, nothing is kept, and the log
    says why; a time in the past means at once."""

    def work() -> None:
        raise OwnError

    queue = queue_of(api, work, keep_lock_on_retry=keep_lock, unique="queued", queue_ttl=100)
    lock = queue.work.lock()
    for odd in (*ODD[1:], 367 * 86_400):
        with pytest.raises(OwnError):
            await queue.attempt("a", "t" * 22, will_retry=lambda error, odd=odd: odd)
        assert "is not known" in caplog.text
        caplog.clear()
        assert not held(api, lock.key)
        assert not held(api, reservation_of(lock))
    with pytest.raises(OwnError):
        await queue.attempt("a", "t" * 22, will_retry=lambda error: -5)
    kept = lock.key if keep_lock else reservation_of(lock)
    assert 95_000 < api.client.pttl(kept) <= 100_000


async def test_a_lease_that_ended_before_it_could_be_kept(api: World) -> None:
    """A lease that ended before it could be kept has expired: the callback is called, and nothing
    is taken."""
    log = Log()

    def work() -> None:
        api.client.delete(b"lualock:{x}")
        raise OwnError

    queue = queue_of(api, work, keep_lock_on_retry=True, on_expired=lambda: log.note("expired"))
    with pytest.raises(OwnError) as caught:
        await queue.attempt("a", None, will_retry=again)
    assert log == [("expired",)]
    assert "ended by force, before it was kept" in " ".join(getattr(caught.value, "__notes__", []))
    assert not api.client.exists(b"lualock:{x}")


async def test_a_job_that_released_its_own_lease(api: World) -> None:
    """A job that released its lease early has not lost it, and does not get it again for its
    retry."""
    log = Log()

    async def coroutine() -> None:
        await settle(jobs.current_lease().release())
        raise OwnError

    def plain() -> None:
        jobs.current_lease().release()
        raise OwnError

    made = api.connect().job(
        key="x", keep_lock_on_retry=True, on_expired=lambda: log.note("expired")
    )
    queue = Queue(api, made(coroutine if api.asynchronous else plain))
    with pytest.raises(OwnError):
        await queue.attempt("a", None, will_retry=again)
    assert log == []
    assert not held(api, queue.work.lock().key)


async def test_the_reply_to_keeping_a_lock_is_lost(api: World, proxy: Proxy) -> None:
    """After a lost reply the lock is kept all the same, and the retry finds it."""
    log = Log()

    def work() -> str:
        if not log:
            proxy.lose_reply = 1
        return str(failing(1, log)())

    queue = queue_of(api, work, api.connect(proxy.url), keep_lock_on_retry=True)
    with pytest.raises(OwnError):
        await queue.attempt("a", None, will_retry=again)
    assert proxy.lose_reply == 0
    assert held(api, queue.work.lock().key)
    assert await queue.attempt("a", None) == "done"
    assert not held(api, queue.work.lock().key)


@pytest.mark.full
@on_one
def test_a_killed_worker(server: Server) -> None:
    """A worker killed by SIGKILL in a job frees the lock within a lease; the same job, delivered
    again meanwhile, is not dropped but comes later."""
    code = """
        import sys, time, lualock
        from lualock.jobs import Delivery, adapter
        locks = lualock.connect(sys.argv[1], ttl=2)
        @locks.job(key="x")
        def work():
            print("runs", flush=True)
            time.sleep(60)
        adapter(work).run((), {}, Delivery("a"))
    """
    command = [sys.executable, "-c", textwrap.dedent(code), server.url]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE) as worker,
        lualock.connect(server.url) as locks,
    ):
        assert worker.stdout is not None
        assert worker.stdout.readline() == b"runs\n"
        work = jobs.adapter(locks.job(key="x")(_nothing))
        assert locks.lock("x").inspect().metadata == "job a"
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(jobs.RetryLater) as caught:
            work.run((), {}, jobs.Delivery("a"))
        assert caught.value.delay_s <= 2.05
        lease = locks.lock("x").acquire(timeout=5)
        lease.release()
        work.run((), {}, jobs.Delivery("a"))


async def test_a_worker_that_is_known_to_be_dead(world: World) -> None:
    """A process that knows the worker to be dead frees the lock at once for the first waiter;
    another run is not affected."""
    queue = queue_of(world, lambda: "done", unique="queued")
    code = """
        import sys, time, lualock
        from lualock.jobs import Delivery, adapter
        locks = lualock.connect(sys.argv[1])
        @locks.job(key="x", unique="queued")
        def work():
            print("runs", flush=True)
            time.sleep(60)
        adapter(work).run((), {}, Delivery("a", sys.argv[2]))
    """
    entry = await queue.put(job_id="a")
    queue.pushed.clear()
    command = [sys.executable, "-c", textwrap.dedent(code), world.server.url, entry.token]
    worker = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    assert worker.stdout is not None
    assert await worker.stdout.readline() == b"runs\n"
    waiter = asyncio.create_task(world.beside(queue.work.lock().acquire))
    await world.until_waiters(queue.work.lock(), 1)
    worker.kill()
    await worker.wait()
    died = queue.verb("died")
    assert not await settle(died(job_id="b"))
    assert not await settle(died(job_id="a", token=entry.token, pid=os.getpid()))
    assert held(world, queue.work.lock().key)
    assert await settle(died(job_id="a", token=entry.token, pid=worker.pid))
    await settle((await waiter).release())
    assert not held(world, queue.work.lock().key)


async def test_a_waiting_worker_that_is_known_to_be_dead(world: World) -> None:
    """The reservation of a job whose worker was killed while it waited is free as well."""
    queue = queue_of(world, lambda: "done", unique="queued")
    entry = await queue.put(job_id="a")
    assert not await settle(queue.verb("died")(job_id="a", token=entry.token))
    assert await queue.put(job_id="b")


AWAY = "unix:///tmp/lualock-no-such-socket"


async def test_unavailable(api: World, caplog: pytest.LogCaptureFixture) -> None:
    """While the server is unreachable a job raises, runs without its lock, or is dropped, as it
    declares."""
    log = Log()
    options = {"on_skipped": lambda: log.note("failed"), "locks": api.connect(AWAY)}
    with pytest.raises(lualock.LockUnavailable):
        await queue_of(api, lambda: log.note("ran"), **options).attempt("a", None)
    with pytest.raises(lualock.LockUnavailable):
        await settle(queue_of(api, lambda: log.note("ran"), **options).job())
    assert log == []
    skip = queue_of(api, lambda: log.note("ran"), when_unavailable="skip", **options)
    assert await skip.attempt("a", None) is None
    assert log == [("failed",)]
    run = queue_of(api, lambda: log.note("ran"), when_unavailable="run", **options)
    with caplog.at_level(logging.WARNING, logger="lualock.jobs"):
        await run.attempt("a", None)
        await settle(run.job())
    assert log == [("failed",), ("ran",), ("ran",)]
    assert "runs without its lock" in caplog.text


async def test_a_silent_server(api: World, proxy: Proxy) -> None:
    """If it is unknown whether the lock was acquired, the job does not run, and the lock is
    free."""
    ran = Log()
    locks = api.connect(f"{proxy.url}?socket_timeout=0.2")
    queue = queue_of(api, lambda: ran.append("ran"), locks, when_unavailable="skip")
    await queue.attempt("a", None)  # connected
    proxy.silent = True
    await queue.attempt("a", None)
    proxy.silent = False
    assert ran == ["ran"]
    await api.until(lambda: not held(api, queue.work.lock().key))


@pytest.mark.full
@pytest.mark.parametrize("mode", ["raise", "run", "skip"])
async def test_a_short_outage_at_the_start(api: World, proxy: Proxy, mode: str) -> None:
    """The reservation of a job that does not come again is free when the server is back; that of
    one that comes again stays, unless it ran or was dropped."""
    locks = api.connect(f"{proxy.url}?socket_timeout=0.2")
    queue = queue_of(api, lambda: None, locks, when_unavailable=mode, unique="queued")
    key = reservation_of(queue.work.lock())
    for delay_s in (1.0, None):
        await queue.put(job_id="a")
        token = queue.pushed.pop()[1]
        proxy.silent = True
        with suppress(lualock.LockUnavailable):
            await queue.attempt("a", token, will_retry=lambda error, delay_s=delay_s: delay_s)
        assert held(api, key)
        proxy.silent = False
        if mode == "raise" and delay_s is not None:
            assert (await queue.put()).job_id == "a"
            assert await queue.attempt("a", token) is None
        await api.until(lambda: not held(api, key))


async def test_a_late_cleanup_ends_no_newer_reservation(api: World, proxy: Proxy) -> None:
    """The reservation that is released after an outage is that of the job that had it, not of a
    newer one."""
    locks = api.connect(f"{proxy.url}?socket_timeout=0.2")
    queue = queue_of(api, lambda: None, locks, when_unavailable="skip", unique="queued")
    await queue.put(job_id="a")
    proxy.silent = True
    await queue.deliver()
    key = reservation_of(queue.work.lock())
    api.client.delete(key)
    newer = queue_of(api, lambda: None, unique="queued")
    assert await newer.put(job_id="b")
    proxy.commands.clear()
    proxy.silent = False
    await api.until(lambda: any(key in command for command in proxy.commands))
    await settle(queue.verb("confirm")(token=token_of("no job")))  # its reply comes after that
    assert (await newer.put()).job_id == "b"


@pytest.mark.full
async def test_an_outage_that_ends_with_the_job(
    api: World, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that ran without its lock releases its reservation, even if the outage was longer than
    the cleanup in the background."""
    for module in (background, asyncio_background):
        monkeypatch.setattr(module, "PATIENCE_S", 0.0)
    locks = api.connect(f"{proxy.url}?socket_timeout=0.2")
    key = b"lualock:{x}:reservation"

    async def coroutine() -> None:
        await asyncio.sleep(1)  # the server stays away during all tries of the cleanup
        proxy.silent = False

    def plain() -> None:
        time.sleep(1)
        proxy.silent = False

    made = locks.job(key="x", when_unavailable="run", unique="queued")
    queue = Queue(api, made(coroutine if api.asynchronous else plain))
    await queue.put(job_id="a")
    proxy.silent = True
    await queue.deliver()
    await api.until(lambda: not held(api, key))


@pytest.mark.full
@pytest.mark.parametrize("keep_lock", [False, True])
async def test_a_short_outage_at_the_end(api: World, proxy: Proxy, keep_lock: bool) -> None:
    """A lock that could not be released is free when the server is back, and so is one that could
    not be kept for the retry, which then gets it."""
    locks = api.connect(f"{proxy.url}?socket_timeout=0.2")

    def work() -> None:
        proxy.silent = True
        raise OwnError

    queue = queue_of(api, work, locks, ttl=3600, keep_lock_on_retry=keep_lock)
    with pytest.raises(OwnError):
        await queue.attempt("a", None, will_retry=again)
    assert held(api, queue.work.lock().key)
    proxy.silent = False
    await api.until(lambda: not held(api, queue.work.lock().key))


@pytest.mark.full
async def test_an_outage_when_the_previous_lock_is_released(api: World, proxy: Proxy) -> None:
    """The lock that a run has while it waits for the other one is free when the server is back."""
    locks = api.connect(f"{proxy.url}?socket_timeout=0.2")
    made = locks.job(key="x", previous_key="old", ttl=3600, policy=jobs.Wait(1))
    queue = Queue(api, made(as_job(api, _nothing)))
    lease = await settle(api.connect().lock("x").acquire())
    run = asyncio.ensure_future(queue.attempt("a", None, beside=True))
    await api.until(lambda: held(api, b"lualock:{old}"))
    proxy.silent = True
    with suppress(lualock.LockUnavailable):
        await run
    assert held(api, b"lualock:{old}")
    proxy.silent = False
    await api.until(lambda: not held(api, b"lualock:{old}"))
    await settle(lease.release())


def test_what_cannot_be_used(locks: lualock.Locks) -> None:
    """Options that are not valid are refused by name, for functions and classes."""
    for option, bad, member, named in (
        ("keep_lock_on_retry", "hold", "lock_keep_on_retry", "Bad.lock_keep_on_retry"),
        ("keep_lock_on_failure", None, "lock_keep_on_failure", "Bad.lock_keep_on_failure"),
        ("when_unavailable", "wait", "lock_when_unavailable", "when_unavailable"),
        ("unique", True, "lock_unique", "unique"),
    ):
        options: dict[str, Any] = {option: bad}
        with pytest.raises(lualock.InvalidArgument, match=f"^{option} must be .*, not {bad!r}"):
            locks.job(**options)(_nothing)
        with pytest.raises(lualock.InvalidArgument, match=f"^{named} must be .*, not {bad!r}"):
            type("Bad", (lualock.LockedJob,), {member: bad})


async def test_a_class_s_options(api: World) -> None:
    """A class has the decorator's options, with lock_ before their names, and they are
    inherited."""
    members = {
        "perform": staticmethod(as_job(api, failing(1, Log()))),
        "locks": api.connect(),
        "lock_keep_on_retry": True,
        "lock_queue_ttl": 100,
    }
    base: Any = type("Base", (lualock.LockedJob,), members)
    queue = Queue(api, type("Job", (base,), {}))
    with pytest.raises(OwnError):
        await queue.attempt("a", None, will_retry=again)
    assert 155_000 < api.client.pttl(queue.work.lock().key) <= 160_000
