"""Refuse writes of a former lock holder, by fencing tokens.

A lease cannot stop code that is paused: it resumes after its lease has expired, and writes. The
fencing token (*fence*) of the next holder is greater. So a store that remembers the greatest fence
it has seen, and refuses smaller ones, is safe. (Martin Kleppmann, *How to do distributed locking*,
2016.) :func:`fenced_set` does so for a key on any Redis or Valkey server;
:mod:`lualock.fencing.aio` has it for ``redis.asyncio``. In SQL it takes one more column and one
more condition::

    UPDATE account SET balance = :balance, fence = :fence WHERE id = :id AND fence <= :fence

which changes no row when the fence is stale.
"""

from __future__ import annotations

from importlib import resources
from typing import Any

from lualock._core import options
from lualock._core.keys import display_name
from lualock._core.options import Seconds
from lualock.errors import InvalidArgument, KeyConflict, StaleFence
from lualock.scripts import load

# It runs on the caller's client, so its replies carry no proof.
FENCED_SET = load(resources.files(__name__) / "scripts", proved=False)["fenced_set"]
SOURCE = FENCED_SET.source.decode()


def fence_key(key: bytes) -> bytes:
    """Return the key that keeps the greatest fence of a key, in the same cluster slot.

    :raises InvalidArgument: there is no such key. (The hash tag is the text between the first ``{``
        and the next ``}``, and this key has braces with no text between them.)
    """
    _, opened, rest = key.partition(b"{")
    tag, closed, _ = rest.partition(b"}")
    if opened and closed and tag:
        return b"fence:" + key  # distinct from the form below, which begins with a brace
    if b"}" in key:
        raise InvalidArgument(
            f"could not keep a fence for key {display_name(key)!r}: the key has a brace but no "
            "hash tag. Choose another name"
        )
    return b"{" + key + b"}:fence"


def fenced_set(
    client: Any, key: str | bytes, value: str | bytes, *, fence: int, ttl: Seconds | None = None
) -> None:
    """Set a key, as ``SET`` does, unless a holder with a greater fence has set it before.

    Read it with a plain ``GET``. The greatest fence is kept in a key of its own that does not
    expire: otherwise a late write could succeed.

    :param client: a ``redis.Redis`` of the key's server; its exceptions are passed on unchanged.
    :param fence: :attr:`lualock.Lease.fence` of the writer's lease.
    :param ttl: seconds that the value lasts; ``None``: it does not expire.
    :raises StaleFence: a greater fence has been seen; nothing was changed.
    :raises KeyConflict: the key of the fence holds something else; nothing was changed.
    :raises InvalidArgument: an argument is not valid.
    """
    check_client(client, asynchronous=False)
    keys, args = request(key, value, fence, ttl)
    judge(client.register_script(SOURCE)(keys=keys, args=args), key, fence)


def check_client(client: object, *, asynchronous: bool) -> None:
    """Check that this is a client of the right kind, and not a pipeline.

    :raises InvalidArgument: it is not.
    """
    kinds = {kind.__module__ for kind in type(client).__mro__}
    theirs = any(module.startswith("redis.asyncio") for module in kinds)
    if not hasattr(client, "register_script") or hasattr(client, "command_stack"):
        raise InvalidArgument(
            f"client must be a redis.Redis, not {type(client).__name__}. (A pipeline's replies "
            "come too late to be checked.)"
        )
    if theirs != asynchronous:
        raise InvalidArgument(
            "client is of the wrong kind: use lualock.fencing.aio.fenced_set for redis.asyncio, "
            "and lualock.fencing.fenced_set for redis.Redis"
        )


def request(
    key: object, value: object, fence: object, ttl: Seconds | None
) -> tuple[list[bytes], list[str | bytes | int]]:
    """Make the script's keys and arguments.

    :raises InvalidArgument: as for :func:`fenced_set`.
    """
    if not isinstance(key, str | bytes) or not key:
        raise InvalidArgument(f"a key must be str or bytes and not empty, not {type(key).__name__}")
    if not isinstance(value, str | bytes):
        raise InvalidArgument(f"a value must be str or bytes, not {type(value).__name__}")
    raw = _encoded(key, "a key")
    ttl_ms = 0 if ttl is None else options.ttl_ms(ttl)
    return [raw, fence_key(raw)], [_encoded(value, "a value"), options.fence(fence), ttl_ms]


def _encoded(text: str | bytes, what: str) -> bytes:
    try:
        return text.encode() if isinstance(text, str) else text
    except UnicodeEncodeError as error:
        raise InvalidArgument(f"{what} must be bytes if it is not valid text") from error


def judge(reply: Any, key: str | bytes, fence: int) -> None:
    """Check the script's reply.

    :raises StaleFence: a greater fence has been seen.
    :raises KeyConflict: the key of the fence holds something else.
    """
    if isinstance(reply, list) and len(reply) == 1:
        raw = key.encode() if isinstance(key, str) else key
        raise KeyConflict(
            f"could not set key {display_name(key)!r}: its fence key "
            f"{display_name(fence_key(raw))!r} does not hold a fence (nothing was changed). "
            "Delete that key, or choose another one to set"
        )
    if isinstance(reply, list):
        seen = int(reply[1])
        raise StaleFence(
            f"could not set key {display_name(key)!r}: fence {fence} is stale, {seen} has been "
            "seen, so another holder has acquired the lock since. Discard this write",
            fence=fence,
            seen=seen,
        )
