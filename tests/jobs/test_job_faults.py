"""A job's whole life, with every fault of a connection at each of its requests: it is enqueued, its
attempts run once each and alone, and nothing stays held."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import lualock
from lualock import jobs
from lualock.scripts import every
from tests.jobs.test_jobs import Log, as_job
from tests.support.delivery import Queue, held, reservation_of
from tests.support.faults import Fault, FaultProxy
from tests.support.world import World
from tests.transport.test_faults import AT_ONCE, FAULTS, SLACK, SOCKET_TIMEOUT, TTL, WITH_JOBS

# In the order in which they come: reserve, confirm, start, keep it for the retry, start, release;
# or the wait for the lock, and the release of the reservation.
SCENARIOS = [
    *(("retry", script) for script in ("jobs/reserve", "extend", "jobs/start", "adopt", "release")),
    *(("coalesce", script) for script in ("jobs/start", "jobs/reserve", "acquire", "release")),
    ("replace", "request_release"),
    ("replace", "withdraw"),
]


class OwnError(Exception):
    """The exception that the job raises at its first attempt."""


async def life(world: World, proxy: FaultProxy, name: str, script: str, fault: str) -> None:
    """Enqueue a job, run it, let it fail, run it again."""
    kind = name.split()[0]
    log = Log()
    rivals = lualock.connect(world.server.url)

    def work() -> str:
        log.append("ran")
        assert rivals.lock(name).try_acquire() is None, "a rival has the lock of a job that runs"
        if kind == "retry" and len(log) == 1:
            raise OwnError
        return "done"

    policies = {"retry": None, "coalesce": jobs.Coalesce(), "replace": jobs.Replace(5)}
    locks = world.connect(f"{proxy.url}?socket_timeout={SOCKET_TIMEOUT}", ttl=TTL)
    options: dict[str, Any] = {"unique": "both"} if kind == "retry" else {}
    made = locks.job(
        key=name, keep_lock_on_retry=True, queue_ttl=3, policy=policies[kind], **options
    )
    queue = Queue(world, made(as_job(world, work)))
    lease = rivals.lock(name, ttl=30).acquire() if kind != "retry" else None
    proxy.inject(FAULTS[fault], script)

    async def until(what: Any) -> Any:
        """Try again, as a producer or a job system does."""
        give_up = asyncio.get_running_loop().time() + 8
        while asyncio.get_running_loop().time() < give_up:
            try:
                entry = await world.beside(what)
            except (lualock.LockUnavailable, jobs.RetryLater) as error:
                # A fault that happens once is repaired by a second request, without an error. But a
                # busy machine may not even make a connection in the short time.
                if FAULTS[fault].times == 1 and "could not connect to the server" not in str(error):
                    raise
                entry = None
            if entry:
                return entry
            await asyncio.sleep(0.02)
        raise AssertionError(f"{script} {fault}: the lock is free, and the job does not run")

    def attempt() -> Any:
        return queue.work.run((), {}, jobs.Delivery("a", entry.token or None, lambda error: 0.0))

    entry = await until(lambda: queue.verb("enqueue")(lambda token: "pushed", job_id="a"))
    if kind == "retry":
        with pytest.raises(OwnError):
            await until(attempt)
        assert await until(attempt) == "done"
        assert len(log) == 2
    else:
        running = asyncio.ensure_future(until(attempt))
        await world.until(lambda: proxy.met or world.waiters(queue.work.lock()))
        assert lease is not None
        lease.release()
        assert await running == "done"
        assert len(log) == 1
    assert proxy.met, "the fault befell nothing"

    await asyncio.to_thread(proxy.deliver)
    mine = queue.work.lock()
    await world.until(lambda: not held(world, mine.key), TTL + SLACK)
    left_ms = world.client.pttl(reservation_of(mine))
    assert not held(world, reservation_of(mine)) or 0 < left_ms <= jobs.RESERVE_S * 1000
    rivals.close()


def test_every_script_of_jobs_has_its_scenario() -> None:
    """The scripts that are tried only with jobs are tried here."""
    assert {script for _, script in SCENARIOS} >= WITH_JOBS


@pytest.mark.full
async def test_faults(api: World) -> None:
    """Every fault leaves one run for each attempt and nothing held; the cases run side by side,
    because they mostly wait."""
    for script in every().values():
        api.client.script_load(script.source)
    places = asyncio.Semaphore(AT_ONCE)
    failures: list[str] = []

    async def one(kind: str, script: str, fault: str) -> None:
        async with places:
            with FaultProxy(api.server.socket) as proxy:
                try:
                    await life(api, proxy, f"{kind} {script} {fault}", script, fault)
                except Exception as error:
                    failures.append(f"{kind}, {script}, {fault}: {error!r}")

    await asyncio.gather(*(one(*case, fault) for case in SCENARIOS for fault in FAULTS))
    if api.asynchronous:
        await asyncio.gather(*(locks.aclose() for locks in api.made))
    assert failures == []


async def test_a_reservation_that_could_not_be_released(api: World) -> None:
    """A job that waited, and whose reservation could not be released, comes back, and the
    reservation stays its own."""
    with FaultProxy(api.server.socket) as proxy, lualock.connect(api.server.url) as rivals:
        locks = api.connect(proxy.url)
        made = locks.job(key="x", unique="queued", policy=jobs.Wait(5))(as_job(api, _never))
        queue = Queue(api, made)
        assert await queue.put(job_id="a")
        lease = rivals.lock("x").acquire()
        proxy.choose = {"release": Fault("drop request")}.get
        waits = asyncio.ensure_future(queue.deliver(beside=True, will_retry=lambda error: 5.0))
        await api.until_waiters(queue.work.lock(), 1)
        lease.release()
        with pytest.raises(lualock.LockUnavailable):
            await waits
        await api.until(lambda: not held(api, queue.work.lock().key))
        assert len(proxy.met) == 2
        assert held(api, reservation_of(queue.work.lock()))
        refused = await queue.put(job_id="b")
        assert (refused.job_id, refused.state) == ("a", "queued")
        if api.asynchronous:
            await locks.aclose()


def _never() -> None:
    """A job's body."""
    raise AssertionError("it ran")
