"""Check after each run of a script what its header promises.

This is not a second implementation: it states only what must hold between the data before, the data
after, and the reply. Times and fences are the server's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from lualock._core.keys import waiters_key
from lualock._protocol import RunScript
from tests.simulation.store import Refused, SortedSet, Store

TURN = 22 + 16 + 16  # a message that grants the lock: token, fence, time
YOUNG_TICKS = 600  # of 0.1 ms
SWEEP = 32  # how many waiters of a full queue are checked for a process that is gone

TICKET, PLACE, MAX_WAITERS, DEADLINE = 2, 3, 4, 5  # positions in the parts of ``wait``
TTL_EXTEND, SHORTEN = 3, 4  # and of ``extend``


@dataclass(slots=True)
class Seen:
    """A lock's keys at one moment."""

    record: Any
    end_ms: int | None
    queue: Any  # the tickets in order; a foreign value; or None
    queue_end_ms: int | None
    foreign: bool  # whether the lock's key has a foreign value
    owner: bytes  # the token that has the lock, or empty

    @classmethod
    def read(cls, store: Store, lock: bytes, queue: bytes) -> Seen:
        """Read the keys as they are now."""
        line = store.find(queue)
        tickets = [*line.order] if type(line) is SortedSet else line
        record = store.find(lock)
        foreign, owner = False, b""
        if record is not None:
            state = record[:1] if type(record) is bytes and len(record) >= 39 else b"?"
            foreign = state not in (b"H", b"W", b"R", b"F") or not record[1:17].isdigit()
            if not foreign and state in (b"H", b"W"):
                owner = record[17:39]
        ends = store.ends
        return cls(record, ends.get(lock), tickets, ends.get(queue), foreign, owner)

    @property
    def state(self) -> bytes:
        return b"" if self.record is None else bytes(self.record[:1])

    @property
    def fence(self) -> bytes:
        return b"" if self.record is None else bytes(self.record[1:17])

    @property
    def holder_info(self) -> bytes:
        return b"" if self.record is None else bytes(self.record[61:])

    def names(self, lease: bytes) -> bool:
        """Whether the record is that of a lease: fence and token, or its token alone."""
        return bool(self.record[39 - len(lease) : 39] == lease)

    def owns(self, lease: bytes) -> bool:
        """Whether this lease has the lock."""
        return bool(self.owner) and self.names(lease)

    def remembers(self, lease: bytes) -> bool:
        """Whether the record still shows that this lease released the lock."""
        if self.record is None or self.foreign:
            return False
        return bool(self.record[39:61] == lease[-22:]) or (not self.owner and self.names(lease))

    @property
    def tickets(self) -> list[bytes]:
        return [ticket for _, ticket in self.queue] if isinstance(self.queue, list) else []


