"""Map names of locks to keys on the server.

* A lock's key is ``<prefix>:{<name>}``. The braces make the name the hash tag, so that all keys of
  a lock are in one cluster slot.
* Any ``str`` or ``bytes`` is a legal name. ``}`` ends a hash tag, so it is written ``%7D``, and
  ``%`` is written ``%25``.
* The mapping is one to one.
"""

from __future__ import annotations

from lualock.errors import InvalidArgument

DEFAULT_PREFIX = "lualock"
MAX_NAME_BYTES = 1024
MAX_PREFIX_BYTES = 128


def _as_bytes(value: object, what: str, limit: int) -> bytes:
    if isinstance(value, str):
        # surrogatepass: a str that is not valid Unicode is a legal name, distinct from others.
        raw = value.encode("utf-8", "surrogatepass")
    elif isinstance(value, bytes):
        raw = value
    else:
        raise InvalidArgument(f"{what} must be str or bytes, not {type(value).__name__}")
    if not raw:
        raise InvalidArgument(f"{what} must not be empty")
    if len(raw) > limit:
        raise InvalidArgument(
            f"{what} has {len(raw)} bytes, more than the {limit} allowed: use a digest of it"
        )
    return raw


def prefix_bytes(prefix: object) -> bytes:
    """Check and encode a key prefix.

    :raises InvalidArgument: the prefix is not valid.
    """
    raw = _as_bytes(prefix, "prefix", MAX_PREFIX_BYTES)
    if b"{" in raw or b"}" in raw:
        raise InvalidArgument("prefix must not contain { or }: the lock's name is the hash tag")
    return raw


def lock_key(prefix: bytes, name: object) -> bytes:
    """Return the key of the lock ``name``.

    :raises InvalidArgument: the name is not valid.
    """
    raw = _as_bytes(name, "a lock's name", MAX_NAME_BYTES)
    return prefix + b":{" + raw.replace(b"%", b"%25").replace(b"}", b"%7D") + b"}"


def name_of(prefix: bytes, key: bytes) -> bytes:
    """Return the name of the lock with this key.

    :raises InvalidArgument: the key has another prefix.
    """
    start = prefix + b":{"
    if not key.startswith(start) or not key.endswith(b"}"):
        raise InvalidArgument(
            f"could not adopt a lease: its lock has another prefix than {display_name(prefix)!r}. "
            "Use Locks with the prefix of the lock"
        )
    return key[len(start) : -1].replace(b"%7D", b"}").replace(b"%25", b"%")


def waiters_key(lock: bytes) -> bytes:
    """Return the key of a lock's queue. It is not a lock's key, because those end with ``}``."""
    return lock + b":waiters"


def display_name(name: str | bytes) -> str:
    """Format a lock's name for messages and logs: printable, and cut if it is long."""
    text = name if isinstance(name, str) else name.decode("utf-8", "backslashreplace")
    shown = text if text.isprintable() else ascii(text)[1:-1]
    return shown if len(shown) <= 80 else shown[:77] + "..."
