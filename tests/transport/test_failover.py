"""Fail-over behind one address: the old primary is now a replica, and keeps its connections.

This is how managed servers and Kubernetes services do it: the name leads to the new primary, and a
connected client learns of the change only from replies of the old one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

import pytest

import lualock
from tests.support.proxy import Proxy
from tests.support.servers import BINARIES, Server
from tests.support.world import World, few, settle

CALLERS = 4


class FailOver:
    """An address, the server that it leads to first, and the next one."""

    def __init__(self, old: Server, new: Server, proxy: Proxy) -> None:
        self.url = proxy.url
        self.old = old.client()
        self._new = new
        self._proxy = proxy

    async def repeat(self, world: World, new: Any) -> None:
        """Fail over once more: the old server, now a replica, follows the next one."""
        new.execute_command("REPLICAOF", "NO", "ONE")
        self._proxy.lead_to(self._new.socket)
        await _follow(world, self.old, new)

    def happen(self, says: str = "READONLY") -> None:
        """Let the address lead to the new server, which has the data of the old one."""
        self.old.execute_command("REPLICAOF", "127.0.0.1", "1")
        with self._new.client() as new:
            for key in self.old.keys("*"):
                new.restore(key, max(0, self.old.pttl(key)), self.old.dump(key))
        if says == "MASTERDOWN":
            self.old.config_set("replica-serve-stale-data", "no")
        self._proxy.lead_to(self._new.socket)


@contextmanager
def to_fail_over(new: Server) -> Iterator[FailOver]:
    """Return a server of the kind of ``new`` that will fail over to it."""
    old = Server(new.name, BINARIES[new.name], ("--repl-diskless-sync-delay", "0"))
    try:
        with Proxy(old.socket) as proxy:
            yield FailOver(old, new, proxy)
    finally:
        old.close()


async def _all_at_once(world: World, lockers: list[Any]) -> list[Any]:
    """Let callers try to acquire at the same time; return their results."""
    tries = (world.beside(lock.try_acquire) for lock in lockers)
    return await asyncio.gather(*tries, return_exceptions=True)


@few
@pytest.mark.parametrize("says", ["READONLY", "MASTERDOWN"])
async def test_one_call_at_most_meets_the_old_primary(world: World, says: str) -> None:
    """At most one call meets the old primary, however many connections it has; held leases go
    on."""
    with to_fail_over(world.server) as change:
        locks = world.connect(change.url)
        lockers = [locks.lock(f"{number}", ttl=30) for number in range(CALLERS)]
        lease = await settle(locks.lock("x", ttl=60).acquire())
        change.old.execute_command("CLIENT", "PAUSE", "100")  # each needs its own connection
        for each in await _all_at_once(world, lockers):
            await settle(each.release())
        change.happen(says)
        with pytest.raises(lualock.LockUnavailable, match=says) as caught:
            await settle(lockers[0].acquire(timeout=0))
        assert not caught.value.outcome_unknown
        for each in await _all_at_once(world, lockers):
            assert isinstance(each, lualock.Lease | lualock.aio.Lease), each
        await settle(lease.extend(90))
        assert world.client.pttl("lualock:{x}") > 60_000
        await settle(lease.release())
        assert world.client.get("lualock:{x}")[:1] == b"R"


@pytest.mark.full
@few
async def test_renewal_alone_finds_the_new_primary(world: World) -> None:
    """Leases are renewed at the new primary, even if the program calls nothing else."""
    losses: list[Any] = []
    with to_fail_over(world.server) as change:
        locks = world.connect(change.url)
        leases = [
            await settle(locks.lock(name, ttl=1.5, renew=True, on_lost=losses.append).acquire())
            for name in ("x", "y")
        ]
        change.happen()
        ends = [time.monotonic() + lease.remaining() for lease in leases]

        def later_s() -> Any:
            now, left_s = time.monotonic(), [lease.remaining() for lease in leases]
            return now + min(left - end for left, end in zip(left_s, ends, strict=True))

        await world.until(lambda: losses or later_s() > 1)
        assert losses == []
        for lease in leases:
            await settle(lease.release())
        assert {world.client.get(f"lualock:{{{name}}}")[:1] for name in ("x", "y")} == {b"R"}


@few
async def test_a_waiter_is_woken_by_the_new_primary(world: World) -> None:
    """After one refused call, messages come from the new primary."""
    with to_fail_over(world.server) as change:
        locks = world.connect(change.url)
        held = await settle(locks.lock("x", ttl=60).acquire())
        waiter = _waiter(world, locks)
        await world.until(lambda: change.old.zcard("lualock:{x}:waiters"))
        assert await settle(locks.lock("x").locked())  # so that a connection to the old one is idle
        change.happen()
        with suppress(lualock.LockUnavailable):  # unless the waiter was refused first
            await settle(locks.lock("y").acquire(timeout=0))
        await world.until(lambda: world.client.pubsub_channels("lualock:wake:*"))
        await settle(held.release())
        lease = await asyncio.wait_for(waiter, 5)
        assert lease.fence > held.fence
        await settle(lease.release())


@pytest.mark.full
async def test_a_waiter_that_stays_subscribed_at_the_old_primary(api: World) -> None:
    """A waiter at the old primary receives, by replication, a message whose lock went to the next
    waiter. Their fences differ, so it learns that the lease is not its own, and subscribes at the
    new one."""
    server = Server(api.server.name, BINARIES[api.server.name])
    with closing(server), server.client() as new, to_fail_over(server) as change:
        await _follow(api, new, change.old)
        holder, deceived = api.connect(change.url), api.connect(change.url)
        held = await settle(holder.lock("x", ttl=60).acquire())
        first = _waiter(api, deceived)
        await api.until(lambda: new.zcard("lualock:{x}:waiters") == 1)
        await change.repeat(api, new)
        second = _waiter(api, api.connect(server.url))
        await api.until(lambda: new.zcard("lualock:{x}:waiters") == 2)
        # Connections for requests break, and that for messages does not.
        change.old.client_kill_filter(_type="normal", skipme=True)
        await settle(held.release())
        has = await asyncio.wait_for(second, 10)
        if api.asynchronous:  # there the claim is sent at once, and its reply read later
            believes = await asyncio.wait_for(first, 10)
            assert held.fence < believes.fence < has.fence
            await api.until(lambda: believes.lost)
            first = _waiter(api, deceived)
        await api.until(lambda: new.zcard("lualock:{x}:waiters") == 1)
        assert has.held
        await api.until(lambda: len(new.pubsub_channels("lualock:wake:*")) == 2)
        await settle(has.release())
        assert (await asyncio.wait_for(first, 5)).held


async def _follow(world: World, replica: Any, primary: Any) -> None:
    port = primary.config_get("port")["port"]
    replica.execute_command("REPLICAOF", "127.0.0.1", port)
    await world.until(lambda: replica.info("replication")["master_link_status"] == "up", wait_s=20)


def _waiter(world: World, locks: Any) -> asyncio.Future[Any]:
    return asyncio.ensure_future(world.beside(lambda: locks.lock("x", ttl=60).acquire(timeout=10)))
