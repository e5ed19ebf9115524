"""The checker's rules for jobs: judge a history of queued jobs and their reservations.

As ``checker``, this knows only a history. The *reservation* of a job that is queued for the lock
``<name>`` is the lock ``<name>:reservation``. It takes O(n log n). ``id`` is the job's, except in
``acquire``: its ``other`` is the job that the lock is taken for.

============  ====================================================================================
enqueue       a producer begins to enqueue the job; ``what``: its ``unique``
reserve       a reservation for it is requested; an interruption may give up the one that it has
answered      that request was answered, with or without a reservation
keeping       its reservation, if it has one, is renewed until ``until`` or a little longer
reserved      it got the reservation at ``since`` (the time of the request) or later, and has it
              until ``until``; ``what``: alone if a running job also refuses it
not_reserved  a request of ``since`` was answered: it has no reservation (any more)
freeing       from now on its reservation may be ended: its run begins, or it gives it up
freed         the result of that, ``what``: gone, or stays (empty: not known)
pushed        it is in its queue
enqueued      its producer has the result "enqueued"
refused       its producer has a refusal; ``what``: queued, running, unavailable; ``other``: the job
              that is in its way
superseded    it began to wait at ``since``, and was dropped because ``other`` waits and will run
began         its run begins; ``what``: unlocked if the server is away, so its reservation may stay
done          it will not be delivered any more; ``what``: ok if its last run ended well
============  ====================================================================================

queued       no two jobs are certain of one reservation at the same time.
alone        no job with ``unique="both"`` gets a reservation while another job is queued, starts
             or runs.
reservation  only the job itself ends its reservation early.
refused      each refusal names a job that was in the way.
enqueued     "enqueued" is reported only of a job that was pushed, a refusal only of a job that
             was not.
superseded   the job that replaces dropped ones begins after they came, unless it runs without its
             lock: then its reservation cannot be ended.
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

RESERVATION = ":reservation"


@dataclass(slots=True)
class _Span:
    """A time in which a job or an acquisition is certain; it may have begun before."""

    start: float
    end: float
    id: str
    requested_at: float


class _Furthest:
    """Spans; finds, of those that began until some time, the one that ends last."""

    def __init__(self, spans: Iterable[_Span]) -> None:
        ordered = sorted(spans, key=lambda one: one.start)
        self._starts = [one.start for one in ordered]
        self._best: list[_Span] = []
        for one in ordered:
            further = not self._best or one.end > self._best[-1].end
            self._best.append(one if further else self._best[-1])

    def until(self, t: float) -> _Span | None:
        """Return that span; None if none began."""
        at = bisect_right(self._starts, t)
        return self._best[at - 1] if at else None


@dataclass(slots=True)
class _Job:
    """The state of a job and its reservation while events are read."""

    lock: str
    id: str
    open: float | None = None  # since when it is certain
    until: float = -math.inf
    reserved_at: float = math.inf  # since when it may have its present reservation
    answered: float = -math.inf  # when a reservation was last confirmed
    requests_under_way: int = 0  # for a reservation
    freeing_at: float = -math.inf  # when the last attempt to end it began
    freeing: list[float] = field(default_factory=list)  # when the attempts began that are under way
    freed_at: float = -math.inf  # when it was surely ended last
    spans: list[_Span] = field(default_factory=list)
    requested_at: list[float] = field(default_factory=list)  # when reservations were requested
    confirmed_at: dict[float, float] = field(default_factory=dict)  # by the time of the request
    freed: list[float] = field(default_factory=list)  # when it was surely ended
    freeing_since: list[float] = field(default_factory=list)  # when that began, in the same order
    began: list[float] = field(default_factory=list)
    unlocked: bool = False  # whether the last run had no lock
    ended: float = math.inf
    well: bool = False
    pushed: bool = False
    until_at_freeing: dict[float, float] = field(default_factory=dict)
    """For each time when freeing began: until when the reservation was certain then."""

    def close(self, t: float) -> None:
        """Note that from now on it is not certain."""
        if self.open is not None and min(t, self.until) > self.open:
            self.spans.append(_Span(self.open, min(t, self.until), self.id, self.reserved_at))
        self.open = None

    def reopen(self, t: float) -> None:
        """Note that it is certain again, because nothing had changed."""
        if not self.freeing and not self.requests_under_way and self.until > t:
            self.open = t


def check_jobs(history: Iterable[Event]) -> list[Violation]:
    """Judge a history by the rules of jobs."""
    ordered = sorted(history, key=lambda event: event.t)
    attempts, _, _ = assemble(ordered, Verdict())
    causes = Causes([event for event in ordered if event.kind == "cause"])
    rules = _Rules(causes)
    runs: dict[str, str] = {}  # the job of each acquisition
    for event in ordered:
        if event.kind == "acquire" and event.other:
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
        lock = event.lock.removesuffix(RESERVATION)
        job = self._jobs.get((lock, event.id))
        if job is None:
            job = self._jobs[lock, event.id] = _Job(lock, event.id)
        return job

    def _parted(self, lock: str, start: float, end: float) -> bool:
        """Whether the lock or its reservation may by nature have had two holders."""
        return bool(
            self._causes.first_of(OVERLAPS, lock, start, end)
            or self._causes.first_of((*OVERLAPS, "orphan"), lock + RESERVATION, start, end)
        )

    def _unless_parted(
        self, rule: str, lock: str, start: float, t: float, text: str, *ids: str
    ) -> None:
        if not self._parted(lock, start, t):
            self._wrong(rule, t, text, *ids)

    def read(self, event: Event) -> None:
        """Take one event in."""
        kind, t, job = event.kind, event.t, self._job(event)
        if kind == "reserve":
            job.requested_at.append(t)
            job.reserved_at = min(job.reserved_at, t)
            job.close(t)
            job.requests_under_way += 1
        elif kind == "answered":
            job.requests_under_way -= 1
            job.reopen(t)
        elif kind == "keeping":
            assert event.until is not None
            job.until = min(job.until, event.until)
        elif kind == "reserved":
            self._reserved(event, job)
        elif kind == "freeing":
            job.until_at_freeing[t] = job.until if job.open is not None else -math.inf
            job.close(t)
            job.freeing.append(t)
            job.freeing_at = t
        elif kind == "freed":
            began = job.freeing.pop(0)
            if event.what == "gone":
                job.freeing_since.append(began)
                job.freed.append(t)
                job.freed_at = t
                job.until, job.reserved_at = -math.inf, math.inf
            else:
                job.reopen(t)
        elif kind == "not_reserved":
            assert event.since is not None
            # Only a reservation from before the request: the answer is about no later time.
            certain = job.open is not None and job.open < event.since and t < job.until
            if certain and job.freeing_at < event.since:
                text = f"{job.id} lost its reservation {job.until - t:.6f} s before its end"
                self._unless_parted("reservation", job.lock, job.reserved_at, t, text, job.id)
            job.close(t)
            job.until, job.reserved_at = -math.inf, math.inf
        elif kind == "enqueue":
            self._enqueue[job.id] = t
        elif kind == "pushed":
            job.pushed = True
        elif kind == "enqueued" and not job.pushed:
            self._wrong("enqueued", t, f"{job.id} is reported as enqueued, and was not", job.id)
        elif kind == "refused":
            self._refused.append(event)
            if job.pushed:
                self._wrong(
                    "enqueued", t, f"{job.id} is reported as refused, and was enqueued", job.id
                )
        elif kind == "superseded":
            self._superseded.append(event)
        elif kind == "began":
            job.began.append(t)
            job.unlocked = event.what == "unlocked"
        elif kind == "done":
            job.ended, job.well = t, event.what == "ok"

    def _reserved(self, event: Event, job: _Job) -> None:
        assert event.since is not None
        assert event.until is not None
        if event.what:
            self._alone.append(event)
        job.confirmed_at[event.since] = event.t
        job.reserved_at = min(job.reserved_at, event.since)
        if (
            job.freeing
            or job.requests_under_way
            or max(job.freeing_at, job.freed_at) >= event.since
        ):
            return  # it may have been ended before this answer
        if job.open is None:
            job.open = event.t
        elif job.until <= event.t:
            job.close(event.t)
            job.open = event.t
        together = event.since < job.answered and job.until > event.t
        job.until = min(job.until, event.until) if together else event.until
        job.answered = event.t

    def judge(self, attempts: Iterable[Attempt], runs: dict[str, str]) -> None:
        """Judge what needs the whole history."""
        reservations: defaultdict[str, list[_Span]] = defaultdict(list)
        for job in self._jobs.values():
            job.close(math.inf)
            reservations[job.lock] += job.spans
        by_lock: defaultdict[str, list[Attempt]] = defaultdict(list)
        for one in attempts:
            by_lock[one.lock].append(one)
        for lock, spans in reservations.items():
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
                since = min(last.requested_at, one.requested_at)
                self._unless_parted("queued", lock, since, one.start, text, last.id, one.id)
            if last is None or one.end > last.end:
                last = one

    def _running(self, lock: str, attempts: list[Attempt], runs: dict[str, str]) -> Iterator[_Span]:
        """Yield the spans of the lock's holders.

        The span of a job that started with a reservation begins with that, unless another delivery
        of the job has used that reservation since.
        """
        gots: defaultdict[str, list[float]] = defaultdict(list)
        for one in attempts:
            gots[runs.get(one.id, one.id)].append(one.got)
        for one in attempts:
            if one.until <= one.got:
                continue
            start, requested_at, name = one.got, one.requested_at, runs.get(one.id, one.id)
            job = self._jobs.get((lock, name))
            if job is not None and job.until_at_freeing.get(one.requested_at, -math.inf) >= one.got:
                for span in job.spans:
                    other = any(span.end <= got < one.got for got in gots[name])
                    if span.end == one.requested_at and not other:
                        start, requested_at = span.start, span.requested_at
            yield _Span(start, one.until, name, requested_at)

    def _check_alone(self, lock: str, busy: _Furthest) -> None:
        for event in self._alone:
            if event.lock != lock + RESERVATION:
                continue
            assert event.since is not None
            other = busy.until(event.since)
            if other is None or other.end < event.t or other.id == event.id:
                continue
            text = (
                f"{event.id} got a reservation for {lock} between {event.since:.6f} and "
                f"{event.t:.6f}, and {other.id} was queued or ran from {other.start:.6f} to "
                f"{other.end:.6f}"
            )
            ids = other.id, event.id
            self._unless_parted("alone", lock, other.requested_at, event.t, text, *ids)

    def _check_refused(self, lock: str, attempts: list[Attempt], runs: dict[str, str]) -> None:
        possible = _Furthest(
            _Span(one.requested_at, _surely_free(one), one.id, one.requested_at) for one in attempts
        )
        for event in self._refused:
            if event.lock != lock or event.what == "unavailable":
                continue
            requested_at, t = self._enqueue[event.id], event.t
            if event.what == "running":
                holder = possible.until(t)
                wrong = holder is None or holder.end < requested_at
            else:
                other = self._jobs.get((lock, event.other))
                wrong = bool(event.other) and (
                    other is None or not _may_be_queued(other, requested_at, t)
                )
            orphaned = self._causes.first_of(("orphan", *OVERLAPS), lock, -math.inf, t)
            orphaned = orphaned or self._causes.first_of(
                ("orphan",), lock + RESERVATION, -math.inf, t
            )
            if wrong and not orphaned:
                cause = f"{event.other or 'a job'} was {event.what}"
                text = f"{event.id} was refused because {cause}, which is wrong"
                self._wrong("refused", t, text, event.id)

    def _check_superseded(self) -> None:
        for event in self._superseded:
            lock = event.lock.removesuffix(RESERVATION)
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
    """Return when an acquisition surely had no lock any more."""
    if one.outcome == "released":
        return one.released
    if one.outcome == "passed" or one.gone < math.inf:
        return math.inf
    if one.got < math.inf:
        return one.furthest + UNDERWAY_S
    return one.ended + UNDERWAY_S


def _may_be_queued(job: _Job, requested_at: float, t: float) -> bool:
    """Whether it may have had a reservation at any time between the two."""
    before = job.freeing_since[: bisect_right(job.freed, requested_at)]
    freed = max(before, default=-math.inf)  # what it had by then was ended
    requested = job.requested_at[: bisect_right(job.requested_at, t)]
    return any(job.confirmed_at.get(one, math.inf) > freed for one in requested)
