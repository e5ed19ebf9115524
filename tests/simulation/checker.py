"""Judges a recorded history: what several processes did with locks, and what was done to them.

It knows nothing of the simulator, the library or a server: it reads events, one JSON object a line,
in one common clock (the simulator's, or CLOCK_BOOTTIME of one machine), in any order. In all,
O(n log n) of the number of events.

=========  =======================================================================================
kind       meaning, and the fields beside ``t`` (when), ``lock``, ``who`` (process), ``id`` (one
           acquisition, unique: a token's digest)
=========  =======================================================================================
ask        an acquisition begins: ``wait_s`` (null: for ever, 0: one try), ``fair``, ``priority``;
           ``what``: adopt where it takes over the lease of another
queued     it surely has a place in the queue from now on; optional, FIFO and promptness need it
got        it has the lock, certainly in [t, until): ``fence``, ``until`` (its deadline)
until      the deadline moved to ``until`` (renewed, claimed, or asked to be sooner). ``what``:
           answered, where the server has said so, and did not have to
let_go     its release begins, or it found its lease lost: from now on it claims nothing
released   how that ended, ``what``: released, lost (it had ended before), passed (to who adopts
           it), unknown
leave      it was cancelled: from now on it does not wait, but it may not have ended yet
gave_up    the acquisition ended without the lock, ``what``: timeout, full, unavailable, interrupted
wrote      it wrote to the resource with its ``fence``; ``what``: accepted, refused.
           ``until``: when the answer came, if not at once; the write was at a moment in between
gone       the process ``who`` died: none of what it has in hand goes on
cause      something was done to the world that may excuse what follows. ``what``, from ``t`` to
           ``until``; with ``who`` or ``lock`` it concerns only these. See :data:`CAUSES`
left       a key (``what``) is still there after everything ended and every ttl passed
(jobs)     what is said of jobs and their places is judged by ``job_rules.py``, and told there
end        the history is over; every wait must have ended
=========  =======================================================================================

The rules, each with the name by which a violation is reported:

overlap    no two acquisitions are certain of one lock at the same time. Where that is possible by
           nature (:data:`OVERLAPS`) the overlap is attributed to its cause and counted.
fence      of two that had a lock one after the other the later has the greater fence, and no two
           have the same. Only a clock that stepped back after the lock was forgotten excuses it.
resource   what checks fences never takes two acquisitions for one, and never refuses the only
           holder. This holds through every cause of an overlap: it is what fences are for.
fifo       who surely had a place before another asked gets the lock first, unless it was cut off,
           or the queue was lost, or a lease ended by itself (a free lock is for whoever comes).
prompt     a lock that is free while somebody reachable waits is taken within ``prompt_s``.
ends       every wait ends, a timeout neither early nor more than ``late_s`` late.
release    "released" is never said of a lease that had ended, nor "lost" of one that had not.
left       nothing stays behind.
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
    "data_loss": "the server lost its data, or somebody deleted the key",
    "clock_forward": "the server's clock stepped forward: leases end early",
    "astray": "somebody listened at a server that was the primary before, and repeats what is said",
    "clock_back": "the server's clock stepped back: leases last longer, fences may repeat",
    "forgot": "the lock's key was gone for a moment, and its fence with it",
    "expired": "a lease ended by itself at the server",
    "restart": "the server was away; nothing was lost",
    "stall": "the server did not answer",
    "oom": "the server was out of memory",
    "forbidden": "the server's rules forbade messages",
    "read_only": "the server took no writes",
    "cut": "the process could not be reached",
    "slow": "messages of the process took long",
    "pause": "the process stood still",
    "crash": "the process died; until the server noticed",
    "unknowing": "who waits could not know that something had changed before it looked again",
    "revived": "the queue or the lock was given back a token that was done with",
    "orphan": "a request ran at the server after its sender had given it up",
    "let_in": "one ran that was too late, and only a clock that was put back let it in",
}
"""What may excuse something. Only :data:`OVERLAPS` explain two holders."""

JOBS = (
    *(
        "enqueue",
        "reserve",
        "answered",
        "keeping",
        "placed",
        "unplaced",
        "taking",
        "untaken",
        "pushed",
        "enqueued",
    ),
    *("refused", "superseded", "began", "done"),
)
"""The kinds of events of jobs: see ``job_rules.py``."""

OVERLAPS = ("failover", "data_loss", "clock_forward", "astray")
LOSSES = ("failover", "data_loss")
SETTLE_S = 10.0
UNDERWAY_S = 5.0
"""How long a request may be under way and still begin a lease, or let one last: its deadline."""


@dataclass(slots=True)
class Event:
    """One thing that happened. The module's docstring says which fields a kind has."""

    t: float
    kind: str
    lock: str = ""
    who: str = ""
    id: str = ""
    what: str = ""
    fence: int = 0
    until: float | None = None
    wait_s: float | None = None
    fair: bool = True
    priority: int = 0
    since: float | None = None
    other: str = ""

    def line(self) -> str:
        """As a line of JSON, without what is as usual."""
        given = {one.name: getattr(self, one.name) for one in fields(self)}
        return json.dumps(
            {
                name: value
                for name, value in given.items()
                if name in ("t", "kind") or value != _USUAL[name]
            }
        )

    @classmethod
    def parse(cls, line: str) -> Event:
        """The event of a line."""
        return cls(**json.loads(line))


