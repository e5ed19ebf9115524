"""Several locks as one: all or none, one fence, one end; beside callers that take one of them."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

import lualock
from tests.support.proxy import Proxy
from tests.support.world import World, settle


def _pair(world: World, url: str | None = None, **options: Any) -> tuple[Any, Any, Any]:
    """Return locks ``b`` and ``a``, and both as one."""
    locks = world.connect(url)
    second, first = locks.lock("b", **options), locks.lock("a", **options)
    return first, second, locks.together(second, first)


def _held(world: World, lock: Any) -> bool:
    return bool(world.client.getrange(lock.key, 0, 0) in (b"H", b"W"))


async def test_one_lease_on_both(world: World) -> None:
    """Both locks are taken by one script, with one token and one fence, and released together."""
    first, second, both = _pair(world, ttl=30)
    await settle((await settle(first.acquire())).release())
    world.client.config_resetstat()
    lease = await settle(both.acquire())
    assert world.calls("evalsha") + world.calls("eval") <= 2  # the server may not know the source
    assert both.name == "b"
    for lock in (first, second):
        info = await settle(lock.inspect())
        assert info.held
        assert info.fence == lease.fence
        assert 29 < info.remaining_s <= 30
    await settle(lease.release())
    assert not _held(world, first)
    assert not _held(world, second)
    again = await settle(first.acquire())
    assert again.fence > lease.fence
    await settle(again.release())


@pytest.mark.parametrize("held", ["a", "b"])
async def test_all_or_none(api: World, held: str) -> None:
    """If one of them is held, the other one is not taken, and the error names the holder."""
    first, second, both = _pair(api)
    blocking, free = (first, second) if held == "a" else (second, first)
    lease = await settle(blocking.acquire())
    with pytest.raises(lualock.NotAcquired, match=f"could not acquire lock '{held}': held by"):
        await settle(both.acquire(timeout=0))
    assert not api.client.exists(free.key)
    await settle(lease.release())


async def test_a_wait_for_both(api: World) -> None:
    """A caller that waits has one after the other, in the order of their keys, and then both for
    the whole ttl."""
    first, second, both = _pair(api, ttl=30)
    leases = [await settle(lock.acquire()) for lock in (first, second)]
    waiting = asyncio.ensure_future(api.beside(both.acquire))
    await api.until_waiters(first, 1)
    assert api.waiters(second) == 0
    await settle(leases[0].release())
    await api.until_waiters(second, 1)
    assert _held(api, first)
    await settle(leases[1].release())
    lease = await waiting
    assert lease.remaining() > 29
    assert {api.client.get(lock.key)[1:17] for lock in (first, second)} == {b"%016d" % lease.fence}
    await settle(lease.release())


async def test_what_a_waiting_caller_has_does_not_expire(api: World) -> None:
    """A caller with a short ttl that waits for its second lock extends the first one itself."""
    first, _, both = _pair(api, ttl=0.3)
    blocking = await settle(api.connect().lock("b", ttl=30).acquire())
    waiting = asyncio.ensure_future(api.beside(both.acquire))
    await api.until(lambda: _held(api, first))
    until = time.monotonic() + 1
    while time.monotonic() < until:
        assert _held(api, first)
        await asyncio.sleep(0.01)
    await settle(blocking.release())
    lease = await waiting
    assert lease.held
    await settle(lease.release())


async def test_a_wait_that_times_out(api: World) -> None:
    """A caller whose time is over keeps neither lock, and leaves no queue behind."""
    first, second, both = _pair(api)
    blocking = await settle(second.acquire())
    began = time.monotonic()
    with pytest.raises(lualock.NotAcquired, match="could not acquire lock 'b'"):
        await api.beside(lambda: both.acquire(timeout=0.2))
    assert time.monotonic() - began < 2
    assert not _held(api, first)
    assert api.waiters(second) == 0
    await settle(blocking.release())


async def test_a_full_queue(api: World) -> None:
    """A queue that is full ends the wait at once, and the other lock is free."""
    locks = api.connect()
    second, first = locks.lock("b", max_waiters=1), locks.lock("a")
    blocking = await settle(second.acquire())
    waiting = asyncio.ensure_future(api.beside(lambda: second.acquire(timeout=30)))
    await api.until_waiters(second, 1)
    with pytest.raises(lualock.QueueFull):
        await settle(locks.together(second, first).acquire())
    assert not _held(api, first)
    await settle(blocking.release())
    await settle((await waiting).release())


async def test_a_hanging_server(api: World, proxy: Proxy) -> None:
    """A timeout holds also if the server does not answer."""
    _, _, both = _pair(api, proxy.url)
    lease = await settle(both.acquire())
    await settle(lease.release())
    proxy.silent = True
    began = time.monotonic()
    with pytest.raises(lualock.LockUnavailable):
        await api.beside(lambda: both.acquire(timeout=0.3))
    assert time.monotonic() - began < 2


async def test_one_lock_is_lost(api: World) -> None:
    """A lease that lost one of its locks is lost; its release frees the other lock, and says so."""
    first, second, both = _pair(api, ttl=30)
    lease = await settle(both.acquire())
    api.client.delete(first.key)
    with pytest.raises(lualock.LeaseLost, match="'a' expired, or was ended by force"):
        await settle(lease.extend(60))
    assert lease.lost
    with pytest.raises(lualock.LeaseLost):
        await settle(lease.release())
    assert not _held(api, second)


async def test_a_renewed_lease_that_lost_one_lock(api: World) -> None:
    """Renewal finds out that one of the locks is lost, and reports it once."""
    lost: list[Any] = []
    locks = api.connect()
    second, first = (locks.lock(name, ttl=0.3, renew=True, on_lost=lost.append) for name in "ba")
    lease = await settle(locks.together(second, first).acquire())
    api.client.delete(first.key)
    await api.until(lambda: lost)
    assert lost == [lease]
    assert lease.lost
    with pytest.raises(lualock.LeaseLost):
        await settle(lease.release())
    assert not _held(api, second)


async def test_it_hands_both_over(api: World) -> None:
    """A release wakes a waiter of each lock."""
    first, second, both = _pair(api)
    lease = await settle(both.acquire())
    waiting = [asyncio.ensure_future(api.beside(lock.acquire)) for lock in (first, second)]
    for lock in (first, second):
        await api.until_waiters(lock, 1)
    await settle(lease.release())
    for one in waiting:
        await settle((await one).release())


async def test_a_handle_names_one_lock(api: World) -> None:
    """A lease on several locks cannot be passed on."""
    lease = await settle(_pair(api)[2].acquire())
    with pytest.raises(lualock.InvalidArgument, match="it is on several locks"):
        lease.handle()
    await settle(lease.release())


async def test_foreign_values(api: World) -> None:
    """A value that lualock did not write is refused, and no lock is taken."""
    first, second, both = _pair(api)
    api.client.set(second.key, "mine")
    with pytest.raises(lualock.KeyConflict, match=r"\{b\}"):
        await settle(both.acquire())
    assert not _held(api, first)
    assert api.client.get(second.key) == b"mine"


async def test_what_cannot_be_one_lock(api: World) -> None:
    """A lock that is named twice, and locks of two connections, are refused in words."""
    locks = api.connect()
    with pytest.raises(lualock.InvalidArgument, match="a lock is among them twice"):
        locks.together(locks.lock("a"), locks.lock("b"), locks.lock("a"))
    with pytest.raises(lualock.InvalidArgument, match="they are of several Locks objects"):
        locks.together(locks.lock("a"), api.connect().lock("b"))


async def test_only_methods_about_all_locks(api: World) -> None:
    """What is about one name is no method of several locks."""
    both = _pair(api)[2]
    for name in ("inspect", "locked", "request_release", "__enter__", "__aenter__", "__call__"):
        assert not hasattr(both, name)
