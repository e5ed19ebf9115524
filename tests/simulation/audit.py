"""Judge what only the server's data and the clients together can show.

The checker judges what the clients record; this checks the server's own data after each script:

orphan     a lock is held under a token whose owner has released it or given up
contract   a script did not do what its header says, or its reply is wrong (``contracts.py``)
"""

from __future__ import annotations

from typing import Any

from lualock._protocol import RunScript
from lualock._protocol.force_release import ENDED
from lualock.jobs import RESERVE_S
from tests.simulation.checker import LOSSES, Causes, Event
from tests.simulation.contracts import contract_of
from tests.simulation.job_rules import RESERVATION
from tests.simulation.multi import note_end, note_owner
from tests.simulation.orphans import name_at
from tests.simulation.world import US, World

GRACE_US = 120_000
"""How long after the end of its owner a token may still have the lock in a calm network."""


class Audit:
    """Checks one server during one run."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._owner: dict[str, tuple[bytes, int]] = {}
        self._orphans: list[tuple[str, bytes, int, int, int]] = []
        world.server.before_script, world.server.after_script = self._before, self._after
        world.server.store.lost = self._lost

    def _before(self, call: RunScript) -> None:
        self._seen = contract_of(call.script).read(self._world.server.store, call)

    def _after(self, call: RunScript, reply: Any) -> None:
        server, contract = self._world.server, contract_of(call.script)
        after = contract.read(server.store, call)
        for key, owner in contract.owners(call, after):
            self._change(name_at(key), owner)
        if call.script.name == "force_release" and reply in ENDED:
            self._world.record("cause", lock=name_at(call.parts[0]), what="forced")
        seen = self._seen, after, reply, server.messages, server.store
        for what in contract.judge(call, *seen):
            self._world.wrong("contract", f"{call.script.path} {what}")

    def _lost(self, key: bytes, value: Any, end_ms: int | None) -> None:
        """Note that a key is gone."""
        if type(value) is not bytes or not key.endswith((b"}", b"}:reservation")):
            return
        lock, world = name_at(key), self._world
        world.history.append(Event(world.t, "cause", lock=lock, what="forgot"))
        if value[:1] in (b"H", b"W") and end_ms is not None:
            if value[17:39] not in world.known:
                # Its owner does not know of it, so no client records the end of this lease.
                world.record("cause", lock=lock, what="expired")
            since_ms = (world.server.store.now_us // 1000 - end_ms) * 1000
            self._change(lock, b"", world.now - since_ms)

    def _change(self, lock: str, owner: bytes, at: int | None = None) -> None:
        before, since = self._owner.get(lock, (b"", 0))
        if before != owner:
            now = self._world.now
            note_owner(self._world, lock, before, owner, expired=at is not None)
            self._owner[lock] = owner, now
            if self._world.ended.get(owner, now) < now - GRACE_US:
                # Judged as an orphan below; the waiters behind it are not to blame.
                event = Event(now / US, "cause", lock=lock, what="revived", until=now / US + 3)
                self._world.history.append(event)
            if before in self._world.ended:  # the client forgot its lease, or passed it on
                self._world.disowned.setdefault(before, now if at is None else at)
            done = self._world.disowned.get(before)
            if before and done is not None:
                start, end = max(since, done), now if at is None else at
                if end > start + GRACE_US:
                    self._orphans.append((lock, before, since, start, end))
        elif owner in self._world.turns:
            note_end(self._world, lock, owner)

    def finish(self, settle_s: float) -> None:
        """Judge the orphans: faults just before excuse one."""
        world = self._world
        for lock, (owner, _) in list(self._owner.items()):
            if owner:
                self._change(lock, b"")
        none = "revived", "expired", "orphan", "let_in"  # these excuse nothing here
        causes = Causes(
            [one for one in world.history if one.kind == "cause" and one.what not in none]
        )
        gone = {event.process: event.t for event in world.history if event.kind == "gone"}
        orphans = {(one.lock, round(one.t * US)) for one in world.history if one.what == "orphan"}
        for lock, token, taken, start, end in self._orphans:
            process, requested_at = world.requested_by[token]
            if gone.get(process, end / US) < end / US:
                continue  # its process died before it could clean up
            if causes.first_of(LOSSES, lock, requested_at, end / US):
                continue  # a replica without the last writes brought it back
            of_job = (
                lock.endswith(RESERVATION) and (lock.removesuffix(RESERVATION), taken) in orphans
            )
            if of_job and end - taken <= (RESERVE_S + 1) * US:
                # The request for a reservation arrived after the job had run. It is not cleaned up,
                # for its token may have another reservation by then; it expires soon.
                continue
            if token in world.let_in:  # excused once, for one lease
                again = causes.first_of(("clock_back",), lock, start / US, end / US)
                if again or (end - start - GRACE_US) / US <= world.let_in[token]:
                    continue
            # An orphaned request may have taken it; that is cleaned up when it has expired.
            since = max(start / US, world.orphans_until.get(token, 0.0))
            if end / US < since + GRACE_US / US:
                continue
            grace_s = GRACE_US / US
            excused = causes.excuses(lock, since - settle_s, since + grace_s, process)
            while excused and token in world.known and since + grace_s < end / US:
                # Its release is repeated when the server can be reached again. (A lock that is kept
                # for a job's retry, under the job's token, expires.)
                since += 0.5
                excused = causes.excuses(lock, since - settle_s, since + grace_s, process)
            if not excused and since + grace_s < end / US:
                text = (
                    f"{lock} was held for {token.rstrip(b'.').decode()} from {start / US:.6f} to "
                    f"{end / US:.6f}, and no client knew"
                )
                world.wrong("orphan", text)
