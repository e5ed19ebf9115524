"""Bad input raises a typed error that names the mistake, before any request is sent."""

from __future__ import annotations

import math
import pickle
import subprocess
import sys
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
def nothing_written(api: World) -> Any:
    """Check at the end that the server got no write."""
    yield
    assert api.client.keys("*") == []


@pytest.mark.usefixtures("nothing_written")
@pytest.mark.parametrize("ttl", [ttl for ttl in BAD_TTLS if ttl is not None], ids=repr)
def test_ttl_of_a_lock(api: World, ttl: Any) -> None:
    """A ttl that is not a number of seconds from 1 ms to 366 days is refused."""
    with pytest.raises(lualock.InvalidArgument, match="ttl must be"):
        api.connect().lock("x", ttl=ttl)
    with pytest.raises(ValueError, match="ttl must be"):
        api.connect(ttl=ttl)


@pytest.mark.parametrize(
    ("ttl", "shown"), [(31_622_400.5, "31622400.5"), (31_622_401, "31622401"), (1e-5, "1e-05")]
)
def test_a_number_is_shown_unrounded(ttl: float, shown: str) -> None:
    """The error shows a refused number without rounding it to a valid one."""
    with pytest.raises(lualock.InvalidArgument, match=rf"to 31622400 .* not {shown}(\.|$)"):
        lualock.connect("redis://h").lock("x", ttl=ttl)


@pytest.mark.parametrize("ttl", BAD_TTLS, ids=repr)
async def test_ttl_of_extend(api: World, ttl: Any) -> None:
    """A bad ttl of ``extend()`` is refused and leaves the lease unchanged; 0 does not end it."""
    lock = api.connect().lock("x", ttl=30)
    lease = await settle(lock.acquire())
    with pytest.raises(lualock.InvalidArgument, match="ttl must be"):
        await settle(lease.extend(ttl))
    assert lease.held
    assert 0 < api.client.pttl(lock.key) <= 30_000


@pytest.mark.usefixtures("nothing_written")
@pytest.mark.parametrize("timeout", [-1, -0.001, math.nan, math.inf, "5", True, [1]], ids=repr)
async def test_timeout(api: World, timeout: Any) -> None:
    """A timeout that is not None, 0 or a positive number of seconds is refused."""
    with pytest.raises(lualock.InvalidArgument, match="timeout must be"):
        await settle(api.connect().lock("x").acquire(timeout=timeout))


@pytest.mark.parametrize(
    ("name", "message"),
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
def test_name(api: World, name: Any, message: str) -> None:
    """A name that is empty, too long, or neither text nor bytes is refused."""
    with pytest.raises(lualock.InvalidArgument, match=message):
        api.connect().lock(name)


@pytest.mark.parametrize("prefix", ["", "a{b", "a}", "x" * 129, None, 3], ids=repr)
def test_prefix(api: World, prefix: Any) -> None:
    """A prefix that is not text, or breaks the hash tag, is refused."""
    with pytest.raises(lualock.InvalidArgument, match="prefix"):
        api.connect(prefix=prefix)


@pytest.mark.parametrize(
    "use",
    [
        lambda locks: locks.lock("x", renew="yes"),
        lambda locks: locks.lock("x", metadata=7),
        lambda locks: locks.lock("x", metadata="x" * 257),
    ],
)
def test_other_options(api: World, use: Callable[[Any], Any]) -> None:
    """Every option is checked when the lock object is created, not when it is acquired."""
    with pytest.raises(lualock.InvalidArgument):
        use(api.connect())


@pytest.mark.parametrize("holder", [7, "", "two\nlines", "x" * 257], ids=repr)
def test_holder(api: World, holder: Any) -> None:
    """A holder's description must be one line of at most 256 bytes."""
    with pytest.raises(lualock.InvalidArgument, match="holder"):
        api.connect(holder=holder)


def test_the_wrong_kind_of_client() -> None:
    """A client of the other API, of a cluster or of no kind is refused, with the right one
    named."""
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
    for make, client, message in wrong:
        with pytest.raises(lualock.InvalidArgument, match=message):
            make(client)


@pytest.mark.parametrize("module", ["lualock", "lualock.aio"])
def test_bytes_are_not_a_url(module: str) -> None:
    """A URL in bytes is refused, also where Python forbids to compare bytes with text (``-bb``)."""
    code = (
        f"import {module} as api, lualock\n"
        "for url in (b'redis://h', b'embedded://'):\n"
        "    try: api.connect(url)\n"
        "    except lualock.InvalidArgument as error: print(error)\n"
    )
    run = subprocess.run([sys.executable, "-bb", "-c", code], capture_output=True, text=True)
    assert run.stdout.count("is not a client") == 2, run.stderr


def test_only_the_settings_of_a_client_are_used(one_server: Any) -> None:
    """Address and login come from the client; its retries, decoding and pool are not used."""
    client = redis.Redis(
        unix_socket_path=one_server.socket, decode_responses=True, max_connections=2, db=3
    )
    with lualock.Locks(client) as locks, locks.lock("x", ttl=30):
        assert client.keys("*") == ["lualock:{x}"]
    client.close()


def test_errors_survive_pickling() -> None:
    """An error keeps its facts when it is pickled, as job systems do."""
    import pickle

    error = lualock.NotAcquired("held", name="x", holder="me", held_s=1.5, remaining_s=2.5)
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.name, copy.holder) == ("held", "x", "me")
    assert (copy.held_s, copy.remaining_s) == (1.5, 2.5)
    unknown = pickle.loads(pickle.dumps(lualock.LockUnavailable("gone", outcome_unknown=True)))
    assert unknown.outcome_unknown


