"""What each script of jobs promises in its header, checked after each run of it.

As ``contract``: only what must hold between the data before, the data after, and the reply.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lualock.jobs.verbs import SCRIPTS, asked_key, place_key
from lualock.keys import queue_key
from lualock.protocol import Call
from tests.simulation.contract import Run, Seen, given_up, held, late, owned, young
from tests.simulation.store import Refused, Store

NAMES = frozenset(SCRIPTS)


@dataclass(slots=True)
class Around:
    """All that there is of one lock: its own keys, its place, and a request to release it."""

    lock: Seen
    place: Seen
    asked: Any
    asked_end_ms: int | None

    @classmethod
    def look(cls, store: Store, call: Call) -> Around:
        """As it is now."""
        lock = call.parts[0].removesuffix(asked_key(b""))
        place, asked = place_key(lock), asked_key(lock)
        return cls(
            Seen.look(store, lock, queue_key(lock)),
            Seen.look(store, place, queue_key(place)),
            store.find(asked),
            store.ends.get(asked),
        )

    @property
    def foreign(self) -> bool:
        """Whether there is anything that lualock did not write."""
        return (
            self.lock.foreign
            or self.place.foreign
            or not isinstance(self.lock.queue, (list, type(None)))
        )


@dataclass(slots=True)
class JobRun:
    """One run of a script of jobs."""

    call: Call
    before: Around
    after: Around
    reply: Any
    told: list[tuple[bytes, int]]
    store: Store

    @property
    def at_lock(self) -> Run:
        """What it did to the lock."""
        return Run(self.call, self.before.lock, self.after.lock, self.reply, self.told, self.store)

    @property
    def at_place(self) -> Run:
        """What it did to the place."""
        return Run(
            self.call, self.before.place, self.after.place, self.reply, self.told, self.store
        )


def broken(run: JobRun) -> Iterator[str]:
    """What of its contract a run did not keep."""
    before, after, reply, verb = run.before, run.after, run.reply, run.call.script.name
    if isinstance(reply, Refused):
        if after != before:
            yield f"was refused ({reply}), and changed something"
        return
    word = reply if type(reply) is bytes else reply[0]
    conflict = type(reply) is list and word == b"conflict"
    if before.foreign:
        if before.lock.foreign and after.lock.record != before.lock.record:
            yield "changed what lualock did not write"
        if before.place.foreign and after.place != before.place:
            yield "changed what lualock did not write"
        looks = before.lock.foreign and verb in ("reserve", "start", "died", "request_release")
        looks = looks or (before.place.foreign and verb in ("reserve", "start"))
        if looks and not conflict:
            yield f"did not see that a record is not lualock's, and said {reply}"
        return
    if conflict:
        yield "says that the keys are not lualock's, and they are"
        return
    if verb not in ("start", "died") and after.lock != before.lock:
        yield "changed the lock"
    if verb not in ("reserve", "start") and after.place != before.place:
        yield "changed the place"
    if verb not in ("request_release", "withdraw") and after.asked != before.asked:
        yield "changed a request"
    yield from _CHECKS[verb](run, word)


def _taken(run: Run, fence: bytes, token: bytes, ttl_ms: bytes, deadline: bytes) -> Iterator[str]:
    """It is ours from now on."""
    before, after = run.before, run.after
    if after.owner != token or after.fence != fence:
        yield "says that it is ours, and it is not"
    if (before.fence and fence <= before.fence) or fence < run.now:
        yield f"gave the fence {fence!r} after {before.fence!r}"
    if run.left_ms(after) != int(ttl_ms) or run.now > deadline:
        yield "took it for another time, or too late"
    if before.record is not None and after.record[39:61] != before.record[17:39]:
        yield "forgot who had it before"


def _nothing(run: JobRun) -> Iterator[str]:
    if run.after != run.before:
        yield f"says {run.reply}, and changed something"


def _reserve(run: JobRun, word: bytes) -> Iterator[str]:
    token, ttl_ms, deadline, about, alone = run.call.parts[2:7]
    place, lock = run.before.place, run.before.lock
    if type(run.reply) is bytes:
        yield from _taken(run.at_place, run.reply, token, ttl_ms, deadline)
        if place.owner:
            yield "took the place of another job"
        if alone == b"1" and lock.owner not in (b"", token):
            yield "took a place beside one that runs"
        if run.after.place.about != about:
            yield "does not say which job it is"
        if run.after.place.state != (b"W" if place.state == b"F" else b"H"):
            yield "forgot that others wait for the place, or made it up"
        if run.after.place.queue != place.queue:
            yield "changed the queue"
        return
    yield from _nothing(run)
    if word == b"late":
        yield from late(run.at_place, deadline)
    elif word == b"owned":
        yield from owned(run.at_place, token)
    elif word == b"queued":
        if place.owner in (b"", token):
            yield "says that another job is queued, and none is"
        yield from held(run.at_place, run.reply[1:])
    elif place.owner or alone != b"1" or lock.owner in (b"", token):
        yield f"says {word!r}, and nothing is in its way"
    else:
        yield from held(run.at_lock, run.reply[1:])


def _start(run: JobRun, word: bytes) -> Iterator[str]:
    token, ttl_ms, deadline, about, owner = run.call.parts[4:9]
    before, after = run.before, run.after
    lock = before.lock
    if type(run.reply) is bytes:
        yield from _taken(run.at_lock, run.reply, token, ttl_ms, deadline)
        if lock.owner not in (b"", owner):
            yield "took the lock of another"
        if after.lock.state != (b"W" if lock.state in (b"W", b"F") else b"H"):
            yield "forgot that others wait, or made it up"
        if after.lock.about != about:
            yield "does not say who has it"
        yield from _tells_first(run.at_lock, int(ttl_ms))
        ours = before.place.record is not None and before.place.record[17:39] == owner
        if ours and after.place.record is not None:
            yield "runs, and kept its place"
        if ours:
            yield from _tells_first(run.at_place, 0)
        if not ours and after.place != before.place:
            yield "took the place of another job away"
        return
    yield from _nothing(run)
    if word == b"late":
        yield from late(run.at_lock, deadline)
    elif word == b"owned":
        yield from owned(run.at_lock, token)
    elif lock.owner in (b"", token, owner):
        yield "says that somebody has it, and nobody else has"
    else:
        yield from held(run.at_lock, run.reply[1:])


def _tells_first(run: Run, left_ms: int) -> Iterator[str]:
    """The first of those of whom the record knew is told for how long it is held from now on,
    unless it came just before; those before it are gone."""
    before, after = run.before.queue or [], run.after.queue or []
    gone = before[: len(before) - len(after)]
    if before[len(gone) :] != after or any(run.reachable(ticket) for _, ticket in gone):
        yield "changed the queue"
    if not after or run.before.state not in (b"W", b"F") or run.store.silent:
        return
    score, first = after[0]
    heard = [text for text, count in run.told if count]
    if not young(run, score) and first[:22] + b"=%d" % left_ms not in heard:
        yield f"did not tell {first[:22]!r} that it is held for {left_ms} ms"


def _died(run: JobRun, word: bytes) -> Iterator[str]:
    job, owner, holder = run.call.parts[2:5]
    lock = run.before.lock
    who, _, which = lock.about.partition(b"\n")
    his = bool(lock.owner) and which == job and who.startswith(holder)
    if word in (b"released", b"handed_over"):
        if not his or lock.owner == owner:
            yield "released the lock of another"
            return
        yield from given_up(run.at_lock, lock.owner, b"1")
        if (word == b"handed_over") != bool(run.after.lock.owner):
            yield "says that it was handed over, or not, and it is otherwise"
        return
    yield from _nothing(run)
    wanted = (
        b"missing" if not lock.owner else b"kept" if his and lock.owner == owner else b"another"
    )
    if word != wanted or (his and lock.owner != owner):
        yield f"says {word!r}, and it is {wanted!r}"


def _request_release(run: JobRun, word: bytes) -> Iterator[str]:
    token, lasts_ms, deadline = run.call.parts[2:5]
    before, after = run.before, run.after
    asked = before.asked or b""
    if word == b"free":
        if before.lock.owner:
            yield "says that nobody has it, and somebody has"
        yield from _nothing(run)
    elif word == b"late":
        yield from late(run.at_lock, deadline)
        yield from _nothing(run)
    elif not before.lock.owner:
        yield "asked nobody"
    elif run.reply != [b"asked", before.lock.about]:
        yield f"says that it asked {run.reply}"
    elif asked[16:] == token:
        yield from _nothing(run)
    else:
        now = after.asked or b""
        left_ms = (after.asked_end_ms or 0) - run.store.now_us // 1000
        if now[16:] != token or left_ms != int(lasts_ms) or run.at_lock.now > deadline:
            yield "did not ask, or too late, or for another time"
        if now[:16] <= max(before.lock.fence, asked[:16]):
            yield "asked with a time that is not later than what was before"


def _release_requested(run: JobRun, word: bytes) -> Iterator[str]:
    fence, token = run.call.parts[1:3]
    asked = run.before.asked or b""
    if (word == b"requested") != (asked[:16] > fence and asked[16:] != token):
        yield f"says {word!r}, and it is otherwise"
    yield from _nothing(run)


def _withdraw(run: JobRun, word: bytes) -> Iterator[str]:
    token = run.call.parts[2]
    before, after = run.before, run.after
    latest = (before.asked or b"")[16:]
    tickets = [one for one in before.lock.tickets if one[:22] == latest]
    waits = any(run.at_lock.reachable(one) for one in tickets)
    wanted = b"superseded" if waits else b"alone"
    if not latest:
        wanted = b"missing"
    elif latest == token:
        wanted = b"withdrawn"
    if word != wanted:
        yield f"says {word!r}, and it is {wanted!r}"
    if latest == token:
        if after.asked is not None:
            yield "left the request"
    elif after.asked != before.asked:
        yield "took back the request of another"


_CHECKS = {
    "reserve": _reserve,
    "start": _start,
    "died": _died,
    "request_release": _request_release,
    "release_requested": _release_requested,
    "withdraw": _withdraw,
}
