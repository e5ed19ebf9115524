"""Check that what was shown is what happened, from the events and the results alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from demo.events import Event
from demo.graph import network

# How late a busy machine may record an event, in seconds.
SLACK_S = 0.5


@dataclass
class Run:
    """One run of a job. ``end`` is when it finished or was killed; ``expired``: its callback was
    called."""

    process: str
    repo_id: int
    job: int
    start: float
    end: float | None = None
    killed: bool = False
    expired: bool = False


def runs(events: list[Event]) -> list[Run]:
    """Return the runs in the events."""
    found: list[Run] = []
    for event in events:
        if event.what == "started":
            found.append(Run(event.process, event.repo_id, event.job, event.at))
            continue
        for run in found:
            same = run.job == event.job and run.end is None
            if event.what == "finished" and same and run.process == event.process:
                run.end = event.at
            elif event.what == "killed" and same:
                run.end, run.killed = event.at, True
            elif event.what == "expired" and run.job == event.job and run.process == event.process:
                run.expired = True
    return found


def problems(events: list[Event], lease_s: float, results: Path) -> dict[str, list[str]]:
    """Return for each check what is wrong: nothing if it holds."""
    found_runs = runs(events)
    return {
        "every job was run or refused, and none was lost": list(_lost(events, found_runs)),
        "two runs of one repository overlapped only after the end of a lease": list(
            _overlaps(found_runs, lease_s)
        ),
        "exactly the workers that outlived their lease got the expiry callback": list(
            _expiry(found_runs, lease_s)
        ),
        "every refused job names a worker that had the lock": list(
            _holders(events, found_runs, lease_s)
        ),
        "the killed worker's lock was free after its lease, and not before": list(
            _crash(events, found_runs, lease_s)
        ),
        "every graph is correct": list(_results(found_runs, results)),
    }


def _lost(events: list[Event], found_runs: list[Run]) -> Iterator[str]:
    pushed = {event.job for event in events if event.what == "pushed"}
    ended = {event.job for event in events if event.what == "refused"}
    ended |= {run.job for run in found_runs if run.end is not None}
    for job in sorted(pushed - ended):
        yield f"job {job} was neither run nor refused"
    for job in sorted(ended - pushed):
        yield f"job {job} was never pushed"
    for what in ("refused", "expired", "killed"):
        if not any(event.what == what for event in events):
            yield f"no job was {what}, so the demo did not show it"


def _overlaps(found_runs: list[Run], lease_s: float) -> Iterator[str]:
    for one in found_runs:
        for two in found_runs:
            if one is two or one.repo_id != two.repo_id or two.start < one.start:
                continue
            overlap = one.end is None or two.start < one.end
            if overlap and two.start < one.start + lease_s - SLACK_S:
                yield f"{one.process} and {two.process} both worked on repository {one.repo_id}"
            elif overlap and not one.expired:
                taken = f"{two.process} took repository {one.repo_id} from {one.process}"
                yield f"{taken}, which got no callback"


def _expiry(found_runs: list[Run], lease_s: float) -> Iterator[str]:
    for run in found_runs:
        took_s = (run.end or run.start) - run.start
        if run.expired and took_s < lease_s - SLACK_S:
            yield f"{run.process} got an expiry callback after {took_s:.2f} s"
        if not run.killed and not run.expired and took_s > lease_s + SLACK_S:
            yield f"{run.process} worked {took_s:.2f} s without an expiry callback"


def _holders(events: list[Event], found_runs: list[Run], lease_s: float) -> Iterator[str]:
    for event in events:
        if event.what != "refused":
            continue
        had = [
            run
            for run in found_runs
            if run.repo_id == event.repo_id and run.process == event.holder
        ]
        if not any(
            run.start - SLACK_S <= event.at <= _held_until(run, lease_s) + SLACK_S for run in had
        ):
            yield f"{event.process} was refused by {event.holder}, which did not have the lock"


def _held_until(run: Run, lease_s: float) -> float:
    """Return the latest time at which a run's lock was free again."""
    lease_end = run.start + lease_s
    return lease_end if run.killed or run.end is None else min(run.end, lease_end)


def _crash(events: list[Event], found_runs: list[Run], lease_s: float) -> Iterator[str]:
    for run in found_runs:
        if not run.killed:
            continue
        freed = [e.at for e in events if e.what == "freed" and e.job == run.job]
        after = [r.start for r in found_runs if r.repo_id == run.repo_id and r.start > run.start]
        if not freed or not after:
            yield f"the job of the killed {run.process} was not run again"
            continue
        if min(*freed, *after) < run.start + lease_s - SLACK_S:
            yield f"the lock of the killed {run.process} was free before its lease ended"
        if freed[0] > run.start + lease_s + SLACK_S:
            yield f"the lock of the killed {run.process} was held beyond its lease"


def _results(found_runs: list[Run], results: Path) -> Iterator[str]:
    for repo_id in sorted({run.repo_id for run in found_runs}):
        file = results / f"{repo_id}.json"
        if not file.exists() or json.loads(file.read_text()) != network(repo_id):
            yield f"the graph of repository {repo_id} is missing or wrong"
