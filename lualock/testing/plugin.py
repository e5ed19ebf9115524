"""The pytest fixtures. A test that uses none of them starts and imports nothing."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import lualock
    from lualock.testing.kit import LockKit


@pytest.fixture(scope="session")
def lualock_server() -> Iterator[str]:
    """The URL of a private server, started for this test session."""
    from lualock import embedded

    with tempfile.TemporaryDirectory(prefix="lualock-", dir="/tmp") as folder:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LUALOCK_EMBEDDED_DIR", os.path.join(folder, "server"))
            server = embedded.start()
        with server:
            yield server.url


@pytest.fixture
def lualock_url(lualock_server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of the server, which is empty; ``lualock.connect()`` finds it on its own."""
    import redis

    with redis.Redis.from_url(lualock_server) as client:
        client.flushall()
    monkeypatch.setenv("LUALOCK_URL", lualock_server)
    return lualock_server


@pytest.fixture
def locks(lualock_url: str) -> Iterator[lualock.Locks]:
    """The locks of that server, for threads; in asyncio, ``aio.connect()`` finds the server."""
    import lualock

    with lualock.connect(lualock_url) as locks:
        yield locks


@pytest.fixture
def lock_kit(lualock_url: str) -> Iterator[LockKit]:
    """Check locks, hold them from another process, and let their time pass."""
    from lualock.testing.kit import LockKit

    with LockKit(lualock_url) as kit:
        yield kit
