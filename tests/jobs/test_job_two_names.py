"""A run with two names under faults: it has both locks or none, and loses neither to its own
clean-up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

import lualock
from tests.jobs.test_jobs import as_job
from tests.support.delivery import Queue, held
from tests.support.faults import Fault, FaultProxy
from tests.support.servers import Server
from tests.support.world import World, settle


@pytest.fixture
def faults(one_server: Server) -> Iterator[FaultProxy]:
    """Yield a proxy that puts faults between the job and its server."""
    with FaultProxy(one_server.socket) as proxy:
        yield proxy


def _both(api: World, url: str | None = None) -> Any:
    locks = api.connect() if url is None else api.connect(url)
    return locks.together(locks.lock("two", ttl=30), locks.lock("one", ttl=30))


def _free(api: World, *locks: Any) -> bool:
    return not any(held(api, lock.key) for lock in locks)


async def test_a_refused_try_is_cleaned_up_without_the_later_lease(
    api: World, faults: FaultProxy
) -> None:
    """If a refused try may still arrive, its clean-up does not release what is acquired later."""
    both = _both(api, faults.url)
    lease = await settle(api.connect().lock("two").acquire())
    faults.inject(Fault("delay reply", seconds=0.6), "acquire_all")
    waiting = asyncio.ensure_future(api.beside(lambda: both.acquire(1.5)))
    await api.until(lambda: api.client.exists(lease._request.queue))
    await settle(lease.release())
    won = await waiting
    give_up_at = time.monotonic() + 1.5
    while time.monotonic() < give_up_at:
        assert all(held(api, lock.key) for lock in both.parts)
        await asyncio.sleep(0.02)
    await settle(won.release())


async def test_a_waiter_for_the_second_lock_learns_of_a_sooner_end(api: World) -> None:
    """A caller that has one lock and waits for the other gets it when its lease ends sooner than
    planned."""
    both = _both(api)
    lease = await settle(api.connect().lock("two", ttl=20).acquire())
    waiting = asyncio.ensure_future(api.beside(lambda: both.acquire(8)))
    await api.until(lambda: api.client.exists(lease._request.queue))
    for _ in range(20):  # longer than it is young
        await settle(lease.extend(20))
        await asyncio.sleep(0.01)
    await settle(lease.extend(0.5))
    began = time.monotonic()
    won = await waiting
    assert time.monotonic() - began < 3
    await settle(won.release())


async def test_a_full_queue_is_reported_at_once(api: World) -> None:
    """A caller does not go on while the queue of one of its locks is full."""
    locks = api.connect()
    both = locks.together(locks.lock("two", max_waiters=1), locks.lock("one", max_waiters=1))
    lease = await settle(api.connect().lock("two").acquire())
    ahead = asyncio.ensure_future(api.beside(lambda: api.connect().lock("two").acquire(5)))
    await api.until_waiters(both.parts[1], 1)
    began = time.monotonic()
    with pytest.raises(lualock.QueueFull):
        await api.beside(lambda: both.acquire(4))
    assert time.monotonic() - began < 1
    assert not held(api, both.parts[0].key)
    await settle(lease.release())
    await settle((await ahead).release())


async def test_a_dropped_job_keeps_neither_lock(api: World) -> None:
    """A job that kept its locks for a retry, lost one of them and is dropped, keeps the other one
    no longer."""
    locks, tries = api.connect(), []

    def fails() -> None:
        tries.append(1)
        raise KeyError

    made = locks.job(key="two", previous_key="one", keep_lock_on_retry=True)
    queue = Queue(api, made(as_job(api, fails)))
    one, two = locks.lock("one"), locks.lock("two")
    for lost, kept in ((one, two), (two, one)):
        with pytest.raises(KeyError):
            await queue.attempt("a", None, will_retry=lambda error: 5)
        assert held(api, one.key)
        assert held(api, two.key)
        api.client.delete(lost.key)
        lease = await settle(lost.acquire(0))
        assert await queue.attempt("a", None) is None
        await api.until(partial(_free, api, kept))
        await settle(lease.release())
    assert len(tries) == 2


async def test_a_job_that_lost_a_lock_keeps_neither(api: World) -> None:
    """A run that lost one of its locks keeps none for its retry."""
    locks = api.connect()
    one, two = locks.lock("one"), locks.lock("two")
    lost = [one]

    def fails() -> None:
        api.client.delete(lost[0].key)
        raise KeyError

    made = locks.job(key="two", previous_key="one", keep_lock_on_failure=True)
    queue = Queue(api, made(as_job(api, fails)))
    for lost[0] in (one, two):
        with pytest.raises(KeyError):
            await queue.attempt("a", None)
        await api.until(partial(_free, api, one, two))


async def test_a_wait_ends_in_time_while_the_server_hangs(api: World, faults: FaultProxy) -> None:
    """A caller that has one lock, and cannot extend it, gives up when its time is over."""
    locks = api.connect(faults.url)
    both = locks.together(locks.lock("two", ttl=0.3), locks.lock("one", ttl=0.3))
    lease = await settle(api.connect().lock("two").acquire())
    began = time.monotonic()
    waiting = asyncio.ensure_future(api.beside(lambda: both.acquire(1)))
    await api.until_waiters(both.parts[1], 1)
    await api.until(lambda: time.monotonic() > began + 0.9)
    faults.silent = faults.mute = True
    faults.fall_silent()
    with pytest.raises(lualock.LockError):
        await waiting
    assert time.monotonic() - began < 1.5
    await settle(lease.release())
