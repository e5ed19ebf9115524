"""Where the server is, and how connections to it are made.

The connections are redis-py's own (so TLS, AUTH, HELLO, Sentinel and credential providers are
its business), but they are not taken from the caller's pool: ours run with the client's retries
off, because a retry that the protocol does not know of would falsify deadlines and outcomes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

import redis
import redis.asyncio
from redis.asyncio import connection as asyncio_connection
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.utils import get_lib_version

from lualock.drive import wire
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


@dataclass(frozen=True, eq=False)
class Endpoint:
    """A redis-py connection class and its settings."""

    connection_class: type
    settings: dict[str, Any]
    keep: Any = None
    """What the settings have no more than a weak reference to."""

    @classmethod
    def of_url(cls, url: str) -> Endpoint:
        """The endpoint a URL names (``redis://``, ``rediss://``, ``unix://``).

        :raises InvalidArgument: it is no such URL.
        """
        try:
            pool = redis.ConnectionPool.from_url(url)
            _check_database(url)
        except (ValueError, TypeError) as error:
            # What it says of a part of the URL may be a part of the password.
            said = f": {error}" if "://" in url and "@" not in url else ""
            raise InvalidArgument(
                f"not a server's URL{said}. It begins with redis://, rediss:// or unix://; what is "
                "special in a user name or password (/ # ? @ : [ ] %) is written as %2F and so on"
            ) from None
        return cls._of_pool(pool)

    @classmethod
    def of_client(cls, client: Any, *, asynchronous: bool) -> Endpoint:
        """The endpoint a client talks to. The client itself is not used.

        :raises InvalidArgument: it is no client, or one of the other world.
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
        if pool.connection_class in _TWINS:
            settings = {k: v for k, v in settings.items() if k in _KEPT or k.startswith("ssl_")}
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
        own = {"command_packer": wire.Packer()} if self.connection_class in _TWINS else {}
        return self._make(Retry(NoBackoff(), 0), redis.connection.AbstractConnection, **own)

    def asyncio_connection(self) -> Any:
        """The same for ``redis.asyncio``."""
        return self._make(AsyncRetry(NoBackoff(), 0), asyncio_connection.AbstractConnection)

    def __str__(self) -> str:
        """The address, without anything secret."""
        told = self.settings
        return str(told.get("path") or f"{told.get('host', 'localhost')}:{told.get('port', 6379)}")


def _check_database(url: str) -> None:
    """redis-py takes a path that is no number for database 0: other locks than were meant."""
    parts = urlsplit(url)
    path = unquote(parts.path).replace("/", "")
    if parts.scheme != "unix" and path and not path.isdecimal():
        raise ValueError(f"after the host comes the number of a database, and not {path!r}")
