"""Fail-over behind one address: what was the primary is a replica now, and keeps its connections.

Managed servers and Kubernetes services have it so: the name is moved to the new primary, and who
was connected hears of it only by what the old one says.
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
    """An address, the server that it leads to first, and the one that follows it."""

    def __init__(self, old: Server, new: Server, proxy: Proxy) -> None:
        self.url = proxy.url
        self.old = old.client()
        self._new = new
        self._proxy = proxy

    async def repeat(self, world: World, new: Any) -> None:
        """The same, and the old server, which ``new`` has followed, follows that from here on."""
        new.execute_command("REPLICAOF", "NO", "ONE")
        self._proxy.lead_to(self._new.socket)
        await _follow(world, self.old, new)

    def happen(self, says: str = "READONLY") -> None:
        """From here on the address leads to the new server, which has what the old one had."""
        self.old.execute_command("REPLICAOF", "127.0.0.1", "1")
        with self._new.client() as new:
            for key in self.old.keys("*"):
                new.restore(key, max(0, self.old.pttl(key)), self.old.dump(key))
        if says == "MASTERDOWN":
            self.old.config_set("replica-serve-stale-data", "no")
        self._proxy.lead_to(self._new.socket)


@contextmanager
def to_fail_over(new: Server) -> Iterator[FailOver]:
    """A server of the same make as ``new`` that will fail over to it."""
    old = Server(new.name, BINARIES[new.name], ("--repl-diskless-sync-delay", "0"))
    try:
        with Proxy(old.socket) as proxy:
            yield FailOver(old, new, proxy)
    finally:
        old.close()


async def _all_at_once(world: World, lockers: list[Any]) -> list[Any]:
    """What each gets who tries to take its lock at the same time."""
    tries = (world.beside(lock.try_acquire) for lock in lockers)
    return await asyncio.gather(*tries, return_exceptions=True)


@few
@pytest.mark.parametrize("says", ["READONLY", "MASTERDOWN"])
async def test_one_call_at_most_meets_the_old_primary(world: World, says: str) -> None:
    """However many connections to it there are; what is held goes on at the new one."""
    with to_fail_over(world.server) as change:
        locks = world.connect(change.url)
        lockers = [locks.lock(f"{number}", ttl=30) for number in range(CALLERS)]
        lease = await settle(locks.lock("x", ttl=60).acquire())
        change.old.execute_command("CLIENT", "PAUSE", "100")  # each needs a connection of its own
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


@few
async def test_renewal_alone_finds_the_new_primary(world: World) -> None:
    """Leases are kept where the program asks for nothing else."""
    told: list[Any] = []
    with to_fail_over(world.server) as change:
        locks = world.connect(change.url)
        leases = [
            await settle(locks.lock(name, ttl=1.5, renew=True, on_lost=told.append).acquire())
            for name in ("x", "y")
        ]
        change.happen()
        ends = [time.monotonic() + lease.remaining() for lease in leases]

        def later_s() -> Any:
            now, left_s = time.monotonic(), [lease.remaining() for lease in leases]
            return now + min(left - end for left, end in zip(left_s, ends, strict=True))

        await world.until(lambda: told or later_s() > 1)
        assert told == []
        for lease in leases:
            await settle(lease.release())
        assert {world.client.get(f"lualock:{{{name}}}")[:1] for name in ("x", "y")} == {b"R"}


@few
async def test_who_waits_is_woken_by_the_new_primary(world: World) -> None:
    """Once one call was refused, messages are heard from where they come now."""
    with to_fail_over(world.server) as change:
        locks = world.connect(change.url)
        held = await settle(locks.lock("x", ttl=60).acquire())
        waiter = _waiter(world, locks)
        await world.until(lambda: change.old.zcard("lualock:{x}:waiters"))
        assert await settle(locks.lock("x").locked())  # so that a connection to the old one is idle
        change.happen()
        with suppress(lualock.LockUnavailable):  # unless who waits was refused first
            await settle(locks.lock("y").acquire(timeout=0))
        await world.until(lambda: world.client.pubsub_channels("lualock:wake:*"))
        await settle(held.release())
        lease = await asyncio.wait_for(waiter, 5)
        assert lease.fence > held.fence
        await settle(lease.release())


async def test_who_goes_on_listening_at_the_old_primary(shell: World) -> None:
    """It hears there, by replication, of a turn that went to the next in line, for the new primary
    knows of nobody who listens. Their fences differ, it learns that the lease is not its own, and
    it listens elsewhere from then on."""
    server = Server(shell.server.name, BINARIES[shell.server.name])
    with closing(server), server.client() as new, to_fail_over(server) as change:
        await _follow(shell, new, change.old)
        holder, deceived = shell.connect(change.url), shell.connect(change.url)
        held = await settle(holder.lock("x", ttl=60).acquire())
        first = _waiter(shell, deceived)
        await shell.until(lambda: new.zcard("lualock:{x}:waiters") == 1)
        await change.repeat(shell, new)
        second = _waiter(shell, shell.connect(server.url))
        await shell.until(lambda: new.zcard("lualock:{x}:waiters") == 2)
        # Connections for requests break, and that for messages does not.
        change.old.client_kill_filter(_type="normal", skipme=True)
        await settle(held.release())
        has = await asyncio.wait_for(second, 10)
        if shell.asynchronous:  # there the claim is sent at once, and its reply read later
            believes = await asyncio.wait_for(first, 10)
            assert held.fence < believes.fence < has.fence
            await shell.until(lambda: believes.lost)
            first = _waiter(shell, deceived)
        await shell.until(lambda: new.zcard("lualock:{x}:waiters") == 1)
        assert has.held
        await shell.until(lambda: len(new.pubsub_channels("lualock:wake:*")) == 2)
        await settle(has.release())
        assert (await asyncio.wait_for(first, 5)).held


async def _follow(world: World, replica: Any, primary: Any) -> None:
    port = primary.config_get("port")["port"]
    replica.execute_command("REPLICAOF", "127.0.0.1", port)
    await world.until(lambda: replica.info("replication")["master_link_status"] == "up", wait_s=20)


def _waiter(world: World, locks: Any) -> asyncio.Future[Any]:
    return asyncio.ensure_future(world.beside(lambda: locks.lock("x", ttl=60).acquire(timeout=10)))
