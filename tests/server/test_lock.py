"""What a lock and a lease do, on every server, over RESP2 and RESP3, in both APIs."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import weakref
from typing import Any

import pytest

import lualock
from lualock import aio
from tests.support.servers import Server
from tests.support.world import World, entered, few, settle

TOMBSTONE_MS = 5000


async def test_acquire_and_release(world: World) -> None:
    """A free lock is acquired at once, is held, and is free after its release."""
    locks = world.connect()
    lock = locks.lock("invoice:42", ttl=30)
    assert not await settle(lock.locked())
    lease = await settle(lock.acquire())
    assert await settle(lock.locked())
    assert lease.held
    assert not lease.lost
    assert 29 < lease.remaining() <= 30
    assert len(lease.token) == 22
    await settle(lease.release())
    assert not lease.held
    assert not lease.lost
    assert lease.remaining() == 0.0
    assert not await settle(lock.locked())


async def test_one_holder_at_a_time(world: World) -> None:
    """A second caller gets no lease, and its error names the holder."""
    locks = world.connect(holder="worker 7")
    lock = locks.lock("x", ttl=20)
    lease = await settle(lock.acquire())
    assert await settle(lock.try_acquire()) is None
    with pytest.raises(lualock.NotAcquired, match="worker 7") as caught:
        await settle(lock.acquire(timeout=0.1))
    assert caught.value.holder == "worker 7"
    assert caught.value.held_s is not None
    assert 0.03 <= caught.value.held_s < 20
    assert caught.value.remaining_s is not None
    assert 0 < caught.value.remaining_s <= 20
    await settle(lease.release())
    assert (await settle(lock.try_acquire())) is not None


async def test_a_waiter_gets_the_lock_after_its_release(world: World) -> None:
    """A waiter acquires the lock when the holder releases it, long before the holder's ttl ends."""
    locks = world.connect()
    lock = locks.lock("x", ttl=60)
    lease = await settle(lock.acquire())
    waiter = asyncio.create_task(world.beside(lambda: lock.acquire(timeout=30)))
    await asyncio.sleep(0)
    await settle(lease.release())
    won = await waiter
    assert won.held
    assert won.fence > lease.fence


async def test_a_waiter_gets_the_lock_when_the_lease_ends(world: World) -> None:
    """A waiter acquires the lock when the ttl of a holder that never releases has ended."""
    locks = world.connect()
    lock = locks.lock("x", ttl=0.05)
    dead = await settle(lock.acquire())
    won = await settle(lock.acquire(timeout=10))
    assert won.held
    assert dead.lost
    assert not dead.held
    with pytest.raises(lualock.LeaseLost):
        dead.check()


async def test_release_after_the_end_changes_nothing(world: World) -> None:
    """The release of an ended lease raises, and leaves the new holder's lease unchanged."""
    locks = world.connect(holder="the new one")
    lock = locks.lock("x", ttl=0.05)
    dead = await settle(lock.acquire())
    await world.until(lambda: not world.client.exists(lock.key))
    with pytest.raises(lualock.LeaseLost, match="the lock is now free") as caught:
        await settle(dead.release())
    assert caught.value.holder is None
    assert dead.lost

    dead = await settle(lock.acquire())
    await world.until(lambda: not world.client.exists(lock.key))
    alive = await settle(locks.lock("x", ttl=30).acquire())
    for attempt in (dead.release, lambda: dead.extend(99)):
        with pytest.raises(lualock.LeaseLost, match="the new one holds the lock now") as caught:
            await settle(attempt())
        assert caught.value.holder == "the new one"
    assert alive.held
    assert world.client.pttl(lock.key) <= 30_000
    await settle(alive.release())


async def test_releasing_twice_is_releasing_once(world: World) -> None:
    """A second release does nothing, even if the lock has another holder by then."""
    lock = world.connect().lock("x", ttl=30)
    lease = await settle(lock.acquire())
    await settle(lease.release())
    other = await settle(lock.acquire())
    await settle(lease.release())
    assert (await settle(lock.inspect())).fence == other.fence
    with pytest.raises(lualock.LeaseLost, match="was released before"):
        await settle(lease.extend(5))


