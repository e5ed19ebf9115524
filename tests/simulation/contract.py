"""What each script promises in its header, checked after each run of it.

This is not a second implementation: it says nothing of how, only what must hold between the data
before, the data after, and the reply. Times and fences are the server's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lualock._protocol import RunScript
from tests.simulation.store import Refused, SortedSet, Store

TURN = 22 + 16 + 16  # a message that gives somebody the lock: token, fence, time
YOUNG_TICKS = 600  # of 0.1 ms

TICKET, PLACE, MAX_WAITERS, FAIR, DEADLINE = 2, 3, 4, 5, 6  # in the parts of wait
TTL_EXTEND, SHORTEN = 3, 4  # in those of extend


@dataclass(slots=True)
class Seen:
    """A lock's keys at one moment."""

    record: Any
    end_ms: int | None
    queue: Any  # the tickets in order; what others wrote; or None
    queue_end_ms: int | None
    foreign: bool  # something is there that lualock did not write
    owner: bytes  # who has the lock; empty: nobody

    @classmethod
    def look(cls, store: Store, lock: bytes, queue: bytes) -> Seen:
        """As they are now."""
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
    def about(self) -> bytes:
        return b"" if self.record is None else bytes(self.record[61:])

    def names(self, lease: bytes) -> bool:
        """Whether the record is that of a lease: fence and token, or its token alone."""
        return bool(self.record[39 - len(lease) : 39] == lease)

    def owns(self, lease: bytes) -> bool:
        """Whether this lease has the lock."""
        return bool(self.owner) and self.names(lease)

    def remembers(self, lease: bytes) -> bool:
        """Whether the record still knows that this lease gave the lock back."""
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
    told: list[tuple[bytes, int]]  # the messages, and how many heard each
    store: Store

    @property
    def now(self) -> bytes:
        return b"%016d" % self.store.now_us

    def left_ms(self, seen: Seen) -> int:
        """What PTTL says."""
        if seen.record is None:
            return -2
        if seen.end_ms is None:
            return -1
        return max(0, seen.end_ms - self.store.now_us // 1000)

    def reachable(self, ticket: bytes) -> bool:
        """Whether anybody listens for it."""
        return self.store.numsub(ticket[22:].split(b" ")[1]) > 0


def broken(run: Run) -> Iterator[str]:
    """What of its contract a run did not keep."""
    call, before, after, reply = run.call, run.before, run.after, run.reply
    verb, parts = call.script.name, call.parts
    foreign = before.foreign or not isinstance(before.queue, (list, type(None)))
    if isinstance(reply, Refused):
        if after != before:
            yield f"was refused ({reply}), and changed something"
        yield from refused(run.store, reply, verb, foreign)
        return
    if foreign:
        yield from _leaves_alone(run)
        return
    word = reply if type(reply) is bytes else reply[0]
    if word == b"conflict":
        yield "says that the keys are not lualock's, and they are"
        return
    yield from _keeps_others(run)
    if after.record is not None and after.end_ms is None:
        yield "left a lock without an expiry"
    if after.tickets and after.queue_end_ms is None:
        yield "left a queue without an expiry"
    if verb == "inspect":
        yield from _inspects(run)
        return
    token = parts[TICKET][:22] if verb == "wait" else parts[2 if len(parts) > 3 else 1]
    if verb in ("extend", "claim"):
        token = parts[2 if verb == "extend" else 1]
    yield from _tells_first(run, token[-22:])
    yield from _wakes_nobody(run)
    check = _CHECKS[verb]
    yield from check(run, token, word)


def _tells_first(run: Run, token: bytes) -> Iterator[str]:
    """Whoever becomes first is told, unless it came just before, or asks itself."""
    before, after = run.before.queue or [], run.after.queue or []
    if not after or not before or after[0][1] == before[0][1] or run.store.silent:
        return
    score, first = after[0]
    if first[:22] == token or young(run, score):
        return
    if after[0] not in before:
        return  # a newcomer of a higher priority, and so the one who asks
    heard = [text for text, count in run.told if count]
    said = [text for text in heard if text[:23] == first[:22] + b"="]
    if not run.after.owner and any(len(text) == 22 for text in heard):
        return  # one was told that the lock is free; if it comes too late, it is first again
    if not said:
        yield f"made {first[:22]!r} the first, and did not tell it"
    elif run.after.owner and int(said[-1][23:]) != run.left_ms(run.after):
        yield f"told the first {said[-1][23:]!r} ms, and it is {run.left_ms(run.after)}"


def _wakes_nobody(run: Run) -> Iterator[str]:
    """Who is first already, behind the same lease, knows all that there is to say."""
    before, after = run.before, run.after
    if run.call.script.name == "extend":
        return  # it may be shortened to what was left of it
    same = (before.fence, before.end_ms) == (after.fence, after.end_ms)
    if not before.owner or not same or not before.tickets:
        return
    if any(ticket[:22] == before.owner for ticket in before.tickets):
        return  # a request that was thought lost has taken the lock just now, and told nobody
    first = before.tickets[0]
    if after.tickets[:1] == [first] and any(text[:22] == first[:22] for text, _ in run.told):
        yield "woke the first, and there is nothing new"


def young(run: Run, score: int) -> bool:
    """Whether who has this place came just before, and so looks by itself."""
    ticks = (run.store.now_us - 1_735_689_600_000_000) // 100
    return bool(ticks - score % 2**44 < YOUNG_TICKS)


GIVES_BACK = frozenset(("release", "hand_over", "abandon", "extend", "claim", "died"))
"""What must work for who has a lock also where there is no memory."""


def refused(store: Store, error: Refused, verb: str, foreign: bool) -> Iterator[str]:
    """An error of the server has a reason."""
    kind = str(error).split()[0]
    reason = {
        "WRONGTYPE": foreign,
        "READONLY": store.read_only,
        "OOM": store.oom and verb not in GIVES_BACK,
    }
    if not reason.get(kind):
        yield f"was refused ({error}) without a reason"


def _leaves_alone(run: Run) -> Iterator[str]:
    """What lualock did not write stays as it is; and all of it, where that is said."""
    reply, before, after = run.reply, run.before, run.after
    said = isinstance(reply, list) and reply[0] == b"conflict"
    said = said or (run.call.script.name == "claim" and reply == b"missing")  # it asks no more
    if after != before and (said or before.foreign or after.queue != before.queue):
        yield "changed what lualock did not write"
    if before.foreign and not said:
        yield f"did not see that the record is not lualock's, and said {reply}"


def _keeps_others(run: Run) -> Iterator[str]:
    """Whose lock it is not cannot change whose it is, nor for how long."""
    before, after, parts = run.before, run.after, run.call.parts
    owner = before.owner
    if owner and owner not in parts and owner != parts[-1][:22]:
        verb = run.call.script.name
        named = (
            parts[2][:22]
            if verb == "wait"
            else parts[2 if verb in ("hand_over", "extend") else 1][-22:]
        )
        mine = named == owner
        if not mine and (after.record[1:] != before.record[1:] or after.end_ms != before.end_ms):
            yield "changed a lease of somebody else"
    if after.owner and after.owner != owner:
        if before.fence and after.fence <= before.fence:
            yield f"gave the fence {after.fence!r} after {before.fence!r}"
        if after.fence < run.now:
            yield "gave a fence that is behind the server's clock"


def _won(run: Run, token: bytes, ttl_ms: bytes, deadline: bytes) -> Iterator[str]:
    before, after = run.before, run.after
    if after.owner != token or after.fence != run.reply:
        yield "says that it is ours, and it is not"
    if before.owner:
        yield "gave a lock that was held"
    if run.left_ms(after) != int(ttl_ms):
        yield f"gave it for {run.left_ms(after)} ms in place of {int(ttl_ms)}"
    if run.now > deadline:
        yield "gave the lock to who does not wait any more"
    if before.record is not None and after.record[39:61] != before.record[17:39]:
        yield "forgot who had it before"


def late(run: Run, deadline: bytes) -> Iterator[str]:
    if run.now <= deadline:
        yield "says that it is late, and it is not"
    if run.after != run.before:
        yield "was late, and changed something"
    if run.reply != [b"late", run.now]:
        yield "says a wrong time"


def owned(run: Run, token: bytes) -> Iterator[str]:
    if run.before.owner != token or run.after.owner != token:
        yield "says that it is ours already, and it is not"
    elif run.reply != [b"owned", run.left_ms(run.after), run.after.fence]:
        yield f"says {run.reply} of a lease of {run.left_ms(run.after)} ms"


def held(run: Run, said: list[Any]) -> Iterator[str]:
    """Who has it, as a waiter is told: ttl, since when, who."""
    after = run.after
    held_ms = (run.store.now_us - int(after.fence)) // 1000 if after.fence else 0
    if said[0] != run.left_ms(after) or said[2] != after.about:
        yield f"says {said}, and it is {run.left_ms(after)} ms, {after.about!r}"
    elif said[1] != held_ms and run.store.now_us >= int(after.fence):
        yield f"says that it is held for {said[1]} ms, and it is for {held_ms}"


def _acquire(run: Run, token: bytes, word: bytes) -> Iterator[str]:
    token, ttl_ms, deadline = run.call.parts[1:4]
    before, after = run.before, run.after
    if type(run.reply) is bytes:
        yield from _won(run, token, ttl_ms, deadline)
        if after.state != (b"W" if before.state == b"F" else b"H"):
            yield "forgot that others wait, or made it up"
    elif word == b"owned":
        yield from owned(run, token)
    elif word == b"late":
        yield from late(run, deadline)
    else:
        if not before.owner or before.owner == token:
            yield "says that somebody has it, and nobody has"
        else:
            yield from held(run, run.reply[1:])
    if type(run.reply) is not bytes and after != before:
        yield "gave nothing, and changed something"


def _wait(run: Run, token: bytes, word: bytes) -> Iterator[str]:
    parts, before, after, reply = run.call.parts, run.before, run.after, run.reply
    ticket, fair, deadline = parts[TICKET], parts[FAIR], parts[DEADLINE]
    ttl_ms = ticket[22:].split(b" ")[0]
    others = [one for one in before.tickets if one != ticket]
    if type(reply) is bytes:
        yield from _won(run, token, ttl_ms, deadline)
        if ticket in after.tickets:
            yield "has the lock, and waits for it"
        free = (not others or fair == b"0") and not run.store.silent
        if free and all(text != token + after.fence + b"+" for text, _ in run.told):
            yield "took the lock, and sent no message for who does not read the reply at once"
        if fair == b"1" and any(run.reachable(one) for one in after.tickets[: _rank(run, ticket)]):
            yield "went past others"
        if fair == b"0" and after.state != (b"W" if others else b"H"):
            yield "forgot that others wait, or made it up"
    elif word == b"owned":
        yield from _lasts(run, ttl_ms)
        if ticket in after.tickets:
            yield "has the lock, and waits for it"
        yield from owned(run, token)
    elif word == b"late":
        yield from late(run, deadline)
    elif word == b"full":
        most = int(parts[MAX_WAITERS])
        alive = [one for one in before.tickets if run.reachable(one)]
        if not most or len(alive) < most or ticket in before.tickets or ticket in after.tickets:
            yield "says that too many wait, and they do not"
        if reply[4] != len(after.tickets):
            yield "says a wrong number of those who wait"
        if after.owner:
            yield from held(run, reply[1:4])
    else:
        yield from _queued(run, token, ticket, fair, others)


def _rank(run: Run, ticket: bytes) -> int:
    """How many of those who still wait are before it."""
    before, place = run.before.queue or [], int(run.call.parts[PLACE])
    known = [score for score, one in before if one == ticket]
    limit = known[0] if known else place if place % 2**44 else place + 2**44
    return sum(score < limit and one in run.after.tickets for score, one in before)


def _queued(
    run: Run, token: bytes, ticket: bytes, fair: bytes, others: list[bytes]
) -> Iterator[str]:
    parts, before, after, reply = run.call.parts, run.before, run.after, run.reply
    most = int(parts[MAX_WAITERS])
    if ticket not in after.tickets:
        yield "says that it waits, and it does not"
        return
    if before.owner == token:
        yield "waits for what it has"
    at, place = after.tickets.index(ticket), int(parts[PLACE])
    band, comes_back = place // 2**44, place % 2**44 != 0
    new = ticket not in before.tickets
    # Who comes back to a place, and has another by now (a orphan took it), may be told either.
    if reply[5] != at or int(reply[6]) not in (after.queue[at][0], comes_back and place):
        yield f"says that its place is {reply[5:]}, and it is {at}, {after.queue[at][0]}"
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
        yield "dropped somebody, and there was room"
    alive = sum(run.reachable(one) for one in others)
    if most and not comes_back and ticket not in before.tickets and alive >= most:
        yield "waits, and too many wait already"
    if not before.owner and fair == b"0":
        yield "waits for a free lock"
    if not before.owner and fair == b"1":
        if not others:
            yield "waits, and is the first"
        if not after.owner and not run.store.silent and any(map(run.reachable, others)):
            yield "left a lock free for which others wait"
    if run.now > parts[DEADLINE]:
        yield "took a place for who does not wait any more"
    if after.owner:
        if after.state != b"W":
            yield "waits, and the lock does not know"
        if reply[4] != after.fence:
            yield "says a wrong fence"
        yield from held(run, reply[1:4])
    if after.owner != before.owner:
        yield from _passed(run, token)


def _passed(run: Run, token: bytes) -> Iterator[str]:
    """The lock went to the first who can be reached, and that one was told."""
    before, after = run.before, run.after
    waited = [one for one in before.tickets if one[:22] != token]
    if run.store.silent:  # nobody can be told, and so nobody is given anything, or forgotten
        if after.owner not in (b"", before.owner, token):
            yield "was given to somebody, who could not be told"
        if not set(waited) <= set(after.tickets):
            yield "forgot somebody who waits"
        return
    first = next((one for one in waited if run.reachable(one)), None)
    if after.owner:
        if first is None or first[:22] != after.owner:
            yield "went to another than the first who can be reached"
            return
        if not any(text[:38] == after.owner + after.fence and heard for text, heard in run.told):
            yield "was given to somebody, who was not told"
        if first in after.tickets:
            yield "was given to somebody who still waits"
        lasts_ms = int(first[22:].split(b" ")[0])
        if run.left_ms(after) != min(lasts_ms, 2500):
            yield f"was given for {run.left_ms(after)} ms"
        if after.record[39:61] != before.record[17:39] if before.record else False:
            yield "forgot who had it before"
        if after.about != first.split(b" ", 2)[2]:
            yield "does not say who has it"
        if after.state != b"W":
            yield "forgot that others wait"
    elif first is not None:
        yield "is free, and somebody who can be reached waits"


def given_up(run: Run, token: bytes, fair: bytes) -> Iterator[str]:
    """It was ours, and is given back."""
    before, after = run.before, run.after
    if not before.owns(token) or after.owner == (token := token[-22:]):
        yield "says that it gave the lock back, and it did not"
        return
    if fair == b"1":
        yield from _passed(run, token)
    elif after.owner:
        yield "passed on a lock that is for whoever comes"
    elif fair == b"0":
        waits = [one for one in before.tickets if one[:22] != token]
        first = next((one for one in waits if run.reachable(one)), None)
        told = any(text == first[:22] and n for text, n in run.told) if first else True
        if not told and not run.store.silent:
            yield "freed the lock, and told nobody"
        if told and first in after.tickets:
            yield "told somebody, who stays in front of all others"
        if sum(len(text) == 22 and heard > 0 for text, heard in run.told) > 1:
            yield "told more than one that the lock is free"
    if not after.owner and after.record is None:
        if not run.store.oom:
            yield "left no tombstone"
    elif not after.owner:
        if after.state != (b"F" if after.tickets and fair else b"R"):
            yield "forgot that others wait, or made it up"
        if not after.remembers(token):
            yield "forgot who had it"
        # Somebody may hear elsewhere of a turn that he was told of in vain.
        vain = [text[22:38] for text, heard in run.told if len(text) == TURN and not heard]
        if after.fence <= max(vain) if vain else after.fence != before.fence:
            yield "forgot a fence that somebody may have"
        if run.left_ms(after) != 5000:
            yield "left a tombstone for another time"


def _not_ours(run: Run, token: bytes, word: bytes) -> Iterator[str]:
    before, after = run.before, run.after
    if before.owns(token):
        yield f"says {word!r} of a lease that is ours"
    if after != before:
        yield "was not ours, and something changed"
    known = before.remembers(token)
    if (word == b"already") != known:
        yield f"says {word!r}, and the record remembers otherwise"
    elif word == b"held" and (not before.owner or run.reply != [b"held", before.about]):
        yield f"says {run.reply}, and it is {before.about!r}"
    elif word == b"missing" and before.owner:
        yield "says that nobody has it"


def _release(run: Run, token: bytes, word: bytes) -> Iterator[str]:
    before, after = run.before, run.after
    if word == b"":
        # It looks at one key only: its state says whether others wait.
        yield from given_up(run, token, fair=b"")
        if before.state == b"W":
            yield "gave back a lock for which others wait"
    elif word == b"waited":
        if not before.owns(token) or before.state != b"W" or after != before:
            yield "says that others wait for our lock, and they do not"
    else:
        yield from _not_ours(run, token, word)


def _hand_over(run: Run, token: bytes, word: bytes) -> Iterator[str]:
    if word in (b"released", b"handed_over"):
        yield from given_up(run, token, run.call.parts[3])
        if (word == b"handed_over") != bool(run.after.owner):
            yield "says that it was handed over, or not, and it is otherwise"
    else:
        yield from _not_ours(run, token, word)


def _abandon(run: Run, token: bytes, word: bytes) -> Iterator[str]:
    before, after, parts = run.before, run.after, run.call.parts
    ticket, fair, kept = parts[3:6]
    if ticket in after.tickets:
        yield "still waits"
    if word == b"released":
        yield from given_up(run, token, fair)
        if kept and before.owns(kept):
            yield "gave back the lease that it was to keep"
        return
    if before.owner == token and not (kept and before.owns(kept)):
        yield "kept the lock"
    if before.record != after.record:
        yield "changed a lock that is not its own"
    others = [one for one in before.tickets if one != ticket]
    gone = others[: len(others) - len(after.tickets)]
    if others[len(gone) :] != after.tickets or any(map(run.reachable, gone)):
        yield "changed the queue"
    if gone and before.owner and before.tickets[0] != ticket:
        yield "dropped somebody, and it was not the first who left"
    if len(run.reply) == 1:
        if before.owner:
            yield "says that the lock is free"
        return
    ahead = before.tickets.index(ticket) if ticket in before.tickets else -1
    if run.reply[4] != ahead or not before.owner:
        yield f"says that {run.reply[4]} were ahead, and they were {ahead}"
    yield from held(run, run.reply[1:4])


def _extend(run: Run, token: bytes, word: bytes) -> Iterator[str]:
    if word != b"extended":
        yield from _not_ours(run, token, word)
    elif not run.before.owns(token) or run.after.record != run.before.record:
        yield "extended what is not ours, or changed it"
    else:
        yield from _lasts(run, run.call.parts[TTL_EXTEND], run.call.parts[SHORTEN])
        if run.call.parts[SHORTEN] == b"1":
            yield from _tells_of_its_end(run)


def _tells_of_its_end(run: Run) -> Iterator[str]:
    """Who is first meant to look when the lease would have ended."""
    after = run.after
    if after.state != b"W" or not after.queue or run.store.silent:
        return
    score, first = after.queue[0]
    told = first[:22] + b"=%d" % run.left_ms(after)
    if not young(run, score) and not any(text == told and heard for text, heard in run.told):
        yield "shortened it, and did not tell the first"


def _lasts(run: Run, ttl_ms: bytes, shorten: bytes = b"0") -> Iterator[str]:
    """A lease lasts as long as it was asked to; nothing shortens it that does not say so."""
    wanted_ms = int(ttl_ms)
    if shorten == b"0":
        wanted_ms = max(wanted_ms, run.left_ms(run.before))
    if run.left_ms(run.after) != wanted_ms:
        yield "let it last for another time"


def _claim(run: Run, token: bytes, word: bytes) -> Iterator[str]:
    owns = run.before.owns(token) and run.before.state == b"W"
    if (word == b"claimed") != owns:
        yield f"says {word!r}, and it is otherwise"
    if run.after.record != run.before.record or (not owns and run.after != run.before):
        yield "changed what is not its own"
    elif owns:
        yield from _lasts(run, run.call.parts[2])


def _adopt(run: Run, token: bytes, word: bytes) -> Iterator[str]:
    before, after = run.before, run.after
    token, heir, ttl_ms, deadline = run.call.parts[1:5]
    if type(run.reply) is bytes and run.reply.isdigit():
        if before.owner != token or after.owner != heir or after.fence != run.reply:
            yield "says that it is ours, and it is not"
        elif after.record[39:61] != token or after.state != before.state:
            yield "forgot who had it before, or that others wait"
        if run.left_ms(after) != int(ttl_ms) or run.now > deadline:
            yield "took it for another time, or too late"
    elif word == b"owned":
        yield from owned(run, heir)
    elif word == b"late":
        yield from late(run, deadline)
    elif before.owner == heir:
        yield "has it already, and says otherwise"
    else:
        yield from _not_ours(run, token, word)


def _inspects(run: Run) -> Iterator[str]:
    before = run.before
    wanted: list[Any] = [b"free", len(before.tickets)]
    if before.owner:
        held_ms = (run.store.now_us - int(before.fence)) // 1000
        wanted = [b"held", run.left_ms(before), held_ms, before.fence, before.about]
        wanted.append(len(before.tickets))
    if run.reply != wanted:
        yield f"said {run.reply}, and it is {wanted}"
    if run.after != before:
        yield "changed something"


_CHECKS = {
    "acquire": _acquire,
    "wait": _wait,
    "release": _release,
    "hand_over": _hand_over,
    "abandon": _abandon,
    "extend": _extend,
    "claim": _claim,
    "adopt": _adopt,
}
