"""The options of a lock are checked once, and shared between locks."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest

import lualock
from lualock import aio
from lualock._core import lock_options
from lualock._core.lock_options import LockOptions


def test_locks_with_the_same_values_share_their_options() -> None:
    """The options of two locks are one object if all their values are the same."""
    locks = lualock.connect("redis://h")
    first, second = locks.lock("x", 10, priority=1), locks.lock("y", 10, priority=1)
    assert first._options is second._options
    assert locks.lock("x", 10)._options is not first._options
    assert locks.lock("x")._options == LockOptions()


@pytest.mark.parametrize(
    ("good", "equal"),
    [
        ({"ttl": 1}, {"ttl": True}),
        ({"priority": 0}, {"priority": False}),
        ({"renew": True}, {"renew": 1}),
    ],
    ids=repr,
)
@pytest.mark.parametrize("api", [lualock, aio], ids=["sync", "asyncio"])
def test_equal_is_not_valid(api: Any, good: dict[str, Any], equal: dict[str, Any]) -> None:
    """A value of a wrong type is refused, although it equals one that was accepted before."""
    locks = api.connect("redis://h")
    locks.lock("x", **good)
    with pytest.raises(lualock.InvalidArgument):
        locks.lock("x", **equal)


def test_a_value_without_a_hash_is_refused_by_name() -> None:
    """A value that cannot be hashed is refused as any other that is not valid."""
    with pytest.raises(lualock.InvalidArgument, match=r"^priority must be an int, not list"):
        lualock.connect("redis://h").lock("x", priority=[1])  # type: ignore[arg-type]


def test_a_callback_ends_with_its_lock() -> None:
    """The cache keeps no callback alive, nor what it refers to."""

    class Owner:
        def on_lost(self, lease: lualock.Lease) -> None:
            """Do nothing."""

    owner = Owner()
    dropped = weakref.ref(owner)
    lualock.connect("redis://h").lock("x", on_lost=owner.on_lost)
    del owner
    gc.collect()
    assert dropped() is None


class Either(str):
    """A text that equals the same text in other letters."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and self.lower() == other.lower()

    def __hash__(self) -> int:
        return hash(self.lower())


def test_a_subclass_has_options_of_its_own() -> None:
    """A value of a subclass may equal another one that is different."""
    locks = lualock.connect("redis://h")
    kept = [locks.lock("x", metadata=Either(text))._options.metadata_bytes for text in "Aa"]
    assert kept == [b"\nA", b"\na"]


def test_metadata_that_is_too_long_is_not_kept() -> None:
    """The cache keeps no metadata that no lock takes."""
    lock_options._cached.cache_clear()
    locks = lualock.connect("redis://h")
    with pytest.raises(lualock.InvalidArgument, match="more than the 256 allowed"):
        locks.lock("x", metadata="y" * 1000)
    assert lock_options._cached.cache_info().currsize == 0
    locks.lock("x", metadata="y")
    assert lock_options._cached.cache_info().currsize == 1
