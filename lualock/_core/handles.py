"""Encode and decode handles: the text that passes a lease on to another process."""

from __future__ import annotations

import binascii
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass

from lualock.errors import InvalidArgument

_FORM = re.compile(r"lualock1\.([\w-]{22})\.([1-9]\d{0,10})\.([01])\.([\w=-]+)", re.ASCII)

DAMAGED = (
    "could not adopt a lease: the handle is damaged. Pass what lease.handle() returned, unchanged"
)


@dataclass(frozen=True, slots=True)
class Handle:
    """A decoded handle."""

    key: bytes
    token: bytes
    ttl_ms: int
    renew: bool


def write(key: bytes, token: bytes, ttl_ms: int, *, renew: bool) -> str:
    """Encode the handle of a lease. It is secret: its token proves ownership."""
    encoded_key = urlsafe_b64encode(key).decode()
    return f"lualock1.{token.decode()}.{ttl_ms}.{renew:d}.{encoded_key}"


def read(handle: object) -> Handle:
    """Decode a handle.

    :raises InvalidArgument: the text is not a handle. The error does not repeat it, because it may
        be secret.
    """
    if not isinstance(handle, str):
        raise InvalidArgument(
            f"could not adopt a lease: a handle must be str, not {type(handle).__name__}. "
            "Pass what lease.handle() returned"
        )
    match = _FORM.fullmatch(handle)
    if match is None:
        raise InvalidArgument(
            "could not adopt a lease: this text is not a handle. Pass what lease.handle() "
            "returned, unchanged"
        )
    token, ttl_ms, renew, encoded_key = match.groups()
    try:
        key = urlsafe_b64decode(encoded_key)
    except (binascii.Error, ValueError):
        raise InvalidArgument(DAMAGED) from None
    return Handle(key, token.encode(), int(ttl_ms), renew == "1")
