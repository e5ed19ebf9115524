"""The checker of histories: each rule is broken once, and kept once."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from random import Random
from typing import Any

import pytest

from tests.simulation import checker
from tests.simulation.checker import Event, Limits, check


def turn(
    id: str, requested_at: float, got: float, over: float, fence: int, **more: Any
) -> list[Event]:
    """Make the events of an acquisition that has the lock from ``got`` to ``over``."""
    process = {"lock": "a", "process": more.get("process", f"process of {id}"), "id": id}
    events = [Event(requested_at, "acquire", wait_s=more.get("wait_s"), **process)]
    if "queued" in more:
        events.append(Event(more["queued"], "queued", **process))
    events.append(Event(got, "got", fence=fence, until=more.get("until", got + 100), **process))
    if "outcome" not in more or more["outcome"]:
        events.append(Event(over, "let_go", **process))
        events.append(
            Event(over + 0.001, "released", what=more.get("outcome", "released"), **process)
        )
    return events


def cause(what: str, start: float, end: float, **more: Any) -> list[Event]:
    return [Event(start, "cause", what=what, until=end, **more)]


END = [Event(1000.0, "end")]
GOOD = turn("x", 0, 1, 5, 10) + turn("y", 2, 5.002, 7, 11, queued=2.1) + END


def rules(*parts: Iterable[Event]) -> set[str]:
    """Return the rules that a history breaks."""
    events = [event for part in parts for event in part]
    return {violation.rule for violation in check(events).violations}


def test_a_good_history_breaks_nothing() -> None:
    """A history with one holder at a time, in turn, with increasing fences, breaks no rule."""
    assert rules(GOOD) == set()


@pytest.mark.parametrize(
    ("rule", "events"),
    [
        ("overlap", turn("x", 0, 1, 5, 10) + turn("y", 2, 4, 7, 11)),
        ("overlap", turn("x", 0, 1, 99, 10, outcome="", until=6) + turn("y", 2, 5, 7, 11)),
        ("fence", turn("x", 0, 1, 5, 10) + turn("y", 6, 7, 8, 10)),
        ("fence", turn("x", 0, 1, 5, 10) + turn("y", 6, 7, 8, 9)),
        (
            "fifo",
            turn("x", 0, 1, 5, 10)
            + turn("y", 1, 8, 9, 12, queued=1.1)
            + turn("z", 2, 5.1, 8, 11, queued=2.1),
        ),
        ("prompt", turn("x", 0, 1, 5, 10) + turn("y", 2, 5.5, 7, 11, queued=2.1)),
        ("ends", [Event(0.0, "acquire", "a", "p", "x")]),
        ("release", turn("x", 0, 1, 5, 10, outcome="lost")),
        (
            "release",
            turn("x", 0, 1, 5, 10, until=3) + turn("y", 3, 3.5, 7, 11),
        ),
        (
            "kept",
            [
                *turn("x", 0, 1, 2, 10, outcome="passed"),
                Event(2.0, "kept", "a", "process of x", "x", until=4.0),
                *turn("y", 2, 3, 7, 11),
            ],
        ),
        ("left", [Event(9.0, "left", what="the key a")]),
        (
            "ends",
            [
                Event(0.0, "acquire", "a", "p", "x", wait_s=2.0),
                Event(1.0, "gave_up", "a", "p", "x", what="timeout"),
            ],
        ),
        (
            "ends",
            [
                Event(0.0, "acquire", "a", "p", "x", wait_s=2.0),
                Event(2.5, "gave_up", "a", "p", "x", what="timeout"),
            ],
        ),
        (
            "resource",
            [
                *turn("x", 0, 1, 5, 10),
                Event(2.0, "wrote", "a", "p", "x", what="refused", fence=10),
            ],
        ),
        (
            "resource",
            [
                *turn("x", 0, 1, 5, 10),
                *turn("y", 5, 6, 7, 10),
                Event(2.0, "wrote", "a", "p", "x", what="accepted", fence=10),
                Event(6.5, "wrote", "a", "p", "y", what="accepted", fence=10),
            ],
        ),
    ],
)
def test_a_broken_rule_is_named(rule: str, events: list[Event]) -> None:
    """A history that breaks a rule is reported by the name of that rule."""
    assert rule in rules(events, END)


@pytest.mark.parametrize("what", ["failover", "data_loss", "clock_forward"])
def test_two_holders_are_attributed_to_their_cause(what: str) -> None:
    """An overlap that its cause makes possible is counted, and is no violation."""
    events = turn("x", 0, 1, 5, 10) + turn("y", 3, 4, 7, 11) + cause(what, 2, 2) + END
    verdict = check(events)
    assert verdict.violations == []
    assert verdict.attributed == {what: 1}


@pytest.mark.parametrize("what", ["restart", "pause", "cut", "oom", "clock_back", "crash"])
def test_other_causes_excuse_no_overlap(what: str) -> None:
    """Causes that cannot make two holders excuse no overlap."""
    events = turn("x", 0, 1, 5, 10) + turn("y", 3, 4, 7, 11)
    assert "overlap" in rules(events, cause(what, 2, 2), END)


def test_a_cause_after_or_before_does_not_excuse() -> None:
    """A cause before the first holder or after the second one excuses no overlap."""
    events = turn("x", 1, 1.5, 5, 10) + turn("y", 3, 4, 7, 11)
    assert "overlap" in rules(events, cause("failover", 0.5, 0.9), END)
    assert "overlap" in rules(events, cause("failover", 4.5, 4.5), END)


def test_only_the_process_that_was_cut_off_may_lose_its_turn() -> None:
    """A cause of one process excuses a lost turn of that process only."""
    first = turn("y", 1, 8, 9, 12, queued=1.1, process="p")
    others = turn("x", 0, 1, 5, 10) + turn("z", 2, 5.1, 8, 11, queued=2.1)
    assert "fifo" in rules(first, others, cause("cut", 3, 4, process="q"), END)
    assert "fifo" not in rules(first, others, cause("cut", 3, 4, process="p"), END)


def test_the_first_holder_may_learn_of_its_lease_last() -> None:
    """A release is judged by the fences, which show the order of the holders."""
    first = turn("x", 0, 3, 99, 10, outcome="", until=4) + cause("data_loss", 1, 1)
    assert rules(first, turn("y", 1, 1.5, 3.5, 11), END) == set()
    assert "release" in rules(turn("x", 0, 3, 99, 12, outcome=""), turn("y", 1, 1.5, 3.5, 11), END)


@pytest.mark.parametrize(("got", "clean"), [(34, True), (37, False)])
def test_a_lease_that_began_late_ends_late(got: float, clean: bool) -> None:
    """A lease may begin later than its request by the time that a request may be under way."""
    dead = turn("x", 0, 1, 99, 10, outcome="", until=30)
    waits = turn("y", 2, got, 50, 11, queued=2.1)
    own, another = (
        cause("cut", 0, 0.5, process=process) for process in ("process of x", "another")
    )
    assert ("prompt" not in rules(dead, waits, own, END)) == clean
    assert "prompt" in rules(dead, waits, another, END)


@pytest.mark.parametrize(("outcome", "clean"), [("passed", True), ("released", False)])
def test_a_lease_that_is_never_adopted_expires(outcome: str, clean: bool) -> None:
    """After a lease in trust has expired, any caller may take the lock before the waiters."""
    first = turn("x", 0, 1, 2, 10, outcome=outcome, until=6)
    waits = turn("y", 5, 8, 9, 12, queued=6.01)
    newcomer = turn("z", 6.02, 6.03, 7.99, 11)
    assert ("fifo" not in rules(first, waits, newcomer, END)) == clean


def test_a_fence_may_repeat_only_after_the_clock_stepped_back_and_the_lock_was_forgotten() -> None:
    """A repeated fence is excused only if the clock stepped back and the lock was forgotten."""
    events = turn("x", 0, 1, 5, 10) + turn("y", 20, 21, 22, 9)
    back, forgot = cause("clock_back", 6, 6), cause("forgot", 10, 10, lock="a")
    assert "fence" in rules(events, back, END)
    assert "fence" in rules(events, forgot, END)
    assert "fence" not in rules(events, back, forgot, END)


@pytest.mark.parametrize(("until", "clean"), [(6.2, True), (5.9, False)])
def test_a_write_that_took_a_while_may_have_been_made_at_any_moment_of_it(
    until: float, clean: bool
) -> None:
    """Of two writes at the same time either may have come first."""
    events = turn("x", 0, 1, 4, 10) + turn("y", 4, 5, 7, 11)
    events += [
        Event(5.5, "wrote", "a", "q", "y", what="accepted", fence=11, until=until),
        Event(6.0, "wrote", "a", "p", "x", what="accepted", fence=10, until=7.0),
    ]
    assert ("resource" not in rules(events, END)) == clean


def test_a_write_is_refused_rightly_when_the_lease_ended_before_the_answer() -> None:
    """A refused write is no violation if the lease may have ended before the answer."""
    lease = turn("x", 0, 1, 99, 10, outcome="", until=3) + turn("y", 0, 3.5, 7, 11)
    refused = Event(2.0, "wrote", "a", "p", "x", what="refused", fence=10, until=4.0)
    assert rules(lease, [refused], END) == set()
    refused.until = 2.5
    assert rules(lease, [refused], END) == {"resource"}


def test_lines_are_read_as_they_were_written(tmp_path: Any) -> None:
    """An event survives its line of JSON, and the program reads files of lines."""
    path = tmp_path / "history"
    path.write_text("\n".join(event.line() for event in GOOD))
    assert list(checker.read(path.read_text().splitlines())) == GOOD
    assert json.loads(GOOD[0].line())["kind"] == "acquire"
    assert checker.main([str(path)]) == 0
    bad = turn("x", 0, 1, 5, 10) + turn("y", 2, 4, 7, 11)
    path.write_text("\n".join(event.line() for event in bad))
    assert checker.main([str(path)]) == 1


def test_the_checker_takes_as_long_as_sorting() -> None:
    """Eight times the events take far less than sixty-four times as long."""

    def took_s(count: int) -> float:
        chance, events, now = Random(1), [], 0.0
        for number in range(count):
            queued = max(0.0, now - 1 - 20 * chance.random())
            events += turn(f"{number}", queued, now, now + 0.5, number + 1, queued=queued)
            now += 0.55
        start = time.process_time()
        check(events, Limits(prompt_s=1))
        return time.process_time() - start

    small, large = (min(took_s(count) for _ in range(3)) for count in (1000, 8000))
    assert large < 24 * small
