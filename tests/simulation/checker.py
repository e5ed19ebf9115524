"""Judge a recorded history: what several processes did with locks, and what was done to them.

The checker knows nothing of the simulator, the library or a server. It reads events, one JSON
object a line, in any order, with times of one common clock (the simulator's, or CLOCK_BOOTTIME of
one machine). It takes O(n log n) of the number of events.

=========  =======================================================================================
kind       meaning, and the fields beside ``t`` (when), ``lock``, ``process``, ``id`` (of one
           acquisition, unique)
=========  =======================================================================================
acquire    an acquisition begins: ``wait_s`` (null: for ever, 0: one try), ``priority``;
           ``what``: adopt if it takes over the lease of another acquisition
queued     it surely has a place in the queue from now on; optional, FIFO and promptness need it
got        it has the lock, certainly in [t, until): ``fence``, ``until`` (its deadline)
until      its deadline is now ``until``: renewed, claimed, or made sooner. ``what``: answered if
           the server has confirmed it
let_go     its release begins, or its lease is known to be lost: it no longer relies on the lock
released   the result of the release, ``what``: released, lost (the lease had ended before), passed
           (to another process, which adopts it), unknown
kept       its lock stays held until ``until``, for no acquisition
leave      it was cancelled: it does not wait any more, but it may not have ended yet
gave_up    it ended without the lock, ``what``: timeout, full, unavailable, interrupted
wrote      it wrote to the resource with its ``fence``; ``what``: accepted, refused.
           ``until``: when the answer came, if not at once; the write was at a moment in between
gone       the process died, and so ended all its acquisitions
cause      a fault that may excuse what follows: ``what``, from ``t`` to ``until``; with
           ``process`` or ``lock`` it concerns only these. See :data:`CAUSES`
left       a key (``what``) still exists after everything ended and every ttl passed
(jobs)     events of jobs and their reservations: see ``job_rules.py``, which judges them
end        the history is over; every wait must have ended
=========  =======================================================================================

The rules, each with the name by which a violation is reported:

overlap    no two acquisitions are certain of one lock at the same time. If a cause makes that
           possible by nature (:data:`OVERLAPS`), the overlap is counted as its effect.
fence      fences increase from holder to holder, and no two acquisitions have the same. Only a
           clock that stepped back, together with a forgotten lock, excuses a violation.
resource   a resource that checks fences never takes two acquisitions for one, and never refuses
           the only holder. This holds even during overlaps: it is the purpose of fences.
fifo       a waiter that surely had a place before another acquisition began gets the lock first,
           unless it was cut off, the queue was lost, or a lease expired (then the lock is free for
           any caller).
prompt     a free lock is taken within ``prompt_s`` if a waiter can be reached.
ends       every wait ends, a timeout neither early nor more than ``late_s`` late.
kept       no acquisition gets a lock that was released with ``hold_at_least`` before that is over.
release    no release reports "released" for a lease that had ended, or "lost" for one that had not.
left       no key stays behind.
"""

from __future__ import annotations

import json
import math
import sys
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, fields
from heapq import heappop, heappush
from typing import Any

CAUSES = {
    "failover": "another server took over, without the last writes",
    "data_loss": "the server lost its data, or the key was deleted",
    "forced": "an operator ended the lease",
    "clock_forward": "the server's clock stepped forward: leases end early",
    "astray": "a process listened to an earlier primary, which repeats the messages",
    "clock_back": "the server's clock stepped back: leases last longer, fences may repeat",
    "forgot": "the lock's key was gone for a moment, and its fence with it",
    "expired": "a lease expired at the server",
    "restart": "the server was away; nothing was lost",
    "stall": "the server did not answer",
    "oom": "the server was out of memory",
    "forbidden": "the server's rules forbade messages",
    "read_only": "the server took no writes",
    "cut": "the process could not be reached",
    "slow": "messages of the process took long",
    "pause": "the process was paused",
    "crash": "the process died; until the server noticed",
    "unknowing": "a waiter could not know of a change before it checked again",
    "revived": "a token got the lock or a place again after its owner had given up",
    "orphan": "a request ran at the server after its sender had given it up",
    "let_in": "a late request took effect, because the server's clock was put back",
}
"""What may excuse a violation. Only :data:`OVERLAPS` explain two holders."""