_USUAL = {one.name: one.default for one in fields(Event)}


def read(lines: Iterable[str]) -> Iterator[Event]:
    """The events of a file."""
    return (Event.parse(line) for line in lines if line.strip())


@dataclass(frozen=True, slots=True)
class Limits:
    """What a history is measured by; as good as the machine that it comes from."""

    prompt_s: float = 0.1
    takeover_s: float = 0.1
    """As ``prompt_s``, after a lease that ended by itself."""
    late_s: float = 0.1
    settle_s: float = SETTLE_S
    """How long after a cause has ended the queue may still be finding itself."""


@dataclass(slots=True)
class Violation:
    """A rule that was broken, when, and by which acquisitions."""

    rule: str
    t: float
    text: str
    ids: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.t:.6f} {self.rule}: {self.text}"


@dataclass(slots=True)
class Verdict:
    """What the checker found."""

    violations: list[Violation] = field(default_factory=list)
    attributed: Counter[str] = field(default_factory=Counter)  # overlaps, by cause
    held: int = 0
    waited: int = 0


@dataclass(slots=True)
class Attempt:
    """One acquisition, from its first request to its end."""

    lock: str
    who: str
    id: str
    asked: float
    wait_s: float | None = None
    fair: bool = True
    priority: int = 0
    adopts: bool = False
    queued: float = math.inf
    got: float = math.inf
    fence: int = 0
    deadline: float = -math.inf  # what it was last told of its lease
    furthest: float = -math.inf  # and the latest of all
    lasts: float = (
        -math.inf
    )  # until when it may last at the server, which hears of a sooner end late
    let_go: float = math.inf
    released: float = math.inf
    outcome: str = ""
    ended: float = math.inf  # the wait: got it, gave up, or died
    left: float = math.inf  # when it stopped waiting, whether or not it had ended
    why: str = ""
    gone: float = math.inf

    @property
    def until(self) -> float:
        """When it stopped being certain of the lock."""
        return min(self.deadline, self.let_go, self.gone)

    @property
    def free(self) -> float:
        """When the lock was free for the next, as far as this one can know."""
        if self.outcome == "passed":
            return math.inf
        return self.released if self.outcome == "released" else self.lasts


class _Spans:
    """The times of one kind of cause, to be asked whether one falls into an interval."""

    def __init__(self, events: Iterable[Event]) -> None:
        spans = sorted(
            (event.t, event.t if event.until is None else event.until) for event in events
        )
        self._starts = [start for start, _ in spans]
        self._reach: list[float] = []  # the latest end of all that began until then
        for _, end in spans:
            self._reach.append(max(end, self._reach[-1]) if self._reach else end)

    def between(self, start: float, end: float) -> bool:
        """Whether one touches [start, end]."""
        before = bisect_right(self._starts, end)
        return before > 0 and self._reach[before - 1] >= start

    def last(self, end: float) -> float:
        """How far those reach that began until ``end``."""
        before = bisect_right(self._starts, end)
        return self._reach[before - 1] if before else -math.inf


