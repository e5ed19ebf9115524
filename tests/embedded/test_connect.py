"""``connect()`` uses the embedded server if that is chosen or nothing is configured."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import pytest

import lualock
from lualock import aio
from lualock._transport import find_server
from lualock.jobs import counterpart
from tests.support.waiting import wait_until
from tests.support.world import settle


@pytest.fixture(autouse=True)
def nothing_configured(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is configured, and this process has not warned yet."""
    for name in ("LUALOCK_URL", "LUALOCK_EMBEDDED"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(find_server, "_warned", False)


@pytest.fixture
def connect(asynchronous: bool) -> Any:
    """``connect`` of each API."""
    return aio.connect if asynchronous else lualock.connect


async def use(locks: Any) -> None:
    """Hold a lock on this test's embedded server, then close it."""
    assert os.environ["LUALOCK_EMBEDDED_DIR"] in repr(locks)
    lease = await settle(locks.lock("x").acquire())
    await settle(lease.release())
    await settle(locks.aclose() if hasattr(locks, "aclose") else locks.close())


@pytest.mark.parametrize("allowed", [None, "", "1"])
@pytest.mark.parametrize("configured", [False, True], ids=["passed", "configured"])
async def test_a_chosen_embedded_server(
    connect: Any, monkeypatch: pytest.MonkeyPatch, configured: bool, allowed: str | None
) -> None:
    """The URL ``embedded://`` uses the embedded server without a warning."""
    if allowed is not None:
        monkeypatch.setenv("LUALOCK_EMBEDDED", allowed)
    if configured:
        monkeypatch.setenv("LUALOCK_URL", "embedded://")
    await use(connect() if configured else connect("embedded://"))


async def test_nothing_configured(connect: Any) -> None:
    """The first use warns at the line that connects, of what the locks exclude; later ones do not.

    The warning says what to do.
    """
    with pytest.warns(RuntimeWarning, match="exclude only this user's processes") as warned:
        locks = connect()
    (warning,) = warned
    assert warning.filename == __file__
    for advice in ("LUALOCK_URL", "the URL of a server", "'embedded://'"):
        assert advice in str(warning.message)
    await use(locks)
    await use(connect())


def test_a_job_without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that names no locks warns at the line that runs it."""
    monkeypatch.setattr(counterpart, "_default", None)

    class Job(lualock.LockedJob):
        @classmethod
        def perform(cls) -> int:
            return 7

    with pytest.warns(RuntimeWarning, match="no server is configured") as warned:
        assert Job.run() == 7
    assert [warning.filename for warning in warned] == [__file__]
    assert counterpart._default is not None
    counterpart._default.close()


def test_a_warning_that_is_an_error(connect: Any, home: Path) -> None:
    """Where warnings are errors, no attempt connects, and none leaves a server running."""
    for _ in range(2):
        with pytest.raises(RuntimeWarning, match="no server is configured"):
            connect()


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
def test_a_warning_that_raises(
    connect: Any, home: Path, monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]
) -> None:
    """An error of any kind while the warning is shown leaves no server running."""

    def show(*_: Any, **__: Any) -> None:
        assert home.exists()
        raise kind("no warnings here")

    monkeypatch.setattr(warnings, "showwarning", show)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with pytest.raises(kind, match="no warnings here"):
            connect()
    wait_until(lambda: not home.exists())


@pytest.mark.parametrize("module", [{}, {"__name__": None}], ids=["no name", "None"])
async def test_a_caller_that_has_no_module(connect: Any, module: dict[str, Any]) -> None:
    """A caller whose code is in no module gets its locks too."""
    given = {"connect": connect, "__builtins__": {}, **module}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec("made = connect()", given)
    await use(given["made"])


@pytest.mark.parametrize("way", ["nothing configured", "passed", "configured"])
def test_a_forbidden_embedded_server(
    connect: Any, monkeypatch: pytest.MonkeyPatch, home: Path, way: str
) -> None:
    """With ``LUALOCK_EMBEDDED=0`` no way to the embedded server is left."""
    monkeypatch.setenv("LUALOCK_EMBEDDED", "0")
    if way == "configured":
        monkeypatch.setenv("LUALOCK_URL", "embedded://")
    with pytest.raises(lualock.EmbeddedUnavailable, match="LUALOCK_EMBEDDED=0 forbids") as refused:
        connect(*["embedded://"] if way == "passed" else [])
    assert "LUALOCK_URL" in str(refused.value)
    assert not home.exists()
    assert connect("redis://h")


@pytest.mark.parametrize("value", ["no", "false", "2", " 0"])
@pytest.mark.parametrize("way", ["nothing configured", "passed", "configured"])
def test_a_misspelt_setting(
    connect: Any, monkeypatch: pytest.MonkeyPatch, value: str, way: str
) -> None:
    """Another value of ``LUALOCK_EMBEDDED`` is refused, and does not count as allowed."""
    monkeypatch.setenv("LUALOCK_EMBEDDED", value)
    if way == "configured":
        monkeypatch.setenv("LUALOCK_URL", "embedded://")
    with pytest.raises(lualock.InvalidArgument, match=f"^LUALOCK_EMBEDDED must .*not {value!r}"):
        connect(*["embedded://"] if way == "passed" else [])
