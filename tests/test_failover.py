"""Fail-over behind one address: what was the primary is a replica now, and keeps its connections.

Managed servers and Kubernetes services have it so: the name is moved to the new primary, and who
was connected hears of it only by what the old one says.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

import lualock
from tests.proxy import Proxy
from tests.servers import BINARIES, Server
from tests.world import World, few, settle

CALLERS = 4


class FailOver:
    """An address, the server that it leads to first, and the one that follows it."""

    def __init__(self, old: Server, new: Server, proxy: Proxy) -> None:
        self.url = proxy.url
        self.old = old.client()
        self._new = new
        self._proxy = proxy

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
    old = Server(new.name, BINARIES[new.name])
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
        waiter = asyncio.ensure_future(
            world.beside(lambda: locks.lock("x", ttl=60).acquire(timeout=10))
        )
        await world.until(lambda: change.old.zcard("lualock:{x}:queue"))
        assert await settle(locks.lock("x").locked())  # so that a connection to the old one is idle
        change.happen()
        with suppress(lualock.LockUnavailable):  # unless who waits was refused first
            await settle(locks.lock("y").acquire(timeout=0))
        await world.until(lambda: world.client.pubsub_channels("lualock:wake:*"))
        await settle(held.release())
        lease = await asyncio.wait_for(waiter, 5)
        assert lease.fence > held.fence
        await settle(lease.release())
