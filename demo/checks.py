"""Is what was shown what happened? Proved from the events and the results alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from demo.events import Event
from demo.graph import network

# How much later an event may be written than the thing happened, on a busy machine, in seconds.
SLACK_S = 0.5


@dataclass
class Run:
    """One run of a job. ``end`` is when it finished or was killed; ``expired``, its callback."""

    who: str
    repo_id: int
    job: int
    start: float
    end: float | None = None
    killed: bool = False
    expired: bool = False


def runs(events: list[Event]) -> list[Run]:
    """The runs that the events tell of."""
    found: list[Run] = []
    for event in events:
        if event.what == "started":
            found.append(Run(event.who, event.repo_id, event.job, event.at))
            continue
        for run in found:
            same = run.job == event.job and run.end is None
            if event.what == "finished" and same and run.who == event.who:
                run.end = event.at
            elif event.what == "killed" and same:
                run.end, run.killed = event.at, True
            elif event.what == "expired" and run.job == event.job and run.who == event.who:
                run.expired = True
    return found


def problems(events: list[Event], lease_s: float, results: Path) -> dict[str, list[str]]:
    """For each check, what is wrong: nothing when it holds."""
    told = runs(events)
    return {
        "every job was run or refused, and none was lost": list(_lost(events, told)),
        "two runs of one repository overlapped only where a lease had ended": list(
            _overlaps(told, lease_s)
        ),
        "a worker that outlived its lease was told so, and no other worker": list(
            _expiry(told, lease_s)
        ),
        "every refused job names a worker that had the lock": list(_holders(events, told, lease_s)),
        "the killed worker's lock was free after its lease, and not before": list(
            _crash(events, told, lease_s)
        ),
        "every graph is right": list(_results(told, results)),
    }


def _lost(events: list[Event], told: list[Run]) -> Iterator[str]:
    pushed = {event.job for event in events if event.what == "pushed"}
    ended = {event.job for event in events if event.what == "refused"}
    ended |= {run.job for run in told if run.end is not None}
    for job in sorted(pushed - ended):
        yield f"job {job} was neither run nor refused"
    for job in sorted(ended - pushed):
        yield f"job {job} was never pushed"
    for what in ("refused", "expired", "killed"):
        if not any(event.what == what for event in events):
            yield f"no job was {what}, so the demo did not show it"


def _overlaps(told: list[Run], lease_s: float) -> Iterator[str]:
    for one in told:
        for two in told:
            if one is two or one.repo_id != two.repo_id or two.start < one.start:
                continue
            overlap = one.end is None or two.start < one.end
            if overlap and two.start < one.start + lease_s - SLACK_S:
                yield f"{one.who} and {two.who} were both at repository {one.repo_id}"
            elif overlap and not one.expired:
                yield f"{two.who} took repository {one.repo_id} from {one.who}, who was not told"


def _expiry(told: list[Run], lease_s: float) -> Iterator[str]:
    for run in told:
        took_s = (run.end or run.start) - run.start
        if run.expired and took_s < lease_s - SLACK_S:
            yield f"{run.who} was told of an expiry after {took_s:.2f} s"
        if not run.killed and not run.expired and took_s > lease_s + SLACK_S:
            yield f"{run.who} worked {took_s:.2f} s and was not told of the expiry"


def _holders(events: list[Event], told: list[Run], lease_s: float) -> Iterator[str]:
    for event in events:
        if event.what != "refused":
            continue
        had = [run for run in told if run.repo_id == event.repo_id and run.who == event.holder]
        if not any(
            run.start - SLACK_S <= event.at <= _held_until(run, lease_s) + SLACK_S for run in had
        ):
            yield f"{event.who} was refused by {event.holder}, who did not have the lock"


def _held_until(run: Run, lease_s: float) -> float:
    """When a run's lock was free again at the latest."""
    lease_end = run.start + lease_s
    return lease_end if run.killed or run.end is None else min(run.end, lease_end)


def _crash(events: list[Event], told: list[Run], lease_s: float) -> Iterator[str]:
    for run in told:
        if not run.killed:
            continue
        freed = [e.at for e in events if e.what == "freed" and e.job == run.job]
        after = [r.start for r in told if r.repo_id == run.repo_id and r.start > run.start]
        if not freed or not after:
            yield f"the job of the killed {run.who} was not run again"
            continue
        if min(*freed, *after) < run.start + lease_s - SLACK_S:
            yield f"the lock of the killed {run.who} was free before its lease ended"
        if freed[0] > run.start + lease_s + SLACK_S:
            yield f"the lock of the killed {run.who} was held beyond its lease"


def _results(told: list[Run], results: Path) -> Iterator[str]:
    for repo_id in sorted({run.repo_id for run in told}):
        file = results / f"{repo_id}.json"
        if not file.exists() or json.loads(file.read_text()) != network(repo_id):
            yield f"the graph of repository {repo_id} is missing or wrong"