async def test_nothing_that_is_connected_is_pickled(api: World) -> None:
    """Locks and leases refuse to be pickled, and give the reason."""
    locks = api.connect()
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
    ("url", "message"),
    [
        ("redis://h/1/2", "the number of a database, not '1/2'"),
        ("redis://me:s3cret@h/abc", "the number of a database, not 'abc'"),
        ("redis://h/" + "1" * 5000, "the number of a database"),
        ("redis://h?ssl=true", "'ssl' means nothing in it: for TLS it begins with rediss://"),
        ("redis://:s3cret@h?ssl=true", "for TLS it begins with rediss://"),
        ("redis://h?ssl_cert_reqs=none", "that URL begins with rediss://"),
        ("valkey://h?ssl_cert_reqs=none", "that URL begins with rediss:// or valkeys://"),
        ("valkey://h/abc", "the number of a database, not 'abc'"),
        ("valkeyss://h", "it begins with valkeyss:"),
        ("redis://h?max_connections=1", "max_connections must be at least 2, .* not 1"),
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
        # Text that may be a password:
        ("redis://:12?s3cret=x@h", "URL. It begins"),
        ("redis://:12#s3cret@h", "URL. It begins"),
        ("redis://h?password=a&s3cret=b", "URL. It begins"),
    ],
    ids=lambda value: value[:40],
)
def test_a_url_with_a_meaningless_part(connect: Any, url: str, message: str) -> None:
    """A URL with a part without meaning is refused, with a correction and without its password."""
    with pytest.raises(lualock.InvalidArgument, match=f"^not a server's .*{message}") as caught:
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
        "valkeys://h?ssl_cert_reqs=none&ssl_check_hostname=no&protocol=3",
        "rediss://h?ssl_cert_reqs=CERT_REQUIRED",
        "rediss://h?ssl_cert_reqs=CERT_NONE&ssl_check_hostname=no",
        "rediss://h?ssl_cert_reqs=optional",
        "VALKEY://me:pw@h:1/2?max_connections=2",
        "unix://me:pw@/tmp/redis.sock?db=3",
    ],
)
def test_a_url_without_a_meaningless_part(connect: Any, url: str) -> None:
    """A URL with options of redis-py is accepted, even those without effect here."""
    assert connect(url)


@pytest.mark.parametrize("timeout", [0, -1, math.nan, math.inf, "5"])
@pytest.mark.parametrize("name", ["socket_timeout", "socket_connect_timeout"])
def test_a_client_s_timeouts(name: str, timeout: Any) -> None:
    """A client's invalid timeout is refused by ``connect()``, not by the first call."""
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
    """A password that breaks its URL is not repeated; the error shows how to write it."""
    url = f"redis://:{password}@localhost:6379/0"
    monkeypatch.setenv("LUALOCK_URL", url)
    with pytest.raises(lualock.InvalidArgument, match="is written as %2F") as caught:
        connect() if configured else connect(url)
    assert "s3cret" not in str(caught.value)
    assert str(caught.value).startswith("$LUALOCK_URL is not") == configured


def test_a_lock_without_its_locks() -> None:
    """A lock that is made of a client is refused, with the call that makes one."""
    makes: list[Callable[[], object]] = [
        lambda: lualock.Lock(redis.Redis(), "x"),
        lambda: aio.Lock(redis.asyncio.Redis(), "x"),
    ]
    for make in makes:
        with pytest.raises(lualock.InvalidArgument, match=r"Use lualock.connect\(...\).lock"):
            make()
    locks = lualock.connect("redis://localhost")
    assert lualock.Lock(locks, "x").key == locks.lock("x").key


def test_what_tells_locks_apart(api: World) -> None:
    """The ``repr`` shows the server, the database and the prefix, and no password."""
    connect: Any = aio.connect if api.asynchronous else lualock.connect
    text = repr(connect("redis://me:s3cret@h:7/2", prefix="shop"))
    assert "h:7/2, prefix 'shop'" in text
    assert "s3cret" not in text
