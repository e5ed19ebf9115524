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
from tests.support.world import World, settle

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


@pytest.mark.parametrize(
    ("ttl", "shown"), [(31_622_400.5, "31622400.5"), (31_622_401, "31622401"), (1e-5, "1e-05")]
)
def test_a_number_is_shown_as_it_was_given(ttl: float, shown: str) -> None:
    """And not rounded to one that would do."""
    with pytest.raises(lualock.InvalidArgument, match=rf"to 31622400 .* not {shown}(\.|$)"):
        lualock.connect("redis://h").lock("x", ttl=ttl)


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
        (lualock.Locks, "redis://localhost", "Pass a redis.Redis"),
        (lualock.Locks, None, "Pass a redis.Redis"),
        (aio.Locks, object(), "Pass a redis.asyncio.Redis"),
        (lualock.connect, 6379, "is not a client"),
        (lualock.connect, "http://localhost", "not a server's URL"),
        (lualock.connect, "localhost:6379", "not a server's URL"),
        (lualock.connect, "redis://localhost:port", "not a server's URL"),
        (lualock.connect, "redis://localhost/abc", "the number of a database, not 'abc'"),
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
@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://h/1/2", "the number of a database, not '1/2'"),
        ("redis://me:s3cret@h/abc", "the number of a database, not 'abc'"),
        ("redis://h/" + "1" * 5000, "the number of a database"),
        ("redis://h?ssl=true", "'ssl' means nothing in it: for TLS it begins with rediss://"),
        ("redis://:s3cret@h?ssl=true", "for TLS it begins with rediss://"),
        ("redis://h?ssl_cert_reqs=none", "that URL begins with rediss://"),
        ("redis://h?timeout=3", "write socket_timeout="),
        ("redis://h?foo=bar", "'foo' means nothing in it"),
        ("redis://h?foo", "'foo' means nothing in it"),
        ("redis://h?socket_timout=3", "did you mean socket_timeout"),
        ("redis://h?host=other", "the host comes after redis://"),
        ("redis://h?credential_provider=x", "'credential_provider' means nothing"),
        ("redis://h?socket_type=5", "'socket_type' means nothing"),
        ("redis://h?protocol=5", "protocol must be either 2 or 3"),
        ("redis://h?db=abc", "Invalid value for 'db'"),
        ("redis://h?db=-1", "the number of a database cannot be below 0"),
        ("rediss://h?ssl_cert_reqs=bogus", "bogus"),
        ("rediss://h?ssl_bogus=1", "ssl_bogus"),
        ("redis://h?socket_timeout=0", "socket_timeout must be above 0 .* not 0"),
        ("redis://h?socket_timeout=-1", "not -1"),
        ("redis://h?socket_timeout=nan", "not NaN"),
        ("redis://h?socket_timeout=inf", "not inf"),
        ("redis://h?socket_connect_timeout=nan", "socket_connect_timeout must be"),
        ("redis://a..b:1", "the host is not valid"),
        ("redis://%00:1", "the host is not valid"),
        ("redis://" + "x" * 300, "the host is not valid"),
        ("redis://me:s3cret", "the port is not a number"),
        ("redis://h#1", "a # has no meaning in it"),
        ("unix://tmp/redis.sock", "comes a path that begins with /"),
        ("unix://", "comes a path that begins with /"),
        ("embedded://h", "embedded:// has no host"),
        ("embedded:///tmp/lualock", "embedded:// has no path"),
        ("embedded://?db=1", "embedded:// has no query"),
        ("embedded://#1", "embedded:// has no fragment"),
        ("embedded:", "exactly embedded://"),
        ("embedded://me:s3cret@", "embedded:// has no host"),
        # Whatever stands where it cannot be told from a password:
        ("redis://:12?s3cret=x@h", "URL. It begins"),
        ("redis://:12#s3cret@h", "URL. It begins"),
        ("redis://h?password=a&s3cret=b", "URL. It begins"),
    ],
    ids=lambda value: value[:40],
)
def test_a_url_of_which_not_all_means_something(connect: Any, url: str, said: str) -> None:
    """It is refused at once, with what to write instead, and no password is repeated."""
    with pytest.raises(lualock.InvalidArgument, match=f"^not a server's .*{said}") as caught:
        connect(url)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("connect", [lualock.connect, aio.connect])
@pytest.mark.parametrize(
    "url",
    [
        "redis://me:pw@h:1/2?socket_timeout=3&max_connections=5&decode_responses=yes",
        "redis://h?health_check_interval=5&retry_on_timeout=1&socket_keepalive=1&client_name=a",
        "redis://[::1]:1/1/?db=3",
        "redis://häuser.example.",
        "rediss://h?ssl_cert_reqs=none&ssl_check_hostname=no&protocol=3",
        "unix://me:pw@/tmp/redis.sock?db=3",
    ],
)
def test_a_url_of_which_all_means_something(connect: Any, url: str) -> None:
    """It is taken, with what is for clients of redis-py's only."""
    assert connect(url)


@pytest.mark.parametrize("timeout", [0, -1, math.nan, math.inf, "5"])
@pytest.mark.parametrize("name", ["socket_timeout", "socket_connect_timeout"])
def test_a_client_s_timeouts(name: str, timeout: Any) -> None:
    """A client whose timeouts are none is refused, and not found out by the first call."""
    with pytest.raises(lualock.InvalidArgument, match=f"{name} must be"):
        lualock.connect(redis.Redis(**{name: timeout}))
    with pytest.raises(lualock.InvalidArgument, match=f"{name} must be"):
        aio.connect(redis.asyncio.Redis(**{name: timeout}))


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
