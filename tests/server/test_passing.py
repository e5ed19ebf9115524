"""Leases that are passed on from one process to another."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
from typing import Any

import pytest

import lualock
from lualock._protocol import AcquireRequest, CleanupLater, RunScript, ServerClock, adopt
from lualock.scripts import SCRIPTS
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.steps import sent
from tests.support.world import World, entered, settle

pytestmark = pytest.mark.slow


async def test_adopt(world: World) -> None:
    """The adopting process has a new token and a greater fence; the first process has no lease."""
    locks = world.connect()
    first = await settle(locks.lock("x", ttl=30, metadata="why").acquire())
    handle = first.handle()
    assert first.handle() == handle
    assert not first.held
    assert not first.lost
    assert first.remaining() == 0
    other = world.connect(holder="the other")
    second = await settle(other.adopt(handle, metadata="because"))
    assert second.held
    assert second.name == "x"
    assert second.fence > first.fence
    assert second.token != first.token
    assert 29 < second.remaining() <= 30
    info = await settle(locks.lock("x").inspect())
    assert (info.holder, info.metadata, info.fence) == ("the other", "because", second.fence)
    await settle(first.release())  # it has no lease to release
    assert second.held
    assert (await settle(locks.lock("x").inspect())).fence == second.fence
    with pytest.raises(lualock.LeaseLost, match="released or passed on before") as caught:
        await settle(other.adopt(handle))
    assert caught.value.given_up
    await settle(second.release())
    assert not await settle(locks.lock("x").locked())


async def test_a_lease_that_was_passed_on_is_over(api: World) -> None:
    """After ``handle()`` the first lease can be neither checked nor extended nor entered."""
    lease = await settle(api.connect().lock("x", ttl=30).acquire())
    lease.handle()
    for use in (lease.check, lambda: lease.extend(5)):
        with pytest.raises(lualock.LeaseLost, match=r"passed on: handle\(\) was called") as caught:
            await settle(use())
        assert caught.value.given_up
    assert "passed on" in repr(lease)


async def test_a_with_block_does_not_release_a_lease_in_trust(api: World) -> None:
    """The end of a ``with`` block does not release a lease that was passed on."""
    locks = api.connect()
    async with entered(locks.lock("x", ttl=30)) as lease:
        handle = lease.handle()
    assert await settle(locks.lock("x").locked())
    adopted = await settle(locks.adopt(handle))
    await settle(adopted.release())


async def test_releasing_a_lease_in_trust(api: World) -> None:
    """``release()`` frees a lease in trust, unless it has been adopted."""
    locks = api.connect()
    lease = await settle(locks.lock("x", ttl=30).acquire())
    handle = lease.handle()
    await settle(lease.release())
    assert not await settle(locks.lock("x").locked())
    with pytest.raises(lualock.LeaseLost):
        await settle(locks.adopt(handle))


@pytest.mark.full
async def test_renewed_in_trust(api: World) -> None:
    """The first process renews a lease until it is adopted; then the adopting one does."""
    locks = api.connect()
    lease = await settle(locks.lock("x", ttl=0.4, renew=True).acquire())
    handle = lease.handle()
    await asyncio.sleep(1)  # longer than its ttl
    second = await settle(api.connect().adopt(handle))
    await asyncio.sleep(1)  # longer than its ttl
    assert second.held
    renewer = locks._renewers.current() if api.asynchronous else locks._renewer
    assert renewer.leases() == []  # the first process noticed, and reports no loss
    assert not lease.lost
    third = await settle(api.connect().adopt(second.handle(), renew=False))
    await api.until(lambda: third.lost)


async def test_a_lease_that_ended_cannot_be_passed_on_or_adopted(api: World) -> None:
    """A lease that has ended can be neither passed on nor adopted."""
    locks = api.connect()
    lease = await settle(locks.lock("x", ttl=0.2).acquire())
    handle = lease.handle()
    await api.until(lambda: not api.client.exists("lualock:{x}"))
    with pytest.raises(lualock.LeaseLost, match="the lock is now free"):
        await settle(locks.adopt(handle))
    other = await settle(locks.lock("x", ttl=30).acquire())
    with pytest.raises(lualock.LeaseLost, match="holds the lock now"):
        await settle(locks.adopt(handle))
    await settle(other.release())
    ended = await settle(locks.lock("y", ttl=0.05).acquire())
    await api.until(lambda: ended.lost)
    with pytest.raises(lualock.LeaseLost):
        ended.handle()


async def test_waiters_stay_in_line(world: World) -> None:
    """Waiters keep their places during an adoption, and get the lock from the new holder."""
    locks = world.connect()
    lease = await settle(locks.lock("x", ttl=30).acquire())
    waiter = asyncio.ensure_future(world.beside(locks.lock("x", ttl=30).acquire))
    await world.until_waiters(locks.lock("x"), 1)
    adopted = await settle(world.connect().adopt(lease.handle()))
    assert world.waiters(locks.lock("x")) == 1
    await settle(adopted.release())
    got = await asyncio.wait_for(waiter, 5)
    assert got.fence > adopted.fence
    await settle(got.release())


async def test_a_lost_reply(api: World, proxy: Proxy) -> None:
    """An adoption whose reply is lost is repeated, with the same result."""
    locks = api.connect(proxy.url)
    lease = await settle(locks.lock("x", ttl=30).acquire())
    proxy.lose_reply = 1
    adopted = await settle(locks.adopt(lease.handle()))
    assert (await settle(locks.lock("x").inspect())).fence == adopted.fence
    await settle(adopted.release())


async def test_replies_lost_for_good(api: World, proxy: Proxy) -> None:
    """If the outcome of an adoption stays unknown, no process keeps the lock."""
    locks = api.connect(proxy.url)
    api.client.script_load(SCRIPTS["adopt"].source)
    lease = await settle(locks.lock("x", ttl=30).acquire())
    proxy.lose_reply = 2
    with pytest.raises(lualock.LockUnavailable) as caught:
        await settle(locks.adopt(lease.handle()))
    assert caught.value.outcome_unknown
    await api.until(lambda: api.client.get("lualock:{x}")[:1] == b"R")


@pytest.mark.parametrize(
    ("handle", "message"),
    [
        (5, "must be str, not int"),
        ("", "is not a handle"),
        ("lualock1.x.y", "is not a handle"),
        ("lualock1." + "t" * 22 + ".1000.0.bHVhbG9jazp7eH0", "is damaged"),
        ("lualock1." + "t" * 22 + ".1000.0.b3RoZXI6e3h9", "another prefix"),
        ("lualock1." + "t" * 22 + ".99999999999.0.bHVhbG9jazp7eH0=", "ttl must be"),
        ("lualock1." + "t" * 22 + ".1000.0.bHVhbG9jazp7fX0=", "is damaged"),
    ],
)
async def test_an_invalid_handle(api: World, handle: Any, message: str) -> None:
    """A text that is not a handle is refused without a request, and not repeated in the error."""
    with pytest.raises(lualock.InvalidArgument, match=message) as caught:
        await settle(api.connect().adopt(handle))
    assert "ttttt" not in str(caught.value)


async def test_odd_names(api: World) -> None:
    """A handle works for any name of a lock."""
    locks = api.connect()
    for name in ("a}b%7D{c", b"\x00\xff\n", "\u00e4" * 100, " "):
        lease = await settle(locks.lock(name, ttl=30).acquire())
        adopted = await settle(locks.adopt(lease.handle()))
        assert (await settle(locks.lock(name).inspect())).fence == adopted.fence
        await settle(adopted.release())


def test_another_process(one_server: Server) -> None:
    """A handle is text that can travel to another process in any way."""
    code = """
        import sys, lualock
        lease = lualock.connect(sys.argv[1]).adopt(sys.stdin.read())
        assert lease.held
        lease.release()
        print(lease.fence)
    """
    with lualock.connect(one_server.url) as locks:
        lease = locks.lock("x", ttl=30).acquire()
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), one_server.url],
            input=lease.handle(),
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        )
        assert int(done.stdout) > lease.fence
        assert not locks.lock("x").locked()


def test_an_adoption_with_an_unknown_outcome() -> None:
    """A repeated request that could not be sent leaves the first one's outcome unknown."""
    server = ServerClock(lambda: 0.0, 5.0)
    server.compare(0.0, 0.0, 0)
    request = AcquireRequest("x", b"k", b"q", b"h" * 22, 30_000, b"me", b"0", b"0", crowded=False)
    steps = adopt(request, b"t" * 22, server)
    first = sent(next(steps), server)
    assert isinstance(steps.throw(lualock.LockUnavailable("lost", outcome_unknown=True)), RunScript)
    gone = lualock.LockUnavailable("no connection")
    later = steps.throw(gone)
    assert isinstance(later, CleanupLater)
    assert later.orphan is first
    assert isinstance(steps.send(None), RunScript)
    with pytest.raises(lualock.LockUnavailable) as caught:
        steps.send(b"released")
    assert caught.value.outcome_unknown


def test_a_lock_kept_for_a_retry_may_have_been_taken_over() -> None:
    """After a lost reply, a lock that was kept for a retry may have been taken over by it: its loss
    is not certain, so it is not reported."""
    server = ServerClock(lambda: 0.0, 5.0)
    server.compare(0.0, 0.0, 0)
    request = AcquireRequest("x", b"k", b"q", b"h" * 22, 30_000, b"me", b"0", b"0", crowded=False)
    steps = adopt(request, b"t" * 22, server, "kept", fresh=False)
    sent(next(steps), server)
    assert isinstance(steps.throw(lualock.LockUnavailable("lost", outcome_unknown=True)), RunScript)
    with pytest.raises(lualock.LockUnavailable) as caught:
        steps.send([b"held", b"another"])
    assert caught.value.outcome_unknown
