"""What goes on behind a thread's back: done when it is time, again until it works, or given up."""

from __future__ import annotations

from typing import Any

import pytest

from lualock._core import clock
from lualock._protocol import RunScript
from lualock._transport.threads.background import BackgroundCleanup
from lualock.errors import LockUnavailable
from lualock.scripts import SCRIPTS
from tests.support.waiting import threads_fail, wait_until

CALL = RunScript(SCRIPTS["abandon"], (b"k", b"q", b"t", b"", b"1", b""))


def test_in_the_order_of_their_time() -> None:
    """What is due sooner is done sooner, whenever it was asked for; then the thread ends."""
    cleaner, done = BackgroundCleanup(clock.now), list[str]()
    now = clock.now()
    cleaner.add(lambda _: done.append("later"), CALL, now + 0.2)
    cleaner.add(lambda _: done.append("sooner"), CALL, now + 0.1)
    cleaner.add(lambda _: done.append("now"), CALL)
    wait_until(lambda: len(done) == 3)
    assert done == ["now", "sooner", "later"]
    assert clock.now() >= now + 0.2
    wait_until(lambda: not cleaner._runs)


@pytest.mark.parametrize("error", [LockUnavailable("away"), RuntimeError("of somebody else's")])
def test_again_until_it_works(error: Exception) -> None:
    """A server that is away is tried again; so it is after an error that is not ours."""
    cleaner, tried = BackgroundCleanup(clock.now), list[int]()

    def make(_: RunScript) -> Any:
        tried.append(1)
        if len(tried) < 3:
            raise error

    cleaner.add(make, CALL)
    wait_until(lambda: len(tried) == 3)
    wait_until(lambda: not cleaner._runs)


def test_a_thread_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next chore starts the thread that does both."""
    cleaner, done = BackgroundCleanup(clock.now), list[str]()
    assert not threads_fail(monkeypatch, "lualock-cleaner", 1)
    with pytest.raises(RuntimeError, match="start"):
        cleaner.add(lambda _: done.append("first"), CALL)
    cleaner.add(lambda _: done.append("second"), CALL)
    wait_until(lambda: done == ["first", "second"])
    wait_until(lambda: not cleaner._runs)


def test_what_is_for_later_can_be_forgotten() -> None:
    """After forget() only what was begun goes on: nothing happens after a close()."""
    cleaner, done = BackgroundCleanup(clock.now), list[str]()
    cleaner.add(lambda _: done.append("later"), CALL, clock.now() + 0.3)
    cleaner.drop_future()
    wait_until(lambda: not cleaner._runs)  # at once, and not only when it would have been time
    assert done == []
