"""What is imported, and when: a program pays for what it uses."""

from __future__ import annotations

import subprocess
import sys

import pytest

import lualock
from tests.support.servers import Server

SCRIPT = """
import sys
before = set(sys.modules)
def new():
    return sorted(set(sys.modules) - before)
"""


def run(code: str, *arguments: str) -> None:
    """Run a program in a fresh interpreter; it fails if its assertions do."""
    command = [sys.executable, "-W", "error", "-c", SCRIPT + code, *arguments]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize(
    ("module", "loaded"),
    [
        ("lualock", "importlib, typing"),
        ("lualock.testing", "importlib, typing"),
        ("lualock.testing.plugin", "pytest, tempfile"),
    ],
)
def test_an_import_alone_loads_no_room(module: str, loaded: str) -> None:
    """``import lualock`` loads no room, no client, and neither asyncio nor TLS; nor does the
    plugin, which each run of pytest imports."""
    run(
        f"""
import {loaded}
before |= set(sys.modules)
import {module}
assert set(new()) <= {{"lualock", "lualock.testing", "lualock.testing.plugin"}}, new()
"""
    )


DEPRECATED = """
import asyncio, inspect, warnings
from functools import wraps
def deprecate(name, real):
    @wraps(real)
    def warns(*args):
        warnings.warn(f"asyncio.{name} is deprecated", DeprecationWarning, stacklevel=2)
        return real(*args)
    setattr(asyncio, name, warns)
deprecate("iscoroutinefunction", inspect.iscoroutinefunction)
for name in "get_event_loop_policy", "set_event_loop_policy", "get_event_loop":
    deprecate(name, getattr(asyncio, name))
warnings.filterwarnings("error", module="lualock")
"""


@pytest.mark.parametrize(
    "module",
    [
        *("lualock._sync", "lualock.aio", "lualock.jobs", "lualock.fencing.aio", "lualock.ops.acl"),
        *("lualock.embedded", "lualock.testing.kit", "lualock.testing.plugin"),
    ],
)
def test_no_import_calls_what_python_deprecates(module: str) -> None:
    """No room calls a function of asyncio that Python 3.14 deprecates when it is imported."""
    run(f"import {module}" if sys.version_info >= (3, 14) else DEPRECATED + f"import {module}")


def test_threads_load_no_asyncio_api() -> None:
    """A program with threads loads neither the asyncio API nor an optional room."""
    run(
        """
import redis
before |= set(sys.modules)
import lualock
lualock.connect("redis://localhost")
not_for_it = ("lualock.aio", "lualock._transport.asyncio", "lualock.jobs", "lualock.ops",
    "lualock.fencing", "lualock.embedded", "lualock.integrations", "lualock.testing")
assert not [name for name in new() if name.startswith(not_for_it)], new()
assert not {"multiprocessing", "difflib", "asyncio", "valkey"} & set(new()), new()
"""
    )


def test_every_public_name_loads_on_first_use() -> None:
    """Each public name, and each room, is an attribute in a program that has used no other."""
    rooms = ["embedded", "errors", "fencing", "integrations", "jobs"]
    run(
        """
for name in sys.argv[1:]:
    for module in [one for one in sys.modules if one.startswith("lualock")]:
        del sys.modules[module]
    import lualock
    assert name in dir(lualock)
    getattr(lualock, name)
""",
        *lualock.__all__,
        *rooms,
    )
    run("from lualock import *; connect, LockError, LockedJob, aio")
    run("from lualock.testing import *; LockKit, OtherProcess")
    with pytest.raises(AttributeError, match="no attribute 'lock'"):
        _ = lualock.lock


def test_an_acquisition_loads_nothing(one_server: Server) -> None:
    """What the first acquisition needs is loaded before, so no event loop stands still for it."""
    run(
        """
import lualock
with lualock.connect(sys.argv[1]) as locks:
    lock = locks.lock("x")
    before |= set(sys.modules)
    with lock:
        pass
assert not [name for name in new() if name.startswith(("lualock", "redis"))], new()
""",
        one_server.url,
    )
    run(
        """
import asyncio
from lualock import aio
before |= set(sys.modules)
async def main():
    async with aio.connect(sys.argv[1]).lock("x"):
        pass
asyncio.run(main())
assert not [name for name in new() if name.startswith(("lualock", "redis"))], new()
""",
        one_server.url,
    )


@pytest.mark.parametrize(("api", "body"), [("lualock", "async def"), ("lualock.aio", "def")])
def test_a_job_loads_the_other_api(one_server: Server, api: str, body: str) -> None:
    """A job of the other kind runs in a program that has loaded one API only."""
    run(
        f"""
import asyncio, importlib
locks = importlib.import_module("{api}").connect(sys.argv[1])
@locks.job(key="x")
{body} job():
    return "done"
result = job()
assert (asyncio.run(result) if asyncio.iscoroutine(result) else result) == "done"
""",
        one_server.url,
    )


def test_a_job_of_no_locks_loads_the_api(one_server: Server) -> None:
    """A class that names no locks uses those of ``lualock.connect()``."""
    run(
        """
import os
os.environ["LUALOCK_URL"] = sys.argv[1]
from lualock.jobs import LockedJob
class Job(LockedJob):
    @classmethod
    def perform(cls):
        return "done"
assert Job.run() == "done"
""",
        one_server.url,
    )


def test_windows_is_refused_in_words() -> None:
    """A system without fork gets an error that says where lualock runs."""
    run(
        """
import os, random, threading, multiprocessing, logging, redis.asyncio
del os.register_at_fork
import lualock
for name in ("connect", "Locks", "aio", "LockedJob"):
    for module in [one for one in sys.modules if one.startswith("lualock.")]:
        del sys.modules[module]
    try:
        getattr(lualock, name)
    except ImportError as error:
        assert "On Windows use it in WSL" in str(error), error
    else:
        raise AssertionError(name)
"""
    )
