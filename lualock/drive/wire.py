"""Calls to bytes, and the client's errors to ours."""

from __future__ import annotations

from typing import Any

from redis import exceptions as theirs

from lualock.errors import (
    AccessDenied,
    KeyConflict,
    LockError,
    LockUnavailable,
    UnsupportedServer,
)
from lualock.protocol import Call

FLOORS = {"redis": (6, 2), "valkey": (7, 2)}

# What a server says when it cannot serve now, and what to do about it. Nothing was written: a
# script is refused as a whole, or fails at its first write.
_REFUSALS = {
    "OOM": "the server is out of memory (maxmemory): free some, or raise the limit",
    "READONLY": "this server is a read-only replica: connect to the primary",
    "NOREPLICAS": "the server has too few replicas to accept writes (min-replicas-to-write)",
    "BUSY": "the server is busy with somebody's long script",
    "LOADING": "the server is still loading its data",
    "MASTERDOWN": "this replica has lost its primary",
    "MISCONF": "the server refuses writes because it cannot save its data (see its log)",
    "CLUSTERDOWN": "the cluster is down",
    "MOVED": "this server is a cluster node: connecting to a cluster is not supported yet",
    "CROSSSLOT": "this server is a cluster node: connecting to a cluster is not supported yet",
    "TRYAGAIN": "the lock's slot is being moved to another node",
}


def pack(call: Call, *, source: bool = False) -> bytes:
    """The command's bytes; with ``source``, the one that carries the whole script."""
    key = call.key
    parts = [call.script.eval if source else call.script.evalsha, b"$%d\r\n%b\r\n" % (len(key), key)]
    for arg in call.args:
        parts.append(b"$%d\r\n%b\r\n" % (len(arg), arg))
    return b"".join(parts)


def reply_error(error: theirs.RedisError) -> LockError:
    """What an error that the *server* answered means. The request had no effect."""
    text = str(error)
    if isinstance(
        error, theirs.AuthenticationError | theirs.AuthorizationError | theirs.NoPermissionError
    ) or any(word in text for word in ("NOAUTH", "WRONGPASS", "NOPERM")):
        return AccessDenied(
            f"the server refuses this user ({text}): check the user name, the password and the "
            "ACL rules of the connection"
        )
    if "WRONGTYPE" in text:
        return KeyConflict(text)
    if "HELLO" in text or "unknown command" in text.lower():
        return UnsupportedServer(
            f"the server does not know a command that lualock needs ({text}): it needs "
            "Redis 6.2, Valkey 7.2 or later"
        )
    for word, advice in _REFUSALS.items():
        # Servers differ in whether the word stands first or behind 'ERR Error running script'.
        if text.startswith(word) or f" {word} " in text or f"-{word} " in text:
            return LockUnavailable(f"{advice} ({text})")
    if isinstance(error, theirs.BusyLoadingError):
        return LockUnavailable(f"{_REFUSALS['LOADING']} ({text})")
    if isinstance(error, theirs.ReadOnlyError):
        return LockUnavailable(f"{_REFUSALS['READONLY']} ({text})")
    if isinstance(error, theirs.OutOfMemoryError):
        return LockUnavailable(f"{_REFUSALS['OOM']} ({text})")
    return LockUnavailable(f"the server refused the request: {text}")


def connect_error(error: Exception, where: str) -> LockError:
    """What a failure to *connect* means. Nothing was sent."""
    if isinstance(error, theirs.ResponseError | theirs.AuthenticationError):
        return reply_error(error)
    return LockUnavailable(
        f"no connection to the server at {where}: {error}. Is it running, and is the address right?"
    )


def lost_reply(error: Exception, where: str) -> LockUnavailable:
    """What a connection that broke after something was sent means."""
    return LockUnavailable(
        f"the connection to the server at {where} broke before the reply came ({error}): "
        "the request may or may not have been carried out",
        outcome_unknown=True,
    )


def check_hello(reply: Any) -> None:
    """Check the server's version in its answer to HELLO.

    :raises UnsupportedServer: it is older than the floor.
    """
    if isinstance(reply, list):  # RESP2 answers a map as a flat list
        reply = dict(zip(reply[::2], reply[1::2], strict=True))
    server = bytes(reply.get(b"server", b"redis")).decode()
    version = bytes(reply.get(b"version", b"")).decode()
    floor = FLOORS.get(server)
    try:
        found = tuple(int(part) for part in version.split(".")[:2])
    except ValueError:
        return  # a server with a version scheme of its own: its commands will tell
    if floor is not None and found < floor:
        raise UnsupportedServer(
            f"the server is {server} {version}; lualock needs Redis 6.2, Valkey 7.2 or later"
        )
