"""A real Sentinel, which names the server for clients and for lualock."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest
import redis
import redis.asyncio

import lualock
from lualock import aio
from tests.support.servers import Server
from tests.support.waiting import wait_until
from tests.support.world import World, settle


@pytest.fixture
def sentinel_port(one_server: Server) -> Iterator[int]:
    """Return the port of a Sentinel that knows one server as ``primary``."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="ls-", dir="/tmp") as folder:
        config = os.path.join(folder, "sentinel.conf")
        with open(config, "w") as file:
            file.write(f"port {port}\nbind 127.0.0.1\ndir {folder}\n")
            file.write(f"sentinel monitor primary 127.0.0.1 {one_server.port} 1\n")
        with (
            subprocess.Popen(
                [one_server.path, config, "--sentinel"],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            ) as process,
            redis.Redis(port=port, protocol=2) as client,
        ):
            try:
                wait_until(lambda: _knows(client), wait_s=10, what="Sentinel knows the server")
                yield port
            finally:
                process.kill()


def _knows(client: Any) -> bool:
    try:
        return bool(client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "primary"))
    except redis.ConnectionError:
        return False


async def test_one_client_serves_both_kinds_of_job(api: World, sentinel_port: int) -> None:
    """A plain job and a coroutine job of one ``Locks`` exclude each other at the primary."""
    kind: Any = redis.asyncio.Sentinel if api.asynchronous else redis.Sentinel
    connect: Any = aio.connect if api.asynchronous else lualock.connect
    sentinel = kind([("127.0.0.1", sentinel_port)], protocol=2, sentinel_kwargs={"protocol": 2})
    locks = connect(sentinel.master_for("primary", socket_timeout=3))
    api.made.append(locks)

    def work() -> str:
        return "ran"

    plain = locks.job(key="x")(work)

    async def begin() -> tuple[str, object]:
        return "ran", await asyncio.to_thread(plain)

    coroutine = locks.job(key="x")(begin)

    try:
        assert await coroutine() == ("ran", None)
        assert await asyncio.to_thread(plain) == "ran"
    finally:
        for client in sentinel.sentinels:
            await settle(client.aclose() if api.asynchronous else client.close())


async def test_a_client_without_another_reference(api: World, sentinel_port: int) -> None:
    """``connect(sentinel.master_for(...))`` is enough, even for later connections, if the program
    keeps no other reference."""
    kind: Any = redis.asyncio.Sentinel if api.asynchronous else redis.Sentinel
    connect: Any = aio.connect if api.asynchronous else lualock.connect
    sentinel = kind([("127.0.0.1", sentinel_port)], protocol=2)
    try:
        locks = connect(sentinel.master_for("primary"))
        api.made.append(locks)
        for _ in range(2):
            gc.collect()
            lease = await settle(locks.lock("x").acquire())
            assert api.client.exists("lualock:{x}")
            await settle(lease.release())
            api.client.client_kill_filter(_type="normal", skipme=True)
    finally:
        for client in sentinel.sentinels:
            await settle(client.aclose() if api.asynchronous else client.close())
