"""An operator's hand: a lease is ended by force, or its key deleted, and waiters go on soon."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

import lualock
from lualock._protocol.schedule import CHECK_HEAD_S
from tests.jobs.test_jobs import as_job
from tests.support.faults import Fault, FaultProxy
from tests.support.world import World, few, settle


async def test_a_held_lock(world: World) -> None:
    """The lease ends, the lock is free, and the holder finds that its lease has ended."""
    lock = world.connect().lock("x")
    lease = await settle(lock.acquire())
    assert await settle(lock.force_release())
    assert not await settle(lock.locked())
    with pytest.raises(lualock.LeaseLost, match="ended by force"):
        await settle(lease.release())
    assert not await settle(lock.force_release())


async def test_a_free_lock(world: World) -> None:
    """Nothing is written for a lock that was never held, or was released."""
    lock = world.connect().lock("x")
    assert not await settle(lock.force_release())
    assert not await settle(lock.force_release(fence=1))
    assert world.client.exists(lock.key) == 0
    await settle((await settle(lock.acquire())).release())
    record = world.client.get(lock.key)
    assert not await settle(lock.force_release())
    assert world.client.get(lock.key) == record


async def test_the_first_waiter_gets_it(world: World) -> None:
    """The lock is handed over at once, with a greater fence, and the others wait on."""
    lock = world.connect().lock("x", ttl=60)
    lease = await settle(lock.acquire())
    waiters = []
    for count in (1, 2):
        waiters.append(asyncio.ensure_future(world.beside(partial(lock.acquire, timeout=20))))
        await world.until_waiters(lock, count)
    assert await settle(lock.force_release())
    following = await asyncio.wait_for(waiters[0], 2)
    assert following.fence > lease.fence
    assert world.waiters(lock) == 1
    with pytest.raises(lualock.LeaseLost, match="ended by force") as caught:
        await settle(lease.release())
    assert caught.value.holder is not None
    await settle(following.release())
    await settle((await waiters[1]).release())


async def test_only_the_lease_that_was_seen(world: World) -> None:
    """With a fence, the lease of a later holder is left alone."""
    lock = world.connect().lock("x")
    lease = await settle(lock.acquire())
    fence = (await settle(lock.inspect())).fence
    await settle(lease.release())
    later = await settle(lock.acquire())
    assert not await settle(lock.force_release(fence))
    assert not await settle(lock.force_release(fence=lease.fence))
    await settle(later.extend(5))
    assert await settle(lock.force_release(later.fence))


@pytest.mark.parametrize("fence", [0, -1, True, "7", 1.0, 2**53])
async def test_a_wrong_fence(world: World, fence: Any) -> None:
    """What is not a fence is refused before anything is sent."""
    lock = world.connect().lock("x")
    lease = await settle(lock.acquire())
    with pytest.raises(lualock.InvalidArgument, match="fence must be"):
        await settle(lock.force_release(fence))
    await settle(lease.release())


async def test_a_foreign_key(world: World) -> None:
    """A value that lualock did not write is neither changed nor taken for a lock."""
    lock = world.connect().lock("x")
    world.client.set(lock.key, b"mine")
    for fence in (None, 7):
        with pytest.raises(lualock.KeyConflict, match="did not write"):
            await settle(lock.force_release(fence))
    assert world.client.get(lock.key) == b"mine"


@few
async def test_the_holder_is_told(world: World) -> None:
    """A renewed lease is lost at its next renewal: the callback is called."""
    losses: list[Any] = []
    locks = world.connect()
    lock = locks.lock("x", ttl=0.6, renew=True, on_lost=losses.append)
    lease = await settle(lock.acquire())
    assert await settle(world.connect().lock("x").force_release())
    await world.until(lambda: losses)
    assert losses == [lease]
    assert lease.lost


@few
async def test_a_lease_with_a_claim(world: World) -> None:
    """A lease that was handed over is ended as well, however new it is."""
    lock = world.connect().lock("x", ttl=60)
    lease = await settle(lock.acquire())
    waiter = asyncio.ensure_future(world.beside(partial(lock.acquire, timeout=20)))
    await world.until_waiters(lock, 1)
    await settle(lease.release())
    following = await waiter
    assert await settle(lock.force_release(following.fence))
    with pytest.raises(lualock.LeaseLost):
        await settle(following.extend(5))


@few
async def test_the_lock_of_a_job(world: World) -> None:
    """``lock_for`` names the lock of a job, whose run then reports that its lease has ended."""
    expired: list[int] = []

    def run(number: int) -> None:
        with lualock.connect(world.server.url) as operator:
            assert operator.lock(job.lock_for(number).name).force_release()

    declared = world.connect().job(on_expired=expired.append)
    job: Any = declared(as_job(world, run))
    await settle(job(7))
    assert expired == [7]


@few
async def test_a_lost_reply(world: World) -> None:
    """A repeated request does not end the lease of the next holder."""
    with FaultProxy(world.server.socket) as proxy:
        lock = world.connect().lock("x", ttl=60)
        lease = await settle(lock.acquire())
        waiter = asyncio.ensure_future(world.beside(partial(lock.acquire, timeout=20)))
        await world.until_waiters(lock, 1)
        operator = world.connect(proxy.url).lock("x")
        assert not await settle(operator.force_release(1))  # now the server knows the script
        proxy.inject(Fault("drop reply"), "force_release")
        assert await settle(operator.force_release(lease.fence))
        following = await waiter
        assert [one.reply for one in proxy.met] == [b"handed_over"]
        await settle(following.extend(5))
        await settle(following.release())


def _flush(client: Any, lock: Any) -> None:
    client.flushall()


def _expire(client: Any, lock: Any) -> None:
    client.pexpire(lock.key, 1)


def _unlink(client: Any, lock: Any) -> None:
    client.unlink(lock.key)


def _rename(client: Any, lock: Any) -> None:
    client.rename(lock.key, b"elsewhere")


def _delete_both(client: Any, lock: Any) -> None:
    client.delete(lock.key, lock.key + b":waiters")


def _delete_the_queue(client: Any, lock: Any) -> None:
    client.delete(lock.key + b":waiters")


REMOVALS = [_flush, _expire, _unlink, _rename, _delete_both]


@few
@pytest.mark.slow
@pytest.mark.parametrize("remove", REMOVALS)
async def test_a_key_that_is_gone(world: World, remove: Callable[[Any, Any], None]) -> None:
    """However the key of a held lock vanished, its only waiter has the lock within two seconds."""
    lock = world.connect().lock("x", ttl=60)
    await settle(lock.acquire())
    waiter = asyncio.ensure_future(world.beside(partial(lock.acquire, timeout=20)))
    await world.until_waiters(lock, 1)
    remove(world.client, lock)
    removed_at = time.monotonic()
    lease = await waiter
    assert time.monotonic() - removed_at < CHECK_HEAD_S + 1
    await settle(lease.release())


@few
@pytest.mark.slow
async def test_a_queue_that_is_gone(world: World) -> None:
    """If the queue was deleted when the holder releases, the waiter has the lock as soon."""
    lock = world.connect().lock("x", ttl=60)
    lease = await settle(lock.acquire())
    waiter = asyncio.ensure_future(world.beside(partial(lock.acquire, timeout=20)))
    await world.until_waiters(lock, 1)
    _delete_the_queue(world.client, lock)
    await settle(lease.release())
    removed_at = time.monotonic()
    following = await waiter
    assert time.monotonic() - removed_at < CHECK_HEAD_S + 1
    await settle(following.release())


def test_a_lock_of_two_names_is_forced_one_by_one() -> None:
    """A job with ``previous_key`` has two locks: each is forced by its name."""
    with lualock.connect("embedded://") as locks:
        both = locks.together(locks.lock("new"), locks.lock("old"))
        lease = both.acquire()
        assert locks.lock("old").force_release()
        with pytest.raises(lualock.LeaseLost):
            lease.release()
        assert not locks.lock("new").locked()
