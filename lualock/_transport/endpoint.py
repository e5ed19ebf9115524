"""Know where the server is, and make connections to it.

The connections are redis-py's own, so it handles TLS, AUTH, HELLO, Sentinel and credential
providers. But they do not come from the caller's pool: ours have the client's retries off, because
a retry that the protocol does not know of would falsify deadlines and outcomes.
"""

from __future__ import annotations

import socket
import sys
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import redis
import redis.asyncio
from redis.asyncio import connection as asyncio_connection
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.utils import get_lib_version

from lualock._core import options
from lualock._transport import clients, codec
from lualock._transport import url as urls
from lualock.errors import InvalidArgument

SOCKET_TIMEOUT_S = 5.0

# redis-py looks up its version for each connection, and the first time that imports modules. If one
# thread does so while another forks, the child inherits an import lock that is never released, and
# hangs at its first connection. So it is done here.
_look_up_version: Any = get_lib_version  # redis-py declares no type for it
_look_up_version()

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
    max_connections: int = sys.maxsize
    """How many connections the caller allows."""
    server: str = field(init=False)
    """The address and database: equal where two endpoints are known to lead to one server."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "server", _server(self.settings, self.keep))

    @classmethod
    def of_url(cls, url: str, *, asynchronous: bool = False) -> Endpoint:
        """Make the endpoint of a URL (``redis://``, ``rediss://``, ``valkey://``, ``unix://``).

        :raises InvalidArgument: it is not such a URL, or no connection can be made with it.
        """
        urls.check(url)
        try:
            found = cls._of_pool(redis.ConnectionPool.from_url(urls.for_redis(url)))
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
        wanted, other = clients.classes(asynchronous), clients.classes(not asynchronous)
        if isinstance(client, wanted):
            known: Any = client
            return cls._of_pool(known.connection_pool)
        name = f"{type(client).__module__}.{type(client).__qualname__}"
        if any(base.__name__ in ("RedisCluster", "ValkeyCluster") for base in type(client).__mro__):
            raise InvalidArgument(
                "could not use the client: clusters are not supported yet. Pass one node's client"
            )
        if isinstance(client, other):
            hint = "use lualock.connect() or lualock.Locks" if asynchronous else "use lualock.aio"
            raise InvalidArgument(
                f"could not use {name}: it is the wrong kind of client here. For "
                f"{clients.name_of(other[0])} {hint}"
            )
        raise InvalidArgument(
            f"could not use {name}: it is not a client. Pass a {clients.name_of(wanted[0])}, or a "
            "URL to connect()"
        )

    @classmethod
    def _of_pool(cls, pool: Any) -> Endpoint:
        made = clients.stock_class(pool.connection_class)
        settings = dict(pool.connection_kwargs)
        if made is not pool.connection_class and "valkey_connect_func" in settings:
            settings[clients.CONNECT_FUNC] = settings["valkey_connect_func"]
        settings.setdefault("socket_timeout", SOCKET_TIMEOUT_S)
        if settings["socket_timeout"] is None:
            # A call without a time limit cannot keep any promise about time.
            settings["socket_timeout"] = SOCKET_TIMEOUT_S
        settings.setdefault("socket_connect_timeout", settings["socket_timeout"])
        for name in ("socket_timeout", "socket_connect_timeout"):
            if settings[name] is not None:
                options.socket_s(settings[name], name)
        most = clients.max_connections(pool)
        if made in clients.COUNTERPARTS:
            settings = clients.stock_settings(settings)
            if settings.get("socket_keepalive") is None and "path" not in settings:
                # (redis-py does so itself from version 8 on.)
                settings |= {"socket_keepalive": True, "socket_keepalive_options": _KEEPALIVE}
            return cls(made, settings, max_connections=most)
        # Sentinel connections ask their pool for the address; asyncio ones do not keep it alive.
        return cls(made, settings, pool, most)

    @property
    def reply_s(self) -> float:
        """How long to wait for a reply if the caller sets no limit."""
        return float(self.settings["socket_timeout"])

    @cached_property
    def _counterpart(self) -> Endpoint:
        """The same server for the other API."""
        made = self.connection_class
        if self.settings.get(clients.CONNECT_FUNC) is not None:
            raise InvalidArgument(
                f"could not use the client for the other API: its {clients.CONNECT_FUNC} is "
                f"written for {clients.name_of(made)}. Connect there with a client of its own"
            )
        if made in clients.COUNTERPARTS:
            most, other = self.max_connections, clients.COUNTERPARTS[made]
            settings = clients.settings_for(other, self.settings)
            return Endpoint(other, settings, max_connections=most)
        if made in clients.SENTINEL_COUNTERPARTS:
            return Endpoint._of_pool(clients.sentinel_pool(self.keep))
        raise InvalidArgument(
            f"could not use {made.__qualname__}: it has no counterpart for the other kind of "
            "function. Decorate plain functions with lualock.Locks, coroutine functions with "
            "lualock.aio.Locks"
        )

    def _make(self, retry: object, base: type, **own: object) -> Any:
        made: Any = self.connection_class
        if not issubclass(made, base):
            return self._counterpart._make(retry, base, **own)
        settings = {k: v for k, v in self.settings.items() if k not in _OVERRIDDEN}
        return made(**settings, **own, retry=retry, decode_responses=False)

    def blocking_connection(self) -> Any:
        """Make an unconnected ``redis.Connection``, or one of another class, without retries."""
        stock = self.connection_class in clients.COUNTERPARTS
        own = {"command_packer": codec.Packer()} if stock else {}
        return self._make(Retry(NoBackoff(), 0), redis.connection.AbstractConnection, **own)

    def asyncio_connection(self) -> Any:
        """Make one for ``redis.asyncio``."""
        return self._make(AsyncRetry(NoBackoff(), 0), asyncio_connection.AbstractConnection)

    def __str__(self) -> str:
        """Return the address, without secrets."""
        tls = " with TLS" if issubclass(self.connection_class, clients.TLS) else ""
        return _address(self.settings) + tls


def _address(settings: dict[str, Any]) -> str:
    host, port = settings.get("host", "localhost"), settings.get("port", 6379)
    return str(settings.get("path") or f"{host}:{port}")


def _server(settings: dict[str, Any], pool: Any) -> str:
    where = _address(settings)
    if (service := getattr(pool, "service_name", None)) is not None:
        pools = [sentinel.connection_pool for sentinel in pool.sentinel_manager.sentinels]
        where = f"{service} of {sorted(_address(one.connection_kwargs) for one in pools)}"
    return f"{where}/{settings.get('db') or 0}"
