"""TLS with a real server: checked certificates, what is wrong with one, and the wrong protocol."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio
import trustme

import lualock
from lualock import aio
from tests.support.servers import Server
from tests.support.world import World, settle


class Tls:
    """A port with TLS before a real server, as stunnel or a managed service has it."""

    def __init__(self, server: Server, folder: Path) -> None:
        self.server, authority = server, trustme.CA()
        self.ca, self.other_ca = str(folder / "ca"), str(folder / "other")
        authority.cert_pem.write_to_path(self.ca)
        trustme.CA().cert_pem.write_to_path(self.other_ca)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("localhost").configure_cert(self._context)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open = [self._listener]
        threading.Thread(target=self._accept, daemon=True).start()

    def url(self, host: str = "localhost", **options: str) -> str:
        """Return a URL of the server."""
        given = {"ssl_ca_certs": self.ca} | options
        query = "&".join(f"{name}={value}" for name, value in given.items())
        return f"rediss://{host}:{self.port}/0?{query}"

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._open.append(connection)
                threading.Thread(target=self._serve, args=[connection], daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with closing(connection), suppress(OSError):
            encrypted = self._context.wrap_socket(connection, server_side=True)
            with (
                closing(encrypted),
                socket.create_connection(("127.0.0.1", self.server.port)) as to,
            ):
                encrypted.settimeout(0.005)
                while True:
                    with suppress(TimeoutError):
                        if not (data := encrypted.recv(65536)):
                            return
                        to.sendall(data)
                    to.settimeout(0.005)
                    with suppress(TimeoutError):
                        if not (data := to.recv(65536)):
                            return
                        encrypted.sendall(data)

    def close(self) -> None:
        for one in self._open:
            one.close()


@pytest.fixture
def tls(one_server: Server, tmp_path: Path) -> Iterator[Tls]:
    """Return a port whose certificate is for localhost."""
    with closing(Tls(one_server, tmp_path)) as made:
        yield made


async def use(api: World, url: str) -> None:
    """Acquire a lock, and wait for it until it is handed over."""
    lock = api.connect(url).lock("x", ttl=30)
    lease = await settle(lock.acquire(timeout=5))
    waiter = asyncio.ensure_future(api.beside(partial(lock.acquire, timeout=5)))
    await asyncio.sleep(0)
    await settle(lease.release())
    await settle((await waiter).release())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"ssl_cert_reqs": "required"},
        {"ssl_cert_reqs": "CERT_REQUIRED"},
        {"ssl_cert_reqs": "none"},
        {"ssl_cert_reqs": "CERT_NONE", "ssl_check_hostname": "false"},
    ],
)
@pytest.mark.parametrize("scheme", ["rediss", "valkeys"])
async def test_a_certificate_that_is_checked(
    api: World, tls: Tls, scheme: str, options: dict[str, str]
) -> None:
    """Calls and messages go over TLS, by every way to say how the certificate is checked."""
    await use(api, tls.url(**options).replace("rediss", scheme))


@pytest.mark.parametrize(
    ("host", "options", "cause"),
    [
        ("localhost", {"ssl_ca_certs": "other"}, "CERTIFICATE_VERIFY_FAILED"),
        ("127.0.0.1", {}, "CERTIFICATE_VERIFY_FAILED.*127.0.0.1"),
    ],
    ids=["authority", "host"],
)
async def test_a_certificate_that_is_wrong(
    api: World, tls: Tls, host: str, options: dict[str, str], cause: str
) -> None:
    """An unknown authority and another host name are refused by name, and nothing is sent."""
    named = dict.fromkeys(options, tls.other_ca)
    with pytest.raises(lualock.LockUnavailable, match=cause):
        await settle(api.connect(tls.url(host, **named)).lock("x").acquire(timeout=5))


async def test_the_wrong_protocol(api: World, tls: Tls) -> None:
    """TLS to a plain port, and none to a port with TLS, are errors that name TLS or the server."""
    plain = f"rediss://localhost:{tls.server.port}/0?ssl_cert_reqs=none"
    with pytest.raises(lualock.LockUnavailable, match=r"(?i)ssl|tls"):
        await settle(api.connect(plain).lock("x").acquire(timeout=0.5))
    encrypted = f"redis://localhost:{tls.port}/0"
    with pytest.raises(lualock.LockUnavailable, match="could not connect to the server"):
        await settle(api.connect(encrypted).lock("x").acquire(timeout=0.5))


async def test_a_client_with_tls(api: World, tls: Tls) -> None:
    """A client's own settings for TLS serve both kinds of job."""
    kind: Any = redis.asyncio.Redis if api.asynchronous else redis.Redis
    client = kind(host="localhost", port=tls.port, ssl=True, ssl_ca_certs=tls.ca)
    locks: Any = aio.Locks(client) if api.asynchronous else lualock.Locks(client)
    lease = await settle(locks.lock("x").acquire(timeout=5))
    await settle(lease.release())

    @locks.job(key="x")  # type: ignore[untyped-decorator]  # `locks` is of either API
    def plain() -> str:
        return "done"

    @locks.job(key="x")  # type: ignore[untyped-decorator]
    async def coroutine() -> str:
        return "done"

    assert await asyncio.to_thread(plain) == await coroutine() == "done"
    await settle(locks.aclose() if api.asynchronous else locks.close())


def test_a_setting_that_asyncio_has_not(tls: Tls) -> None:
    """A setting for TLS that would be ignored is refused by name."""
    client = redis.Redis(port=tls.port, ssl=True, ssl_ca_certs=tls.ca, ssl_validate_ocsp=True)
    locks = lualock.Locks(client)

    @locks.job(key="x")
    async def coroutine() -> str:
        return "done"

    with pytest.raises(lualock.InvalidArgument, match="has no ssl_validate_ocsp"):
        asyncio.run(coroutine())