JOBS = (
    *("enqueue", "reserve", "answered", "keeping", "reserved", "not_reserved", "freeing", "freed"),
    *("pushed", "enqueued", "refused", "superseded", "began", "done"),
)
"""The kinds of events of jobs: see ``job_rules.py``."""

OVERLAPS = ("failover", "data_loss", "forced", "clock_forward", "astray")
LOSSES = ("failover", "data_loss")
SETTLE_S = 10.0
UNDERWAY_S = 5.0
"""How long a request may be under way and still begin or extend a lease: its deadline."""


@dataclass(slots=True)
class Event:
    """One event. The module's docstring says which fields a kind has."""

    t: float
    kind: str
    lock: str = ""
    process: str = ""
    id: str = ""
    what: str = ""
    fence: int = 0
    until: float | None = None
    wait_s: float | None = None
    priority: int = 0
    since: float | None = None
    other: str = ""

    def line(self) -> str:
        """Return it as a line of JSON, without default values."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        return json.dumps(
            {
                name: value
                for name, value in values.items()
                if name in ("t", "kind") or value != _USUAL[name]
            }
        )

    @classmethod
    def parse(cls, line: str) -> Event:
        """Read an event from its line."""
        return cls(**json.loads(line))


_USUAL = {one.name: one.default for one in fields(Event)}


def read(lines: Iterable[str]) -> Iterator[Event]:
    """Read the events of a file."""
    return (Event.parse(line) for line in lines if line.strip())


@dataclass(frozen=True, slots=True)
class Limits:
    """The tolerances of the rules; they depend on the machine of the history."""

    prompt_s: float = 0.1
    takeover_s: float = 0.1
    """As ``prompt_s``, after a lease that expired."""
    late_s: float = 0.1
    settle_s: float = SETTLE_S
    """How long after its end a cause still excuses what happens in the queue."""


@dataclass(slots=True)
class Violation:
    """A broken rule, when, and by which acquisitions."""

    rule: str
    t: float
    text: str
    ids: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.t:.6f} {self.rule}: {self.text}"


@dataclass(slots=True)
class Verdict:
    """The result of the checker."""

    violations: list[Violation] = field(default_factory=list)
    attributed: Counter[str] = field(default_factory=Counter)  # overlaps, by cause
    held: int = 0
    waited: int = 0


@dataclass(slots=True)
class Attempt:
    """One acquisition, from its first request to its end."""

    lock: str
    process: str
    id: str
    requested_at: float
    wait_s: float | None = None
    priority: int = 0
    adopts: bool = False
    queued: float = math.inf
    got: float = math.inf
    fence: int = 0
    deadline: float = -math.inf  # the last one that it knows
    furthest: float = -math.inf  # the latest that it knew
    lasts: float = -math.inf
    """Until when it may last at the server, which learns late of a sooner end."""
    let_go: float = math.inf
    released: float = math.inf
    kept_until: float = -math.inf
    outcome: str = ""
    ended: float = math.inf  # the wait: got the lock, gave up, or died
    left: float = math.inf  # when it stopped waiting, whether or not it had ended
    why: str = ""
    gone: float = math.inf

    @property
    def until(self) -> float:
        """When it stopped being certain of the lock."""
        return min(self.deadline, self.let_go, self.gone)

    @property
    def free(self) -> float:
        """When the lock was free for the next, as far as this acquisition can know."""
        if self.outcome == "passed":
            return math.inf
        return self.released if self.outcome == "released" else self.lasts


class _Spans:
    """The times of one kind of cause, which can be searched for an interval."""

    def __init__(self, events: Iterable[Event]) -> None:
        spans = sorted(
            (event.t, event.t if event.until is None else event.until) for event in events
        )
        self._starts = [start for start, _ in spans]
        self._reach: list[float] = []  # the latest end of all that began until then
        for _, end in spans:
            self._reach.append(max(end, self._reach[-1]) if self._reach else end)

    def between(self, start: float, end: float) -> bool:
        """Whether one of the times touches [start, end]."""
        before = bisect_right(self._starts, end)
        return before > 0 and self._reach[before - 1] >= start

    def last(self, end: float) -> float:
        """Return the latest end of those that began until ``end``."""
        before = bisect_right(self._starts, end)
        return self._reach[before - 1] if before else -math.inf


class Causes:
    """The causes, by what they concern: all, a lock, or a process."""

    def __init__(self, causes: list[Event]) -> None:
        grouped: defaultdict[tuple[str, str, str], list[Event]] = defaultdict(list)
        for event in causes:
            grouped[event.what, event.lock, event.process].append(event)
            if event.what != "forgot":
                grouped["any", event.lock, event.process].append(event)
            if event.process:
                grouped["any process", "", ""].append(event)
        self._by = {key: _Spans(events) for key, events in grouped.items()}

    def _spans(self, what: str, lock: str = "", process: str = "") -> _Spans:
        return self._by.get((what, lock, process), _NONE)

    def first_of(self, what: Iterable[str], lock: str, start: float, end: float) -> str:
        """Return which of these causes touched this lock between the two times, or ''."""
        for one in what:
            if self._spans(one).between(start, end) or self._spans(one, lock).between(start, end):
                return one
        return ""

    def excuses(self, lock: str, start: float, end: float, process: str | None = None) -> bool:
        """Whether a cause concerns the server, this lock, or the process (default: any)."""
        return (
            self._spans("any").between(start, end)
            or self._spans("any", lock).between(start, end)
            or (
                self._spans("any process") if process is None else self._spans("any", "", process)
            ).between(start, end)
        )

    def cut_off(self, process: str, start: float, end: float) -> bool:
        """Whether requests of a process may have arrived late."""
        return self._spans("any").between(start, end) or self._spans("any", "", process).between(
            start, end
        )

    def last(self, lock: str, end: float) -> float:
        """Return the latest end of the causes at the server or this lock until ``end``."""
        return max(self._spans("any").last(end), self._spans("any", lock).last(end))


_NONE = _Spans(())


def check(events: Iterable[Event], limits: Limits | None = None) -> Verdict:
    """Judge a history by all rules."""
    limits = limits or Limits()
    verdict = Verdict()
    history = sorted(events, key=lambda event: event.t)
    attempts, wrote, ended = assemble(history, verdict)
    causes = [event for event in history if event.kind == "cause"]
    causes += _implied(history, attempts.values())
    world = Causes(causes)
    by_lock: defaultdict[str, list[Attempt]] = defaultdict(list)
    for attempt in attempts.values():
        by_lock[attempt.lock].append(attempt)
        _check_ends(attempt, ended, world, limits, verdict)
    for lock, here in by_lock.items():
        holds = sorted((one for one in here if one.got < math.inf), key=lambda one: one.got)
        verdict.held += len(holds)
        verdict.waited += sum(one.queued < math.inf for one in here)
        shared = _check_overlap(lock, holds, world, verdict)
        _check_fences(lock, holds, world, verdict)
        _check_release(lock, holds, world, verdict)
        _check_kept(lock, holds, world, verdict)
        _check_resource(lock, attempts, wrote[lock], shared, world, verdict)
        _check_fifo(lock, here, holds, world, verdict)
        _check_prompt(lock, here, holds, world, limits, verdict)
    verdict.violations.sort(key=lambda one: one.t)
    return verdict


def assemble(
    history: list[Event], verdict: Verdict
) -> tuple[dict[str, Attempt], defaultdict[str, list[Event]], bool]:
    """Build the acquisitions from their events."""
    attempts: dict[str, Attempt] = {}
    wrote: defaultdict[str, list[Event]] = defaultdict(list)
    of: defaultdict[str, list[Attempt]] = defaultdict(list)  # the acquisitions of each process
    ended = False
    for event in history:
        kind = event.kind
        if kind in JOBS:
            continue
        if kind == "acquire":
            one = attempts[event.id] = Attempt(
                *(event.lock, event.process, event.id, event.t),
                *(event.wait_s, event.priority, event.what == "adopt"),
            )
            of[event.process].append(one)
            if event.wait_s is not None:
                one.left = event.t + event.wait_s
            continue
        if kind in ("cause", "end", "left", "gone"):
            if kind == "end":
                ended = True
            elif kind == "left":
                verdict.violations.append(Violation("left", event.t, f"{event.what} stayed behind"))
            elif kind == "gone":
                for one in of.pop(event.process, ()):
                    one.gone = event.t
                    if one.ended == math.inf:
                        one.ended, one.why = event.t, "gone"
                        one.left = min(one.left, event.t)
            continue
        one = attempts[event.id]
        if kind == "queued":
            one.queued = min(one.queued, event.t)
        elif kind == "got":
            one.got = one.ended = event.t
            one.left = min(one.left, event.t)
            one.fence, one.why = event.fence, "got"
            assert event.until is not None
            one.deadline = one.lasts = event.until
            one.furthest = max(one.furthest, event.until)
        elif kind == "until":
            assert event.until is not None
            one.deadline = event.until
            one.furthest = max(one.furthest, event.until)
            one.lasts = event.until if event.what == "answered" else max(one.lasts, event.until)
        elif kind == "let_go":
            one.let_go = min(one.let_go, event.t)
        elif kind == "released":
            one.released, one.outcome = event.t, event.what
        elif kind == "kept":
            assert event.until is not None
            one.kept_until = event.until
        elif kind == "leave":
            one.left = min(one.left, event.t)
        elif kind == "gave_up":
            one.ended, one.why = event.t, event.what
            one.left = min(one.left, event.t)
        elif kind == "wrote":
            wrote[event.lock].append(event)
        else:
            raise ValueError(
                f"an event of an unknown kind: {kind}. A rule of its own may judge it: then "
                "`assemble` passes it over, as those in `JOBS`"
            )
    return attempts, wrote, ended


def _implied(history: list[Event], attempts: Collection[Attempt]) -> Iterator[Event]:
    """Yield causes that follow from the acquisitions: a dead process cannot be reached, and a
    lease without a release expires."""
    for event in history:
        if event.kind == "gone":
            yield Event(event.t, "cause", process=event.process, what="crash")
    adoptions = [one for one in attempts if one.adopts and one.got < math.inf]
    for one in attempts:
        if one.outcome == "passed" and any(
            adoption.lock == one.lock and adoption.fence > one.fence and adoption.got < one.deadline
            for adoption in adoptions
        ):
            continue
        if one.got < math.inf and one.outcome != "released":
            yield Event(one.deadline, "cause", lock=one.lock, what="expired")


def _check_ends(one: Attempt, ended: bool, world: Causes, limits: Limits, verdict: Verdict) -> None:
    """ends: the wait is over, and at the right time."""
    if one.ended == math.inf:
        if ended:
            text = f"the wait of {one.id} for {one.lock} never ended"
            verdict.violations.append(Violation("ends", one.requested_at, text, (one.id,)))
        return
    if not one.wait_s or one.why in ("gone", "interrupted"):
        return
    due = one.requested_at + one.wait_s
    if one.why == "timeout" and one.ended < due - 0.001:
        text = f"{one.id} gave up {due - one.ended:.6f} s before its time was over"
        verdict.violations.append(Violation("ends", one.ended, text, (one.id,)))
    paused = world._spans("pause", "", one.process).between(one.requested_at, one.ended)
    if one.ended > due + limits.late_s and not paused:
        text = f"the wait of {one.id} ended ({one.why}) {one.ended - due:.6f} s late"
        verdict.violations.append(Violation("ends", one.ended, text, (one.id,)))


def _check_overlap(lock: str, holds: list[Attempt], world: Causes, verdict: Verdict) -> set[str]:
    """overlap: one holder at a time. Returns the acquisitions whose overlap has a cause."""
    shared: set[str] = set()
    last: Attempt | None = None  # the one that is certain for longest so far
    for one in holds:
        if one.until <= one.got:
            continue  # the lease had ended when its holder learned of it
        if last is not None and one.got < last.until:
            cause = world.first_of(
                OVERLAPS, lock, min(last.requested_at, one.requested_at), one.got
            )
            if cause:
                verdict.attributed[cause] += 1
                shared |= {one.id, last.id}
            else:
                text = (
                    f"{lock} belongs to {last.id} (fence {last.fence}) until {last.until:.6f} "
                    f"and to {one.id} (fence {one.fence}) from {one.got:.6f}"
                )
                verdict.violations.append(Violation("overlap", one.got, text, (last.id, one.id)))
        if last is None or one.until > last.until:
            last = one
    return shared


def _check_fences(lock: str, holds: list[Attempt], world: Causes, verdict: Verdict) -> None:
    """fence: greater each time."""
    seen: dict[int, Attempt] = {}
    top: Attempt | None = None
    for one in holds:
        same_fence = seen.get(one.fence)
        certain = one.until > one.got
        worse = same_fence
        if worse is None and top is not None and certain and one.fence < top.fence:
            worse = top
        if worse is not None and not _fence_excused(lock, worse, one, world):
            text = f"{lock}: fence {one.fence} of {one.id} after {worse.fence} of {worse.id}"
            verdict.violations.append(Violation("fence", one.got, text, (worse.id, one.id)))
        seen[one.fence] = one
        if certain and (top is None or one.fence > top.fence):
            top = one


def _fence_excused(lock: str, before: Attempt, after: Attempt, world: Causes) -> bool:
    start, end = min(before.requested_at, after.requested_at), after.got
    stepped = world.first_of(("clock_back",), lock, -math.inf, end)
    return bool(stepped and world.first_of((*LOSSES, "forgot"), lock, start, end)) or (
        # With two histories of one lock, the first holder may learn of its lease last.
        before.fence != after.fence
        and bool(world.first_of(OVERLAPS, lock, after.requested_at, end))
    )


def _check_release(lock: str, holds: list[Attempt], world: Causes, verdict: Verdict) -> None:
    """release: its reported result is true."""
    following: Attempt | None = None  # the next holder
    for one in reversed(holds):
        wrong, since = "", one.requested_at
        # Its fence counts too: the first holder may learn of its lease last.
        if (
            following is not None
            and one.outcome == "released"
            and following.got < one.let_go
            and following.fence > one.fence
        ):
            wrong = f"{one.id} reported {lock} as released, which {following.id} had by then"
            since = min(
                one.requested_at, following.requested_at
            )  # the first holder may have been paused since
        elif one.outcome == "lost" and one.released < one.deadline:
            wrong = (
                f"{one.id} reported its lease of {lock} as lost, "
                f"{one.deadline - one.released:.6f} s before its end"
            )
        if wrong and not (
            world.first_of(OVERLAPS, lock, since, one.released)
            # An orphaned request of its own may have taken the lock again, and that was released.
            or world.first_of(("orphan",), lock, one.got, one.released)
        ):
            verdict.violations.append(Violation("release", one.released, wrong, (one.id,)))
        if one.until > one.got:
            following = one


def _check_kept(lock: str, holds: list[Attempt], world: Causes, verdict: Verdict) -> None:
    """kept: a lock that was released early stays held."""
    last: Attempt | None = None
    for one in holds:
        early = last is not None and one.got < last.kept_until and one.fence > last.fence
        if early and last and not world.first_of(OVERLAPS, lock, last.requested_at, one.got):
            text = (
                f"{lock} was kept until {last.kept_until:.6f} after {last.id}, and {one.id} got it "
                f"at {one.got:.6f}"
            )
            verdict.violations.append(Violation("kept", one.got, text, (last.id, one.id)))
        if one.kept_until > -math.inf:
            last = one


def _check_resource(
    lock: str,
    attempts: dict[str, Attempt],
    wrote: list[Event],
    shared: set[str],
    world: Causes,
    verdict: Verdict,
) -> None:
    """resource: a resource that checks fences is safe."""
    owner: dict[int, str] = {}
    top = -1  # of the writes that surely came earlier
    answered: list[
        tuple[float, int]
    ] = []  # of the other writes: when they are surely done, and their fences
    for event in wrote:
        one = attempts[event.id]
        until = event.t if event.until is None else event.until
        while answered and answered[0][0] < event.t:
            top = max(top, heappop(answered)[1])
        if event.what == "accepted":
            if owner.setdefault(event.fence, event.id) != event.id or event.fence < top:
                other = attempts[owner[max(event.fence, top)]]
                if not _fence_excused(lock, other, one, world):
                    text = f"{lock}: the resource took {event.id} for {other.id}"
                    if event.fence < top:
                        text = f"{lock}: the resource took {event.id} after {other.id}"
                    verdict.violations.append(Violation("resource", event.t, text, (one.id,)))
            heappush(answered, (until, event.fence))
        elif one.got <= event.t and until < one.until and one.id not in shared:
            other = attempts[owner[top]] if top in owner else one
            parted = other is not one and world.first_of(OVERLAPS, lock, one.requested_at, event.t)
            if not parted and not _fence_excused(lock, other, one, world):
                text = f"{lock}: the resource refused {event.id}, which had the lock"
                verdict.violations.append(Violation("resource", event.t, text, (one.id,)))


def _check_fifo(
    lock: str, here: list[Attempt], holds: list[Attempt], world: Causes, verdict: Verdict
) -> None:
    """fifo: first come, first served."""
    waiting: defaultdict[int, list[Attempt]] = defaultdict(
        list
    )  # by priority, in order of their places
    for one in sorted((one for one in here if one.queued < math.inf), key=lambda one: one.queued):
        waiting[one.priority].append(one)
    firsts = dict.fromkeys(waiting, 0)
    for taken in sorted(holds, key=lambda one: one.fence):
        if taken.adopts:
            continue  # the lock was not free
        for priority, queue in waiting.items():
            if priority < taken.priority:
                continue
            at = firsts[priority]
            while at < len(queue):
                first = queue[at]
                before = first.got < math.inf and first.fence <= taken.fence
                if not before and first.left > taken.got and first.queued < taken.requested_at:
                    start = first.queued - SETTLE_S
                    if not (
                        world.last(lock, taken.got) >= first.queued
                        or world.excuses(lock, start, taken.got, first.process)
                    ):
                        text = (
                            f"{lock} went to {taken.id}, which began at {taken.requested_at:.6f}, "
                            f"before {first.id}, which waited since {first.queued:.6f}"
                        )
                        found = Violation("fifo", taken.got, text, (first.id, taken.id))
                        verdict.violations.append(found)
                elif not before and first.left > taken.got:
                    break  # this waiter came after the acquisition began, and so did all later ones
                at += 1  # served, given up, or excused
            firsts[priority] = at


def _check_prompt(
    lock: str,
    here: list[Attempt],
    holds: list[Attempt],
    world: Causes,
    limits: Limits,
    verdict: Verdict,
) -> None:
    """prompt: no lock stays free while a caller waits for it."""
    queue = sorted((one for one in here if one.queued < math.inf), key=lambda one: one.queued)
    places = [one.queued for one in queue]
    longest: list[Attempt] = []  # of the waiters until here, the one that waits longest
    for one in queue:
        longest.append(one if not longest or one.left > longest[-1].left else longest[-1])
    starts = [one.got for one in holds]
    for one in holds:
        free = one.free
        if free == math.inf:
            continue
        limit_s = limits.prompt_s if one.outcome == "released" else limits.takeover_s
        if one.outcome != "released" and world.cut_off(
            one.process, one.requested_at, one.lasts - 1e-9
        ):
            free += UNDERWAY_S  # the lease may have begun that much later at the server
        asleep = free + limit_s
        # The waiter that was queued before the lock became free, and still waits long after.
        at = bisect_left(places, min(free, one.let_go)) - 1
        if at < 0 or longest[at].left <= asleep:
            continue
        after = bisect_right(starts, one.got)
        if after < len(starts) and starts[after] <= asleep:
            continue
        if world.excuses(lock, free - limits.settle_s, asleep):
            expired = one.outcome != "released"  # its own expiry is no excuse
            if not expired or not _only_its_own(one, world, lock, free - limits.settle_s, asleep):
                continue
        text = (
            f"{lock} was free from {free:.6f} (after {one.id}), and {longest[at].id}, in line "
            f"since {longest[at].queued:.6f}, had to wait more than {limit_s:g} s"
        )
        verdict.violations.append(Violation("prompt", asleep, text, (one.id, longest[at].id)))


def _only_its_own(one: Attempt, world: Causes, lock: str, start: float, end: float) -> bool:
    if world._spans("any").between(start, end) or world._spans("any process").between(start, end):
        return False
    mine = world._spans("any", lock)
    return not mine.between(start, one.deadline - 1e-9) and not mine.between(
        one.deadline + 1e-9, end
    )


def main(paths: list[str]) -> int:
    """Check files of events, and print their violations."""
    events: list[Any] = []
    for path in paths:
        with open(path) as file:
            events.extend(read(file))
    verdict = check(events)
    for violation in verdict.violations:
        print(violation)
    print(
        f"{len(events)} events, {verdict.held} held, {verdict.waited} waited, "
        f"{len(verdict.violations)} violations, attributed: {dict(verdict.attributed)}"
    )
    return 1 if verdict.violations else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
