"""Layer 0: what callers may pass, checked before anything is sent."""

from __future__ import annotations

import math
import os
import socket
import threading

from lualock.errors import InvalidArgument

DEFAULT_TTL_S = 30.0
MIN_TTL_S = 0.001
MAX_TTL_S = 366 * 86_400.0
MAX_ABOUT_BYTES = 256


def _number(value: object, what: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise InvalidArgument(f"{what} must be a number of seconds, not {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if math.isnan(number):
        raise InvalidArgument(f"{what} must be a number of seconds, not NaN")
    return number


def ttl_ms(ttl: object, what: str = "ttl") -> int:
    """A ttl in seconds as whole milliseconds, rounded up.

    :raises InvalidArgument: it is no number, or not from 1 ms to 366 days.
    """
    number = _number(ttl, what)
    if not MIN_TTL_S <= number <= MAX_TTL_S:
        raise InvalidArgument(
            f"{what} must be from {MIN_TTL_S} to {MAX_TTL_S:.0f} seconds (366 days), "
            f"not {number:g}; for a lock without a known end use the default, which is renewed"
        )
    return math.ceil(number * 1000 - 1e-6)


def wait_s(timeout: object) -> float | None:
    """The longest time to wait, in seconds; ``None`` waits for ever, 0 does not wait.

    :raises InvalidArgument: it is no number, negative, NaN or infinite.
    """
    if timeout is None:
        return None
    number = _number(timeout, "timeout")
    if number < 0 or math.isinf(number):
        raise InvalidArgument(
            f"timeout must be 0 (do not wait) or more seconds, or None (wait for ever), "
            f"not {number:g}"
        )
    return number


_HOST = socket.gethostname()
_this_thread = threading.local()


def _after_fork_in_child() -> None:
    global _this_thread
    _this_thread = threading.local()


os.register_at_fork(after_in_child=_after_fork_in_child)


def default_holder() -> bytes:
    """This thread as others shall see it: ``host:pid:thread``. Kept, for each acquisition asks."""
    try:
        found: bytes = _this_thread.holder
    except AttributeError:
        thread = threading.current_thread().name
        text = f"{_HOST}:{os.getpid()}:{thread}".replace("\n", " ")
        found = _this_thread.holder = text.encode("utf-8", "replace")[:120]
    return found


def about_bytes(holder: str | None, metadata: str) -> bytes:
    """What is kept beside a lease for whoever asks: ``holder``, a newline, ``metadata``.

    ``holder`` defaults to ``host:pid:thread``.

    :raises InvalidArgument: more than 256 bytes, or a newline in ``holder``.
    """
    if holder is not None and not isinstance(holder, str):
        raise InvalidArgument(f"holder must be str, not {type(holder).__name__}")
    if not isinstance(metadata, str):
        raise InvalidArgument(f"metadata must be str, not {type(metadata).__name__}")
    raw = default_holder() if holder is None else holder.encode("utf-8", "replace")
    if b"\n" in raw:
        raise InvalidArgument("holder must be one line")
    if metadata:
        raw += b"\n" + metadata.encode("utf-8", "replace")
    if len(raw) > MAX_ABOUT_BYTES:
        raise InvalidArgument(
            f"holder and metadata have {len(raw)} bytes together, more than the "
            f"{MAX_ABOUT_BYTES} allowed: keep a reference there, and the rest elsewhere"
        )
    return raw


def split_about(raw: bytes) -> tuple[str, str]:
    """The holder and the metadata out of :func:`about_bytes`."""
    holder, _, metadata = raw.decode("utf-8", "replace").partition("\n")
    return holder, metadata
