"""A lease that the program drops while it is held: a warning at the line that drops it."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from typing import Any

import pytest

import lualock
from tests.support.servers import Server
from tests.support.world import World, entered, settle


async def _test_of_a_lock(lock: Any) -> None:
    if await settle(lock.try_acquire()):
        pass


async def _statement(lock: Any) -> None:
    await settle(lock.acquire())


async def _name_taken_again(lock: Any) -> None:
    lease = await settle(lock.acquire())
    lease = None
    assert lease is None


@pytest.mark.parametrize("mistake", [_test_of_a_lock, _statement, _name_taken_again])
async def test_a_lease_that_is_dropped_while_it_is_held(api: World, mistake: Any) -> None:
    """The warning names the lock, says what to do, and is shown for the line that drops it."""
    lock = api.connect().lock("x")
    with pytest.warns(ResourceWarning, match=r"lease on 'x' was dropped.*Keep what") as warned:
        await mistake(lock)
    (warning,) = warned
    assert warning.filename == __file__
    assert await settle(lock.locked())


async def _released(locks: Any) -> None:
    lease = await settle(locks.lock("x").acquire())
    await settle(lease.release())


async def _in_a_block(locks: Any) -> None:
    async with entered(locks.lock("x")):
        pass


async def _passed_on(locks: Any) -> None:
    (await settle(locks.lock("x").acquire())).handle()


async def _for_a_time(locks: Any) -> None:
    await settle(locks.lock("x", ttl=60, on_lost=print).acquire())


async def _left_to_end(locks: Any) -> None:
    (await settle(locks.lock("x").acquire())).stop_renewal()


async def _known_to_be_lost(locks: Any) -> None:
    lock = locks.lock("x")
    lease = await settle(lock.acquire())
    await settle(lock.force_release())
    with pytest.raises(lualock.LeaseLost):
        await settle(lease.release())


@pytest.mark.parametrize(
    "use", [_released, _in_a_block, _passed_on, _for_a_time, _left_to_end, _known_to_be_lost]
)
async def test_no_warning_where_nothing_is_left_to_release(api: World, use: Any) -> None:
    """A lease that is over, or that ends on its own, is dropped without a warning."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        await use(api.connect())
    assert [str(one.message) for one in warned if one.category is ResourceWarning] == []


def test_no_warning_at_an_exit_or_in_a_forked_child(one_server: Server) -> None:
    """An exit releases what the program still has, and a child owns nothing of it."""
    program = """
import os, sys, lualock
locks = lualock.connect(sys.argv[1])
kept = locks.lock("x").acquire()
child = os.fork()
if not child:
    del kept
    os._exit(0)
os.waitpid(child, 0)
"""
    command = [sys.executable, "-W", "always::ResourceWarning", "-c", program, one_server.url]
    settings = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(command, capture_output=True, text=True, env=settings)
    assert ended.returncode == 0, ended.stderr
    assert "dropped" not in ended.stderr
