"""Connections that are closed, or break, while other callers use or open them."""

from __future__ import annotations

import asyncio
import gc
import itertools
import select
import signal
import threading
import warnings
import weakref
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import pytest

import lualock
from lualock import aio
from lualock._transport.threads.connection import Connection
from tests.support.interleaving import interleaved
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.waiting import wait_until
from tests.support.world import World, settle


def test_two_threads_that_close(locks: lualock.Locks) -> None:
    """Each connection is closed by one thread, at whatever point two threads that close meet."""
    driver = locks._driver
    for at in itertools.count(1):
        lines = [driver.connect(None) for _ in range(2)]
        driver._idle.extend(lines)
        reached = interleaved(at, "close_idle", locks.close, locks.close)
        assert not driver._idle
        assert all(line._connection._sock is None for line in lines)
        if not reached:
            break
    assert at > 10


def test_a_signal_handler_that_raises_while_connections_are_closed(
    monkeypatch: pytest.MonkeyPatch, locks: lualock.Locks
) -> None:
    """A signal handler's error during ``close()`` reaches the program."""

    def handler(*_: object) -> None:
        raise TimeoutError("the program's own")

    assert not locks.lock("x").locked()
    (line,) = locks._driver._idle
    monkeypatch.setattr(Connection, "collect", lambda _: signal.raise_signal(signal.SIGUSR1))
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with pytest.raises(TimeoutError, match="the program's own"):
            locks.close()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert line._connection._sock is None


async def _with_a_claim_unread(api: World, proxy: Proxy, **options: Any) -> tuple[Any, Any]:
    """Return ``Locks`` and a waited-for lease: the reply to its claim has come and was not read."""
    locks = api.connect(proxy.url)
    first = await settle(api.connect().lock("x", ttl=60).acquire())
    if not api.asynchronous:  # two connections: one breaks, the other has the reply
        locks._driver._idle.extend(locks._driver.connect(None) for _ in range(2))
    waiter = asyncio.ensure_future(
        api.beside(partial(locks.lock("x", ttl=60, **options).acquire, timeout=10))
    )
    await api.until_waiters(locks.lock("x"), 1)
    await settle(first.release())
    lease = await waiter
    assert lease._state.claim is not None
    if api.asynchronous:
        (connections,) = locks._driver._loops.values()
        await api.until(lambda: not connections.connection.busy)
    else:
        line = lease._state.claim.connection
        readable, _, _ = select.select([line.socket], [], [], 5)
        assert readable
        line_last = locks._driver._idle.pop()
        assert line_last is line
        locks._driver._idle.appendleft(line)  # the next call uses another
    return locks, lease


async def test_closing_keeps_the_reply_to_a_claim(api: World, proxy: Proxy) -> None:
    """A lease whose claim was answered lasts its whole ttl after its connection is closed."""
    losses: list[Any] = []
    locks, lease = await _with_a_claim_unread(api, proxy, on_lost=losses.append)
    await settle(locks.aclose() if api.asynchronous else locks.close())
    assert lease.remaining() > 50
    await settle(lease.release())
    assert losses == []


async def test_a_broken_connection_keeps_the_reply_to_a_claim_on_another(
    one_server: Server, proxy: Proxy
) -> None:
    """When one connection of a thread breaks and the others are closed, received replies are
    kept."""
    with one_server.client() as client:
        api = World(one_server, asynchronous=False, resp=3, client=client)
        locks, lease = await _with_a_claim_unread(api, proxy)
        proxy.lose_reply = 1
        assert not locks.lock("y").locked()
        assert proxy.lose_reply == 0
        assert lease.remaining() > 50
        lease.release()
        api.close()


# asyncio.