async def test_extend(world: World) -> None:
    """An extended lease lasts for the given time from now on, longer or shorter."""
    lock = world.connect().lock("x", ttl=5)
    lease = await settle(lock.acquire())
    await settle(lease.extend(60))
    assert 59 < lease.remaining() <= 60
    assert 59_000 < world.client.pttl(lock.key) <= 60_000
    await settle(lease.extend(1))
    assert lease.remaining() <= 1
    assert world.client.pttl(lock.key) <= 1000


async def test_fence_grows(world: World) -> None:
    """Each acquisition has a greater fence than the previous one, even after an expiry or a
    flush."""
    lock = world.connect().lock("x", ttl=30)
    fences = []
    for step in range(50):
        lease = await settle(lock.acquire())
        fences.append(lease.fence)
        if step % 10 == 9:
            world.client.flushall()
        else:
            await settle(lease.release())
    assert fences == sorted(set(fences))


async def test_fence_grows_when_the_clock_steps_back(world: World) -> None:
    """A tombstone with a fence of the future makes the next fence greater than that."""
    lock = world.connect().lock("x", ttl=30)
    future = 9_000_000_000_000_000
    world.client.set(lock.key, f"R{future}{'t' * 22}", px=TOMBSTONE_MS)
    lease = await settle(lock.acquire())
    assert lease.fence == future + 1
    await settle(lease.release())
    again = await settle(lock.acquire())
    assert again.fence == future + 2


async def test_one_key_while_held_and_soon_none(world: World) -> None:
    """A held lock is one key; a released one is a tombstone that expires."""
    lock = world.connect().lock("x", ttl=30)
    async with entered(lock):
        assert world.client.keys("*") == [lock.key]
    assert world.client.keys("*") == [lock.key]
    assert 0 < world.client.pttl(lock.key) <= TOMBSTONE_MS
    assert world.client.strlen(lock.key) == 39


async def test_inspect(world: World) -> None:
    """``inspect()`` returns the holder, since when, for how long and the metadata, or that the lock
    is free."""
    lock = world.connect(holder="me").lock("x", ttl=30, metadata="deploy of build 7")
    assert await settle(lock.inspect()) == lualock.LockInfo("x", held=False)
    async with entered(lock) as lease:
        info = await settle(lock.inspect())
    assert (info.name, info.held, info.holder) == ("x", True, "me")
    assert info.metadata == "deploy of build 7"
    assert info.fence == lease.fence
    assert 0 <= info.held_s < 5
    assert 25 < info.remaining_s <= 30
    assert lease.token not in repr(info)
    assert not (await settle(lock.inspect())).held


async def test_the_holder_is_named_by_default(api: World) -> None:
    """The default holder is host, process and thread."""
    import os

    lock = api.connect().lock("x")
    async with entered(lock):
        holder = (await settle(lock.inspect())).holder
    assert f":{os.getpid()}:MainThread" in holder


async def test_the_body_s_error_survives_a_lost_lease(world: World) -> None:
    """A lost lease is attached to the body's error, and does not replace it."""
    lock = world.connect().lock("x", ttl=30)
    with pytest.raises(ZeroDivisionError) as caught:  # noqa: PT012 - a `with` block is the subject
        async with entered(lock):
            world.client.delete(lock.key)
            raise ZeroDivisionError
    assert "ended by force, before it was released" in getattr(caught.value, "__notes__", [""])[0]


async def test_a_lost_lease_is_raised_when_the_body_succeeded(world: World) -> None:
    """A ``with`` block whose lease was lost raises ``LeaseLost`` if its body succeeded."""
    lock = world.connect().lock("x", ttl=30)
    with pytest.raises(lualock.LeaseLost):
        async with entered(lock):
            world.client.delete(lock.key)


async def test_a_lease_is_a_context_manager(api: World) -> None:
    """``with lock.acquire(timeout=5)`` releases at its end, even after an error."""
    lock = api.connect().lock("x")
    with pytest.raises(KeyError):
        async with entered(await settle(lock.acquire(timeout=5))) as lease:
            raise KeyError
    assert not lease.held
    assert not lease.lost
    assert not await settle(lock.locked())


