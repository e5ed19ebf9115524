"""Guards that check a fence: in Redis, and in a database."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from typing import Any

import pytest
import redis.asyncio

import lualock
from lualock.fencing import aio, fence_key, fenced_set
from tests.support.servers import Server


def test_a_smaller_fence_is_refused(server: Server) -> None:
    """The holder of the greatest fence may write repeatedly; a smaller fence is always refused."""
    with server.client() as client:
        fenced_set(client, "k", "one", fence=10)
        fenced_set(client, "k", b"two", fence=10)
        fenced_set(client, "k", "three", fence=12, ttl=60)
        assert 0 < client.pttl("k") <= 60_000
        with pytest.raises(
            lualock.StaleFence, match="fence 11 is stale, 12 has been seen"
        ) as caught:
            fenced_set(client, "k", "late", fence=11)
        assert (caught.value.fence, caught.value.seen) == (11, 12)
        assert client.get("k") == b"three"
        client.delete("k")
        with pytest.raises(lualock.StaleFence):  # the guard outlives what it guards
            fenced_set(client, "k", "late", fence=11)
        assert client.pttl("{k}:fence") == -1


def test_fences_of_real_size_are_compared_exactly(one_client: Any) -> None:
    """Neighbouring numbers of sixteen digits are different fences."""
    fence = 1_795_468_272_410_195
    fenced_set(one_client, "k", "new", fence=fence)
    with pytest.raises(lualock.StaleFence):
        fenced_set(one_client, "k", "old", fence=fence - 1)
    fenced_set(one_client, "k", "newer", fence=fence + 1)


def test_asyncio(one_server: Server) -> None:
    """The guard works with an asyncio client."""

    async def main() -> None:
        async with redis.asyncio.Redis(unix_socket_path=one_server.socket) as client:
            await aio.fenced_set(client, "k", "new", fence=12)
            with pytest.raises(lualock.StaleFence):
                await aio.fenced_set(client, "k", "old", fence=11)
            assert await client.get("k") == b"new"

    asyncio.run(main())


def test_what_is_no_client(one_client: Any, one_server: Server) -> None:
    """A wrong client, a pipeline or none is refused before any request is sent."""
    other = redis.asyncio.Redis(unix_socket_path=one_server.socket)
    for wrong in (other, one_client.pipeline(), None, "redis://localhost"):
        with pytest.raises(lualock.InvalidArgument, match=r"must be a redis|lualock\.fencing"):
            fenced_set(wrong, "k", "v", fence=5)
    for wrong in (one_client, other.pipeline(), None):
        with pytest.raises(lualock.InvalidArgument):
            asyncio.run(aio.fenced_set(wrong, "k", "v", fence=5))
    assert one_client.keys() == []


def test_what_is_no_fence_is_left_alone(server: Server) -> None:
    """A foreign value at the key of the fence is reported and stays unchanged."""
    with server.client() as client:
        client.set("{k}:fence", "a stranger's")
        with pytest.raises(lualock.KeyConflict, match="does not hold a fence"):
            fenced_set(client, "k", "v", fence=5)
        assert client.get("k") is None
        assert client.get("{k}:fence") == b"a stranger's"


def test_out_of_memory_nothing_is_written(server: Server) -> None:
    """Without memory neither the value nor the fence is changed."""
    with server.client() as client:
        fenced_set(client, "k", "before", fence=1)
        client.config_set("maxmemory", "1")
        try:
            with pytest.raises(redis.ResponseError, match=r"OOM|maxmemory"):
                fenced_set(client, "k", "after", fence=2)
        finally:
            client.config_set("maxmemory", "0")
        assert client.get("k") == b"before"
        assert client.get("{k}:fence") == b"1"


@pytest.mark.parametrize(
    ("key", "beside"),
    [
        (b"k", b"{k}:fence"),
        (b"a{b}c", b"fence:a{b}c"),
        (b"a{b", b"{a{b}:fence"),
        (b"{b}", b"fence:{b}"),
    ],
)
def test_the_fence_is_kept_in_the_key_s_slot(key: bytes, beside: bytes) -> None:
    """The fence is in the slot of the key, as a cluster requires of a script."""
    from redis.crc import key_slot

    assert fence_key(key) == beside
    assert key_slot(key) == key_slot(beside)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": b"a{}b"}, "no hash tag|hash tag"),
        ({"key": b"a}b"}, "hash tag"),
        ({"key": ""}, "not empty"),
        ({"key": 5}, "str or bytes"),
        ({"key": "\ud800"}, "valid text"),
        ({"value": "\ud800"}, "valid text"),
        ({"value": 5}, "a value must be"),
        ({"fence": "5"}, "fence must be"),
        ({"fence": True}, "fence must be"),
        ({"fence": 0}, "fence must be"),
        ({"fence": 2**53}, "fence must be"),
        ({"ttl": 0}, "ttl must be"),
    ],
)
def test_bad_arguments(one_client: Any, change: dict[str, Any], message: str) -> None:
    """Bad arguments are refused before any request is sent."""
    with pytest.raises(lualock.InvalidArgument, match=message):
        fenced_set(one_client, **{"key": "k", "value": "v", "fence": 5, **change})
    assert one_client.keys() == []


def test_a_holder_that_slept_is_refused(one_server: Server, one_client: Any) -> None:
    """A process that was stopped past its lease is refused when it writes, in Redis and in SQL."""
    code = """
        import sys, lualock, redis
        from lualock.fencing import fenced_set
        lease = lualock.connect(sys.argv[1]).lock("x", ttl=0.3).acquire()
        print("has", flush=True)
        sys.stdin.readline()  # stopped, and continued, here
        assert lease.lost
        try:
            fenced_set(redis.Redis(unix_socket_path=sys.argv[2]), "k", "late", fence=lease.fence)
        except lualock.StaleFence:
            print("refused", lease.fence, flush=True)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), one_server.url, one_server.socket]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as sleeper:
        assert sleeper.stdout is not None
        assert sleeper.stdout.readline() == "has\n"
        os.kill(sleeper.pid, signal.SIGSTOP)
        with lualock.connect(one_server.url) as locks, locks.lock("x", ttl=30) as lease:
            fenced_set(one_client, "k", "in time", fence=lease.fence)
            os.kill(sleeper.pid, signal.SIGCONT)
            message, _ = sleeper.communicate("\n")
    word, stale = message.split()
    assert word == "refused"
    assert one_client.get("k") == b"in time"

    database = sqlite3.connect(":memory:")
    database.execute(
        "CREATE TABLE account (id INTEGER PRIMARY KEY, balance INTEGER, fence INTEGER)"
    )
    database.execute("INSERT INTO account VALUES (7, 100, 0)")
    update = (
        "UPDATE account SET balance = :balance, fence = :fence WHERE id = :id AND fence <= :fence"
    )
    assert update in str(lualock.fencing.__doc__).replace("\n", " ")
    row = {"id": 7, "balance": 50, "fence": lease.fence}
    assert database.execute(update, row).rowcount == 1
    assert database.execute(update, row).rowcount == 1  # its holder may write again
    late = {"id": 7, "balance": 90, "fence": int(stale)}
    assert database.execute(update, late).rowcount == 0
    assert database.execute("SELECT balance FROM account").fetchone() == (50,)
    database.close()
