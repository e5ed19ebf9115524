"""Check the arguments of callers before anything is sent."""

from __future__ import annotations

import math
import socket
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeAlias, TypeGuard

from lualock._core import fork
from lualock.errors import InvalidArgument

Seconds: TypeAlias = float | timedelta
"""A time of the public API: a number of seconds, or a timedelta."""

DEFAULT_TTL_S = 30.0
MIN_TTL_S = 0.001
MAX_TTL_S = 366 * 86_400.0
MAX_HOLDER_INFO_BYTES = 256
MAX_FENCE = 2**53  # numbers in Lua are exact up to that
MAX_DEFAULT_HOLDER_BYTES = 120


def seconds(value: object, what: str) -> float:
    """Convert a time to a number of seconds.

    :raises InvalidArgument: it is neither a number nor a timedelta.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        if isinstance(value, timedelta):
            return timedelta.total_seconds(value)
        flag = isinstance(value, bool) and what == "timeout"  # as in threading.Lock.acquire(False)
        advice = ". To try once, without waiting, call try_acquire()" * flag
        raise InvalidArgument(
            f"{what} must be a number of seconds or a timedelta, not {type(value).__name__}{advice}"
        )
    try:
        number = float(value)
    except OverflowError:
        number = math.inf if value > 0 else -math.inf
    if math.isnan(number):
        raise InvalidArgument(f"{what} must be a number of seconds or a timedelta, not NaN")
    return number


def _not(value: object, number: float) -> str:
    # Unrounded, because 31622400.5 rounds to a valid value; an int may be too long to show.
    return f"not {value:d}" if isinstance(value, int) and abs(value) < 10**18 else f"not {number!r}"


def ttl_ms(ttl: object, what: str = "ttl") -> int:
    """Convert a ttl to whole milliseconds, rounded up.

    :raises InvalidArgument: it is not a time from 1 ms to 366 days.
    """
    number = seconds(ttl, what)
    if not MIN_TTL_S <= number <= MAX_TTL_S:
        renewed = what == "ttl" and number > MAX_TTL_S
        advice = ". For a lock without a known end leave the ttl out: it is renewed" * renewed
        raise InvalidArgument(
            f"{what} must be from {MIN_TTL_S} to {MAX_TTL_S:.0f} seconds (366 days), "
            f"{_not(ttl, number)}{advice}"
        )
    return math.ceil(number * 1000 - 1e-6)


def wait_s(timeout: object, what: str = "timeout") -> float | None:
    """Convert the longest time to wait to seconds; ``None``: no limit, 0: do not wait.

    :raises InvalidArgument: it is not a time, or is negative, NaN or infinite.
    """
    if timeout is None:
        return None
    number = seconds(timeout, what)
    if number < 0 or math.isinf(number):
        raise InvalidArgument(
            f"{what} must be 0 (do not wait) or more seconds, or None (wait for ever), "
            f"{_not(timeout, number)}"
        )
    return number


def socket_s(value: object, what: str) -> None:
    """Check the timeout of a connection, in seconds.

    :raises InvalidArgument: it is not a number above 0 and at most 366 days.
    """
    if isinstance(value, timedelta):  # the connection gets the value as it is
        raise InvalidArgument(f"{what} must be a number of seconds, not timedelta")
    number = seconds(value, what)
    if not 0 < number <= MAX_TTL_S:
        raise InvalidArgument(
            f"{what} must be above 0 and at most {MAX_TTL_S:.0f} seconds (366 days), "
            f"{_not(value, number)}"
        )


def delay_s(value: object, what: str) -> float:
    """Convert a delay to seconds.

    :raises InvalidArgument: it is not a time from 0 to 366 days.
    """
    number = seconds(value, what)
    if not 0 <= number <= MAX_TTL_S:
        raise InvalidArgument(
            f"{what} must be from 0 to {MAX_TTL_S:.0f} seconds (366 days), {_not(value, number)}"
        )
    return number


def max_hold_s(value: object, *, renewed: bool) -> float | None:
    """Convert the longest time that a lease is renewed to seconds; ``None``: no limit.

    :raises InvalidArgument: it is not a time above 0, or the lease is not renewed.
    """
    if value is None:
        return None
    number = seconds(value, "max_hold")
    if number < MIN_TTL_S:
        raise InvalidArgument(
            f"max_hold must be at least {MIN_TTL_S} seconds, {_not(value, number)}"
        )
    if not renewed:
        raise InvalidArgument(
            "max_hold needs a lease that is renewed: without renewal, its ttl is its end. "
            "Leave max_hold out, or pass renew=True"
        )
    return number


def hold_at_least_s(value: object, max_hold_s: float | None = None) -> float | None:
    """Convert the shortest time that a lock is held to seconds; ``None``: there is none.

    :raises InvalidArgument: it is not a time from 1 ms to 366 days, or is more than ``max_hold``.
    """
    if value is None:
        return None
    number = ttl_ms(value, "hold_at_least") / 1000
    if max_hold_s is not None and number > max_hold_s:
        raise InvalidArgument(
            f"hold_at_least must not be more than max_hold, {max_hold_s:g} seconds, not {number:g}"
        )
    return number


def is_function(value: object) -> TypeGuard[Callable[..., Any]]:
    """Return whether a value can be called for a result. A lock is callable only as a decorator."""
    return callable(value) and not hasattr(value, "try_acquire")


_WORDS = {
    "timeout": "how long a lease lasts is ttl=, how long to wait is acquire(timeout=...)",
    "blocking_timeout": "how long to wait is acquire(timeout=...)",
    "blocking": "try_acquire() does not wait",
    "sleep": "waiters do not poll",
    "on_failed": "it is on_skipped=",
    **dict.fromkeys(("expire", "expires", "lease_time", "ex"), "how long a lease lasts is ttl="),
    **dict.fromkeys(("auto_renewal", "auto_renew"), "it is renew=, and on without a ttl="),
}
"""What parameters of other libraries are called here."""


def unknown_parameter(function: str, names: Iterable[str]) -> TypeError:
    """Return the error for a call with a parameter that a function does not have."""
    name = next(iter(names))
    advice = f": {_WORDS[name]}" if name in _WORDS else ""
    return TypeError(f"{function} has no parameter {name!r}{advice}")


def callback(value: object, what: str) -> None:
    """Check a callback, which may be ``None``.

    :raises InvalidArgument: it is not callable.
    """
    if value is not None and not is_function(value):
        raise InvalidArgument(f"{what} must be a function or None, not {type(value).__name__}")


PRIORITY_MAX = 100
_BAND = 2**44  # scores of one priority: ticks of 0.1 ms, enough for 55 years


def priority_base(priority: object) -> bytes:
    """Return the lowest score in the queue of a priority; a higher priority has lower scores.

    :raises InvalidArgument: it is not a whole number from -100 to 100.
    """
    if isinstance(priority, bool) or not isinstance(priority, int):
        raise InvalidArgument(f"priority must be an int, not {type(priority).__name__}")
    if abs(priority) > PRIORITY_MAX:
        raise InvalidArgument(
            f"priority must be from -{PRIORITY_MAX} to {PRIORITY_MAX}, not {priority}"
        )
    return b"%d" % ((PRIORITY_MAX - priority) * _BAND)


def max_waiters(count: object) -> bytes:
    """Encode the limit of the queue's length; 0: no limit.

    :raises InvalidArgument: it is not a whole number above 0.
    """
    if count is None:
        return b"0"
    if isinstance(count, bool) or not isinstance(count, int) or not 0 < count < 2**31:
        raise InvalidArgument(
            f"max_waiters must be a whole number above 0, or None for no limit, not {count!r}"
        )
    return b"%d" % count


def fence(value: object) -> int:
    """Check a fencing token.

    :raises InvalidArgument: it is not one.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < MAX_FENCE:
        raise InvalidArgument(
            "fence must be the whole number lease.fence or LockInfo.fence, above 0 and below 2**53"
        )
    return value


