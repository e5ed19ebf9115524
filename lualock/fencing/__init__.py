"""Layer 6: guards that make a fence useful: what a lock protects refuses who has it no longer.

A lease cannot stop code that is paused: it wakes after its lease has ended, and writes. The fence
of whoever has the lock by then is greater, so a store that remembers the greatest fence it has
seen, and refuses smaller ones, is safe from that. (Martin Kleppmann, *How to do distributed
locking*, 2016.) :func:`fenced_set` is such a store for a key of Redis or Valkey, on whatever server
that is; :mod:`lualock.fencing.aio` has it for ``redis.asyncio``. In SQL it is one more column, and
one more condition::

    UPDATE account SET balance = :balance, fence = :fence WHERE id = :id AND fence <= :fence

which changes no row when the fence is stale.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lualock._core import options
from lualock._core.keys import display_name
from lualock.errors import InvalidArgument, KeyConflict, StaleFence
from lualock.scripts import load

# It runs on the caller's client, whose connections and replies are not ours.
FENCED_SET = load(Path(__file__).with_name("scripts"), proved=False)["fenced_set"]
SOURCE = FENCED_SET.source.decode()
MAX_FENCE = 2**53  # a number of Lua's is exact up to that


def fence_key(key: bytes) -> bytes:
    """Where the greatest fence of a key is kept: in its slot, if the server is a cluster.

    :raises InvalidArgument: there is no such place (a cluster's slot is what is between the first
        ``{`` and the next ``}``, and this key has braces, but nothing between them).
    """
    _, opened, rest = key.partition(b"{")
    tag, closed, _ = rest.partition(b"}")
    if opened and closed and tag:
        return b"fence:" + key  # so that it is no other key's, whose fence begins with a brace
    if b"}" in key:
        raise InvalidArgument(
            f"could not keep a fence for key {display_name(key)!r}: the key has a brace but no "
            "hash tag. Choose another name"
        )
    return b"{" + key + b"}:fence"


def fenced_set(
    client: Any, key: str | bytes, value: str | bytes, *, fence: int, ttl: float | None = None
) -> None:
    """Set a key, as ``SET`` does, unless somebody with a greater fence has set it before.

    Read it with a plain ``GET``. The greatest fence is kept beside it, in a key of its own that
    does not expire: a guard that forgets is none.

    :param client: a ``redis.Redis`` of the server that has the key; what it raises is not changed.
    :param fence: :attr:`lualock.Lease.fence` of the writer's lease.
    :param ttl: seconds that the value lasts; ``None``: without an end.
    :raises StaleFence: a greater fence has been seen; nothing was changed.
    :raises KeyConflict: what stands where its fence is to be kept is none.
    :raises InvalidArgument: one of these cannot be used.
    """
    check_client(client, asynchronous=False)
    keys, args = request(key, value, fence, ttl)
    judge(client.register_script(SOURCE)(keys=keys, args=args), key, fence)


def check_client(client: object, *, asynchronous: bool) -> None:
    """Check that it is a client of the right kind, which answers at once.

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
    key: object, value: object, fence: object, ttl: float | None
) -> tuple[list[bytes], list[str | bytes | int]]:
    """The script's keys and arguments.

    :raises InvalidArgument: as for :func:`fenced_set`.
    """
    if not isinstance(key, str | bytes) or not key:
        raise InvalidArgument(f"a key must be str or bytes and not empty, not {type(key).__name__}")
    if not isinstance(value, str | bytes):
        raise InvalidArgument(f"a value must be str or bytes, not {type(value).__name__}")
    if isinstance(fence, bool) or not isinstance(fence, int) or not 0 < fence < MAX_FENCE:
        raise InvalidArgument("fence must be the whole number lease.fence, above 0 and below 2**53")
    raw = _encoded(key, "a key")
    ttl_ms = 0 if ttl is None else options.ttl_ms(ttl)
    return [raw, fence_key(raw)], [_encoded(value, "a value"), fence, ttl_ms]


def _encoded(text: str | bytes, what: str) -> bytes:
    try:
        return text.encode() if isinstance(text, str) else text
    except UnicodeEncodeError as error:
        raise InvalidArgument(f"{what} must be bytes if it is not valid text") from error


def judge(reply: Any, key: str | bytes, fence: int) -> None:
    """What the script's reply means.

    :raises StaleFence: a greater fence has been seen.
    :raises KeyConflict: what stands beside the key is no fence.
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
