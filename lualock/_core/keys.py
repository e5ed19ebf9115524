"""Layer 0: names to keys.

A lock's key is ``<prefix>:{<name>}``. The braces make the name the hash tag, so that whatever
else a lock needs lives in the same cluster slot. Any ``str`` or ``bytes`` is a legal name: ``}``
would end the tag early and is written ``%7D``, and so ``%`` is written ``%25``. The mapping is
one to one.
"""

from __future__ import annotations

from lualock.errors import InvalidArgument

DEFAULT_PREFIX = "lualock"
MAX_NAME_BYTES = 1024
MAX_PREFIX_BYTES = 128


def _as_bytes(value: object, what: str, limit: int) -> bytes:
    if isinstance(value, str):
        # surrogatepass: a str that is no valid Unicode is still a legal name, and still distinct.
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
    """Check a key prefix; raise :class:`InvalidArgument` where it cannot be one."""
    raw = _as_bytes(prefix, "prefix", MAX_PREFIX_BYTES)
    if b"{" in raw or b"}" in raw:
        raise InvalidArgument("prefix must not contain { or }: the lock's name is the hash tag")
    return raw


def lock_key(prefix: bytes, name: object) -> bytes:
    """The key of the lock ``name``; raise :class:`InvalidArgument` where there can be none."""
    raw = _as_bytes(name, "a lock's name", MAX_NAME_BYTES)
    return prefix + b":{" + raw.replace(b"%", b"%25").replace(b"}", b"%7D") + b"}"


def name_of(prefix: bytes, key: bytes) -> bytes:
    """The name of a key's lock; raise :class:`InvalidArgument` if it has another prefix."""
    start = prefix + b":{"
    if not key.startswith(start) or not key.endswith(b"}"):
        raise InvalidArgument(
            f"could not adopt a lease: its lock has another prefix than {display_name(prefix)!r}. "
            "Use Locks with the prefix of the lock"
        )
    return key[len(start) : -1].replace(b"%7D", b"}").replace(b"%25", b"%")


def waiters_key(lock: bytes) -> bytes:
    """The key of the queue for a lock's key. No lock's key ends like that: they end with ``}``."""
    return lock + b":waiters"


def display_name(name: str | bytes) -> str:
    """A lock's name for messages and logs: printable, and cut where it is long."""
    text = name if isinstance(name, str) else name.decode("utf-8", "backslashreplace")
    shown = text if text.isprintable() else ascii(text)[1:-1]
    return shown if len(shown) <= 80 else shown[:77] + "..."
