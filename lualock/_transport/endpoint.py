"""Know where the server is, and make connections to it.

The connections are redis-py's own, so it handles TLS, AUTH, HELLO, Sentinel and credential
providers. But they do not come from the caller's pool: ours have the client's retries off, because
a retry that the protocol does not know of would falsify deadlines and outcomes.
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

# redis-py looks up its version for each connection, and the first time that imports modules. If one
# thread does so while another forks, the child inherits an import lock that is never released, and
# hangs at its first connection. So it is done here.
_look_up_version: Any = get_lib_version  # redis-py declares no type for it
_look_up_version()

# The stock connection classes: each for threads, with its counterpart for asyncio, and vice versa.
_COUNTERPARTS: dict[type, type] = {
    redis.Connection: asyncio_connection.Connection,
    redis.SSLConnection: asyncio_connection.SSLConnection,
    redis.UnixDomainSocketConnection: asyncio_connection.UnixDomainSocketConnection,
}
_COUNTERPARTS |= {other: stock for stock, other in list(_COUNTERPARTS.items())}

# The settings that a stock connection gets. The rest of a pool's settings is internal to redis-py.
_STOCK_SETTINGS = {
    *("host", "port", "path", "db", "username", "password", "credential_provider", "client_name"),
    *("protocol", "encoding", "encoding_errors", "socket_timeout", "socket_connect_timeout"),
    *("socket_keepalive", "socket_keepalive_options", "socket_type"),
}
# The settings that no connection of ours gets, stock or not.
_OVERRIDDEN = {
    *("retry", "retry_on_timeout", "retry_on_error", "health_check_interval", "decode_responses"),
}


# The kernel finds an idle connection that is silently dead (a NAT, a load balancer), so it is used
# without a round trip to check it.
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
    """An object that the settings refer to only weakly."""
    server: str = field(init=False)
    """The address and database: equal where two endpoints are known to lead to one server."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "server", _server(self.settings, self.keep))

    @classmethod
    def of_url(cls, url: str, *, asynchronous: bool = False) -> Endpoint:
        """Make the endpoint of a URL (``redis://``, ``rediss://``, ``unix://``).

        :raises InvalidArgument: it is not such a URL, or no connection can be made with it.
        """
        urls.check(url)
        try:
            found = cls._of_pool(redis.ConnectionPool.from_url(url))
            # Make one without connecting: redis-py reports an invalid setting here, not at the
            # first call.
            _ = found.asyncio_connection() if asynchronous else found.blocking_connection()
        except Exception as error:  # redis-py raises errors of any class
            raise urls.not_a_url(str(error) if urls.may_quote(url) else None) from None
        return found

    @classmethod
    def of_client(cls, client: Any, *, asynchronous: bool) -> Endpoint:
        """Make the endpoint of a client's server. The client itself is not used.

        :raises InvalidArgument: it is not a client, or one for the other API, or its timeouts are
            invalid.
        """
        wanted: Any = redis.Redis
        other: Any = redis.asyncio.Redis
        hint = "For redis.asyncio.Redis use lualock.aio"
        if asynchronous:
            wanted, other = other, wanted
            hint = "For redis.Redis use lualock.connect() or lualock.Locks"
        if isinstance(client, wanted):
            return cls._of_pool(client.connection_pool)
        name = f"{type(client).__module__}.{type(client).__qualname__}"
        if isinstance(client, redis.RedisCluster | redis.asyncio.RedisCluster):
            raise InvalidArgument(
                "could not use the client: clusters are not supported yet. Pass one node's client"
            )
        if isinstance(client, other):
            raise InvalidArgument(
                f"could not use {name}: it is the wrong kind of client here. {hint}"
            )
        raise InvalidArgument(
            f"could not use {name}: it is not a client. Pass a "
            f"{wanted.__module__.rpartition('.')[0]}.Redis, or a URL to connect()"
        )

    @classmethod
    def _of_pool(cls, pool: Any) -> Endpoint:
        settings = dict(pool.connection_kwargs)
        settings.setdefault("socket_timeout", SOCKET_TIMEOUT_S)
        if settings["socket_timeout"] is None:
            # A call without a time limit cannot keep any promise about time.
            settings["socket_timeout"] = SOCKET_TIMEOUT_S
        settings.setdefault("socket_connect_timeout", settings["socket_timeout"])
        for name in ("socket_timeout", "socket_connect_timeout"):
            if settings[name] is not None:
                options.socket_s(settings[name], name)
        if pool.connection_class in _COUNTERPARTS:
            settings = {
                k: v for k, v in settings.items() if k in _STOCK_SETTINGS or k.startswith("ssl_")
            }
            if settings.get("socket_keepalive") is None and "path" not in settings:
                # (redis-py does so itself from version 8 on.)
                settings |= {"socket_keepalive": True, "socket_keepalive_options": _KEEPALIVE}
            return cls(pool.connection_class, settings)
        # Sentinel connections ask their pool for the address; asyncio ones do not keep it alive.
        return cls(pool.connection_class, settings, pool)

    @property
    def reply_s(self) -> float:
        """How long to wait for a reply if the caller sets no limit."""
        return float(self.settings["socket_timeout"])

    def _make(self, retry: object, base: type, **own: object) -> Any:
        made = self.connection_class
        if not issubclass(made, base):
            if made not in _COUNTERPARTS:
                raise InvalidArgument(
                    f"could not use {made.__qualname__}: it has no counterpart for the other kind "
                    "of function. Decorate plain functions with lualock.Locks, coroutine functions "
                    "with lualock.aio.Locks"
                )
            made = _COUNTERPARTS[made]
        settings = {k: v for k, v in self.settings.items() if k not in _OVERRIDDEN}
        return made(**settings, **own, retry=retry, decode_responses=False)

    def blocking_connection(self) -> Any:
        """Make an unconnected ``redis.Connection``, or one of another class, without retries."""
        own = {"command_packer": codec.Packer()} if self.connection_class in _COUNTERPARTS else {}
        return self._make(Retry(NoBackoff(), 0), redis.connection.AbstractConnection, **own)

    def asyncio_connection(self) -> Any:
        """Make one for ``redis.asyncio``."""
        return self._make(AsyncRetry(NoBackoff(), 0), asyncio_connection.AbstractConnection)

    def __str__(self) -> str:
        """Return the address, without secrets."""
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