def flag(value: object, what: str) -> bool:
    """Check a flag.

    :raises InvalidArgument: it is neither ``True`` nor ``False``.
    """
    if not isinstance(value, bool):
        raise InvalidArgument(f"{what} must be True or False, not {value!r}")
    return value


_HOST = socket.gethostname()
_this_thread = threading.local()


def default_holder() -> bytes:
    """Describe this thread for other processes: ``host:pid:thread``. Cached for speed."""
    pid, shown = getattr(_this_thread, "shown", (0, b""))
    if pid != fork.pid:
        thread = threading.current_thread().name
        text = f"{_HOST}:{fork.pid}:{thread}".replace("\n", " ")
        shown = text.encode("utf-8", "replace")[:MAX_DEFAULT_HOLDER_BYTES]
        _this_thread.shown = fork.pid, shown
    return bytes(shown)


def process_holder(pid: int) -> bytes:
    """Return the beginning of :func:`default_holder` in a process of this machine."""
    text = f"{_HOST}:{pid}:".replace("\n", " ")
    return text.encode("utf-8", "replace")[:MAX_DEFAULT_HOLDER_BYTES]


@dataclass(frozen=True, slots=True)
class HolderInfo:
    """The text that the server keeps with a lease: its holder, a newline, its metadata.

    ``holder`` is ``None`` for :func:`default_holder`, which differs from thread to thread.

    :raises InvalidArgument: it has more than ``MAX_HOLDER_INFO_BYTES``.
    """

    holder: bytes | None
    metadata: bytes = b""

    def __post_init__(self) -> None:
        size = MAX_DEFAULT_HOLDER_BYTES if self.holder is None else len(self.holder)
        size += len(self.metadata)
        if size > MAX_HOLDER_INFO_BYTES:
            raise InvalidArgument(
                f"holder and metadata have {size} bytes together, more than the "
                f"{MAX_HOLDER_INFO_BYTES} allowed: keep a reference there, and the rest elsewhere"
            )

    def text(self) -> bytes:
        """Encode it for a lease of the calling thread."""
        return (default_holder() if self.holder is None else self.holder) + self.metadata

    def with_metadata(self, metadata: str) -> HolderInfo:
        """Return the same holder with other metadata.

        If both do not fit, the holder is shortened: only people read it, but code reads metadata.
        """
        raw, holder = metadata_bytes(metadata), self.holder
        if holder is not None:
            holder = holder[: MAX_HOLDER_INFO_BYTES - len(raw)]
        return HolderInfo(holder, raw)


def holder_bytes(holder: object) -> bytes | None:
    """Encode the holder of leases; ``None``: :func:`default_holder`.

    :raises InvalidArgument: it is not one line of text.
    """
    if holder is None:
        return None
    if not isinstance(holder, str):
        raise InvalidArgument(f"holder must be str, not {type(holder).__name__}")
    if not holder or "\n" in holder:
        raise InvalidArgument("holder must be one line of text, and not empty")
    return holder.encode("utf-8", "replace")


def metadata_bytes(metadata: object) -> bytes:
    """Encode the metadata of leases as they follow the holder.

    :raises InvalidArgument: it is not a text.
    """
    if not isinstance(metadata, str):
        raise InvalidArgument(f"metadata must be str, not {type(metadata).__name__}")
    return b"\n" + metadata.encode("utf-8", "replace") if metadata else b""


def split_holder_info(raw: bytes) -> tuple[str, str]:
    """Split the text of :class:`HolderInfo` into the holder and the metadata."""
    holder, _, metadata = raw.decode("utf-8", "replace").partition("\n")
    return holder, metadata