@dataclass(slots=True)
class Run:
    """One run of a script."""

    call: RunScript
    before: Seen
    after: Seen
    reply: Any
    messages: list[tuple[bytes, int]]  # each with its number of receivers
    store: Store

    @property
    def now(self) -> bytes:
        return b"%016d" % self.store.now_us

    @property
    def caller(self) -> bytes:
        """The token or the lease that the call is about: its first argument, or in its ticket."""
        first: bytes = self.call.parts[len(self.call.script.keys)]
        return first[:22] if self.call.script.name == "wait" else first

    def left_ms(self, seen: Seen) -> int:
        """Return what PTTL answers."""
        if seen.record is None:
            return -2
        if seen.end_ms is None:
            return -1
        return max(0, seen.end_ms - self.store.now_us // 1000)

    def reachable(self, ticket: bytes) -> bool:
        """Whether a process is subscribed for this ticket."""
        return self.store.numsub(ticket[22:].split(b" ")[1]) > 0


def read(store: Store, call: RunScript) -> Seen:
    """Read the keys of the lock that a call is about."""
    return Seen.read(store, call.parts[0], waiters_key(call.parts[0]))


def owners(call: RunScript, seen: Seen) -> list[tuple[bytes, bytes]]:
    """Return the key of the lock, with the token that has it."""
    return [(call.parts[0], seen.owner)]


def broken(run: Run) -> Iterator[str]:
    """Yield each way in which a run broke its contract."""
    call, before, after, reply = run.call, run.before, run.after, run.reply
    verb = call.script.name
    foreign = before.foreign or not isinstance(before.queue, (list, type(None)))
    if isinstance(reply, Refused):
        if after != before:
            yield f"was refused ({reply}), and changed data"
        yield from refused(run.store, reply, verb, foreign)
        return
    if foreign:
        yield from _leaves_alone(run)
        return
    word = reply if type(reply) is bytes else reply[0]
    if word == b"conflict":
        yield "answers conflict, and the keys are lualock's"
        return
    if verb == "inspect":
        yield from _inspects(run)
        return
    yield from _keeps_other_leases(run)
    if after.record is not None and after.end_ms is None:
        yield "left a lock without an expiry"
    if after.tickets and after.queue_end_ms is None:
        yield "left a queue without an expiry"
    token = run.caller
    yield from _notifies_head(run, token[-22:])
    yield from _repeats_nothing(run)
    check = _CHECKS[verb]
    yield from check(run, token, word)


def _notifies_head(run: Run, token: bytes) -> Iterator[str]:
    """A waiter that becomes the head gets a message, unless it is young, or is the caller."""
    before, after = run.before.queue or [], run.after.queue or []
    if not after or not before or after[0][1] == before[0][1] or run.store.silent:
        return
    score, first = after[0]
    if first[:22] == token or young(run, score):
        return
    if after[0] not in before:
        return  # a newcomer of a higher priority, and so the caller
    received = [text for text, count in run.messages if count]
    notices = [text for text in received if text[:23] == first[:22] + b"="]
    if not notices:
        yield f"made {first[:22]!r} the head, and sent it no message"
    elif run.after.owner and int(notices[-1][23:]) != run.left_ms(run.after):
        yield f"sent the head {notices[-1][23:]!r} ms, and it is {run.left_ms(run.after)}"


def _repeats_nothing(run: Run) -> Iterator[str]:
    """A waiter that was the head before, behind the same lease, gets no message."""
    before, after = run.before, run.after
    if run.call.script.name == "extend":
        return  # it may be shortened to the very time that was left
    same = (before.fence, before.end_ms) == (after.fence, after.end_ms)
    if not before.owner or not same or not before.tickets:
        return
    if any(ticket[:22] == before.owner for ticket in before.tickets):
        return  # a request that counted as lost took the lock just now, and sent no message
    first = before.tickets[0]
    if after.tickets[:1] == [first] and any(text[:22] == first[:22] for text, _ in run.messages):
        yield "woke the head without news"


def young(run: Run, score: int) -> bool:
    """Whether the waiter at this place came just before, and so checks the queue on its own."""
    ticks = (run.store.now_us - 1_735_689_600_000_000) // 100
    return bool(ticks - score % 2**44 < YOUNG_TICKS)


GIVES_BACK = frozenset(
    ("release", "hand_over", "abandon", "extend", "claim", "died", "force_release")
)
"""The verbs that must work even if the server has no memory."""


def refused(store: Store, error: Refused, verb: str, foreign: bool) -> Iterator[str]:
    """Yield the error if the server has no reason for it."""
    kind = str(error).split()[0]
    reason = {
        "WRONGTYPE": foreign,
        "READONLY": store.read_only,
        "OOM": store.oom and verb not in GIVES_BACK,
    }
    if not reason.get(kind):
        yield f"was refused ({error}) without a reason"


def _leaves_alone(run: Run) -> Iterator[str]:
    """A foreign value stays; after the reply 'conflict', so does all else."""
    reply, before, after = run.reply, run.before, run.after
    reported = isinstance(reply, list) and reply[0] == b"conflict"
    reported = reported or (
        run.call.script.name == "claim" and reply == b"missing"
    )  # it reads no more
    if after != before and (reported or before.foreign or after.queue != before.queue):
        yield "changed a foreign value"
    if before.foreign and not reported:
        yield f"did not see that the record is foreign, and answered {reply}"


def _keeps_other_leases(run: Run) -> Iterator[str]:
    """A caller that does not have the lock changes neither its owner nor its end."""
    before, after, parts = run.before, run.after, run.call.parts
    owner = before.owner
    by_force = run.call.script.name == "force_release"
    if owner and owner not in parts and owner != parts[-1][:22] and not by_force:
        mine = run.caller[-22:] == owner
        if not mine and (after.record[1:] != before.record[1:] or after.end_ms != before.end_ms):
            yield "changed the lease of another token"
    if after.owner and after.owner != owner:
        if before.fence and after.fence <= before.fence:
            yield f"gave the fence {after.fence!r} after {before.fence!r}"
        if after.fence < run.now:
            yield "gave a fence that is behind the server's clock"


def _won(run: Run, token: bytes, ttl_ms: bytes, deadline: bytes) -> Iterator[str]:
    before, after = run.before, run.after
    if after.owner != token or after.fence != run.reply:
        yield "answers that the caller has the lock, and it does not"
    if before.owner:
        yield "granted a lock that was held"
    if run.left_ms(after) != int(ttl_ms):
        yield f"granted it for {run.left_ms(after)} ms instead of {int(ttl_ms)}"
    if run.now > deadline:
        yield "granted the lock to a caller that has given up"
    if before.record is not None and after.record[39:61] != before.record[17:39]:
        yield "forgot the previous token"


def late(run: Run, deadline: bytes) -> Iterator[str]:
    if run.now <= deadline:
        yield "answers late, and is not"
    if run.after != run.before:
        yield "was late, and changed data"
    if run.reply != [b"late", run.now]:
        yield "answers a wrong time"


def owned(run: Run, token: bytes) -> Iterator[str]:
    if run.before.owner != token or run.after.owner != token:
        yield "answers that the caller has the lock already, and it does not"
    elif run.reply != [b"owned", run.left_ms(run.after), run.after.fence]:
        yield f"answers {run.reply} for a lease of {run.left_ms(run.after)} ms"


def held(run: Run, answer: list[Any]) -> Iterator[str]:
    """The reply describes the holder: ttl, since when, holder_info."""
    after = run.after
    held_ms = (run.store.now_us - int(after.fence)) // 1000 if after.fence else 0
    if answer[0] != run.left_ms(after) or answer[2] != after.holder_info:
        yield f"answers {answer}, and it is {run.left_ms(after)} ms, {after.holder_info!r}"
    elif answer[1] != held_ms and run.store.now_us >= int(after.fence):
        yield f"answers that it is held for {answer[1]} ms, and it is for {held_ms}"


def _acquire(run: Run, token: bytes, word: bytes) -> Iterator[str]:
    token, ttl_ms, deadline = run.call.parts[1:4]
    before, after = run.before, run.after
    if type(run.reply) is bytes:
        yield from _won(run, token, ttl_ms, deadline)
        if after.state != (b"W" if before.state == b"F" else b"H"):
            yield "has a wrong state: waiters or none"
    elif word == b"owned":
        yield from owned(run, token)
    elif word == b"late":
        yield from late(run, deadline)
    else:
        if not before.owner or before.owner == token:
            yield "answers that another token has the lock, and none has"
        else:
            yield from held(run, run.reply[1:])
    if type(run.reply) is not bytes and after != before:
        yield "granted nothing, and changed data"


def _wait(run: Run, token: bytes, word: bytes) -> Iterator[str]:
    parts, before, after, reply = run.call.parts, run.before, run.after, run.reply
    ticket, deadline = parts[TICKET], parts[DEADLINE]
    ttl_ms = ticket[22:].split(b" ")[0]
    others = [one for one in before.tickets if one != ticket]
    if type(reply) is bytes:
        yield from _won(run, token, ttl_ms, deadline)
        if ticket in after.tickets:
            yield "has the lock, and waits for it"
        message = token + after.fence + b"+"
        if not others and not run.store.silent and all(text != message for text, _ in run.messages):
            yield "took the lock, and sent no message for a caller that does not read the reply yet"
        if any(run.reachable(one) for one in after.tickets[: _rank(run, ticket)]):
            yield "went past waiters"
        if after.state != (b"W" if others else b"H"):
            yield "has a wrong state: waiters or none"
    elif word == b"owned":
        yield from _lasts(run, ttl_ms)
        if ticket in after.tickets:
            yield "has the lock, and waits for it"
        yield from owned(run, token)
    elif word == b"late":
        yield from late(run, deadline)
    elif word == b"full":
        most = int(parts[MAX_WAITERS])
        dead = [one for one in before.tickets[:SWEEP] if not run.reachable(one)]
        counted = len(before.tickets) - len(dead)
        if not most or counted < most or ticket in before.tickets or ticket in after.tickets:
            yield "answers full, and is not"
        if reply[4] != len(after.tickets):
            yield "answers a wrong number of waiters"
        if after.owner:
            yield from held(run, reply[1:4])
    else:
        yield from _queued(run, token, ticket, others)


def _rank(run: Run, ticket: bytes) -> int:
    """How many of the remaining waiters are before it."""
    before, place = run.before.queue or [], int(run.call.parts[PLACE])
    known = [score for score, one in before if one == ticket]
    limit = known[0] if known else place if place % 2**44 else place + 2**44
    return sum(score < limit and one in run.after.tickets for score, one in before)


def _queued(run: Run, token: bytes, ticket: bytes, others: list[bytes]) -> Iterator[str]:
    parts, before, after, reply = run.call.parts, run.before, run.after, run.reply
    most = int(parts[MAX_WAITERS])
    if ticket not in after.tickets:
        yield "answers queued, and is not"
        return
    if before.owner == token:
        yield "waits for the lock that it has"
    at, place = after.tickets.index(ticket), int(parts[PLACE])
    band, comes_back = place // 2**44, place % 2**44 != 0
    new = ticket not in before.tickets
    # A waiter that comes back may by now have another place, from an orphan: both are right.
    if reply[5] != at or int(float(reply[6])) not in (after.queue[at][0], comes_back and place):
        yield f"answers the place {reply[5:]}, and it is {at}, {after.queue[at][0]}"
    if ticket in before.tickets and after.queue[at] not in before.queue:
        yield "changed its place"
    if new and comes_back and place != after.queue[at][0]:
        yield "came back to another place"
    if new and not comes_back:
        stay = [score for score, one in before.queue or () if one in after.tickets]
        same = [score for score in stay if score // 2**44 == band]
        if after.queue[at][0] // 2**44 != band or any(s >= after.queue[at][0] for s in same):
            yield "came last, and is not the last of its priority"
    if (
        before.owner
        and len(before.tickets) < most
        and not set(before.tickets) <= set(after.tickets)
    ):
        yield "dropped a waiter, and there was room"
    alive = sum(run.reachable(one) for one in others)
    if most and not comes_back and ticket not in before.tickets and alive >= most:
        yield "waits, and too many wait already"
    if not before.owner:
        if not others:
            yield "waits, and is the first"
        if not after.owner and not run.store.silent and any(map(run.reachable, others)):
            yield "left a lock free that has waiters"
    if run.now > parts[DEADLINE]:
        yield "took a place for a caller that has given up"
    if after.owner:
        if after.state != b"W":
            yield "waits, and the lock's state does not say so"
        if reply[4] != after.fence:
            yield "answers a wrong fence"
        yield from held(run, reply[1:4])
    if after.owner != before.owner:
        yield from _passed(run, token)


def _passed(run: Run, token: bytes) -> Iterator[str]:
    """The lock went to the first waiter that can be reached, with a message."""
    before, after = run.before, run.after
    waited = [one for one in before.tickets if one[:22] != token]
    if run.store.silent:  # no message can be sent, so no waiter gets the lock, or is dropped
        if after.owner not in (b"", before.owner, token):
            yield "was granted to a waiter that could not get a message"
        if not set(waited) <= set(after.tickets):
            yield "dropped a waiter"
        return
    first = next((one for one in waited if run.reachable(one)), None)
    if after.owner:
        if first is None or first[:22] != after.owner:
            yield "was not granted to the first waiter that can be reached"
            return
        if not any(
            text[:38] == after.owner + after.fence and received for text, received in run.messages
        ):
            yield "was granted to a waiter that got no message"
        if first in after.tickets:
            yield "was granted to a waiter that is still queued"
        lasts_ms = int(first[22:].split(b" ")[0])
        if run.left_ms(after) != min(lasts_ms, 2500):
            yield f"was granted for {run.left_ms(after)} ms"
        if after.record[39:61] != before.record[17:39] if before.record else False:
            yield "forgot the previous token"
        if after.holder_info != first.split(b" ", 2)[2]:
            yield "has a wrong holder_info"
        if after.state != b"W":
            yield "has a state without waiters"
    elif first is not None:
        yield "is free, and a waiter can be reached"


def given_up(run: Run, token: bytes, *, hands_over: bool = True) -> Iterator[str]:
    """The caller had the lock, and released it."""
    before, after = run.before, run.after
    if not before.owns(token) or after.owner == (token := token[-22:]):
        yield "answers that it released the lock, and did not"
        return
    if hands_over:
        yield from _passed(run, token)
    elif after.owner:
        yield "freed a lock, and it is held"
    if not after.owner and after.record is None:
        if hands_over or not run.store.oom:
            yield "left no tombstone"
    elif not after.owner:
        if after.state != (b"F" if after.tickets and hands_over else b"R"):
            yield "has a wrong state: waiters or none"
        if not after.remembers(token):
            yield "forgot the token"
        # A waiter without a receiver here may receive the message at a replica.
        missed = [
            text[22:38] for text, received in run.messages if len(text) == TURN and not received
        ]
        if after.fence <= max(missed) if missed else after.fence != before.fence:
            yield "forgot a fence that a waiter may have"
        if run.left_ms(after) != 5000:
            yield "left a tombstone for another time"


def _not_owner(run: Run, token: bytes, word: bytes) -> Iterator[str]:
    before, after = run.before, run.after
    if before.owns(token):
        yield f"answers {word!r} for the lease that has the lock"
    if after != before:
        yield "did not have the lock, and changed data"
    known = before.remembers(token)
    if (word == b"already") != known:
        yield f"answers {word!r}, and the record shows otherwise"
    elif word == b"held" and (not before.owner or run.reply != [b"held", before.holder_info]):
        yield f"answers {run.reply}, and it is {before.holder_info!r}"
    elif word == b"missing" and before.owner:
        yield "answers that the lock is free"


def _release(run: Run, token: bytes, word: bytes) -> Iterator[str]:
    before, after = run.before, run.after
    if word == b"":
        # It reads one key only: the state shows whether there are waiters.
        yield from given_up(run, token, hands_over=False)
        if before.state == b"W":
            yield "freed a lock that has waiters"
    elif word == b"waited":
        if not before.owns(token) or before.state != b"W" or after != before:
            yield "answers that its lock has waiters, and it has none"
    else:
        yield from _not_owner(run, token, word)


def _hand_over(run: Run, token: bytes, word: bytes) -> Iterator[str]:
    if word in (b"released", b"handed_over"):
        yield from given_up(run, token)
        if (word == b"handed_over") != bool(run.after.owner):
            yield f"answers {word!r}, and it is otherwise"
    else:
        yield from _not_owner(run, token, word)


def _abandon(run: Run, token: bytes, word: bytes) -> Iterator[str]:
    before, after, parts = run.before, run.after, run.call.parts
    ticket, kept = parts[3:5]
    if ticket in after.tickets:
        yield "still waits"
    if word == b"released":
        yield from given_up(run, token)
        if kept and before.owns(kept):
            yield "released the lease to keep"
        return
    if before.owner == token and not (kept and before.owns(kept)):
        yield "kept the lock"
    if before.record != after.record:
        yield "changed a lock that it does not own"
    others = [one for one in before.tickets if one != ticket]
    gone = others[: len(others) - len(after.tickets)]
    if others[len(gone) :] != after.tickets or any(map(run.reachable, gone)):
        yield "changed the queue"
    if gone and before.tickets[0] != ticket:
        yield "dropped a waiter, and it was not the head that left"
    if len(run.reply) == 1:
        if before.owner:
            yield "answers that the lock is free"
        return
    ahead = before.tickets.index(ticket) if ticket in before.tickets else -1
    if run.reply[4] != ahead or not before.owner:
        yield f"answers that {run.reply[4]} were ahead, and it is {ahead}"
    yield from held(run, run.reply[1:4])


def _extend(run: Run, token: bytes, word: bytes) -> Iterator[str]:
    if word != b"extended":
        yield from _not_owner(run, token, word)
    elif not run.before.owns(token) or run.after.record != run.before.record:
        yield "extended what it does not own, or changed it"
    else:
        yield from _lasts(run, run.call.parts[TTL_EXTEND], run.call.parts[SHORTEN])
        if run.call.parts[SHORTEN] == b"1":
            yield from _notifies_of_its_end(run)


def _notifies_of_its_end(run: Run) -> Iterator[str]:
    """The head planned to check when the lease would have ended."""
    after = run.after
    if after.state != b"W" or not after.queue or run.store.silent:
        return
    score, first = after.queue[0]
    expected = first[:22] + b"=%d" % run.left_ms(after)
    if not young(run, score) and not any(
        text == expected and received for text, received in run.messages
    ):
        yield "shortened it, and sent the head no message"


def _lasts(run: Run, ttl_ms: bytes, shorten: bytes = b"0") -> Iterator[str]:
    """A lease lasts as long as the call says; only ``shorten`` makes it shorter."""
    expected_ms = int(ttl_ms)
    if shorten == b"0":
        expected_ms = max(expected_ms, run.left_ms(run.before))
    if run.left_ms(run.after) != expected_ms:
        yield "let it last for another time"


def _claim(run: Run, token: bytes, word: bytes) -> Iterator[str]:
    owns = run.before.owns(token) and run.before.state == b"W"
    if (word == b"claimed") != owns:
        yield f"answers {word!r}, and it is otherwise"
    if run.after.record != run.before.record or (not owns and run.after != run.before):
        yield "changed a lock that it does not own"
    elif owns:
        yield from _lasts(run, run.call.parts[2])


def _adopt(run: Run, token: bytes, word: bytes) -> Iterator[str]:
    before, after = run.before, run.after
    token, next_holder, ttl_ms, deadline = run.call.parts[1:5]
    if type(run.reply) is bytes and run.reply.isdigit():
        if before.owner != token or after.owner != next_holder or after.fence != run.reply:
            yield "answers that the caller has the lock, and it does not"
        elif after.record[39:61] != token or after.state != before.state:
            yield "forgot the previous token, or the waiters"
        if run.left_ms(after) != int(ttl_ms) or run.now > deadline:
            yield "took it for another time, or too late"
    elif word == b"owned":
        yield from owned(run, next_holder)
    elif word == b"late":
        yield from late(run, deadline)
    elif before.owner == next_holder:
        yield "has the lock already, and answers otherwise"
    else:
        yield from _not_owner(run, token, word)


def _force_release(run: Run, token: bytes, word: bytes) -> Iterator[str]:
    """A lease is named by its fence, and its holder finds that it has ended."""
    before, after = run.before, run.after
    fence, deadline = run.call.parts[3:5]
    names = bool(before.owner) and before.fence == fence
    again = before.record is not None and (
        before.record[17:39] == token or (not names and before.record[39:61] == token)
    )
    if word in (b"released", b"handed_over"):
        if not names or again:
            yield "ended a lease that it does not name, or ended one twice"
        if run.now > deadline:
            yield "ended a lease for a caller that has given up"
        if (word == b"handed_over") != bool(after.owner):
            yield f"answers {word!r}, and it is otherwise"
        taken = replace(before, record=before.record[:17] + token + b"-" * 22, owner=token)
        yield from given_up(replace(run, before=taken), token)
        if after.remembers(before.owner) and before.owner != token:
            yield "lets the holder believe that its release succeeded"
    elif word == b"late":
        yield from late(run, deadline)
        if not names:
            yield "is late for nothing"
    else:
        if names and not again:
            yield f"answers {word!r} for the lease that has the lock"
        if after != before:
            yield "ended no lease, and changed data"
        if (word == b"already") != again:
            yield f"answers {word!r}, and the record shows otherwise"
        elif word == b"held" and run.reply != [b"held", before.holder_info]:
            yield f"answers {run.reply}, and it is {before.holder_info!r}"
        elif (word == b"missing") == bool(before.owner) and not again:
            yield f"answers {word!r}, and it is otherwise"


def _inspects(run: Run) -> Iterator[str]:
    before = run.before
    expected: list[Any] = [b"free", len(before.tickets)]
    if before.owner:
        held_ms = (run.store.now_us - int(before.fence)) // 1000
        expected = [b"held", run.left_ms(before), held_ms, before.fence, before.holder_info]
        expected.append(len(before.tickets))
    if run.reply != expected:
        yield f"answers {run.reply}, and it is {expected}"
    if run.after != before:
        yield "changed data"


_CHECKS = {
    "acquire": _acquire,
    "wait": _wait,
    "release": _release,
    "hand_over": _hand_over,
    "abandon": _abandon,
    "extend": _extend,
    "claim": _claim,
    "adopt": _adopt,
    "force_release": _force_release,
}