class Causes:
    """The causes, sorted by whom they concern."""

    def __init__(self, causes: list[Event]) -> None:
        grouped: defaultdict[tuple[str, str, str], list[Event]] = defaultdict(list)
        for event in causes:
            grouped[event.what, event.lock, event.who].append(event)
            if event.what != "forgot":
                grouped["any", event.lock, event.who].append(event)
            if event.who:
                grouped["anybody", "", ""].append(event)
        self._by = {key: _Spans(events) for key, events in grouped.items()}

    def _of(self, what: str, lock: str = "", who: str = "") -> _Spans:
        return self._by.get((what, lock, who), _NONE)

    def first_of(self, what: Iterable[str], lock: str, start: float, end: float) -> str:
        """Which of these causes touched this lock between the two times; '' if none did."""
        for one in what:
            if self._of(one).between(start, end) or self._of(one, lock).between(start, end):
                return one
        return ""

    def excuses(self, lock: str, start: float, end: float, who: str | None = None) -> bool:
        """Whether anything happened to the server, this lock, or ``who`` (default: anybody)."""
        return (
            self._of("any").between(start, end)
            or self._of("any", lock).between(start, end)
            or (self._of("anybody") if who is None else self._of("any", "", who)).between(
                start, end
            )
        )

    def cut_off(self, who: str, start: float, end: float) -> bool:
        """Whether what ``who`` sent may have come late."""
        return self._of("any").between(start, end) or self._of("any", "", who).between(start, end)

    def last(self, lock: str, end: float) -> float:
        """How far what happened to the server or this lock until ``end`` reaches."""
        return max(self._of("any").last(end), self._of("any", lock).last(end))


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
        _check_resource(lock, attempts, wrote[lock], shared, world, verdict)
        if all(one.fair for one in here):
            _check_fifo(lock, here, holds, world, verdict)
            _check_prompt(lock, here, holds, world, limits, verdict)
    verdict.violations.sort(key=lambda one: one.t)
    return verdict


def assemble(
    history: list[Event], verdict: Verdict
) -> tuple[dict[str, Attempt], defaultdict[str, list[Event]], bool]:
    """The acquisitions out of their events."""
    attempts: dict[str, Attempt] = {}
    wrote: defaultdict[str, list[Event]] = defaultdict(list)
    of: defaultdict[str, list[Attempt]] = defaultdict(list)  # what each process has in hand
    ended = False
    for event in history:
        kind = event.kind
        if kind in JOBS:
            continue
        if kind == "ask":
            one = attempts[event.id] = Attempt(
                *(event.lock, event.who, event.id, event.t),
                *(event.wait_s, event.fair, event.priority, event.what == "adopt"),
            )
            of[event.who].append(one)
            if event.wait_s is not None:
                one.left = event.t + event.wait_s
            continue
        if kind in ("cause", "end", "left", "gone"):
            if kind == "end":
                ended = True
            elif kind == "left":
                verdict.violations.append(Violation("left", event.t, f"{event.what} stayed behind"))
            elif kind == "gone":
                for one in of.pop(event.who, ()):
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
        elif kind == "leave":
            one.left = min(one.left, event.t)
        elif kind == "gave_up":
            one.ended, one.why = event.t, event.what
            one.left = min(one.left, event.t)
        elif kind == "wrote":
            wrote[event.lock].append(event)
        else:
            raise ValueError(f"an event of an unknown kind: {kind}")
    return attempts, wrote, ended


def _implied(history: list[Event], attempts: Collection[Attempt]) -> Iterator[Event]:
    """Causes that the acquisitions themselves tell of: who dies is not reachable, and a lease
    that nobody released ends by itself."""
    for event in history:
        if event.kind == "gone":
            yield Event(event.t, "cause", who=event.who, what="crash")
    heirs = [one for one in attempts if one.adopts and one.got < math.inf]
    for one in attempts:
        if one.outcome == "passed" and any(
            heir.lock == one.lock and heir.fence > one.fence and heir.got < one.deadline
            for heir in heirs
        ):
            continue
        if one.got < math.inf and one.outcome != "released":
            yield Event(one.deadline, "cause", lock=one.lock, what="expired")


