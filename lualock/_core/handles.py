"""Layer 0: the text by which a lease is passed on to another process."""

from __future__ import annotations

import binascii
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass

from lualock.errors import InvalidArgument

_FORM = re.compile(r"lualock1\.([\w-]{22})\.([1-9]\d{0,10})\.([01])([01])\.([\w=-]+)", re.ASCII)

DAMAGED = (
    "could not adopt a lease: the handle is damaged. Pass what lease.handle() returned, unchanged"
)


@dataclass(frozen=True, slots=True)
class Handle:
    """What a handle says."""

    key: bytes
    token: bytes
    ttl_ms: int
    fair: bool
    renew: bool


def write(key: bytes, token: bytes, ttl_ms: int, *, fair: bool, renew: bool) -> str:
    """The handle of a lease. Secret: its token proves ownership."""
    place = urlsafe_b64encode(key).decode()
    return f"lualock1.{token.decode()}.{ttl_ms}.{fair:d}{renew:d}.{place}"


def read(handle: object) -> Handle:
    """What a handle says.

    :raises InvalidArgument: it is none. The error does not repeat it, for it may be secret.
    """
    if not isinstance(handle, str):
        raise InvalidArgument(
            f"could not adopt a lease: a handle must be str, not {type(handle).__name__}. "
            "Pass what lease.handle() returned"
        )
    found = _FORM.fullmatch(handle)
    if found is None:
        raise InvalidArgument(
            "could not adopt a lease: this text is not a handle. Pass what lease.handle() "
            "returned, unchanged"
        )
    token, ttl_ms, fair, renew, place = found.groups()
    try:
        key = urlsafe_b64decode(place)
    except (binascii.Error, ValueError):
        raise InvalidArgument(DAMAGED) from None
    return Handle(key, token.encode(), int(ttl_ms), fair == "1", renew == "1")
