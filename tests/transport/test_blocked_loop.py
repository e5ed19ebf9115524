"""Leases of an event loop that is blocked, hangs, or has ended."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import redis.asyncio
from redis.asyncio.connection import UnixDomainSocketConnection

import lualock
from lualock import _protocol as protocol
from lualock import aio
from lualock._core.lock_options import LockOptions
from lualock._core.renewal import LeaseRenewer
from lualock._protocol import ServerClock
from lualock._transport.asyncio.renewer import HUNG_TTLS
from tests.support.faults import Fault, FaultProxy
from tests.support.interleaving import interleaved
from tests.support.servers import Server
from tests.support.tiers import full
from tests.support.waiting import wait_until

TTL_S = 0.4


@pytest.fixture
def beside() -> Iterator[ThreadPoolExecutor]:
    """Return threads that run while the loop is blocked."""
    with ThreadPoolExecutor() as pool:
        yield pool


def _watching() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "lualock-renewer"]


def _sleeps(renewer: Any) -> bool:
    left_s: float = renewer._wakes_at - renewer._clock()
    return 1 < left_s < math.inf


async def _until(condition: Any) -> None:
    give_up = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < give_up
        await asyncio.sleep(0.002)


# Blocked for a while.


async def test_a_loop_that_is_blocked_for_two_ttls(
    one_server: Server, locks: lualock.Locks, beside: ThreadPoolExecutor
) -> None:
    """A lease survives a blocked loop, in the client and at the server."""
    async with aio.connect(one_server.url, ttl=1) as mine, mine.lock("x") as lease:
        other = beside.submit(locks.lock("x").acquire, timeout=1.9)
        time.sleep(2)  # noqa: ASYNC251 - the loop is blocked
        assert lease.held
        with pytest.raises(lualock.NotAcquired):
            other.result(5)
        assert (await mine.lock("x").inspect()).fence == lease.fence
        deadline = lease._state.deadline
        await _until(lambda: lease._state.deadline > deadline)
    assert not locks.lock("x").locked()


@pytest.mark.full
async def test_a_loop_that_runs_again_just_before_the_end(
    one_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """A loop that runs again just before the last renewal ends keeps its lease."""
    losses: list[Any] = []
    async with aio.connect(one_server.url) as locks:
        lease = await locks.lock("x", ttl=1, renew=True, on_lost=losses.append).acquire()
        with caplog.at_level(logging.WARNING, logger="lualock.renewal"):
            wait_until(lambda: "the event loop has not run" in caplog.text, wait_s=10)
        assert lease.held
        deadline = lease._state.deadline
        await _until(lambda: lease._state.deadline > deadline + 0.5)
        assert losses == []
        await lease.release()


# Blocked for too long.


@pytest.mark.parametrize("max_hold", [None, *full(2 * TTL_S)], ids=["hangs", "max_hold"])
async def test_a_loop_that_hangs(
    one_server: Server,
    locks: lualock.Locks,
    beside: ThreadPoolExecutor,
    caplog: pytest.LogCaptureFixture,
    max_hold: float | None,
) -> None:
    """A loop that hangs loses its leases after some ttls, or ``max_hold``, and gets one notice when
    it runs again."""
    losses: list[Any] = []
    begun = time.monotonic()
    mine = aio.connect(one_server.url)
    lock = mine.lock(
        *("x", TTL_S), renew=True, max_hold=max_hold, on_lost=losses.append, cancel_on_lost=True
    )
    held = []
    with pytest.raises(lualock.LeaseLost):  # noqa: PT012 - its body is what is tested
        async with lock as lease:
            waiting = asyncio.create_task(lease.wait_lost())
            await asyncio.sleep(0)
            # The loop is blocked until another holder has the lock.
            other = beside.submit(locks.lock("x", 60).acquire, timeout=20).result(20)
            held.append(time.monotonic() - begun)
            assert lease.lost
            assert other.fence > lease.fence
            assert losses == []
            await asyncio.sleep(5)
    bound_s = HUNG_TTLS * TTL_S if max_hold is None else max_hold
    assert bound_s - TTL_S / 2 < held[0] < bound_s + 1
    assert await waiting
    await _until(lambda: losses)
    late = await mine.lock("y", 0.1, on_lost=losses.append).acquire()
    await _until(lambda: late in losses)  # by then a second report would have come
    assert losses == [lease, late]
    assert caplog.text.count("the event loop has not run") == (max_hold is None)
    other.release()
    await mine.aclose()


async def test_a_lease_that_is_released_before_its_loss_is_reported(one_server: Server) -> None:
    """A lease that is released before its loss was reported causes no callback: ``release()``
    raises."""
    losses: list[Any] = []
    async with aio.connect(one_server.url) as locks:
        lease = await locks.lock("x", TTL_S, on_lost=losses.append).acquire()
        with one_server.client() as client:
            wait_until(lambda: lease.lost and not client.exists("lualock:{x}"))
        time.sleep(TTL_S / 4)  # noqa: ASYNC251 - the loop is blocked while the thread finds the loss
        with pytest.raises(lualock.LeaseLost):
            await lease.release()
        other = await locks.lock("y", 0.1, on_lost=losses.append).acquire()
        await _until(lambda: losses)
        assert losses == [other]


async def test_a_lease_that_another_loop_extends_before_its_loss_is_reported(
    one_server: Server, beside: ThreadPoolExecutor
) -> None:
    """A lease that another loop extends before its loss was reported causes no callback; its next
    loss does."""
    losses: list[Any] = []
    async with aio.connect(one_server.url) as locks:
        lease = await locks.lock("x", TTL_S, on_lost=losses.append).acquire()
        with one_server.client() as client:
            client.pexpire("lualock:{x}", 60_000)  # as if the server's clock were slower
        wait_until(lambda: lease.lost)
        time.sleep(TTL_S / 4)  # noqa: ASYNC251 - the loop is blocked while the thread finds the loss
        beside.submit(asyncio.run, lease.extend(1)).result(5)
        assert lease.held
        other = await locks.lock("y", 0.1, on_lost=losses.append).acquire()
        await _until(lambda: losses)
        assert losses == [other]
        await _until(lambda: len(losses) == 2)
        assert losses == [other, lease]


async def test_a_loss_that_is_found_while_all_is_closed(one_server: Server) -> None:
    """A loss that is found during ``aclose()`` is reported after it, unless the lease was
    released."""
    losses: list[Any] = []
    async with aio.connect(one_server.url) as locks:
        renewer = locks._renewers.current()
        leases = [
            await locks.lock(name, TTL_S, on_lost=losses.append).acquire()
            for name in ("x", "y", "z")
        ]
        with one_server.client() as client:
            wait_until(lambda: leases[2].lost and not client.exists("lualock:{x}"))
        time.sleep(TTL_S / 4)  # noqa: ASYNC251 - the loop is blocked while the thread finds the loss
        renewer.close()
        with pytest.raises(lualock.LeaseLost):
            await leases[0].release()
        assert losses == []
        renewer.resume()
        await _until(lambda: len(losses) == 2)
        late = await locks.lock("late", 0.1, on_lost=losses.append).acquire()
        await _until(lambda: late in losses)
        assert losses == [*leases[1:], late]


# Other loops.


@pytest.mark.full
def test_a_blocked_loop_costs_other_loops_nothing(
    one_server: Server, beside: ThreadPoolExecutor
) -> None:
    """A blocked loop that loses its lease does not disturb the leases of other loops."""
    locks = aio.connect(one_server.url)
    lost, entered = threading.Event(), threading.Barrier(5)

    async def blocked() -> bool:
        lease = await locks.lock("blocked", TTL_S, renew=True).acquire()
        entered.wait(5)
        wait_until(lambda: lease.lost, wait_s=10)
        lost.set()
        return lease.held

    async def runs(number: int) -> bool:
        leases = [await locks.lock(f"l{number}.{n}", TTL_S, renew=True).acquire() for n in range(5)]
        entered.wait(5)
        while not lost.is_set():
            assert all(lease.held for lease in leases)
            await asyncio.sleep(0.01)
        held = all(lease.held for lease in leases)
        for lease in leases:
            await lease.release()
        return held

    loops = [blocked(), *map(runs, range(4))]
    assert list(beside.map(asyncio.run, loops)) == [False, True, True, True, True]
    wait_until(lambda: not _watching())


@pytest.mark.full
@pytest.mark.parametrize("closed", [True, False], ids=["closed", "stopped"])
def test_a_loop_that_ended_without_notice(
    one_server: Server, caplog: pytest.LogCaptureFixture, closed: bool
) -> None:
    """The leases of a closed loop are not renewed; a loop that stops running counts as hanging, and
    gets its notice if it runs again."""
    locks = aio.connect(one_server.url)
    losses: list[Any] = []
    loop = asyncio.new_event_loop()
    lock = locks.lock("x", TTL_S, renew=True, on_lost=losses.append)
    lease = loop.run_until_complete(lock.acquire())
    loop.run_until_complete(locks.aclose())  # the lease is watched as before
    begun = time.monotonic()
    with one_server.client() as client:
        if closed:
            loop.close()
        wait_until(lambda: not client.exists(lock.key), wait_s=10)
    took_s = time.monotonic() - begun
    assert lease.lost
    if closed:
        assert took_s < 2 * TTL_S
        assert caplog.text == ""  # nothing was tried
    else:
        assert took_s > (HUNG_TTLS - 1) * TTL_S
        assert losses == []
        loop.run_until_complete(_until(lambda: losses))
        loop.run_until_complete(locks.aclose())
        loop.close()
        assert losses == [lease]
    wait_until(lambda: not _watching())


@pytest.mark.full
def test_the_threads_of_loops_that_were_just_closed(one_server: Server) -> None:
    """The renewal threads of closed loops end when another loop begins, before their leases are
    due."""
    locks = aio.connect(one_server.url)
    leases, loops = [], []
    for number in range(3):
        loop = asyncio.new_event_loop()
        loops.append(loop)  # a loop that is collected earlier wakes no thread before it is due
        leases.append(loop.run_until_complete(locks.lock(f"l{number}").acquire()))
        wait_until(lambda: len(_watching()) == 1)
        loop.run_until_complete(locks.aclose())  # the lease is watched as before
        wait_until(partial(_sleeps, leases[-1]._renewer))
        loop.close()
    asyncio.run(locks.lock("last").acquire())
    wait_until(lambda: not _watching())


# Clients whose connections exist for asyncio only.


class _Own(UnixDomainSocketConnection):
    """A class of the program."""


class _AsyncOnly(redis.CredentialProvider):
    async def get_credentials_async(self) -> tuple[str, str]:
        return "default", "any"  # a server without passwords accepts any


def for_asyncio_only(server: Server, what: str = "class") -> redis.asyncio.Redis:
    """Return a client whose connections a thread cannot open."""
    if what == "credentials":
        return redis.asyncio.Redis(unix_socket_path=server.socket, credential_provider=_AsyncOnly())
    pool = redis.asyncio.ConnectionPool(connection_class=_Own, path=server.socket)
    return redis.asyncio.Redis(connection_pool=pool)


@pytest.mark.full
@pytest.mark.parametrize("what", ["class", "credentials"])
async def test_a_client_for_asyncio_only(
    one_server: Server, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    """With a client for asyncio only, the loop renews: leases are lost if it is blocked for longer
    than a ttl."""
    losses: list[Any] = []
    ttl_s = 1.5
    async with aio.Locks(for_asyncio_only(one_server, what)) as locks:
        lease = await locks.lock("x", ttl_s, renew=True, on_lost=losses.append).acquire()
        deadline = lease._state.deadline
        await _until(lambda: lease._state.deadline > deadline)
        assert lease.held
        time.sleep(ttl_s * 1.5)  # noqa: ASYNC251 - the loop is blocked
        assert lease.lost
        await _until(lambda: losses)
        assert losses == [lease]
    assert "the event loop is blocked, and in a thread" in caplog.text
    wait_until(lambda: not _watching())


@pytest.mark.full
@pytest.mark.parametrize("what", ["url", "class"])
@pytest.mark.parametrize("how", ["aclose", "end of the loop"])
def test_renewal_leaves_nothing_open(one_server: Server, what: str, how: str) -> None:
    """A close, or the end of the loop during a renewal, leaves no connection, thread or warning."""

    async def main() -> None:
        lease = await locks.lock("x", 1, renew=True).acquire()
        deadline = lease._state.deadline
        if what == "url":  # while the loop is blocked, for the thread to have a connection
            wait_until(lambda: lease._state.deadline > deadline)
        else:
            await _until(lambda: lease._state.deadline > deadline)
        if how == "aclose":
            await lease.release()
            await locks.aclose()
            assert len(connected()) <= before
            await asyncio.sleep(0.1)
            assert len(connected()) <= before
        kept.append(lease)

    def connected() -> list[Any]:
        found: list[Any] = client.client_list()
        return found

    kept: list[Any] = []
    with one_server.client() as client:
        before = len(connected())
        for _ in range(3):
            locks: Any = (
                aio.connect(one_server.url)
                if what == "url"
                else aio.Locks(for_asyncio_only(one_server))
            )
            asyncio.run(main())
        wait_until(lambda: len(connected()) <= before)
        wait_until(lambda: not _watching())
        wait_until(lambda: (client.get("lualock:{x}") or b"R")[:1] == b"R")


# A lease that its holder and the thread change at the same time.


@pytest.mark.full
async def test_a_renewal_that_comes_after_the_release_of_a_loop_that_was_blocked(
    one_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """A renewal that arrives after the release finds the lock free, and reports no loss."""
    losses: list[Any] = []
    with FaultProxy(one_server.socket) as proxy:
        async with aio.connect(proxy.url) as locks:
            lease = await locks.lock("x", ttl=4, renew=True, on_lost=losses.append).acquire()
            await lease.extend(4)  # now the server has the script
            proxy.inject(Fault("delay request", seconds=0.15), "extend")
            wait_until(lambda: proxy.met)  # by the thread's own connection: the loop is blocked
            await lease.release()
            (renewal,) = proxy.met
            assert not renewal.answered.is_set()
            await _until(renewal.answered.is_set)
            assert renewal.reply != b"extended"
            other = await locks.lock("y", 0.1, on_lost=losses.append).acquire()
            await _until(lambda: losses)
            assert losses == [other]
    assert not lease.lost
    assert "'x' is lost" not in caplog.text


async def test_a_sooner_end_while_the_thread_renews(one_server: Server) -> None:
    """A lease that is shortened while the thread renews it ends at the sooner end, in the client as
    at the server."""
    with FaultProxy(one_server.socket) as proxy:
        async with aio.connect(proxy.url) as locks:
            lease = await locks.lock("x", ttl=4, renew=True).acquire()
            await lease.extend(4)  # now the server has the script
            proxy.inject(Fault("delay reply", seconds=0.15), "extend")
            wait_until(lambda: proxy.met)
            await lease.extend(0.3)
            assert lease.remaining() <= 0.3
            (renewal,) = proxy.met
            with one_server.client() as client:
                while not renewal.answered.is_set():
                    assert lease.remaining() * 1000 <= client.pttl("lualock:{x}") + 1
                    await asyncio.sleep(0.002)
            await lease.release()


async def test_a_sooner_end_while_the_answer_to_a_renewal_is_read(one_server: Server) -> None:
    """A sooner end counts at whatever point the answer to a renewal is read."""
    async with aio.connect(one_server.url) as locks:
        lock = locks.lock("x", ttl=60)
        for at in itertools.count(1):
            lease = await lock.acquire()
            revision = lease._state.revision

            def shorten(lease: aio.Lease = lease) -> None:
                next(lease._extend(1000))  # up to sending it

            def read(lease: aio.Lease = lease, revision: int = revision) -> None:
                lease._state.extended(lease._clock() + 60, revision)

            reached = interleaved(at, "extended", read, shorten, patience_s=0.02)
            if reached:
                assert 0 < lease.remaining() <= 1
            await lease.release()
            if not reached:
                break
        assert at > 10


async def test_a_failing_release_while_the_answer_to_a_renewal_is_read(one_server: Server) -> None:
    """A failing release leaves nothing held at whatever point the answer to a renewal is read."""
    async with aio.connect(one_server.url) as locks:
        lock = locks.lock("x", ttl=60)
        for at in itertools.count(1):
            lease = await lock.acquire()
            revision = lease._state.revision

            def fail(lease: aio.Lease = lease) -> None:
                steps: Any = lease._release()
                next(steps)
                steps.throw(lualock.LockUnavailable("the test says so"))

            def read(lease: aio.Lease = lease, revision: int = revision) -> None:
                lease._state.extended(lease._clock() + 60, revision)

            reached = interleaved(at, "extended", read, fail, patience_s=0.02)
            if reached:
                assert not lease.held
            with contextlib.suppress(lualock.LeaseLost):
                await lease.release()
            if not reached:
                break
        assert at > 10


class _Unreachable:
    """A driver whose every request fails."""

    def run(self, steps: Any) -> None:
        next(steps)
        steps.throw(lualock.LockUnavailable("the test says so"))


@pytest.mark.parametrize("how", ["release", "the end of a block"])
def test_a_failing_release_while_the_renewer_reads_an_answer(
    locks: lualock.Locks, how: str
) -> None:
    """With the API for threads, a failing release leaves nothing held either, whichever way the
    lease is released."""
    lock = locks.lock("x", ttl=60)
    for at in itertools.count(1):
        lease = lock.acquire()
        driver, revision = lease._driver, lease._state.revision
        lease._driver = _Unreachable()  # type: ignore[assignment]

        def fail(lease: lualock.Lease = lease) -> None:
            with contextlib.suppress(lualock.LockUnavailable):
                lease.release() if how == "release" else lease._leave(None)

        def read(lease: lualock.Lease = lease, revision: int = revision) -> None:
            lease._state.extended(lease._clock() + 60, revision)

        reached = interleaved(at, "extended", read, fail, patience_s=0.02)
        if reached:
            assert not lease.held
        driver.run(protocol.undo(lease._request))
        if not reached:
            break
    assert at > 10


async def test_a_sooner_end_while_the_answer_to_a_claim_is_read(one_server: Server) -> None:
    """A sooner end counts at whatever point the answer to a claim is read, even by both threads."""
    async with aio.connect(one_server.url) as locks:
        lock = locks.lock("x", ttl=60)
        for at in itertools.count(1):
            lease = await lock.acquire()
            state = lease._state
            state.claim, state.claimed_deadline = _Claimed(), state.deadline

            def shorten(lease: aio.Lease = lease) -> None:
                lease._read_claim()
                next(lease._extend(1000))

            reached = interleaved(at, "_read_claim", lease._read_claim, shorten, patience_s=0.02)
            if reached:
                assert lease.remaining() <= 1
            await lease.release()
            if not reached:
                break
        assert at > 10


class _Claimed:
    def poll(self) -> bytes:
        return b"claimed"


def test_a_sooner_end_while_the_thread_plans_its_next_check(locks: lualock.Locks) -> None:
    """A sooner end counts at whatever point the thread plans its next check."""
    renewer = _IdleRenewer(locks._driver.server_clock)
    with locks.lock("x", ttl=60) as lease:
        for at in itertools.count(1):
            watched = lualock.Lease(
                lease._request,
                replace(lease._state),
                locks._driver,
                renewer,
                LockOptions(renew=True),
            )
            renewer.next_check_at()

            def shorten(watched: lualock.Lease = watched) -> None:
                watched._state.deadline = watched._clock() + 1
                watched._end_changed()

            def plan(watched: lualock.Lease = watched) -> None:
                renewer._check_again(watched, renewer._first_check_at(watched))

            reached = interleaved(at, "_check_again", plan, shorten)
            if reached:
                assert renewer.next_check_at() < watched._clock() + 1
            renewer.drop(watched)
            if not reached:
                break
        assert at > 10


class _IdleRenewer(LeaseRenewer):
    """A renewer whose time never comes."""

    def __init__(self, server: ServerClock) -> None:
        self._start_empty(server)

    def _wake_at(self, check_at: float) -> None:
        pass


async def test_the_thread_wakes_wait_lost(
    one_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """The thread wakes ``wait_lost()`` in the thread-safe way that asyncio checks in debug mode."""
    asyncio.get_running_loop().set_debug(True)
    async with aio.connect(one_server.url) as locks:
        lease = await locks.lock("x", TTL_S, renew=True).acquire()
        waiting = asyncio.create_task(lease.wait_lost())
        with one_server.client() as client:
            client.delete("lualock:{x}")
        assert await asyncio.wait_for(waiting, 5)
    assert "watching leases failed" not in caplog.text