@pytest.mark.parametrize("how", ["itself", "in a task"])
async def test_a_coroutine_as_callback_that_closes_all(one_server: Server, how: str) -> None:
    """A coroutine callback may call ``aclose()``: it neither waits for itself nor is cancelled."""
    locks = aio.connect(one_server.url)
    outcome: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def on_lost(_: aio.Lease) -> None:
        try:
            if how == "itself":
                await locks.aclose()
            else:  # as wait_for does, too
                await asyncio.gather(locks.aclose())
            outcome.set_result("closed")
        except asyncio.CancelledError:
            outcome.set_result("cancelled")

    with one_server.client() as client:
        before = _connected(client)
        lease = await locks.lock("x", ttl=0.1, on_lost=on_lost).acquire()
        assert _connected(client) > before
        assert await asyncio.wait_for(outcome, 5) == "closed"
        assert lease.lost
        await asyncio.to_thread(wait_until, lambda: _connected(client) <= before)


def _connected(client: Any) -> set[str]:
    return {each["id"] for each in client.client_list()}


@pytest.mark.parametrize("ended", ["by asyncio.run", "just closed"])
def test_loops_that_ended_are_not_kept(one_server: Server, ended: str) -> None:
    """Long-lived ``Locks`` keep no ended event loop alive, except the last one."""
    locks = aio.connect(one_server.url)
    loops: list[weakref.ref[asyncio.AbstractEventLoop]] = []

    async def use() -> None:
        loops.append(weakref.ref(asyncio.get_running_loop()))
        async with locks.lock("x"):
            pass

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # of asyncio, about a loop just closed
        for _ in range(3):
            if ended == "by asyncio.run":
                asyncio.run(use())
            else:
                loop = asyncio.new_event_loop()
                loop.run_until_complete(use())
                loop.close()
                del loop
        asyncio.run(use())
        gc.collect()
    assert [ref() for ref in loops[:3]] == [None] * 3


@pytest.mark.parametrize("what", [b"HELLO", b"TIME", b"SUBSCRIBE"])
async def test_a_connection_that_is_opened_while_all_are_closed(
    one_server: Server, proxy: Proxy, what: bytes
) -> None:
    """A connection that is opened during ``aclose()`` is closed too; its caller gets another
    one."""
    goes_on = threading.Event()

    def hold(data: bytes) -> bytes:
        if proxy.commands[-1][0] == what:
            goes_on.wait(5)
        return data

    locks = aio.connect(proxy.url)
    async with aio.connect(one_server.url) as theirs:
        held = await theirs.lock("x", ttl=60).acquire()
        with one_server.client() as client:
            before = _connected(client)
            proxy.rewrite = hold
            waiter = asyncio.create_task(locks.lock("x", ttl=60).acquire(timeout=10))
            await asyncio.to_thread(
                wait_until, lambda: any(command[0] == what for command in proxy.commands)
            )
            await locks.aclose()
            goes_on.set()
            await asyncio.to_thread(wait_until, lambda: client.exists("lualock:{x}:waiters"))
            await held.release()
            lease = await asyncio.wait_for(waiter, 5)
            await lease.release()
            await locks.aclose()
            await asyncio.to_thread(wait_until, lambda: _connected(client) <= before)


def test_a_generator_that_ends_with_its_loop_after_the_connection_broke(one_server: Server) -> None:
    """A generator that ends with its loop releases its lock over a new connection, which is
    closed."""
    locks = aio.connect(one_server.url)
    kept: list[Any] = []

    async def numbers() -> AsyncIterator[int]:
        async with locks.lock("x", ttl=60):
            yield 1

    with one_server.client() as client:
        before = _connected(client)

        async def main() -> None:
            kept.append(numbers())
            await anext(kept[0])
            for each in _connected(client) - before:
                client.client_kill_filter(_id=each)
            (connections,) = locks._driver._loops.values()
            while connections.open_now() is not None:  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0.001)

        asyncio.run(main())
        assert client.get("lualock:{x}")[:1] == b"R"
        wait_until(lambda: _connected(client) <= before)
    assert len(locks._driver._loops) == 0
