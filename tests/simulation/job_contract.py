"""Check after each run of a script of jobs what its header promises, as ``contract`` does.

Only what must hold between the data before, the data after, and the reply.
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
    """All keys of one lock: its own, those of its reservation, and its stop requests."""

    lock: Seen
    reservation: Seen
    stop_requests: Any
    stop_requests_end_ms: int | None

    @classmethod
    def read(cls, store: Store, call: RunScript) -> Around:
        """Read the keys as they are now."""
        lock = call.parts[0].removesuffix(stop_requests_key(b""))
        reservation, stop_requests = reservation_key(lock), stop_requests_key(lock)
        return cls(
            Seen.read(store, lock, waiters_key(lock)),
            Seen.read(store, reservation, waiters_key(reservation)),
            store.find(stop_requests),
            store.ends.get(stop_requests),
        )

    def foreign(self, verb: str) -> bool:
        """Whether a value that the script always reads is foreign."""
        reads_requests = verb == "release_requested" or (
            verb == "request_release" and self.lock.record is not None
        )
        return (
            (verb in ("reserve", "start", "died", "request_release") and self.lock.foreign)
            or (verb in ("reserve", "start") and self.reservation.foreign)
            or (reads_requests and not self.stop_requests_sound)
        )

    @property
    def odd(self) -> bool:
        """Whether any value at these keys is foreign."""
        queues = self.lock.queue, self.reservation.queue
        return (
            self.lock.foreign
            or self.reservation.foreign
            or not self.stop_requests_sound
            or not all(isinstance(queue, (list, type(None))) for queue in queues)
        )

    @property
    def stop_requests_sound(self) -> bool:
        """Whether lualock wrote the stop requests."""
        entries = self.stop_requests
        return entries is None or (
            type(entries) is bytes and len(entries) % 38 == 0 and entries[:16].isdigit()
        )


@dataclass(slots=True)
class JobRun:
    """One run of a script of jobs."""

    call: RunScript
    before: Around
    after: Around
    reply: Any
    messages: list[tuple[bytes, int]]
    store: Store

    @property
    def at_lock(self) -> Run:
        """What it did to the lock."""
        return Run(
            self.call, self.before.lock, self.after.lock, self.reply, self.messages, self.store
        )

    @property
    def at_reservation(self) -> Run:
        """What it did to the reservation."""
        return Run(
            self.call,
            self.before.reservation,
            self.after.reservation,
            self.reply,
            self.messages,
            self.store,
        )


def owners(call: RunScript, after: Around) -> list[tuple[bytes, bytes]]:
    """Return the keys of the lock and its reservation, each with the token that has it."""
    lock = call.parts[0].removesuffix(stop_requests_key(b""))
    return [(lock, after.lock.owner), (reservation_key(lock), after.reservation.owner)]


def broken(run: JobRun) -> Iterator[str]:
    """Yield each way in which a run broke its contract."""
    before, after, reply, verb = run.before, run.after, run.reply, run.call.script.name
    if isinstance(reply, Refused):
        if after != before:
            yield f"was refused ({reply}), and changed data"
        yield from refused(run.store, reply, verb, before.odd)
        return
    word = reply if type(reply) is bytes else reply[0]
    conflict = type(reply) is list and word == b"conflict"
    if before.foreign(verb):
        if after != before:
            yield "changed a foreign value"
        if not conflict:
            yield f"did not see that a value is foreign, and answered {reply}"
        return
    if conflict:
        yield "answers conflict, and the keys are lualock's"
        return
    if before.odd:
        for was, now in ((before.lock, after.lock), (before.reservation, after.reservation)):
            sound = isinstance(was.queue, (list, type(None)))
            if (was.foreign and now != was) or (not sound and now.queue != was.queue):
                yield "changed a foreign value"
        if not before.stop_requests_sound and after.stop_requests != before.stop_requests:
            yield "changed a foreign value"
        return
    if verb not in ("start", "died") and after.lock != before.lock:
        yield "changed the lock"
    if verb not in ("reserve", "start") and after.reservation != before.reservation:
        yield "changed the reservation"
    if verb not in ("request_release", "withdraw") and after.stop_requests != before.stop_requests:
        yield "changed a stop request"
    yield from _CHECKS[verb](run, word)


def _taken(run: Run, fence: bytes, token: bytes, ttl_ms: bytes, deadline: bytes) -> Iterator[str]:
    """The caller has it from now on."""
    before, after = run.before, run.after
    if after.owner != token or after.fence != fence:
        yield "answers that the caller has it, and it does not"
    if (before.fence and fence <= before.fence) or fence < run.now:
        yield f"gave the fence {fence!r} after {before.fence!r}"
    if run.left_ms(after) != int(ttl_ms) or run.now > deadline:
        yield "took it for another time, or too late"
    if before.record is not None and after.record[39:61] != before.record[17:39]:
        yield "forgot the previous token"


def _nothing(run: JobRun) -> Iterator[str]:
    if run.after != run.before:
        yield f"answers {run.reply}, and changed data"


def _reserve(run: JobRun, word: bytes) -> Iterator[str]:
    token, ttl_ms, deadline, holder_info, alone, sent_us = run.call.parts[2:8]
    reservation, lock = run.before.reservation, run.before.lock
    gave_up = (
        not reservation.owner
        and reservation.record is not None
        and reservation.record[17:39] == token
    )
    copied = gave_up and sent_us <= reservation.fence
    if type(run.reply) is bytes:
        yield from _taken(run.at_reservation, run.reply, token, ttl_ms, deadline)
        if reservation.owner:
            yield "took the reservation of another job"
        if copied:
            yield "took again the reservation that its job gave up after the request was sent"
        if alone == b"1" and lock.owner not in (b"", token):
            yield "made a reservation beside a job that runs"
        if run.after.reservation.holder_info != holder_info:
            yield "has a wrong holder_info"
        if run.after.reservation.state != (b"W" if reservation.state == b"F" else b"H"):
            yield "has a wrong state of the reservation: waiters or none"
        if run.after.reservation.queue != reservation.queue:
            yield "changed the queue"
        return
    yield from _nothing(run)
    if word == b"late":
        if not copied:
            yield from late(run.at_reservation, deadline)
    elif word == b"owned":
        yield from owned(run.at_reservation, token)
    elif word == b"queued":
        if reservation.owner in (b"", token):
            yield "answers that another job is queued, and none is"
        yield from held(run.at_reservation, run.reply[1:])
    elif reservation.owner or alone != b"1" or lock.owner in (b"", token):
        yield f"answers {word!r}, and no job is in its way"
    else:
        yield from held(run.at_lock, run.reply[1:])


def _start(run: JobRun, word: bytes) -> Iterator[str]:
    token, ttl_ms, deadline, holder_info, reservation_token = run.call.parts[4:9]
    before, after = run.before, run.after
    lock = before.lock
    if type(run.reply) is bytes:
        yield from _taken(run.at_lock, run.reply, token, ttl_ms, deadline)
        if lock.owner not in (b"", reservation_token):
            yield "took the lock of another token"
        if after.lock.state != (b"W" if lock.state in (b"W", b"F") else b"H"):
            yield "has a wrong state: waiters or none"
        if after.lock.holder_info != holder_info:
            yield "has a wrong holder_info"
        yield from _notifies_head(run.at_lock, int(ttl_ms))
        reserved = before.reservation.owner == reservation_token
        if reserved and after.reservation.owner:
            yield "runs, and kept its reservation"
        if reserved and not after.reservation.remembers(reservation_token):
            yield "forgot the token of the reservation"
        if reserved:
            yield from _notifies_head(run.at_reservation, 0)
            waited = before.reservation.state == b"W" and before.reservation.tickets
            if after.reservation.state != (b"F" if waited else b"R"):
                yield "has a wrong state of the reservation: waiters or none"
            if run.at_reservation.left_ms(after.reservation) != 5000:
                yield "left a tombstone for another time"
        elif after.reservation.queue != before.reservation.queue:
            yield "changed the queue of another job's reservation"
        if not reserved and after.reservation != before.reservation:
            yield "ended the reservation of another job"
        return
    yield from _nothing(run)
    if word == b"late":
        yield from late(run.at_lock, deadline)
    elif word == b"owned":
        yield from owned(run.at_lock, token)
    elif lock.owner in (b"", token, reservation_token):
        yield "answers that another token has the lock, and none has"
    else:
        yield from held(run.at_lock, run.reply[1:])


def _notifies_head(run: Run, left_ms: int) -> Iterator[str]:
    """The head gets a message with the new lease's length, if the state shows waiters and the
    head is not young; the waiters ahead of it are gone."""
    before, after = run.before.queue or [], run.after.queue or []
    gone = before[: len(before) - len(after)]
    if before[len(gone) :] != after or any(run.reachable(ticket) for _, ticket in gone):
        yield "changed the queue"
    if not after or run.before.state not in (b"W", b"F") or run.store.silent:
        return
    score, first = after[0]
    received = [text for text, count in run.messages if count]
    if not young(run, score) and first[:22] + b"=%d" % left_ms not in received:
        yield f"sent {first[:22]!r} no message that it is held for {left_ms} ms"


def _died(run: JobRun, word: bytes) -> Iterator[str]:
    job, reservation_token, holder = run.call.parts[2:5]
    lock = run.before.lock
    info, _, which = lock.holder_info.partition(b"\n")
    same = bool(lock.owner) and which == job and info.startswith(holder)
    if word in (b"released", b"handed_over"):
        if not same or lock.owner == reservation_token:
            yield "released the lock of another token"
            return
        yield from given_up(run.at_lock, lock.owner)
        if (word == b"handed_over") != bool(run.after.lock.owner):
            yield f"answers {word!r}, and it is otherwise"
        return
    yield from _nothing(run)
    expected = (
        b"missing"
        if not lock.owner
        else b"kept"
        if same and lock.owner == reservation_token
        else b"another"
    )
    if word != expected or (same and lock.owner != reservation_token):
        yield f"answers {word!r}, and it is {expected!r}"


def _requests(entries: bytes | None) -> list[tuple[bytes, bytes]]:
    """Return the stop requests, the latest first: a time and a token."""
    text = entries or b""
    return [(text[at : at + 16], text[at + 16 : at + 38]) for at in range(0, len(text), 38)]


def _request_release(run: JobRun, word: bytes) -> Iterator[str]:
    token, ttl_ms, deadline = run.call.parts[2:5]
    before, after = run.before, run.after
    requests = _requests(before.stop_requests)
    now_ms = run.store.now_us // 1000
    if word == b"free":
        if before.lock.owner:
            yield "answers that the lock is free, and it is held"
        yield from _nothing(run)
    elif word == b"late":
        yield from late(run.at_lock, deadline)
        yield from _nothing(run)
    elif not before.lock.owner:
        yield "requested without a holder"
    elif run.reply != [b"asked", before.lock.holder_info]:
        yield f"answers a wrong holder: {run.reply}"
    elif any(requester == token for _, requester in requests):
        yield from _nothing(run)
    else:
        (time, requester), *rest = _requests(after.stop_requests) or [(b"", b"")]
        stand = [one for one in requests if one[0] > before.lock.fence][:15]
        left_ms = (after.stop_requests_end_ms or 0) - now_ms
        expected_ms = int(ttl_ms)
        if stand:
            expected_ms = max(expected_ms, (before.stop_requests_end_ms or 0) - now_ms)
        if requester != token or left_ms != expected_ms or run.at_lock.now > deadline:
            yield "left no request, or too late, or for another time"
        if rest != stand:
            yield "forgot an earlier request, or kept one for another holder"
        if time <= max([before.lock.fence, *(time for time, _ in requests)]):
            yield "requested with a time that is not later than the earlier ones"


def _release_requested(run: JobRun, word: bytes) -> Iterator[str]:
    fence, token = run.call.parts[1:3]
    requested = any(
        time > fence and requester != token
        for time, requester in _requests(run.before.stop_requests)
    )
    if (word == b"requested") != requested:
        yield f"answers {word!r}, and it is otherwise"
    yield from _nothing(run)


def _withdraw(run: JobRun, word: bytes) -> Iterator[str]:
    token = run.call.parts[2]
    before, after = run.before, run.after
    requests = _requests(before.stop_requests)
    requesters = [requester for _, requester in requests]
    later = requesters[: requesters.index(token)] if token in requesters else requesters
    tickets = [one for one in before.lock.tickets if one[:22] in later]
    expected = b"missing" if not requests else b"alone" if later else b"withdrawn"
    if any(run.at_lock.reachable(one) for one in tickets):
        expected = b"superseded"
    if word != expected:
        yield f"answers {word!r}, and it is {expected!r}"
    stand = [one for one in requests if one[1] != token]
    if _requests(after.stop_requests) != stand:
        yield "left its own request, or withdrew another"
    if not stand and after.stop_requests is not None:
        yield "left a key without a request"
    now_ms = run.store.now_us // 1000
    if stand and after.stop_requests_end_ms not in (before.stop_requests_end_ms, now_ms + 1):
        yield "changed how long the other requests stand"


_CHECKS = {
    "reserve": _reserve,
    "start": _start,
    "died": _died,
    "request_release": _request_release,
    "release_requested": _release_requested,
    "withdraw": _withdraw,
}
