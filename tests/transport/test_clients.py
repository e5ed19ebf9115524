"""Clients and their settings: each is used, or refused by name."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import fakeredis
import pytest
import redis
import redis.asyncio
import trio
import valkey
import valkey.asyncio

import lualock
from lualock import aio
from tests.support.servers import BINARIES, Server
from tests.support.world import World, settle


@pytest.mark.parametrize("unix", [False, True])
async def test_clients_of_valkey(api: World, unix: bool) -> None:
    """A client of valkey-py serves as one of redis-py; only its connection settings are used."""
    server = api.server
    where: dict[str, Any] = {"unix_socket_path": server.socket} if unix else {"port": server.port}
    kind: Any = valkey.asyncio.Valkey if api.asynchronous else valkey.Valkey
    connect: Any = aio.connect if api.asynchronous else lualock.connect
    locks = connect(kind(**where, db=3, decode_responses=True, protocol=api.resp))
    api.made.append(locks)
    lease = await settle(locks.lock("x").acquire(timeout=5))
    with redis.Redis(port=server.port, db=3) as client:
        assert client.exists("lualock:{x}")
    await settle(lease.release())


@pytest.mark.parametrize("scheme", ["valkey", "VALKEY"])
async def test_urls_of_valkey(api: World, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A URL of Valkey leads to the same server, also in ``$LUALOCK_URL``."""
    url = f"{scheme}://127.0.0.1:{api.server.port}/2?socket_timeout=3"
    monkeypatch.setenv("LUALOCK_URL", url)
    connect: Any = aio.connect if api.asynchronous else lualock.connect
    for locks in (api.connect(url), connect()):
        api.made.append(locks)
        await settle((await settle(locks.lock("x").acquire(timeout=5))).release())


def _any(value: Any) -> Any:
    """Return a value whose type is not checked here."""
    return value


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: lualock.connect(_any(valkey.asyncio.Valkey())), "wrong kind .* use lualock.aio"),
        (lambda: aio.connect(_any(valkey.Valkey())), "wrong kind .* use lualock.connect"),
        (
            lambda: lualock.connect(_any(valkey.Sentinel)([("h", 1)]).master_for("m")),
            "not redis-py's",
        ),
        (lambda: lualock.connect(fakeredis.FakeRedis()), "of fakeredis: .* pytest plugin"),
        (lambda: lualock.Locks(fakeredis.FakeStrictRedis()), "of fakeredis"),
        (lambda: aio.connect(fakeredis.FakeAsyncRedis()), "of fakeredis"),
        (lambda: lualock.connect(redis.Redis(max_connections=1)), "max_connections .* not 1"),
        (lambda: aio.connect(redis.asyncio.Redis(max_connections=1)), "max_connections"),
    ],
)
def test_clients_that_cannot_serve(make: Callable[[], Any], message: str) -> None:
    """A client that lualock cannot use is refused when it is given, with the reason."""
    with pytest.raises(lualock.InvalidArgument, match=message):
        make()


@pytest.mark.parametrize("by_url", [False, True])
def test_the_most_connections_of_a_client(by_url: bool, one_server: Server) -> None:
    """Threads share no more connections than the caller allows, and all get their locks."""
    url = f"redis://127.0.0.1:{one_server.port}?max_connections=3"
    with (
        one_server.client() as observer,
        lualock.connect(url if by_url else redis.Redis.from_url(url)) as locks,
    ):
        before, most = len(observer.client_list()), 0
        counts = [0] * 12

        def work(number: int) -> None:
            for _ in range(30):
                with locks.lock(f"x{number % 4}", ttl=5):
                    counts[number] += 1

        threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            most = max(most, len(observer.client_list()) - before)
        assert counts == [30] * 12
        assert 2 <= most <= 3


async def test_a_function_that_prepares_connections(api: World) -> None:
    """The client's own function is called for each connection; it is not for the other API."""
    names: list[str] = []

    def prepare(connection: Any) -> None:
        names.append(type(connection).__name__)
        connection.on_connect()

    async def prepare_async(connection: Any) -> None:
        names.append(type(connection).__name__)
        await connection.on_connect()

    kind: Any = redis.asyncio.Redis if api.asynchronous else redis.Redis
    connect: Any = aio.connect if api.asynchronous else lualock.connect
    function = prepare_async if api.asynchronous else prepare
    where = {"unix_socket_path": api.server.socket, "protocol": api.resp}
    locks = connect(kind(**where, redis_connect_func=function))
    api.made.append(locks)
    await settle((await settle(locks.lock("x").acquire(timeout=5))).release())
    assert names

    def plain() -> None: ...

    async def coroutine() -> None: ...

    job = locks.job(plain if api.asynchronous else coroutine)
    with pytest.raises(lualock.InvalidArgument, match="redis_connect_func is written for"):
        await settle(job())


@pytest.mark.parametrize("hidden", ["HELLO", "PUBLISH", "SUBSCRIBE", "EVALSHA"])
async def test_a_server_that_hides_a_command(api: World, resp: int, hidden: str) -> None:
    """The error names the command, and what may hide it on a server that is new enough."""
    name = next(iter(BINARIES))
    server = Server(name, BINARIES[name], config=("--rename-command", hidden, ""))
    api.resp = resp
    try:
        with pytest.raises(lualock.UnsupportedServer, match=rf"{hidden}.*or a proxy before it"):
            await settle(_wait_for_held_lock(api, server.url))
    finally:
        server.close()


async def _wait_for_held_lock(api: World, url: str) -> None:
    locks = api.connect(url)
    lease = await settle(locks.lock("x", ttl=5).acquire(timeout=5))
    assert lease.held
    await settle(locks.lock("x", ttl=5).acquire(timeout=5))


def test_asyncio_without_its_event_loop(one_server: Server) -> None:
    """Under trio, and where no event loop runs, the error says that asyncio is needed."""
    locks = aio.connect(one_server.url)

    async def enter() -> None:
        async with locks.lock("x", ttl=5):
            raise AssertionError

    uses: list[Callable[[], Any]] = [
        enter,
        lambda: locks.lock("x", ttl=5).acquire(timeout=1),
        lambda: locks.lock("x").try_acquire(),
        lambda: locks.lock("x").inspect(),
        lambda: locks.lock("x").request_release(),
    ]
    for use in uses:
        with pytest.raises(lualock.LockError, match="no event loop of asyncio runs here"):
            trio.run(use)
        coroutine = use()
        with pytest.raises(lualock.LockError, match="no event loop of asyncio runs here"):
            coroutine.send(None)
        coroutine.close()

    async def main() -> bool:
        return await locks.lock("x").locked()

    assert asyncio.run(main()) is False
