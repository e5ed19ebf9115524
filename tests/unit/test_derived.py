"""What other rooms build on a lock: derived locks, and requests with a token of their own."""

from __future__ import annotations

from typing import Any

import pytest

import lualock
from lualock import aio
from lualock._core import options

URL = "redis://localhost:1"  # nothing is sent


@pytest.mark.parametrize("api", [lualock, aio])
def test_a_derived_lock(api: Any) -> None:
    """It has a key of its own beside the lock's, and its own ttl; the lock stays as it was."""
    lock = api.connect(URL, prefix="p").lock("a}b", ttl=5, metadata="job 7")
    derived = lock.derived(b":reservation", 0.2)
    assert (derived.key, derived.ttl, derived.renewed) == (b"p:{a%7Db}:reservation", 0.2, False)
    assert derived.request().queue == b"p:{a%7Db}:reservation:waiters"
    assert derived.request().holder_info.endswith(b"\njob 7")
    assert derived.name == lock.name
    assert lock.derived().renewed
    assert (lock.key, lock.ttl, lock.renewed) == (b"p:{a%7Db}", 5, False)


@pytest.mark.parametrize("api", [lualock, aio])
def test_a_lock_by_its_key(api: Any) -> None:
    """The key names a lock, or one that is derived from it."""
    locks = api.connect(URL)
    for lock in (locks.lock("a:b}"), locks.lock("a:b}").derived(b":reservation")):
        same = locks.lock_at(lock.key, 3, metadata="x")
        assert (same.key, same.name, same.ttl) == (lock.key, "a:b}", 3)


def test_metadata_shortens_the_holder() -> None:
    """If both do not fit, the metadata stays whole."""
    lock = lualock.connect(URL, holder="h" * options.MAX_HOLDER_INFO_BYTES).lock("x")
    info = lock.derived(metadata="job 7").request().holder_info
    assert info == b"h" * (options.MAX_HOLDER_INFO_BYTES - 6) + b"\njob 7"


def test_metadata_of_a_derived_lock_is_as_of_any_other() -> None:
    """No metadata adds nothing to the holder, and what is no text is refused."""
    locks = lualock.connect(URL, holder="me")
    assert locks.lock_at(locks.lock("x").key).request().holder_info == b"me"
    with pytest.raises(lualock.InvalidArgument, match="metadata must be str, not int"):
        locks.lock("x").derived(metadata=5)  # type: ignore[arg-type]


def test_a_request_with_a_token() -> None:
    """The token and the ttl replace the lock's own; a ttl that is too long is cut."""
    lock = lualock.connect(URL).lock("x", ttl=5)
    request = lock.request(b"t" * 22, 1e9)
    assert (request.token, request.ttl_ms) == (b"t" * 22, options.MAX_TTL_S * 1000)
    assert lock.request().ttl_ms == 5000
    assert lock.request().token != lock.request().token
