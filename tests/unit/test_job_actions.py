"""The trampoline of jobs: interruptions between two of its lines."""

from __future__ import annotations

import asyncio
import itertools
import sys
from collections.abc import Callable
from typing import Any

import pytest

from lualock.jobs import actions


class Struck(BaseException):
    """The error of an interruption."""


def _struck_at(line: int, work: Callable[[], object]) -> bool:
    """Do ``work``, and raise at a line of the trampoline, counted from 1; return whether there is
    such a line."""
    left = line

    def trace(frame: Any, event: str, _: object) -> Any:
        nonlocal left
        if frame.f_code.co_name != "_carry_out":
            return None
        if event == "line":
            left -= 1
            if left == 0:
                raise Struck
        return trace

    previous_trace = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    except Struck:
        pass
    finally:
        sys.settrace(previous_trace)
    return left <= 0


@pytest.mark.parametrize("asynchronous", [False, True])
def test_an_interruption_between_two_lines_reaches_the_actions(asynchronous: bool) -> None:
    """Whichever line of the trampoline an interruption hits, actions that have begun clean up."""

    def answered() -> asyncio.Future[None]:
        future = asyncio.get_running_loop().create_future()
        future.set_result(None)
        return future

    def job(events: list[str]) -> actions.Actions[None]:
        events.append("begun")
        try:
            yield answered if asynchronous else list
            yield list
        except Struck:
            events.append("cleaned up")
            yield list
            raise
        events.append("ended")

    def work(events: list[str]) -> None:
        if asynchronous:
            asyncio.run(actions.drive_async(job(events)))
        else:
            actions.drive(job(events))

    for line in itertools.count(1):
        events: list[str] = []
        if not _struck_at(line, lambda: work(events)):  # noqa: B023 - it is called here
            break
        assert events in ([], ["begun", "cleaned up"], ["begun", "ended"]), line
    assert line > 10
