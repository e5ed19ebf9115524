"""A lock that stays held for a while after a release that came early."""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

import lualock
from lualock._protocol.schedule import CHECK_HEAD_S
from tests.jobs.test_jobs import as_job
from tests.support.delivery import Queue
from tests.support.faults import Fault, FaultProxy
from tests.support.world import World, entered, few, settle


async def test_an_early_release(world: World) -> None:
    """The lock is refused to others for the rest of the time, and free after it."""
    lock = world.connect().lock("x", hold_at_least=0.4)
    began = time.monotonic()
    async with entered(lock) as lease:
        pass
    assert not lease.held
    assert not lease.lost
    info = await settle(lock.inspect())
    assert info.held
    assert info.remaining_s <= 0.4
    with pytest.raises(lualock.NotAcquired):
        await settle(lock.acquire(timeout=0))
    await world.until(lambda: not world.client.exists(lock.key))
    assert time.monotonic() - began > 0.35
    assert await settle(lock.try_acquire())


async def test_a_late_release(world: World) -> None:
    """A release after that time frees the lock, as any release."""
    lock = world.connect().lock("x", hold_at_least=0.001)
    lease = await settle(lock.acquire())
    await asyncio.sleep(0.01)
    await settle(lease.release())
    assert not await settle(lock.locked())


@few
async def test_a_waiter(world: World) -> None:
    """A waiter gets the lock when the time is over, soon if not at once."""
    lock = world.connect().lock("x", ttl=60, hold_at_least=0.5)
    lease = await settle(lock.acquire())
    waiter = asyncio.ensure_future(world.beside(partial(lock.acquire, timeout=20)))
    await world.until_waiters(lock, 1)
    began = time.monotonic()
    await settle(lease.release())
    following = await waiter
    assert time.monotonic() - began < 0.5 + CHECK_HEAD_S + 1
    assert following.fence > lease.fence


async def test_the_holder_lets_go(world: World) -> None:
    """After the release the holder can neither extend nor release what is left."""
    lock = world.connect().lock("x", hold_at_least=30)
    lease = await settle(lock.acquire())
    await settle(lease.release())
    await settle(lease.release())
    with pytest.raises(lualock.LeaseLost, match="was released"):
        await settle(lease.extend(60))
    left_s = (await settle(lock.inspect())).remaining_s
    assert 29 < left_s <= 30
    assert await settle(lock.force_release())


@few
async def test_a_renewal_in_flight(world: World) -> None:
    """A renewal that arrives after the release does not make the lock last longer."""
    lock = world.connect().lock("x", ttl=60, hold_at_least=30)
    lease = await settle(lock.acquire())
    renewal = lualock._protocol.extend(lease._request, lease._state, 60_000, time.monotonic)
    await settle(lease.release())
    with pytest.raises(lualock.LeaseLost):
        await settle(lease._driver.run(renewal))
    assert (await settle(lock.inspect())).remaining_s <= 30


@few
async def test_a_lease_that_had_ended(world: World) -> None:
    """The release reports it, and keeps nothing."""
    lock = world.connect().lock("x", hold_at_least=30)
    lease = await settle(lock.acquire())
    world.client.delete(lock.key)
    with pytest.raises(lualock.LeaseLost, match="before it was released"):
        await settle(lease.release())
    assert lease.lost
    assert not await settle(lock.locked())


@few
async def test_a_lost_reply(world: World) -> None:
    """The request is repeated, and the release succeeds."""
    with FaultProxy(world.server.socket) as proxy:
        lock = world.connect(proxy.url).lock("x", hold_at_least=30)
        await settle((await settle(lock.acquire())).release())
        assert await settle(lock.force_release())  # now the server knows the scripts
        lease = await settle(lock.acquire())
        proxy.inject(Fault("drop reply"), "adopt")
        await settle(lease.release())
        assert [one.reply for one in proxy.met]
        assert (await settle(lock.inspect())).held


