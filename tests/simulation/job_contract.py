"""What each script of jobs promises in its header, checked after each run of it.

As ``contract``: only what must hold between the data before, the data after, and the reply.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lualock._core.keys import waiters_key
from lualock._protocol import RunScript
from lualock._protocol.stop_request import stop_requests_key
from lualock.jobs.verbs import reservation_key
from tests.simulation.contract import Run, Seen, given_up, held, late, owned, refused, young
from tests.simulation.store import Refused, Store


@dataclass(slots=True)
class Around:
    """All that there is of one lock: its own keys, its place, and a request to release it."""

    lock: Seen
    place: Seen
    asked: Any
    asked_end_ms: int | None

    @classmethod
    def look(cls, store: Store, call: RunScript) -> Around:
        """As it is now."""
        lock = call.parts[0].removesuffix(stop_requests_key(b""))
        place, asked = reservation_key(lock), stop_requests_key(lock)
        return cls(
            Seen.look(store, lock, waiters_key(lock)),
            Seen.look(store, place, waiters_key(place)),
            store.find(asked),
            store.ends.get(asked),
        )

    def foreign(self, verb: str) -> bool:
        """Whether lualock did not write what a script looks at in any case."""
        asks = verb == "release_requested" or (
            verb == "request_release" and self.lock.record is not None
        )
        return (
            (verb in ("reserve", "start", "died", "request_release") and self.lock.foreign)
            or (verb in ("reserve", "start") and self.place.foreign)
            or (asks and not self.asked_sound)
        )

    @property
    def odd(self) -> bool:
        """Whether there is anything at all that lualock did not write."""
        queues = self.lock.queue, self.place.queue
        return (
            self.lock.foreign
            or self.place.foreign
            or not self.asked_sound
            or not all(isinstance(queue, (list, type(None))) for queue in queues)
        )

    @property
    def asked_sound(self) -> bool:
        """Whether the requests are such."""
        asked = self.asked
        return asked is None or (
            type(asked) is bytes and len(asked) % 38 == 0 and asked[:16].isdigit()
        )


@dataclass(slots=True)
class JobRun:
    """One run of a script of jobs."""

    call: RunScript
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
        yield from refused(run.store, reply, verb, before.odd)
        return
    word = reply if type(reply) is bytes else reply[0]
    conflict = type(reply) is list and word == b"conflict"
    if before.foreign(verb):
        if after != before:
            yield "changed what lualock did not write"
        if not conflict:
            yield f"did not see that a key is not lualock's, and said {reply}"
        return
    if conflict:
        yield "says that the keys are not lualock's, and they are"
        return
    if before.odd:
        for was, now in ((before.lock, after.lock), (before.place, after.place)):
            sound = isinstance(was.queue, (list, type(None)))
            if (was.foreign and now != was) or (not sound and now.queue != was.queue):
                yield "changed what lualock did not write"
        if not before.asked_sound and after.asked != before.asked:
            yield "changed what lualock did not write"
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
    token, ttl_ms, deadline, about, alone, sent = run.call.parts[2:8]
    place, lock = run.before.place, run.before.lock
    gave_up = not place.owner and place.record is not None and place.record[17:39] == token
    copied = gave_up and sent <= place.fence
    if type(run.reply) is bytes:
        yield from _taken(run.at_place, run.reply, token, ttl_ms, deadline)
        if place.owner:
            yield "took the place of another job"
        if copied:
            yield "took again what its job had given up since it was sent"
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
        if not copied:
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
        ours = before.place.owner == owner
        if ours and after.place.owner:
            yield "runs, and kept its place"
        if ours and not after.place.remembers(owner):
            yield "forgot which job had the place"
        if ours:
            yield from _tells_first(run.at_place, 0)
            waited = before.place.state == b"W" and before.place.tickets
            if after.place.state != (b"F" if waited else b"R"):
                yield "forgot that others wait for the place, or made it up"
            if run.at_place.left_ms(after.place) != 5000:
                yield "left a tombstone for another time"
        elif after.place.queue != before.place.queue:
            yield "changed the queue of a place that is not ours"
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


def _requests(asked: bytes | None) -> list[tuple[bytes, bytes]]:
    """The requests to release, the latest first: a time, and who asked."""
    text = asked or b""
    return [(text[at : at + 16], text[at + 16 : at + 38]) for at in range(0, len(text), 38)]


def _request_release(run: JobRun, word: bytes) -> Iterator[str]:
    token, lasts_ms, deadline = run.call.parts[2:5]
    before, after = run.before, run.after
    requests = _requests(before.asked)
    now_ms = run.store.now_us // 1000
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
    elif any(asker == token for _, asker in requests):
        yield from _nothing(run)
    else:
        (time, asker), *rest = _requests(after.asked) or [(b"", b"")]
        stand = [one for one in requests if one[0] > before.lock.fence][:15]
        left_ms = (after.asked_end_ms or 0) - now_ms
        wanted_ms = int(lasts_ms)
        if stand:
            wanted_ms = max(wanted_ms, (before.asked_end_ms or 0) - now_ms)
        if asker != token or left_ms != wanted_ms or run.at_lock.now > deadline:
            yield "did not ask, or too late, or for another time"
        if rest != stand:
            yield "forgot who asked before, or remembers whoever asked somebody else"
        if time <= max([before.lock.fence, *(time for time, _ in requests)]):
            yield "asked with a time that is not later than what was before"


def _release_requested(run: JobRun, word: bytes) -> Iterator[str]:
    fence, token = run.call.parts[1:3]
    asked = any(time > fence and asker != token for time, asker in _requests(run.before.asked))
    if (word == b"requested") != asked:
        yield f"says {word!r}, and it is otherwise"
    yield from _nothing(run)


def _withdraw(run: JobRun, word: bytes) -> Iterator[str]:
    token = run.call.parts[2]
    before, after = run.before, run.after
    requests = _requests(before.asked)
    askers = [asker for _, asker in requests]
    later = askers[: askers.index(token)] if token in askers else askers
    tickets = [one for one in before.lock.tickets if one[:22] in later]
    wanted = b"missing" if not requests else b"alone" if later else b"withdrawn"
    if any(run.at_lock.reachable(one) for one in tickets):
        wanted = b"superseded"
    if word != wanted:
        yield f"says {word!r}, and it is {wanted!r}"
    stand = [one for one in requests if one[1] != token]
    if _requests(after.asked) != stand:
        yield "left its request, or took back another's"
    if not stand and after.asked is not None:
        yield "left a key without a request"
    now_ms = run.store.now_us // 1000
    if stand and after.asked_end_ms not in (before.asked_end_ms, now_ms + 1):
        yield "changed how long the requests of others stand"


_CHECKS = {
    "reserve": _reserve,
    "start": _start,
    "died": _died,
    "request_release": _request_release,
    "release_requested": _release_requested,
    "withdraw": _withdraw,
}

NAMES = frozenset(_CHECKS)
