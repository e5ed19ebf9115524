"""Silently dead connections, slow servers, and name servers that do not answer."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

import lualock
from lualock._transport.asyncio import subscriber as asyncio_subscriber
from lualock._transport.threads import subscriber
from tests.support.faults import Fault, FaultProxy
from tests.support.servers import Server
from tests.support.tiers import full
from tests.support.world import World, entered, settle


@pytest.fixture
def swallower(one_server: Server) -> Iterator[FaultProxy]:
    """Return a proxy that can swallow the traffic of its present connections; later ones work."""
    with FaultProxy(one_server.socket) as proxy:
        yield proxy


async def _within(seconds: float, call: Any) -> Any:
    began = time.monotonic()
    result = await settle(call())
    took = time.monotonic() - began
    assert took < seconds, f"it took {took:.2f} s"
    return result


def _acquired(proxy: FaultProxy, script: str) -> int:
    return sum(exchange.script == script for exchange in proxy.seen)


VERBS: dict[str, Callable[[Any, Any], Any]] = {
    "acquire": lambda lock, lease: lock.acquire(timeout=2),
    "acquire without a timeout": lambda lock, lease: lock.acquire(),
    "try_acquire": lambda lock, lease: lock.try_acquire(),
    "inspect": lambda lock, lease: lock.inspect(),
    "request_release": lambda lock, lease: lock.request_release(),
    "release": lambda lock, lease: lease.release(),
    "extend": lambda lock, lease: lease.extend(60),
    "release_requested": lambda lock, lease: lease.release_requested(),
}
MAIN_VERBS = ("acquire", "release")


@pytest.mark.parametrize("verb", [*MAIN_VERBS, *full(*sorted(VERBS.keys() - MAIN_VERBS))])
async def test_a_dead_connection_costs_a_fraction(
    api: World, swallower: FaultProxy, verb: str
) -> None:
    """Every verb is sent again on a fresh connection and carried out once, within a second of two,
    or two seconds of the five that a reply may take."""
    locks = api.connect(swallower.url)
    lease = await settle(locks.lock("mine", ttl=30).acquire())
    swallower.fall_silent()
    limit_s = 1.0 if verb == "acquire" else 2.0
    found = await _within(limit_s, lambda: VERBS[verb](locks.lock("free", ttl=30), lease))
    if "acquire" in verb:
        assert found.held
        assert api.client.get(found._request.key)[17:39] == found.token.encode()
        await settle(found.release())
        assert not await settle(locks.lock("free").locked())
    if verb == "release":
        assert not await settle(locks.lock("mine").locked())
    else:
        await settle(lease.release())


@pytest.mark.full
async def test_a_hand_over_and_an_adoption_by_dead_connections(
    api: World, swallower: FaultProxy
) -> None:
    """The verbs that pass a lease on are sent again, and pass it on once."""
    locks, others = api.connect(swallower.url), api.connect()
    lease = await settle(locks.lock("x", ttl=30).acquire())
    waiter = asyncio.ensure_future(api.beside(others.lock("x", ttl=30).acquire))
    await api.until_waiters(locks.lock("x"), 1)
    swallower.fall_silent()
    await _within(2, lease.release)
    theirs = await asyncio.wait_for(waiter, 2)
    handle = theirs.handle()
    swallower.fall_silent()
    adopted = await _within(2, lambda: locks.adopt(handle))
    assert adopted.fence > theirs.fence
    await settle(adopted.release())
    assert not await settle(others.lock("x").locked())


@pytest.mark.full
async def test_renewal_by_dead_connections(api: World, swallower: FaultProxy) -> None:
    """A renewed lease survives that its connections die repeatedly."""
    lease = await settle(api.connect(swallower.url).lock("x", ttl=2, renew=True).acquire())
    for _ in range(3):
        swallower.fall_silent()
        await asyncio.sleep(1)  # long enough for a renewal
        assert lease.held
    assert api.client.exists(lease._request.key)
    await settle(lease.release())


async def granted(
    api: World, swallower: FaultProxy, lock: Any, held: Any, fault: Fault, *, waits_s: float = 0.0
) -> Any:
    """Return the lease that a waiter of ``lock`` gets from a holder, where its claim meets a fault.

    :param waits_s: for how long the waiter waits before.
    """
    waiter = asyncio.ensure_future(api.beside(lock.acquire))
    await api.until_waiters(lock, 1)
    await asyncio.sleep(waits_s)  # the age of its last answer is what counts
    swallower.inject(fault, "claim")
    await settle(held.release())
    return await asyncio.wait_for(waiter, 3)


@pytest.mark.parametrize(
    ("kind", "timeout_s"), [("half-open", 4), ("half-open", 0.15), ("drop request", 4)]
)
@pytest.mark.full
async def test_a_claim_after_a_long_wait_arrives(
    api: World,
    swallower: FaultProxy,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    timeout_s: float,
) -> None:
    """After a long wait the connection may be dead, and may break as soon as it is used: the reply
    to the claim is awaited, so the lease lasts."""
    monkeypatch.setattr(sys.modules["lualock._protocol.wait"], "TRUSTED_S", 0.2)
    others = api.connect()
    held = await settle(others.lock("x", ttl=30).acquire())
    lock = api.connect(f"{swallower.url}?socket_timeout={timeout_s}").lock("x", ttl=30)
    lease = await granted(api, swallower, lock, held, Fault(kind), waits_s=0.4)
    await api.until(lambda: lease.remaining() > 10)
    assert [exchange.script for exchange in swallower.met] == ["claim"]
    await settle(lease.release())


@pytest.mark.parametrize("asynchronous", [True], ids=["asyncio"], indirect=True)
@pytest.mark.parametrize("kind", ["half-open", "drop request"])
async def test_a_claim_whose_connection_dies_is_repeated(
    api: World, swallower: FaultProxy, kind: str
) -> None:
    """In asyncio a claim that is not awaited is sent again if its connection falls silent or
    breaks, so the lease lasts."""
    held = await settle(api.connect().lock("x", ttl=30).acquire())
    lock = api.connect(f"{swallower.url}?socket_timeout=2").lock("x", ttl=30)
    lease = await granted(api, swallower, lock, held, Fault(kind))
    await api.until(lambda: lease.remaining() > 10)
    assert [exchange.script for exchange in swallower.met] == ["claim"]
    await settle(lease.release())


@pytest.mark.parametrize("asynchronous", [True], ids=["asyncio"], indirect=True)
@pytest.mark.parametrize("claims", [1, 2])
async def test_closing_while_a_claim_is_unanswered(
    api: World, swallower: FaultProxy, claims: int
) -> None:
    """If the program closes the connections meanwhile, the reply counts as lost: the claim is not
    repeated any more, and reading the state of the lease raises nothing."""
    held = await settle(api.connect().lock("x", ttl=30).acquire())
    locks = api.connect(f"{swallower.url}?socket_timeout=2")
    lock = locks.lock("x", ttl=30)
    lease = await granted(api, swallower, lock, held, Fault("half-open", times=9))
    await api.until(lambda: len(swallower.met) == claims)
    await locks.aclose()
    assert not locks._driver.background.tasks(asyncio.get_running_loop())
    assert 0 < lease.remaining() < 2.5
    assert lease.held


@pytest.mark.full
async def test_a_lonely_waiter_does_not_trust_an_old_connection(
    api: World, swallower: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new waiter opens a new connection for messages if the old one has long been silent."""
    monkeypatch.setattr(subscriber, "DOUBTED_S", 0.2)
    monkeypatch.setattr(asyncio_subscriber, "DOUBTED_S", 0.2)
    others, lock = api.connect(), api.connect(swallower.url).lock("x", ttl=30)
    for _ in range(2):
        held = await settle(others.lock("x", ttl=30).acquire())
        waiter = asyncio.ensure_future(api.beside(lambda: lock.acquire(timeout=4)))
        await api.until_waiters(lock, 1)
        await settle(held.release())
        lease = await asyncio.wait_for(waiter, 2)
        await settle(lease.release())
        swallower.fall_silent()
        await asyncio.sleep(0.4)  # the silence