@few
async def test_an_error_of_the_body(world: World) -> None:
    """Also after an error the lock of a ``with`` block stays held."""
    lock = world.connect().lock("x", hold_at_least=30)
    with pytest.raises(ZeroDivisionError):
        async with entered(lock):
            raise ZeroDivisionError
    assert await settle(lock.locked())


@few
async def test_several_locks(world: World) -> None:
    """A lock of several names stays held at all of them."""
    locks = world.connect()
    both = locks.together(locks.lock("a", hold_at_least=30), locks.lock("b"))
    lease = await settle(both.acquire())
    await settle(lease.release())
    assert await settle(locks.lock("a").locked())
    assert await settle(locks.lock("b").locked())


@pytest.mark.parametrize("value", [0, -1, "5", True, float("nan"), timedelta(0), 367 * 86_400])
def test_a_time_that_cannot_be(value: Any) -> None:
    """It is a time from 1 ms to 366 days, and not more than ``max_hold``."""
    locks = lualock.connect("redis://localhost:1")
    with pytest.raises(lualock.InvalidArgument, match="hold_at_least"):
        locks.lock("x", hold_at_least=value)
    with pytest.raises(lualock.InvalidArgument, match="hold_at_least"):
        locks.job(hold_at_least=value, key="x")(lambda: None)
    with pytest.raises(lualock.InvalidArgument, match="more than max_hold, 5 seconds, not 6"):
        locks.lock("x", max_hold=5, hold_at_least=6)
    with pytest.raises(lualock.InvalidArgument, match="more than max_hold"):
        locks.job(max_hold=5, hold_at_least=6, key="x")(lambda: None)


@few
async def test_a_short_job_on_several_hosts(world: World) -> None:
    """Of two hosts that begin a short job one after the other, one runs it."""
    runs: list[str] = []

    def tick(host: str) -> str:
        runs.append(host)
        return "ran"

    results = []
    for host in ("a", "b"):
        locks = world.connect()
        job = locks.job(key="tick", hold_at_least=30, on_skipped=lambda host: f"{host} skipped")
        results.append(await settle(job(as_job(world, tick))(host)))
    assert results == ["ran", "b skipped"]
    assert runs == ["a"]


@few
@pytest.mark.parametrize("previous", [None, "old"])
async def test_a_job_that_fails(world: World, previous: str | None) -> None:
    """Its lock is free at once, so that it can be tried again."""
    tries: list[int] = []

    def work() -> str:
        tries.append(1)
        if len(tries) < 2:
            raise ZeroDivisionError
        return "done"

    maker = world.connect().job(key="x", hold_at_least=30, previous_key=previous)
    queue = Queue(world, maker(as_job(world, work)))
    await queue.put(job_id="a")
    await queue.put(job_id="b")
    with pytest.raises(ZeroDivisionError):
        await queue.deliver(will_retry=lambda _: None)
    assert await queue.deliver() == "done"
    assert world.client.get("lualock:{x}")[:1] in b"HW"


@few
async def test_max_hold_after_a_wait(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """The longest time of a lease that was handed over counts from its begin."""
    lock = world.connect().lock("x", ttl=60, renew=True, max_hold=100)
    first = await settle(lock.acquire())
    waiter = asyncio.ensure_future(world.beside(partial(lock.acquire, timeout=20)))
    await world.until_waiters(lock, 1)
    now = time.monotonic()
    await settle(first.release())
    with caplog.at_level(logging.WARNING):
        lease = await waiter
    assert 99 < lease._hold_until - now < 101
    await settle(lease.release())


async def test_max_hold_in_a_delivery(world: World) -> None:
    """A run that a job system delivers has all options of its lock."""
    seen: list[Any] = []

    def work() -> None:
        seen.append(lualock.jobs.current_lease()._options)

    maker = world.connect().job(key="x", max_hold=50, hold_at_least=0.01)
    queue = Queue(world, maker(as_job(world, work)))
    await queue.put()
    await queue.deliver()
    assert [(one.max_hold_s, one.hold_at_least_s) for one in seen] == [(50, 0.01)]
