"""Bad input: a typed error that says what was wrong, before anything is sent."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
import redis
import redis.asyncio

import lualock
from lualock import aio
from tests.world import World, settle

BAD_TTLS = [0, -1, -0.5, 0.0001, math.nan, math.inf, -math.inf, 10**400, 367 * 86400]
BAD_TTLS += ["30", None, True, Decimal(3), [30], b"30"]  # type: ignore[list-item]  # on purpose


@pytest.fixture
def nothing_written(shell: World) -> Any:
    """Check at the end that the server was not even asked to write."""
    yield
    assert shell.client.keys("*") == []


@pytest.mark.usefixtures("nothing_written")
@pytest.mark.parametrize("ttl", [ttl for ttl in BAD_TTLS if ttl is not None], ids=repr)
def test_ttl_of_a_lock(shell: World, ttl: Any) -> None:
    """A ttl that is no number of seconds from 1 ms to 366 days is refused."""
    with pytest.raises(lualock.InvalidArgument, match="ttl must be"):
        shell.connect().lock("x", ttl=ttl)
    with pytest.raises(ValueError, match="ttl must be"):
        shell.connect(ttl=ttl)


@pytest.mark.parametrize("ttl", BAD_TTLS, ids=repr)
async def test_ttl_of_extend(shell: World, ttl: Any) -> None:
    """Extending by a bad ttl is refused, and leaves the lease as it was (0 does not free it)."""
    lock = shell.connect().lock("x", ttl=30)
    lease = await settle(lock.acquire())
    with pytest.raises(lualock.InvalidArgument, match="ttl must be"):
        await settle(lease.extend(ttl))
    assert lease.held
    assert 0 < shell.client.pttl(lock.key) <= 30_000


@pytest.mark.usefixtures("nothing_written")
@pytest.mark.parametrize("timeout", [-1, -0.001, math.nan, math.inf, "5", True, [1]], ids=repr)
async def test_timeout(shell: World, timeout: Any) -> None:
    """A timeout that is not None, 0 or a positive number of seconds is refused."""
    with pytest.raises(lualock.InvalidArgument, match="timeout must be"):
        await settle(shell.connect().lock("x").acquire(timeout=timeout))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "must not be empty"),
        (b"", "must not be empty"),
        ("x" * 1025, "1025 bytes"),
        ("ä" * 513, "1026 bytes"),
        (b"x" * 1_000_000, "use a digest"),
        (None, "str or bytes, not NoneType"),
        (42, "str or bytes, not int"),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_name(shell: World, name: Any, said: str) -> None:
    """An empty or over-long name, or one that is no text, is refused."""
    with pytest.raises(lualock.InvalidArgument, match=said):
        shell.connect().lock(name)


@pytest.mark.parametrize("prefix", ["", "a{b", "a}", "x" * 129, None, 3], ids=repr)
def test_prefix(shell: World, prefix: Any) -> None:
    """A prefix that would break the hash tag, or is none, is refused."""
    with pytest.raises(lualock.InvalidArgument, match="prefix"):
        shell.connect(prefix=prefix)


@pytest.mark.parametrize(
    "use",
    [
        lambda locks: locks.lock("x", renew="yes"),
        lambda locks: locks.lock("x", metadata=7),
        lambda locks: locks.lock("x", metadata="x" * 257),
    ],
)
def test_other_options(shell: World, use: Callable[[Any], Any]) -> None:
    """Every option is checked when the lock is made, not when it is acquired."""
    with pytest.raises(lualock.InvalidArgument):
        use(shell.connect())


@pytest.mark.parametrize("holder", [7, "", "two\nlines", "x" * 257], ids=repr)
def test_holder(shell: World, holder: Any) -> None:
    """A holder's description is one line of at most 256 bytes."""
    with pytest.raises(lualock.InvalidArgument, match="holder"):
        shell.connect(holder=holder)


def test_the_wrong_kind_of_client() -> None:
    """A client of the other world, a cluster's or none at all: the error says what to pass."""
    plain, coroutine = redis.Redis(), redis.asyncio.Redis()
    wrong: list[tuple[Callable[..., Any], Any, str]] = [
        (lualock.Locks, coroutine, "use lualock.aio"),
        (lualock.connect, coroutine, "use lualock.aio"),
        (aio.Locks, plain, "use lualock.connect"),
        (aio.connect, plain, "use lualock.connect"),
        (lualock.Locks, "redis://localhost", "pass a redis.Redis"),
        (lualock.Locks, None, "pass a redis.Redis"),
        (aio.Locks, object(), "pass a redis.asyncio.Redis"),
        (lualock.connect, 6379, "is no client"),
        (lualock.connect, "http://localhost", "not a server's URL"),
        (lualock.connect, "localhost:6379", "not a server's URL"),
        (lualock.connect, "redis://localhost:port", "not a server's URL"),
        (lualock.connect, "redis://localhost/abc", "the number of a database, and not 'abc'"),
        (lualock.connect, "redis://:pass/word@localhost/1", "not a server's URL. It begins"),
        (lualock.connect, redis.RedisCluster.__new__(redis.RedisCluster), "cluster"),
    ]
    for make, client, said in wrong:
        with pytest.raises(lualock.InvalidArgument, match=said):
            make(client)


def test_a_client_s_settings_are_used_and_nothing_else_of_it(one_server: Any) -> None:
    """Address and login come from the client; its retries, decoding and pool do not."""
    client = redis.Redis(
        unix_socket_path=one_server.socket, decode_responses=True, max_connections=1, db=3
    )
    with lualock.Locks(client) as locks, locks.lock("x", ttl=30):
        assert client.keys("*") == ["lualock:{x}"]
    client.close()


def test_errors_survive_pickling() -> None:
    """Job systems send exceptions between processes: what they tell must arrive."""
    import pickle

    error = lualock.NotAcquired("held", name="x", holder="me", held_s=1.5, remaining_s=2.5)
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.name, copy.holder) == ("held", "x", "me")
    assert (copy.held_s, copy.remaining_s) == (1.5, 2.5)
    unknown = pickle.loads(pickle.dumps(lualock.LockUnavailable("gone", outcome_unknown=True)))
    assert unknown.outcome_unknown


async def test_nothing_that_is_connected_is_pickled(shell: World) -> None:
    """Locks and leases say why they cannot go to another process."""
    locks = shell.connect()
    lock = locks.lock("x", ttl=5)
    lease = await settle(lock.acquire())
    for thing in (locks, lock, lease):
        with pytest.raises(
            TypeError, match=r"cannot be pickled( or copied)?: (connect|make another|it belongs)"
        ):
            pickle.dumps(thing)
    await settle(lease.release())


@pytest.mark.parametrize("connect", [lualock.connect, aio.connect])
@pytest.mark.parametrize("password", ["s3cret/x", "s3cret#x", "s3cret?x", "s3cret[x"])
@pytest.mark.parametrize("configured", [False, True], ids=["passed", "configured"])
def test_a_password_that_breaks_its_url(
    monkeypatch: pytest.MonkeyPatch, connect: Any, password: str, configured: bool
) -> None:
    """It is not repeated; the error says how to write it, and where the URL was from."""
    url = f"redis://:{password}@localhost:6379/0"
    monkeypatch.setenv("LUALOCK_URL", url)
    with pytest.raises(lualock.InvalidArgument, match="is written as %2F") as caught:
        connect() if configured else connect(url)
    assert "s3cret" not in str(caught.value)
    assert str(caught.value).startswith("$LUALOCK_URL is not") == configured