@pytest.mark.parametrize("patience", ["a timeout", *full("a shorter timeout", "none")])
async def test_a_waiter_notices_a_dead_connection_for_messages(
    api: World, swallower: FaultProxy, monkeypatch: pytest.MonkeyPatch, patience: str
) -> None:
    """A waiter whose connection for messages dies gets the lock when it is its turn."""
    timeout = {"a timeout": 6.0, "a shorter timeout": 2.0, "none": None}[patience]
    if timeout is None:
        monkeypatch.setattr(subscriber, "DOUBTED_S", 0.5)
    held = await settle(api.connect().lock("x", ttl=30).acquire())
    lock = api.connect(swallower.url).lock("x", ttl=30)
    waiter = asyncio.ensure_future(api.beside(lambda: lock.acquire(timeout=timeout)))
    await api.until_waiters(api.connect().lock("x"), 1)
    await asyncio.sleep(0.3)  # after this time it does not check again before the lease ends
    swallower.fall_silent()
    await settle(held.release())
    lease = await asyncio.wait_for(waiter, 8)  # far less than the lease that it knows of
    assert lease.held
    await settle(lease.release())


@pytest.mark.full
async def test_an_idle_connection_for_messages_is_kept(
    api: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection for messages that is only idle answers a ping and stays in use."""
    monkeypatch.setattr(subscriber, "DOUBTED_S", 0.1)
    held = await settle(api.connect().lock("x", ttl=30).acquire())
    lock = api.connect().lock("x", ttl=30)
    listening = partial(api.client.client_list, _type="pubsub")
    waiters = [asyncio.ensure_future(api.beside(lambda: lock.acquire(timeout=9))) for _ in range(3)]
    await api.until_waiters(api.connect().lock("x"), 3)
    before = [client["id"] for client in listening()]
    await asyncio.sleep(1)  # the silence
    assert [client["id"] for client in listening()] == before
    assert listening()[0]["cmd"] == "ping"
    await settle(held.release())
    for waiter in asyncio.as_completed(waiters):
        await settle((await asyncio.wait_for(waiter, 3)).release())


@pytest.mark.parametrize("met", ["inside a block", "while it is dealt with", "no server"])
async def test_an_error_of_the_program_keeps_its_frames(api: World, met: str) -> None:
    """An error of the program keeps its frames when a dead connection is met after it."""

    def fail() -> None:
        raise ZeroDivisionError

    lock = api.connect().lock("x", ttl=30)
    nowhere = api.connect("redis://127.0.0.1:1").lock("x", ttl=30)

    async def deal_with_it() -> None:
        api.client.client_kill_filter(_type="normal", skipme=True)
        if met == "no server":
            with pytest.raises(lualock.LockUnavailable):
                await settle(nowhere.acquire(timeout=0.2))
        else:
            await settle((await settle(lock.acquire())).release())

    async def work() -> None:
        if met == "inside a block":
            async with entered(lock):
                api.client.client_kill_filter(_type="normal", skipme=True)
                fail()
        await settle((await settle(lock.acquire())).release())  # so that it is connected
        try:
            fail()
        except ZeroDivisionError:
            await deal_with_it()
            raise

    with pytest.raises(ZeroDivisionError) as raised:
        await work()
    assert "fail" in [entry.name for entry in raised.traceback]
    assert not await settle(lock.locked())


@pytest.mark.full
async def test_a_second_connection_that_is_dead_as_well(api: World, one_server: Server) -> None:
    """A third connection is opened while there is time, so that two dead ones do not cost the whole
    timeout."""
    with FaultProxy(one_server.socket) as proxy:
        locks = api.connect(f"{proxy.url}?socket_timeout=1".replace("?protocol", "&protocol"))
        await settle((await settle(locks.lock("x").acquire())).release())
        faults = iter([Fault("half-open"), Fault("half-open")])
        proxy.choose = lambda script: next(faults, None)
        lease = await _within(4, lambda: locks.lock("x", ttl=30).acquire(timeout=8))
        await settle(lease.release())


async def test_a_slow_server_is_not_flooded(api: World, swallower: FaultProxy) -> None:
    """A request is sent again only once, and the first reply counts, on either connection."""
    locks = api.connect(swallower.url)
    await settle(
        (await settle(locks.lock("x").acquire())).release()
    )  # now the server has the scripts
    swallower.seen.clear()
    faults = iter([Fault("delay reply", seconds=0.8), Fault("delay reply", seconds=9)])
    swallower.choose = lambda script: next(faults, None) if script == "acquire" else None
    lease = await _within(1.5, lambda: locks.lock("x", ttl=30).acquire(timeout=2))
    assert _acquired(swallower, "acquire") == 2
    assert api.client.get(lease._request.key)[17:39] == lease.token.encode()
    await settle(lease.release())
    assert not await settle(locks.lock("x").locked())


async def test_a_late_copy_is_cleaned_up(api: World, swallower: FaultProxy) -> None:
    """A first copy that arrives after the release of the second one's lease is cleaned up."""
    locks = api.connect(swallower.url)
    await settle(locks.lock("warm").locked())
    swallower.inject(Fault("orphan"), "acquire")
    lease = await _within(0.9, lambda: locks.lock("x", ttl=30).acquire(timeout=1.2))
    await settle(lease.release())
    api.client.delete(lease._request.key)  # otherwise it counts as a repeated request
    await asyncio.to_thread(swallower.deliver)
    await api.until(lambda: api.client.get(lease._request.key)[:1] not in (b"H", b"W"))


@pytest.mark.full
async def test_errors_of_a_silent_server_show_the_time(api: World, one_server: Server) -> None:
    """A silent server costs no more than the timeout, and the error shows the time."""
    with FaultProxy(one_server.socket) as proxy:
        locks = api.connect(proxy.url)
        await settle(locks.lock("warm").locked())
        proxy.choose = lambda script: Fault("half-open")
        began = time.monotonic()
        with pytest.raises(lualock.LockUnavailable):
            await settle(locks.lock("x").acquire(timeout=1))
        assert 0.9 < time.monotonic() - began < 1.6
        assert _acquired(proxy, "acquire") == 2


@pytest.mark.full
async def test_a_connection_attempt_without_an_answer_delays_no_other_caller(
    api: World, one_server: Server
) -> None:
    """While one caller connects without an answer, another one opens its own connection."""
    with FaultProxy(one_server.socket) as proxy:
        lock = api.connect(proxy.url).lock("x", ttl=30)
        proxy.mute = True
        first = asyncio.ensure_future(api.beside(lambda: lock.acquire(timeout=4)))
        await asyncio.sleep(0.1)  # it connects
        proxy.mute = False
        lease = await _within(2, lambda: lock.acquire(timeout=3))
        await settle(lease.release())
        with contextlib.suppress(lualock.LockError):
            await settle((await first).release())


@pytest.fixture
def hanging_names(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Let the name server not answer while an event is set."""
    hangs, ended = threading.Event(), threading.Event()
    resolve = socket.getaddrinfo

    def slow(*names: Any, **how: Any) -> Any:
        if hangs.is_set():
            ended.wait(20)
            raise socket.gaierror("no answer")
        return resolve(*names, **how)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    yield hangs
    ended.set()


@pytest.mark.full
async def test_a_name_server_that_hangs(
    api: World, one_server: Server, hanging_names: threading.Event
) -> None:
    """``timeout=`` is kept, and a loss is reported in time, while a name look-up hangs."""
    lost = threading.Event()
    with FaultProxy(one_server.socket) as proxy, socket.create_server(("127.0.0.1", 0)) as door:
        port = door.getsockname()[1]
        threading.Thread(target=_let_in, args=(door, proxy), daemon=True).start()
        url = f"redis://localhost:{port}"
        locks = api.connect(url)
        lease = await settle(
            locks.lock("held", ttl=2, renew=True, on_lost=lambda _: lost.set()).acquire()
        )
        hanging_names.set()
        began = time.monotonic()
        with pytest.raises(lualock.LockUnavailable):
            await settle(api.connect(url).lock("x").acquire(timeout=1))
        assert 0.9 < time.monotonic() - began < 1.6
        proxy.fall_silent()  # so that the renewal has to connect, too
        await api.until(lost.is_set, 3.5)
        assert not lease.held


def _let_in(door: socket.socket, proxy: FaultProxy) -> None:
    """Forward TCP connections to the proxy."""
    while True:
        try:
            client, _ = door.accept()
        except OSError:
            return
        server = socket.socket(socket.AF_UNIX)
        server.connect(proxy.path)
        for one, other in ((client, server), (server, client)):
            threading.Thread(target=_pump, args=(one, other), daemon=True).start()


def _pump(one: socket.socket, other: socket.socket) -> None:
    try:
        while data := one.recv(65536):
            other.sendall(data)
        other.shutdown(socket.SHUT_WR)
    except OSError:
        return


HANGING = """
    import asyncio, socket, sys, time
    def hangs(*names, **how):
        time.sleep(60)
    socket.getaddrinfo = hangs
    import lualock
    from lualock import aio
    async def main():
        async with aio.connect("redis://localhost:1") as locks:
            await locks.lock("x").acquire(timeout=0.5)
    try:
        if sys.argv[1] == "asyncio":
            asyncio.run(main())
        else:
            lualock.connect("redis://localhost:1").lock("x").acquire(timeout=0.5)
    except lualock.LockUnavailable:
        pass
"""


@pytest.mark.parametrize("api", ["threads", "asyncio"])
def test_a_program_ends_while_a_name_is_looked_up(api: str) -> None:
    """A hanging look-up does not delay the end of the program."""
    subprocess.run([sys.executable, "-c", textwrap.dedent(HANGING), api], timeout=20, check=True)
