"""Clean-up in the background: calls are made when due, repeated until they succeed, or dropped."""

from __future__ import annotations

from typing import Any

import pytest

from lualock._core import clock
from lualock._protocol import RunScript
from lualock._transport.threads.background import BackgroundCleanup
from lualock.errors import LockUnavailable
from lualock.scripts import SCRIPTS
from tests.support.waiting import threads_fail, wait_until

CALL = RunScript(SCRIPTS["abandon"], (b"k", b"q", b"t", b"", b""))


def test_calls_are_made_in_the_order_of_their_times() -> None:
    """Calls are made in the order of their times, whatever the order in which they were added."""
    cleanup, done = BackgroundCleanup(clock.now), list[str]()
    now = clock.now()
    cleanup.add(lambda _: done.append("later"), CALL, now + 0.2)
    cleanup.add(lambda _: done.append("sooner"), CALL, now + 0.1)
    cleanup.add(lambda _: done.append("now"), CALL)
    wait_until(lambda: len(done) == 3)
    assert done == ["now", "sooner", "later"]
    assert clock.now() >= now + 0.2
    wait_until(lambda: not cleanup._runs)


@pytest.mark.parametrize("error", [LockUnavailable("away"), RuntimeError("of the program")])
def test_a_call_is_repeated_until_it_succeeds(error: Exception) -> None:
    """A call that fails is repeated until it succeeds, whatever the error."""
    cleanup, tried = BackgroundCleanup(clock.now), list[int]()

    def make(_: RunScript) -> Any:
        tried.append(1)
        if len(tried) < 3:
            raise error

    cleanup.add(make, CALL)
    wait_until(lambda: len(tried) == 3)
    wait_until(lambda: not cleanup._runs)


def test_a_thread_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the thread cannot be started, the next call starts it, and both calls are made."""
    cleanup, done = BackgroundCleanup(clock.now), list[str]()
    assert not threads_fail(monkeypatch, "lualock-cleanup", 1)
    with pytest.raises(RuntimeError, match="start"):
        cleanup.add(lambda _: done.append("first"), CALL)
    cleanup.add(lambda _: done.append("second"), CALL)
    wait_until(lambda: done == ["first", "second"])
    wait_until(lambda: not cleanup._runs)


def test_calls_that_are_not_due_can_be_dropped() -> None:
    """``drop_future()`` drops the calls that are not due, so none is made after a close."""
    cleanup, done = BackgroundCleanup(clock.now), list[str]()
    cleanup.add(lambda _: done.append("later"), CALL, clock.now() + 0.3)
    cleanup.drop_future()
    wait_until(lambda: not cleanup._runs)  # at once, not when the call is due
    assert done == []