def _check_ends(one: Attempt, ended: bool, world: Causes, limits: Limits, verdict: Verdict) -> None:
    """ends: the wait is over, and when it should be."""
    if one.ended == math.inf:
        if ended:
            text = f"the wait of {one.id} for {one.lock} never ended"
            verdict.violations.append(Violation("ends", one.asked, text, (one.id,)))
        return
    if not one.wait_s or one.why in ("gone", "interrupted"):
        return
    due = one.asked + one.wait_s
    if one.why == "timeout" and one.ended < due - 0.001:
        text = f"{one.id} gave up {due - one.ended:.6f} s before its time was over"
        verdict.violations.append(Violation("ends", one.ended, text, (one.id,)))
    paused = world._of("pause", "", one.who).between(one.asked, one.ended)
    if one.ended > due + limits.late_s and not paused:
        text = f"the wait of {one.id} ended ({one.why}) {one.ended - due:.6f} s late"
        verdict.violations.append(Violation("ends", one.ended, text, (one.id,)))


def _check_overlap(lock: str, holds: list[Attempt], world: Causes, verdict: Verdict) -> set[str]:
    """overlap: one after the other. Returns those that overlap for a reason."""
    shared: set[str] = set()
    last: Attempt | None = None  # whose certainty reaches furthest
    for one in holds:
        if one.until <= one.got:
            continue  # it was too late when it heard of it
        if last is not None and one.got < last.until:
            cause = world.first_of(OVERLAPS, lock, min(last.asked, one.asked), one.got)
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
        twin = seen.get(one.fence)
        certain = one.until > one.got
        worse = twin
        if worse is None and top is not None and certain and one.fence < top.fence:
            worse = top
        if worse is not None and not _fence_excused(lock, worse, one, world):
            text = f"{lock}: fence {one.fence} of {one.id} after {worse.fence} of {worse.id}"
            verdict.violations.append(Violation("fence", one.got, text, (worse.id, one.id)))
        seen[one.fence] = one
        if certain and (top is None or one.fence > top.fence):
            top = one


def _fence_excused(lock: str, before: Attempt, after: Attempt, world: Causes) -> bool:
    start, end = min(before.asked, after.asked), after.got
    stepped = world.first_of(("clock_back",), lock, -math.inf, end)
    return bool(stepped and world.first_of((*LOSSES, "forgot"), lock, start, end)) or (
        # The later to hear of it may have been given it first: two histories of one lock.
        before.fence != after.fence and bool(world.first_of(OVERLAPS, lock, after.asked, end))
    )


def _check_release(lock: str, holds: list[Attempt], world: Causes, verdict: Verdict) -> None:
    """release: what is said of it is true."""
    following: Attempt | None = None  # who had it next
    for one in reversed(holds):
        wrong, since = "", one.asked
        # By its fence, too: who had it first may hear of it last.
        if (
            following is not None
            and one.outcome == "released"
            and following.got < one.let_go
            and following.fence > one.fence
        ):
            wrong = f"{one.id} was told that it released {lock}, which {following.id} had by then"
            since = min(one.asked, following.asked)  # who had it first may have been paused since
        elif one.outcome == "lost" and one.released < one.deadline:
            wrong = (
                f"{one.id} was told that its lease of {lock} had ended, "
                f"{one.deadline - one.released:.6f} s before it does"
            )
        if wrong and not (
            world.first_of(OVERLAPS, lock, since, one.released)
            # A orphan of its own may have taken the lock again, which it then did release.
            or world.first_of(("orphan",), lock, one.got, one.released)
        ):
            verdict.violations.append(Violation("release", one.released, wrong, (one.id,)))
        if one.until > one.got:
            following = one


