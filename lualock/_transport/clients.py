"""The clients of redis-py and valkey-py that lualock knows, and what it takes from them."""

from __future__ import annotations

import inspect
import sys
from typing import Any, cast

import redis
import redis.asyncio
from redis import sentinel
from redis.asyncio import connection as asyncio_connection
from redis.asyncio import sentinel as asyncio_sentinel

from lualock.errors import InvalidArgument

MIN_CONNECTIONS = 2
"""One for requests, and one for messages."""

# The stock connection classes: each for threads, with its counterpart for asyncio, and vice versa.
COUNTERPARTS: dict[type, type] = {
    redis.Connection: asyncio_connection.Connection,
    redis.SSLConnection: asyncio_connection.SSLConnection,
    redis.UnixDomainSocketConnection: asyncio_connection.UnixDomainSocketConnection,
}
COUNTERPARTS |= {other: stock for stock, other in list(COUNTERPARTS.items())}

# valkey-py began as a copy of redis-py: its classes, and their settings, have the same names.
_OF_VALKEY = {
    "valkey.connection": redis.connection,
    "valkey.asyncio.connection": asyncio_connection,
}


TLS = redis.SSLConnection, asyncio_connection.SSLConnection


class _AsyncSentinelPool(asyncio_sentinel.SentinelConnectionPool):
    """A pool that keeps no connection to Sentinel: one belongs to an event loop, and may outlive
    it."""

    async def get_master_address(self) -> Any:
        untyped: Any = super()
        try:
            return await untyped.get_master_address()
        finally:
            for client in self.sentinel_manager.sentinels:
                await client.connection_pool.disconnect()


_OF_THREADS = sentinel.Sentinel, sentinel.SentinelConnectionPool
_OF_ASYNCIO = asyncio_sentinel.Sentinel, _AsyncSentinelPool

SENTINEL_COUNTERPARTS: dict[type, tuple[Any, Any]] = {
    sentinel.SentinelManagedConnection: _OF_ASYNCIO,
    sentinel.SentinelManagedSSLConnection: _OF_ASYNCIO,
    asyncio_sentinel.SentinelManagedConnection: _OF_THREADS,
    asyncio_sentinel.SentinelManagedSSLConnection: _OF_THREADS,
}
"""The connection classes of Sentinel's primaries: each with Sentinel and the pool of the other
API."""

CONNECT_FUNC = "redis_connect_func"
"""A function of the caller's that prepares each connection."""

# The settings that a stock connection gets. The rest of a pool's settings is internal to redis-py.
_STOCK_SETTINGS = {
    *("host", "port", "path", "db", "username", "password", "credential_provider", "client_name"),
    *("protocol", "encoding", "encoding_errors", "socket_timeout", "socket_connect_timeout"),
    *("socket_keepalive", "socket_keepalive_options", "socket_type", CONNECT_FUNC),
}


def classes(asynchronous: bool) -> tuple[type, ...]:
    """Return the classes of an API's clients. valkey-py's is known once the program imported it."""
    ours: type = redis.asyncio.Redis if asynchronous else redis.Redis
    valkey = sys.modules.get("valkey.asyncio" if asynchronous else "valkey")
    return (ours,) if valkey is None else (ours, valkey.Valkey)


def name_of(made: type) -> str:
    """Return a class's name, with the public package of redis-py's clients."""
    return f"{made.__module__.removesuffix('.client')}.{made.__qualname__}"


def stock_class(made: type) -> type:
    """Return redis-py's class of connections for one of valkey-py's; another class as it is.

    :raises InvalidArgument: lualock cannot talk over such connections.
    """
    package = made.__module__.partition(".")[0]
    if package == "fakeredis":
        raise InvalidArgument(
            "could not use a client of fakeredis: it has no server, and locks are scripts and "
            "messages of one. In tests use the fixtures of lualock's pytest plugin, elsewhere "
            "connect('embedded://')"
        )
    module = _OF_VALKEY.get(made.__module__)
    found: Any = made if module is None else getattr(module, made.__name__, made)
    if not issubclass(
        found, (redis.connection.AbstractConnection, asyncio_connection.AbstractConnection)
    ):
        raise InvalidArgument(
            f"could not use connections of class {name_of(made)}: they are not redis-py's. Pass a "
            "client of redis-py, or a URL"
        )
    return cast(type, found)


def max_connections(pool: Any) -> int:
    """Return how many connections the caller's pool allows.

    :raises InvalidArgument: fewer than lualock needs.
    """
    most = int(pool.max_connections)
    if most < MIN_CONNECTIONS:
        raise InvalidArgument(
            f"max_connections must be at least {MIN_CONNECTIONS}, one for requests and one for "
            f"messages, not {most}"
        )
    return most


def sentinel_pool(pool: Any) -> Any:
    """Return the pool of the other API's Sentinel for the same primary."""
    sentinel_class, pool_class = SENTINEL_COUNTERPARTS[pool.connection_class]
    manager = pool.sentinel_manager
    addresses = [one.connection_pool.connection_kwargs for one in manager.sentinels]
    own = manager.sentinel_kwargs
    copy = sentinel_class(
        [(address["host"], address["port"]) for address in addresses],
        manager.min_other_sentinels,
        stock_settings(own) | {"ssl": bool(own.get("ssl"))},
    )
    settings = stock_settings(pool.connection_kwargs)
    settings["ssl"] = issubclass(pool.connection_class, TLS)
    made = pool_class(pool.service_name, copy, is_master=pool.is_master, **settings)
    made.max_connections = pool.max_connections
    return made


def stock_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Return those settings that a stock connection gets."""
    found = {k: v for k, v in settings.items() if k in _STOCK_SETTINGS or k.startswith("ssl_")}
    if isinstance(checks := found.get("ssl_cert_reqs"), str):
        # In URLs for Celery it has the name of Python's constant.
        found["ssl_cert_reqs"] = checks.lower().removeprefix("cert_")
    return found


def settings_for(made: type, settings: dict[str, Any]) -> dict[str, Any]:
    """Return those settings that connections of a stock class take.

    redis-py's asyncio connections have fewer settings for TLS.

    :raises InvalidArgument: one that they do not take is set.
    """
    makers = [vars(one)["__init__"] for one in made.__mro__ if "__init__" in vars(one)]
    known = {name for maker in makers for name in inspect.signature(maker).parameters}
    if refused := sorted(name for name in settings.keys() - known if settings[name]):
        raise InvalidArgument(
            f"could not use the client for the other API: {name_of(made)} has no "
            f"{', '.join(refused)}. Connect there with a client of its own"
        )
    return {name: value for name, value in settings.items() if name in known}
