"""Define ``LockOptions``: the options of a lock, checked once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import lru_cache, partial
from typing import Any

from lualock._core import options
from lualock._core.options import Seconds


@dataclass(frozen=True, slots=True)
class LockOptions:
    """The parameters of :meth:`lualock.Locks.lock`, and what follows from them.

    :raises InvalidArgument: a parameter is not valid.
    """

    on_lost: Callable[..., Any] | None = None
    ttl: Seconds | None = None
    renew: bool | None = None
    metadata: str = ""
    priority: int = 0
    max_waiters: int | None = None
    max_hold: Seconds | None = None
    hold_at_least: Seconds | None = None
    cancel_on_lost: bool = False

    ttl_ms: int | None = field(init=False)
    """``None``: the ttl of the ``Locks`` object."""

    renewed: bool = field(init=False)
    """Whether a lease is renewed: with a ttl it lasts that long, without one until released."""

    max_hold_s: float | None = field(init=False)
    hold_at_least_s: float | None = field(init=False)
    metadata_bytes: bytes = field(init=False)
    priority_base: bytes = field(init=False)
    waiters_limit: bytes = field(init=False)
    needs_renewer: bool = field(init=False)
    """Whether a lease is renewed, or its loss is reported."""

    def __post_init__(self) -> None:
        derive = partial(object.__setattr__, self)  # the class is frozen
        derive("priority_base", options.priority_base(self.priority))
        derive("waiters_limit", options.max_waiters(self.max_waiters))
        derive("ttl_ms", None if self.ttl is None else options.ttl_ms(self.ttl))
        renewed = self.ttl is None if self.renew is None else options.flag(self.renew, "renew")
        derive("renewed", renewed)
        derive("max_hold_s", options.max_hold_s(self.max_hold, renewed=renewed))
        derive("hold_at_least_s", options.hold_at_least_s(self.hold_at_least, self.max_hold_s))
        options.callback(self.on_lost, "on_lost")
        reported = options.flag(self.cancel_on_lost, "cancel_on_lost") or self.on_lost is not None
        derive("needs_renewer", renewed or reported)
        derive("metadata_bytes", options.metadata_bytes(self.metadata))


_PLAIN = frozenset({type(None), bool, int, float, str, timedelta})


@lru_cache(maxsize=128, typed=True)  # typed: 1 is a ttl, and True is not
def _cached(*values: Any) -> LockOptions:
    """Make options that are kept.

    :raises TypeError: they cannot be: a subclass has an equality of its own and may refer to other
        objects, and metadata that no lock takes may be large.
    """
    made = LockOptions(*values)
    if not _PLAIN.issuperset(map(type, values)):
        raise TypeError
    if len(made.metadata_bytes) > options.MAX_HOLDER_INFO_BYTES:
        raise TypeError
    return made


def lock_options(on_lost: Callable[..., Any] | None, *others: Any) -> LockOptions:
    """Return the options with these values, in the order of the fields.

    They are cached, because a lock object is often made for one use. A callback is not, because
    the cache would keep alive what it refers to.
    """
    if on_lost is None:
        try:
            return _cached(None, *others)
        except TypeError:
            pass  # they cannot be kept, or a value cannot be hashed
    return LockOptions(on_lost, *others)
