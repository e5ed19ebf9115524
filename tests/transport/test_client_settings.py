"""The settings of a caller's client: locks work with each of them, for both kinds of job."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.cache import CacheConfig
from redis.retry import Retry

import lualock
from lualock import aio
from tests.support.world import World, settle

SETTINGS: dict[str, dict[str, Any]] = {
    "client-side caching": {"protocol": 3, "cache_config": CacheConfig()},
    "health checks": {"health_check_interval": 1},
    "retries": {"retry": Retry(NoBackoff(), 2), "retry_on_error": [redis.ConnectionError]},
    "one connection": {"single_connection_client": True},
    "keepalive": {"socket_keepalive": True, "socket_keepalive_options": {}},
    "text": {"decode_responses": True, "encoding": "latin-1", "encoding_errors": "ignore"},
    "a name": {"client_name": "me"},
    "few connections": {"max_connections": 2},
    "timeouts": {"socket_timeout": 0.5, "socket_connect_timeout": 0.5},
    "no timeouts": {"socket_timeout": None, "socket_connect_timeout": None},
}


@pytest.mark.parametrize("name", SETTINGS)
async def test_a_setting(api: World, name: str) -> None:
    """A lock is acquired, waited for and handed over, and jobs of both kinds run."""
    settings = SETTINGS[name]
    if api.asynchronous and "cache_config" in settings:
        pytest.skip("redis-py has no caching for asyncio")
    kind: Any = redis.asyncio.Redis if api.asynchronous else redis.Redis
    client = kind(unix_socket_path=api.server.socket, **settings)
    locks: Any = aio.Locks(client) if api.asynchronous else lualock.Locks(client)
    lock = locks.lock("x", ttl=5)
    lease = await settle(lock.acquire(timeout=5))
    if name == "a name":
        assert "me" in {one["name"] for one in api.client.client_list()}
    waiter = asyncio.ensure_future(api.beside(lambda: lock.acquire(timeout=5)))
    await api.until_waiters(lock, 1)
    await settle(lease.release())
    await settle((await waiter).release())

    @locks.job(key="x")  # type: ignore[untyped-decorator]  # `locks` is of either API
    def plain() -> str:
        return "done"

    @locks.job(key="x")  # type: ignore[untyped-decorator]
    async def coroutine() -> str:
        return "done"

    assert await asyncio.to_thread(plain) == await coroutine() == "done"
    await settle(locks.aclose() if api.asynchronous else locks.close())
