"""The checker's rules for jobs: judges what is said of queued jobs, and of their places.

As ``checker``, it knows only a history. In it a *place* is what the lock
``<name>:reservation`` is to a job that is queued for the lock ``<name>``. In all O(n log n). ``id``
is the job's, but for ``ask``, whose ``other`` is the job for which the lock is taken.

===========  =====================================================================================
enqueue      somebody begins to enqueue the job; ``what``: its ``unique``
reserve      somebody asks for a place for it; who is interrupted then may give up what it has
answered     and is told, one way or the other
keeping      somebody asks that its place, if it has one, last until ``until`` or a little longer
placed       it had the place when that was asked for at ``since`` (or later), and has it until
             ``until``; ``what``: alone where that was to be refused also while one runs
unplaced     it was told, having asked at ``since``, that it has no place (any more)
taking       from now on its place may be taken away: its run begins, or it gives it up
untaken      how that ended, ``what``: gone, or stays (if it says nothing: not known)
pushed       it is in its queue
enqueued     its producer is told so
refused      its producer is told that it was not enqueued; ``what``: queued, running, unavailable;
             ``other``: the job that is in its way
superseded   it was dropped, having asked at ``since``, because ``other`` waits, and will run
began        its run begins; ``what``: unlocked, for the server is away, and so its place may stay
done         it will not be delivered any more; ``what``: ok if its last run ended well
===========  =====================================================================================

queued      no two jobs are certain of one place at the same time.
alone       no job that wants to be alone gets a place while another job is queued or runs, nor
            between the two: there is no moment in which a job that starts has neither.
place       nobody but the job itself takes its place away before it ends.
refused     who is refused was in somebody's way.
told        who is told that it was enqueued was, and who is told that it was not, was not.
superseded  the job that stands for those that were dropped begins after they came, unless it runs
            without its lock: then nobody could take its place away.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from tests.simulation.checker import (
    JOBS,
    OVERLAPS,
    UNDERWAY_S,
    Attempt,
    Causes,
    Event,
    Verdict,
    Violation,
    assemble,
)

PLACE = ":reservation"


@dataclass(slots=True)
class _Span:
    """A time in which something is certain of something, which may have begun before."""

    start: float
    end: float
    id: str
    asked: float


class _Furthest:
    """Spans, to be asked for the one that reaches furthest of those that began until some time."""

    def __init__(self, spans: Iterable[_Span]) -> None:
        ordered = sorted(spans, key=lambda one: one.start)
        self._starts = [one.start for one in ordered]
        self._best: list[_Span] = []
        for one in ordered:
            further = not self._best or one.end > self._best[-1].end
            self._best.append(one if further else self._best[-1])

    def until(self, t: float) -> _Span | None:
        """That one; ``None``: none began."""
        at = bisect_right(self._starts, t)
        return self._best[at - 1] if at else None


@dataclass(slots=True)
class _Job:
    """A job at its place, as its events are read."""

    lock: str
    id: str
    open: float | None = None  # since when it is certain
    until: float = -math.inf
    placed: float = math.inf  # since when it may have the place that it has now
    answered: float = -math.inf  # when it heard of its place last
    trying: int = 0  # how many ask for a place now
    taking: float = -math.inf  # when somebody began to take it away last
    takers: list[float] = field(default_factory=list)  # when those began who are not done yet
    lost: float = -math.inf  # when it was surely taken away last
    spans: list[_Span] = field(default_factory=list)
    asked: list[float] = field(default_factory=list)  # when it asked for a place,
    heard: dict[float, float] = field(default_factory=dict)  # and, by that, when it had it
    gone: list[float] = field(default_factory=list)  # when it was surely taken away,
    began_to_go: list[float] = field(default_factory=list)  # and when that began
    began: list[float] = field(default_factory=list)
    unlocked: bool = False  # the last of these was
    ended: float = math.inf
    well: bool = False
    pushed: bool = False
    takes: dict[float, float] = field(default_factory=dict)  # when it was taken: until when it was

    def close(self, t: float) -> None:
        """From now on it is not certain."""
        if self.open is not None and min(t, self.until) > self.open:
            self.spans.append(_Span(self.open, min(t, self.until), self.id, self.placed))
        self.open = None

    def reopen(self, t: float) -> None:
        """What made it uncertain has ended, and changed nothing."""
        if not self.takers and not self.trying and self.until > t:
            self.open = t


def check_jobs(history: Iterable[Event]) -> list[Violation]:
    """Judge a history by the rules of jobs."""
    ordered = sorted(history, key=lambda event: event.t)
    attempts, _, _ = assemble(ordered, Verdict())
    causes = Causes([event for event in ordered if event.kind == "cause"])
    rules = _Rules(causes)
    runs: dict[str, str] = {}  # which job an acquisition is of
    for event in ordered:
        if event.kind == "ask" and event.other:
            runs[event.id] = event.other
        elif event.kind in JOBS:
            rules.read(event)
    rules.judge(attempts.values(), runs)
    return rules.found


class _Rules:
    def __init__(self, causes: Causes) -> None:
        self.found: list[Violation] = []
        self._causes = causes
        self._jobs: dict[tuple[str, str], _Job] = {}
        self._alone: list[Event] = []
        self._refused: list[Event] = []
        self._superseded: list[Event] = []
        self._enqueue: dict[str, float] = {}

    def _wrong(self, rule: str, t: float, text: str, *ids: str) -> None:
        self.found.append(Violation(rule, t, text, ids))

    def _job(self, event: Event) -> _Job:
        lock = event.lock.removesuffix(PLACE)
        job = self._jobs.get((lock, event.id))
        if job is None:
            job = self._jobs[lock, event.id] = _Job(lock, event.id)
        return job

    def _parted(self, lock: str, start: float, end: float) -> bool:
        """Whether two may have had it, or the place beside it, by nature."""
        return bool(
            self._causes.first_of(OVERLAPS, lock, start, end)
            or self._causes.first_of((*OVERLAPS, "orphan"), lock + PLACE, start, end)
        )

    def _unless_parted(
        self, rule: str, lock: str, start: float, t: float, text: str, *ids: str
    ) -> None:
        if not self._parted(lock, start, t):
            self._wrong(rule, t, text, *ids)

    def read(self, event: Event) -> None:
        """What one event says."""
        kind, t, job = event.kind, event.t, self._job(event)
        if kind == "reserve":
            job.asked.append(t)
            job.placed = min(job.placed, t)
            job.close(t)
            job.trying += 1
        elif kind == "answered":
            job.trying -= 1
            job.reopen(t)
        elif kind == "keeping":
            assert event.until is not None
            job.until = min(job.until, event.until)
        elif kind == "placed":
            self._placed(event, job)
        elif kind == "taking":
            job.takes[t] = job.until if job.open is not None else -math.inf
            job.close(t)
            job.takers.append(t)
            job.taking = t
        elif kind == "untaken":
            began = job.takers.pop(0)
            if event.what == "gone":
                job.began_to_go.append(began)
                job.gone.append(t)
                job.lost = t
                job.until, job.placed = -math.inf, math.inf
            else:
                job.reopen(t)
        elif kind == "unplaced":
            assert event.since is not None
            # Who was certain before that was asked, for the answer tells of no later time.
            certain = job.open is not None and job.open < event.since and t < job.until
            if certain and job.taking < event.since:
                text = f"{job.id} lost its place {job.until - t:.6f} s before its end"
                self._unless_parted("place", job.lock, job.placed, t, text, job.id)
            job.close(t)
            job.until, job.placed = -math.inf, math.inf
        elif kind == "enqueue":
            self._enqueue[job.id] = t
        elif kind == "pushed":
            job.pushed = True
        elif kind == "enqueued" and not job.pushed:
            self._wrong("told", t, f"{job.id} was not enqueued, and that is what is said", job.id)
        elif kind == "refused":
            self._refused.append(event)
            if job.pushed:
                self._wrong("told", t, f"{job.id} was enqueued, and refused", job.id)
        elif kind == "superseded":
            self._superseded.append(event)
        elif kind == "began":
            job.began.append(t)
            job.unlocked = event.what == "unlocked"
        elif kind == "done":
            job.ended, job.well = t, event.what == "ok"

    def _placed(self, event: Event, job: _Job) -> None:
        assert event.since is not None
        assert event.until is not None
        if event.what:
            self._alone.append(event)
        job.heard[event.since] = event.t
        job.placed = min(job.placed, event.since)
        if job.takers or job.trying or max(job.taking, job.lost) >= event.since:
            return  # it may have been taken away before this was said
        if job.open is None:
            job.open = event.t
        elif job.until <= event.t:
            job.close(event.t)
            job.open = event.t
        together = event.since < job.answered and job.until > event.t
        job.until = min(job.until, event.until) if together else event.until
        job.answered = event.t

    def judge(self, attempts: Iterable[Attempt], runs: dict[str, str]) -> None:
        """What only the whole tells."""
        places: defaultdict[str, list[_Span]] = defaultdict(list)
        for job in self._jobs.values():
            job.close(math.inf)
            places[job.lock] += job.spans
        by_lock: defaultdict[str, list[Attempt]] = defaultdict(list)
        for one in attempts:
            by_lock[one.lock].append(one)
        for lock, spans in places.items():
            self._check_queued(lock, spans)
            busy = [*spans, *self._running(lock, by_lock[lock], runs)]
            self._check_alone(lock, _Furthest(busy))
            self._check_refused(lock, by_lock[lock], runs)
        self._check_superseded()

    def _check_queued(self, lock: str, spans: list[_Span]) -> None:
        last: _Span | None = None
        for one in sorted(spans, key=lambda span: span.start):
            if last is not None and one.id != last.id and one.start < last.end:
                text = f"{one.id} is queued for {lock}, and {last.id} is until {last.end:.6f}"
                since = min(last.asked, one.asked)
                self._unless_parted("queued", lock, since, one.start, text, last.id, one.id)
            if last is None or one.end > last.end:
                last = one

    def _running(self, lock: str, attempts: list[Attempt], runs: dict[str, str]) -> Iterator[_Span]:
        """Those who have the lock; a job that started with a place has it since it was placed,
        unless another delivery of it had started since with that place."""
        gots: defaultdict[str, list[float]] = defaultdict(list)
        for one in attempts:
            gots[runs.get(one.id, one.id)].append(one.got)
        for one in attempts:
            if one.until <= one.got:
                continue
            start, asked, name = one.got, one.asked, runs.get(one.id, one.id)
            job = self._jobs.get((lock, name))
            if job is not None and job.takes.get(one.asked, -math.inf) >= one.got:
                for place in job.spans:
                    other = any(place.end <= got < one.got for got in gots[name])
                    if place.end == one.asked and not other:
                        start, asked = place.start, place.asked
            yield _Span(start, one.until, name, asked)

    def _check_alone(self, lock: str, busy: _Furthest) -> None:
        for event in self._alone:
            if event.lock != lock + PLACE:
                continue
            assert event.since is not None
            other = busy.until(event.since)
            if other is None or other.end < event.t or other.id == event.id:
                continue
            text = (
                f"{event.id} got a place for {lock} between {event.since:.6f} and {event.t:.6f}, "
                f"and {other.id} was queued or ran from {other.start:.6f} to {other.end:.6f}"
            )
            ids = other.id, event.id
            self._unless_parted("alone", lock, other.asked, event.t, text, *ids)

    def _check_refused(self, lock: str, attempts: list[Attempt], runs: dict[str, str]) -> None:
        possible = _Furthest(
            _Span(one.asked, _surely_free(one), one.id, one.asked) for one in attempts
        )
        for event in self._refused:
            if event.lock != lock or event.what == "unavailable":
                continue
            asked, t = self._enqueue[event.id], event.t
            if event.what == "running":
                holder = possible.until(t)
                wrong = holder is None or holder.end < asked
            else:
                other = self._jobs.get((lock, event.other))
                wrong = bool(event.other) and (other is None or not _may_be_queued(other, asked, t))
            orphaned = self._causes.first_of(("orphan", *OVERLAPS), lock, -math.inf, t)
            orphaned = orphaned or self._causes.first_of(("orphan",), lock + PLACE, -math.inf, t)
            if wrong and not orphaned:
                text = (
                    f"{event.id} was refused, for {event.other or 'one'} was {event.what}: not so"
                )
                self._wrong("refused", t, text, event.id)

    def _check_superseded(self) -> None:
        for event in self._superseded:
            lock = event.lock.removesuffix(PLACE)
            other = self._jobs.get((lock, event.other))
            assert event.since is not None
            if other is None or not other.well or other.ended == math.inf or not other.began:
                continue
            began = other.began[-1]
            if began < event.since and not other.unlocked:
                text = (
                    f"{event.id} came at {event.since:.6f} and was dropped for {event.other}, "
                    f"which had begun at {began:.6f}"
                )
                ids = event.other, event.id
                self._unless_parted("superseded", lock, began, event.t, text, *ids)


def _surely_free(one: Attempt) -> float:
    """When whoever asked for a lock surely had it no more."""
    if one.outcome == "released":
        return one.released
    if one.outcome == "passed" or one.gone < math.inf:
        return math.inf
    if one.got < math.inf:
        return one.furthest + UNDERWAY_S
    return one.ended + UNDERWAY_S


def _may_be_queued(job: _Job, asked: float, t: float) -> bool:
    """Whether it may have had a place at any time between the two."""
    before = job.began_to_go[: bisect_right(job.gone, asked)]
    gone = max(before, default=-math.inf)  # what it had by then was taken away
    asks = job.asked[: bisect_right(job.asked, t)]
    return any(job.heard.get(one, math.inf) > gone for one in asks)
