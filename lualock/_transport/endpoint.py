"""Where the server is, and how connections to it are made.

The connections are redis-py's own (so TLS, AUTH, HELLO, Sentinel and credential providers are
its business), but they are not taken from the caller's pool: ours run with the client's retries
off, because a retry that the protocol does not know of would falsify deadlines and outcomes.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from typing import Any

import redis
import redis.asyncio
from redis.asyncio import connection as asyncio_connection
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.utils import get_lib_version

from lualock._core import options
from lualock._transport import codec
from lualock._transport import url as urls
from lualock.errors import InvalidArgument

SOCKET_TIMEOUT_S = 5.0

# redis-py looks its version up for each connection, and the first time the standard library
# imports modules for that. Done by one thread while another forks, the child would inherit an
# import lock that nobody gives back, and hang at its first connection. So it is done here.
_look_it_up: Any = get_lib_version  # redis-py does not say its type
_look_it_up()

# A stock class of one world and its twin in the other.
_TWINS: dict[type, type] = {
    redis.Connection: asyncio_connection.Connection,
    redis.SSLConnection: asyncio_connection.SSLConnection,
    redis.UnixDomainSocketConnection: asyncio_connection.UnixDomainSocketConnection,
}
_TWINS |= {twin: stock for stock, twin in list(_TWINS.items())}

# What a stock connection is told. The rest of a pool's settings is the client's own plumbing.
_KEPT = {
    *("host", "port", "path", "db", "username", "password", "credential_provider", "client_name"),
    *("protocol", "encoding", "encoding_errors", "socket_timeout", "socket_connect_timeout"),
    *("socket_keepalive", "socket_keepalive_options", "socket_type"),
}
# What no connection of ours is told, stock or not.
_OURS = {
    *("retry", "retry_on_timeout", "retry_on_error", "health_check_interval", "decode_responses"),
}


# An idle connection that died without a word (a NAT, a load balancer) is found so by the kernel,
# and costs no round trip when it is used.
_KEEPALIVE = {
    getattr(socket, name): value
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))
    if hasattr(socket, name)
}


@dataclass(frozen=True, eq=False)
class Endpoint:
    """A redis-py connection class and its settings."""

    connection_class: type
    settings: dict[str, Any]
    keep: Any = None
    """What the settings have no more than a weak reference to."""
    server: str = field(init=False)
    """The address and database: equal where two endpoints are known to lead to one server."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "server", _server(self.settings, self.keep))

    @classmethod
    def of_url(cls, url: str, *, asynchronous: bool = False) -> Endpoint:
        """The endpoint a URL names (``redis://``, ``rediss://``, ``unix://``).

        :raises InvalidArgument: it is no such URL, or says what no connection can be made with.
        """
        urls.check(url)
        try:
            found = cls._of_pool(redis.ConnectionPool.from_url(url))
            # One is made, and not connected: what redis-py does not like is said here, and not by
            # the first call.
            _ = found.asyncio_connection() if asynchronous else found.blocking_connection()
        except Exception as error:  # redis-py raises whatever comes
            raise urls.not_a_url(str(error) if urls.tellable(url) else None) from None
        return found

    @classmethod
    def of_client(cls, client: Any, *, asynchronous: bool) -> Endpoint:
        """The endpoint a client talks to. The client itself is not used.

        :raises InvalidArgument: it is no client, or one of the other world, or its timeouts are
            none.
        """
        wanted: Any = redis.Redis
        other: Any = redis.asyncio.Redis
        hint = "for redis.asyncio.Redis use lualock.aio"
        if asynchronous:
            wanted, other = other, wanted
            hint = "for redis.Redis use lualock.connect() or lualock.Locks"
        if isinstance(client, wanted):
            return cls._of_pool(client.connection_pool)
        name = f"{type(client).__module__}.{type(client).__qualname__}"
        if isinstance(client, redis.RedisCluster | redis.asyncio.RedisCluster):
            raise InvalidArgument("a cluster client is not supported yet: pass one node's client")
        if isinstance(client, other):
            raise InvalidArgument(f"{name} is the wrong kind of client here: {hint}")
        raise InvalidArgument(
            f"{name} is no client: pass a {wanted.__module__.rpartition('.')[0]}.Redis, "
            "or a URL to connect()"
        )

    @classmethod
    def _of_pool(cls, pool: Any) -> Endpoint:
        settings = dict(pool.connection_kwargs)
        settings.setdefault("socket_timeout", SOCKET_TIMEOUT_S)
        if settings["socket_timeout"] is None:
            # A call that may wait for ever cannot keep any promise about time.
            settings["socket_timeout"] = SOCKET_TIMEOUT_S
        settings.setdefault("socket_connect_timeout", settings["socket_timeout"])
        for name in ("socket_timeout", "socket_connect_timeout"):
            if settings[name] is not None:
                options.socket_s(settings[name], name)
        if pool.connection_class in _TWINS:
            settings = {k: v for k, v in settings.items() if k in _KEPT or k.startswith("ssl_")}
            if settings.get("socket_keepalive") is None and "path" not in settings:
                # (redis-py does so itself from version 8 on.)
                settings |= {"socket_keepalive": True, "socket_keepalive_options": _KEEPALIVE}
            return cls(pool.connection_class, settings)
        # Connections of Sentinel ask their pool where to go, and those of asyncio do not keep it.
        return cls(pool.connection_class, settings, pool)

    @property
    def reply_s(self) -> float:
        """How long a reply is waited for where the caller sets no limit."""
        return float(self.settings["socket_timeout"])

    def _make(self, retry: object, home: type, **own: object) -> Any:
        made = self.connection_class
        if not issubclass(made, home):
            if made not in _TWINS:
                raise InvalidArgument(
                    f"{made.__qualname__} has no twin for the other kind of function: decorate "
                    "plain functions with lualock.Locks, coroutine functions with lualock.aio.Locks"
                )
            made = _TWINS[made]
        settings = {k: v for k, v in self.settings.items() if k not in _OURS}
        return made(**settings, **own, retry=retry, decode_responses=False)

    def blocking_connection(self) -> Any:
        """A new, unconnected ``redis.Connection`` or its like, without retries."""
        own = {"command_packer": codec.Packer()} if self.connection_class in _TWINS else {}
        return self._make(Retry(NoBackoff(), 0), redis.connection.AbstractConnection, **own)

    def asyncio_connection(self) -> Any:
        """The same for ``redis.asyncio``."""
        return self._make(AsyncRetry(NoBackoff(), 0), asyncio_connection.AbstractConnection)

    def __str__(self) -> str:
        """The address, without anything secret."""
        return _address(self.settings)


def _address(settings: dict[str, Any]) -> str:
    host, port = settings.get("host", "localhost"), settings.get("port", 6379)
    return str(settings.get("path") or f"{host}:{port}")


def _server(settings: dict[str, Any], pool: Any) -> str:
    where = _address(settings)
    if (service := getattr(pool, "service_name", None)) is not None:
        pools = [sentinel.connection_pool for sentinel in pool.sentinel_manager.sentinels]
        where = f"{service} of {sorted(_address(one.connection_kwargs) for one in pools)}"
    return f"{where}/{settings.get('db') or 0}"
