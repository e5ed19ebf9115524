"""The event that threads wait for: it wakes them, and an interruption leaves it in order."""

from __future__ import annotations

import sys
import threading
import types
from typing import Any

import pytest

from lualock._core.event import Event
from tests.support.waiting import wait_until


def _in_a_thread(*events: Event) -> list[bool]:
    """Wait for each event in a thread of its own. Returns the list that gets the results."""
    results: list[bool] = []
    for event in events:
        threading.Thread(target=lambda e=event: results.append(e.wait(10)), daemon=True).start()
    return results


def test_it_wakes_all_waiters() -> None:
    """``set()`` wakes all threads that wait, and later ones do not wait until ``clear()``."""
    event = Event()
    assert not event.is_set()
    assert not event.wait(0)
    assert not event.wait(-1)
    results = _in_a_thread(event, event, event)
    wait_until(lambda: len(event._sleepers) == 3)
    assert results == []
    event.set()
    event.set()
    wait_until(lambda: results == [True] * 3)
    assert event.is_set()
    assert event.wait(float("inf"))
    event.clear()
    assert not event.wait(0.001)
    assert not event._sleepers


class Struck(BaseException):
    """The error of a signal handler."""


class _Strike:
    """Raises at one instruction of the Python code that runs, in any module; counts them all."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __enter__(self) -> None:
        sys.settrace(self._trace)

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _trace(self, frame: types.FrameType, event: str, _: object) -> Any:
        if frame.f_code is _Strike.__exit__.__code__:
            return None
        frame.f_trace_opcodes = True
        if event in ("call", "opcode"):
            self.left -= 1
            if self.left == 0:
                raise Struck
        return self._trace


def _check_usable(event: Event, what: str) -> None:
    results = _in_a_thread(event)
    wait_until(lambda: results or event._sleepers, what=what)
    threading.Thread(target=event.set, daemon=True).start()
    wait_until(lambda: results == [True], what=what)


@pytest.mark.parametrize("work", [Event.set, lambda event: event.wait(0)], ids=["set", "wait"])
def test_an_error_at_any_instruction(work: Any) -> None:
    """A signal handler that raises anywhere in ``set()`` or ``wait()`` leaves the event usable by
    every thread: later waiters are woken."""
    for at in range(1, 1000):
        event, strike = Event(), _Strike(at)
        try:
            with strike:
                work(event)
        except Struck:
            pass
        else:
            break
        _check_usable(event, f"woken after an error at instruction {at}")
    assert at > 10