async def test_one_lock_object_in_many_threads_or_tasks(api: World) -> None:
    """A lock object can be shared: each ``with`` block releases its own lease."""
    lock = api.connect().lock("x", ttl=30)
    inside = 0
    most = 0

    async def async_body() -> None:
        nonlocal inside, most
        async with lock:
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1

    def body() -> None:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
            inside -= 1

    runs = [async_body() if api.asynchronous else asyncio.to_thread(body) for _ in range(8)]
    await asyncio.gather(*runs)
    assert most == 1
    assert not await settle(lock.locked())


@pytest.mark.parametrize("end", ["released", "passed on", "expired"])
async def test_a_lease_that_is_over_cannot_be_entered(api: World, end: str) -> None:
    """``with`` on a released, passed on or lost lease raises before its body."""
    lease = await settle(api.connect().lock("x", ttl=0.05 if end == "expired" else 30).acquire())
    match end:
        case "released":
            await settle(lease.release())
        case "passed on":
            lease.handle()
        case _:
            await api.until(lambda: lease.lost)
    with pytest.raises(lualock.LeaseLost, match=end):
        async with entered(lease):
            pytest.fail("the body ran")


async def test_overlapping_blocks_release_their_own_lease(api: World) -> None:
    """A block that outlives its lease does not release the lease of the next block."""
    lock = api.connect().lock("x", ttl=0.05)

    async def next_block() -> Any:
        lease = await settle(lock.__aenter__() if api.asynchronous else lock.__enter__())
        await settle(lease.extend(30))
        return lease

    with pytest.raises(lualock.LeaseLost, match="holds the lock now"):  # noqa: PT012 - as above
        async with entered(lock) as first:
            if api.asynchronous:
                second = await asyncio.create_task(next_block())
            else:
                second = await asyncio.to_thread(lambda: asyncio.run(next_block()))
    assert first.lost
    assert second.held
    assert (await settle(lock.inspect())).fence == second.fence


async def test_a_forgotten_lease_is_lost_before_its_deadline(world: World) -> None:
    """A lease that the server has forgotten is lost at once, before its deadline."""
    lock = world.connect().lock("x", ttl=30)
    for verb in ("release", "extend"):
        lease = await settle(lock.acquire())
        world.client.delete(lock.key)
        assert lease.held
        with pytest.raises(lualock.LeaseLost):
            await settle(lease.release() if verb == "release" else lease.extend(9))
        assert lease.lost
        assert lease.remaining() == 0.0


async def test_a_released_lease_is_not_renewed(api: World) -> None:
    """After its release a lease is not renewed any more."""
    locks = api.connect()
    lease = await settle(locks.lock("x").acquire())
    renewer = locks._renewers.current() if api.asynchronous else locks._renewer
    assert renewer.leases() == [lease]
    await settle(lease.release())
    assert renewer.leases() == []


async def test_different_names_are_different_locks(world: World) -> None:
    """Names that differ in any byte are different locks; text and its UTF-8 bytes are one."""
    locks = world.connect()
    names = ["a", "A", "a ", "{a}", "}a", "a}", "a%7D", "a\x00", "a\n", "ä", b"\xff", "\ud800"]
    leases = [await settle(locks.lock(name).try_acquire()) for name in names]
    assert None not in leases
    assert await settle(locks.lock(b"a").try_acquire()) is None
    assert await settle(locks.lock("ä".encode()).try_acquire()) is None
    assert len({lease.fence for lease in leases}) == len(names)


async def test_different_prefixes_are_different_locks(api: World) -> None:
    """Programs with different prefixes do not see each other's locks."""
    one, two = api.connect(prefix="one"), api.connect(prefix="two")
    assert await settle(one.lock("x").try_acquire()) is not None
    assert await settle(two.lock("x").try_acquire()) is not None
    assert await settle(one.lock("x").try_acquire()) is None


