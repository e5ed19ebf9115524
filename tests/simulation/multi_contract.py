"""Check after each run of ``acquire_all`` what its header promises, as ``contract`` does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lualock._protocol import RunScript
from lualock._protocol.multi import ACQUIRE_ALL
from tests.simulation.contract import Run, Seen, held, late, refused, young
from tests.simulation.store import Refused, Store

NAME = ACQUIRE_ALL.name


def read(store: Store, call: RunScript) -> list[Seen]:
    """Read the keys of all locks as they are now."""
    keys = call.parts[: len(call.script.keys)]
    return [Seen.read(store, *keys[at : at + 2]) for at in range(0, len(keys), 2)]


def owners(call: RunScript, after: list[Seen]) -> list[tuple[bytes, bytes]]:
    """Return the key of each lock, with the token that has it."""
    keys = call.parts[: len(call.script.keys) : 2]
    return [(key, seen.owner) for key, seen in zip(keys, after, strict=True)]


@dataclass(slots=True)
class MultiRun:
    """One run of the script."""

    call: RunScript
    before: list[Seen]
    after: list[Seen]
    reply: Any
    messages: list[tuple[bytes, int]]  # each with its number of receivers
    store: Store

    def at(self, index: int) -> Run:
        """Return what it did to one lock."""
        before, after = self.before[index], self.after[index]
        return Run(self.call, before, after, self.reply, self.messages, self.store)


def broken(run: MultiRun) -> Iterator[str]:
    """Yield each way in which a run broke its contract."""
    token, ttl_ms, deadline, holder_info, yielding = run.call.parts[len(run.call.script.keys) :][:5]
    before, after, reply = run.before, run.after, run.reply
    blocked = [
        at
        for at, seen in enumerate(before)
        if seen.owner not in (b"", token, yielding[22 * at : 22 * at + 22])
    ]
    foreign = [at for at, seen in enumerate(before) if seen.foreign]
    odd_queue = any(not isinstance(seen.queue, (list, type(None))) for seen in before)
    if type(reply) is not bytes and after != before:
        yield "took nothing, and changed data"
    if isinstance(reply, Refused):
        yield from refused(run.store, reply, NAME, odd_queue or bool(foreign))
    elif type(reply) is bytes:
        for at, seen in enumerate(after):
            yield from _won(run.at(at), token, ttl_ms, holder_info)
            if seen.fence != reply:
                yield f"has the lock {at} with another fence"
        if blocked or foreign:
            yield "took a lock that was not free"
        if run.store.now_us > int(deadline):
            yield "took the locks for a caller that has given up"
        if _has_all(before, token):
            yield "took what this token had"
    elif reply[0] == b"conflict":
        if foreign[:1] != [reply[1]]:
            yield f"answers that the key of lock {reply[1]} is foreign"
    elif foreign:
        yield f"did not see that a record is foreign, and answered {reply}"
    elif reply[0] == b"held":
        if blocked[:1] != [reply[4]]:
            yield f"answers that another token has the lock {reply[4]}"
        else:
            yield from held(run.at(reply[4]), reply[1:4])
    elif blocked:
        yield f"answers {reply}, and another token has a lock"
    elif reply[0] == b"owned":
        left_ms = min(run.at(at).left_ms(seen) for at, seen in enumerate(after))
        if not _has_all(before, token):
            yield "answers that the caller has all locks already, and it does not"
        elif reply != [b"owned", left_ms, before[0].fence]:
            yield f"answers {reply} for a lease of {left_ms} ms"
    else:
        yield from late(run.at(0), deadline)


def _has_all(before: list[Seen], token: bytes) -> bool:
    return {(seen.owner, seen.fence) for seen in before} == {(token, before[0].fence)}


def _won(run: Run, token: bytes, ttl_ms: bytes, holder_info: bytes) -> Iterator[str]:
    before, after = run.before, run.after
    if after.owner != token:
        yield "answers that the caller has all locks, and it does not"
        return
    if run.left_ms(after) != int(ttl_ms):
        yield f"took a lock for {run.left_ms(after)} ms instead of {int(ttl_ms)}"
    if after.holder_info != holder_info:
        yield "keeps a wrong holder_info"
    if after.record[39:61] != (before.record[17:39] if before.record is not None else b"-" * 22):
        yield "forgot the previous token"
    if after.fence < run.now or (before.fence and after.fence <= before.fence):
        yield f"gave the fence {after.fence!r} after {before.fence!r} at {run.now!r}"
    waited = before.state in (b"W", b"F") and bool(before.tickets)
    if after.state != (b"W" if waited else b"H"):
        yield "has a wrong state: waiters or none"
    gone = [ticket for ticket in before.tickets if ticket not in after.tickets]
    if any(run.reachable(ticket) for ticket in gone) or (gone and not waited):
        yield "dropped a waiter"
    if waited and after.queue and not run.store.silent and not young(run, after.queue[0][0]):
        head = after.queue[0][1][:22]
        if (head + b"=" + ttl_ms, 1) not in [(text, min(1, n)) for text, n in run.messages]:
            yield "sent the head no message about the end of the lease"