def _check_resource(
    lock: str,
    attempts: dict[str, Attempt],
    wrote: list[Event],
    shared: set[str],
    world: Causes,
    verdict: Verdict,
) -> None:
    """resource: whoever checks fences is safe."""
    owner: dict[int, str] = {}
    top = -1  # of the writes that surely came before
    answered: list[tuple[float, int]] = []  # those that may not have: when they surely had
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
            parted = other is not one and world.first_of(OVERLAPS, lock, one.asked, event.t)
            if not parted and not _fence_excused(lock, other, one, world):
                text = f"{lock}: the resource refused {event.id}, which had the lock"
                verdict.violations.append(Violation("resource", event.t, text, (one.id,)))


def _check_fifo(
    lock: str, here: list[Attempt], holds: list[Attempt], world: Causes, verdict: Verdict
) -> None:
    """fifo: in turn."""
    waiting: defaultdict[int, list[Attempt]] = defaultdict(list)  # by priority, then by place
    for one in sorted((one for one in here if one.queued < math.inf), key=lambda one: one.queued):
        waiting[one.priority].append(one)
    firsts = dict.fromkeys(waiting, 0)
    for taken in sorted(holds, key=lambda one: one.fence):
        if taken.adopts:
            continue  # it was not free at all
        for priority, line in waiting.items():
            if priority < taken.priority:
                continue
            at = firsts[priority]
            while at < len(line):
                first = line[at]
                before = first.got < math.inf and first.fence <= taken.fence
                if not before and first.left > taken.got and first.queued < taken.asked:
                    start = first.queued - SETTLE_S
                    if not (
                        world.last(lock, taken.got) >= first.queued
                        or world.excuses(lock, start, taken.got, first.who)
                    ):
                        text = (
                            f"{lock} went to {taken.id}, which asked at {taken.asked:.6f}, before "
                            f"{first.id}, which waited since {first.queued:.6f}"
                        )
                        found = Violation("fifo", taken.got, text, (first.id, taken.id))
                        verdict.violations.append(found)
                elif not before and first.left > taken.got:
                    break  # the first of those who wait came after this one asked: so did the rest
                at += 1  # served, given up, or excused once and for all
            firsts[priority] = at


def _check_prompt(
    lock: str,
    here: list[Attempt],
    holds: list[Attempt],
    world: Causes,
    limits: Limits,
    verdict: Verdict,
) -> None:
    """prompt: no lock is free while somebody waits for it."""
    line = sorted((one for one in here if one.queued < math.inf), key=lambda one: one.queued)
    places = [one.queued for one in line]
    longest: list[Attempt] = []  # of those until here, who waits longest
    for one in line:
        longest.append(one if not longest or one.left > longest[-1].left else longest[-1])
    starts = [one.got for one in holds]
    for one in holds:
        free = one.free
        if free == math.inf:
            continue
        limit_s = limits.prompt_s if one.outcome == "released" else limits.takeover_s
        if one.outcome != "released" and world.cut_off(one.who, one.asked, one.lasts - 1e-9):
            free += UNDERWAY_S  # at the server the lease may have begun that much later
        asleep = free + limit_s
        # Who was in line before the lock became free, and still is long after.
        at = bisect_left(places, min(free, one.let_go)) - 1
        if at < 0 or longest[at].left <= asleep:
            continue
        after = bisect_right(starts, one.got)
        if after < len(starts) and starts[after] <= asleep:
            continue
        if world.excuses(lock, free - limits.settle_s, asleep):
            expired = one.outcome != "released"  # a lease's own end excuses nobody but itself
            if not expired or not _only_its_own(one, world, lock, free - limits.settle_s, asleep):
                continue
        text = (
            f"{lock} was free from {free:.6f} (after {one.id}), and {longest[at].id}, in line "
            f"since {longest[at].queued:.6f}, had to wait more than {limit_s:g} s"
        )
        verdict.violations.append(Violation("prompt", asleep, text, (one.id, longest[at].id)))


def _only_its_own(one: Attempt, world: Causes, lock: str, start: float, end: float) -> bool:
    if world._of("any").between(start, end) or world._of("anybody").between(start, end):
        return False
    mine = world._of("any", lock)
    return not mine.between(start, one.deadline - 1e-9) and not mine.between(
        one.deadline + 1e-9, end
    )


def main(paths: list[str]) -> int:
    """Check files of events; print what is wrong with them."""
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