@few
async def test_renewed_by_default(world: World) -> None:
    """A lease without a ttl of its own is renewed for as long as it is held, and no longer."""
    locks = world.connect(ttl=0.3)
    lock = locks.lock("x")
    lease = await settle(lock.acquire())
    first = lease._state.deadline
    await world.until(lambda: lease._state.deadline > first + 0.3)
    assert lease.held
    assert await settle(locks.lock("x").try_acquire()) is None
    await settle(lease.release())
    assert lease.remaining() == 0


async def test_an_explicit_ttl_is_renewed_only_on_request(world: World) -> None:
    """A lease with a ttl of its own is renewed only with ``renew=True``."""
    locks = world.connect()
    ends = await settle(locks.lock("ends", ttl=0.15).acquire())
    stays = await settle(locks.lock("stays", ttl=0.15, renew=True).acquire())
    await world.until(lambda: ends.lost)
    assert stays.held
    await world.until(lambda: not world.client.exists(locks.lock("ends").key))
    assert await settle(locks.lock("stays").locked())
    await settle(stays.release())


@few
async def test_a_dropped_lease_is_not_renewed(world: World) -> None:
    """A lease without references expires at the end of its ttl."""
    locks = world.connect(ttl=0.2)
    await settle(locks.lock("x").acquire())
    assert (await settle(locks.lock("x", ttl=5).acquire(timeout=5))).held


async def test_a_late_renewal_is_logged(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A renewed lease whose key has vanished is lost, and the log shows it."""
    locks = world.connect(ttl=0.3)
    with caplog.at_level(logging.ERROR, logger="lualock.renewal"):
        lease = await settle(locks.lock("x").acquire())
        world.client.flushall()
        await world.until(lambda: lease.lost)
        await world.until(lambda: "is lost" in caplog.text)
    with pytest.raises(lualock.LeaseLost):
        lease.check()


async def test_blocks_without_a_with_statement(api: World) -> None:
    """Exit stacks and methods that are called by name release what they acquired; so does a block
    that begins after a mere access to ``__exit__``."""
    lock = api.connect().lock("x", ttl=30)
    end = "__aexit__" if api.asynchronous else "__exit__"
    begin = end.replace("exit", "enter")
    stack: Any = contextlib.AsyncExitStack() if api.asynchronous else contextlib.ExitStack()
    assert hasattr(lock, end)
    if api.asynchronous:
        async with stack:
            lease = await stack.enter_async_context(lock)
            assert lease.held
    else:
        with stack:
            lease = stack.enter_context(lock)
            assert lease.held
    assert lease.lost is False
    assert not await settle(lock.locked())
    lease = await settle(getattr(lock, begin)())
    assert lease.held
    await settle(getattr(lock, end)(None, None, None))
    assert not lease.held
    assert not await settle(lock.locked())


async def test_a_block_keeps_its_lease_alone(api: World) -> None:
    """A block keeps its lock held even if the lease has no name, and a block that is dropped
    releases it."""
    lock = api.connect().lock("x", ttl=30)
    method = "__aexit__" if api.asynchronous else "__exit__"
    block = getattr(lock, method)
    lease = await settle(getattr(lock, method.replace("exit", "enter"))())
    seen = weakref.ref(lease)
    del lease
    gc.collect()
    assert seen() is not None
    assert await settle(lock.locked())
    del block
    await api.until(lambda: seen() is None)
    await api.until(lambda: (api.client.get(lock.key) or b"R")[:1] == b"R")


def overriding(kind: type, *methods: str) -> Any:
    """Return a subclass with these methods, each of which calls only that of its base class."""

    def calls_super(name: str) -> Any:
        return lambda self, *args: getattr(super(audited, self), name)(*args)

    members = {name: calls_super(name) for name in methods}
    audited = type("Audited", (kind,), {"__slots__": (), **members})
    return audited


@pytest.mark.parametrize("overridden", [(0,), (1,), (0, 1)], ids=["enter", "exit", "both"])
@pytest.mark.parametrize("raises", [False, True], ids=["ends", "raises"])
@pytest.mark.parametrize("of_lease", [False, True], ids=["lock", "lease"])
async def test_a_subclass_that_overrides_a_block(
    api: World, of_lease: bool, raises: bool, overridden: tuple[int, ...]
) -> None:
    """The block of a subclass whose methods call ``super()`` is held, and free after its end."""
    lock = api.connect().lock("x", ttl=30)
    both = ("__aenter__", "__aexit__") if api.asynchronous else ("__enter__", "__exit__")
    thing = await settle(lock.acquire()) if of_lease else lock
    thing.__class__ = overriding(type(thing), *(both[at] for at in overridden))
    with pytest.raises(KeyError) if raises else contextlib.nullcontext():
        async with entered(thing) as lease:
            assert lease.held
            assert await settle(lock.locked())
            if raises:
                raise KeyError
    assert not lease.held
    assert not await settle(lock.locked())
    if not of_lease:
        with pytest.raises(lualock.InvalidArgument, match="not entered"):
            await settle(getattr(thing, both[1])(None, None, None))


async def test_methods_that_are_kept_and_called_again(api: World) -> None:
    """``__enter__`` and ``__exit__`` that are kept and called by name end the right block."""
    lock = api.connect().lock("x", ttl=30)
    end = "__aexit__" if api.asynchronous else "__exit__"
    enter, leave = getattr(lock, end.replace("exit", "enter")), getattr(lock, end)
    for _ in range(2):
        lease = await settle(enter())
        assert lease.held
        await settle(leave(None, None, None))
        assert not lease.held
        assert not await settle(lock.locked())
    with pytest.raises(lualock.InvalidArgument, match="not entered"):
        await settle(leave(None, None, None))


async def test_a_block_that_ends_in_another_thread_releases_no_other_lease(api: World) -> None:
    """A stack that another thread or task closes after the loss of its lease raises, and the new
    holder keeps the lock."""
    lock = api.connect().lock("x", ttl=0.2)
    end = "__aexit__" if api.asynchronous else "__exit__"

    async def in_another(work: Any) -> Any:
        if api.asynchronous:
            return await asyncio.create_task(work())
        return await api.beside(work)

    lost = await in_another(getattr(lock, end.replace("exit", "enter")))
    await api.until(lambda: not lost.held and not api.client.exists(lock.key))
    async with entered(lock) as lease:
        await settle(lease.extend(30))
        with pytest.raises(lualock.LeaseLost):
            await in_another(lambda: getattr(type(lock), end)(lock, None, None, None))
        assert lease.held
        assert await settle(lock.locked())


async def test_a_block_whose_release_was_cancelled_is_over(one_server: Server) -> None:
    """A block whose release was cancelled is not confused with a later block that ends in another
    task."""
    async with aio.connect(one_server.url) as locks:
        lock = locks.lock("x", ttl=30)

        async def cancelled() -> None:
            stack = contextlib.AsyncExitStack()
            await stack.enter_async_context(lock)
            task = asyncio.current_task()
            assert task is not None
            asyncio.get_running_loop().call_soon(task.cancel)
            await stack.aclose()

        first = asyncio.create_task(cancelled())
        await asyncio.wait({first})
        assert first.cancelled()
        stack = contextlib.AsyncExitStack()
        lease = await asyncio.create_task(stack.enter_async_context(lock))
        await stack.aclose()
        assert not lease.held
        assert not await lock.locked()


async def test_the_block_of_a_lease_is_released_too(api: World) -> None:
    """``with lock.acquire():`` has the same protection as soon as its body begins."""
    lock = api.connect().lock("x", ttl=30)
    lease = await settle(lock.acquire())
    end = "__aexit__" if api.asynchronous else "__exit__"
    assert hasattr(lease, end)
    assert lease.held  # an access does not begin the block
    statement = getattr(lease, end)
    await settle(getattr(lease, end.replace("exit", "enter"))())
    assert callable(statement)
    del statement
    await api.until(lambda: not lease.held)
    await api.until(lambda: (api.client.get(lock.key) or b"R")[:1] == b"R")
