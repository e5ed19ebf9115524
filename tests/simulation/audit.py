"""What only somebody who sees the server and the clients at once can tell.

The checker judges what the clients say; this looks at the server's own data after each script:

orphan     a lock is held under a token whose owner is done with it (released, gave up)
contract   a script did not do what its header says, or said what is not so (``contract.py``)
"""

from __future__ import annotations

from typing import Any

from lualock._core.keys import waiters_key
from lualock._protocol import RunScript
from lualock.jobs import RESERVE_S
from tests.simulation import job_contract
from tests.simulation.checker import LOSSES, Causes, Event
from tests.simulation.contract import Run, Seen, broken
from tests.simulation.job_rules import PLACE
from tests.simulation.orphans import lock_of, name_at
from tests.simulation.world import US, World

GRACE_US = 120_000
"""How long after its owner is done with it a token may still have the lock in a calm network."""


class Audit:
    """Watches one server during one run."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._owner: dict[str, tuple[bytes, int]] = {}
        self._orphans: list[tuple[str, bytes, int, int, int]] = []
        world.server.before, world.server.watch = self._before, self._watch
        world.server.store.lost = self._lost

    def _before(self, call: RunScript) -> None:
        store, lock = self._world.server.store, call.parts[0]
        if call.script.name in job_contract.NAMES:
            self._around = job_contract.Around.look(store, call)
        else:
            self._seen = Seen.look(store, lock, waiters_key(lock))

    def _watch(self, call: RunScript, reply: Any) -> None:
        if call.script.name in job_contract.NAMES:
            self._watch_jobs(call, reply)
            return
        store, lock = self._world.server.store, call.parts[0]
        after = Seen.look(store, lock, waiters_key(lock))
        self._change(lock_of(call), after.owner)
        told = self._world.server.told
        for what in broken(Run(call, self._seen, after, reply, told, store)):
            self._world.wrong("contract", f"{call.script.name} {what}")

    def _watch_jobs(self, call: RunScript, reply: Any) -> None:
        server = self._world.server
        after = job_contract.Around.look(server.store, call)
        lock = lock_of(call).removesuffix(":stop_requests")
        self._change(lock, after.lock.owner)
        self._change(f"{lock}:reservation", after.reservation.owner)
        run = job_contract.JobRun(call, self._around, after, reply, server.told, server.store)
        for what in job_contract.broken(run):
            self._world.wrong("contract", f"{call.script.name} {what}")

    def _lost(self, key: bytes, value: Any, end_ms: int | None) -> None:
        """A key is gone."""
        if type(value) is not bytes or not key.endswith((b"}", b"}:reservation")):
            return
        lock, world = name_at(key), self._world
        world.history.append(Event(world.t, "cause", lock=lock, what="forgot"))
        if value[:1] in (b"H", b"W") and end_ms is not None:
            if value[17:39] not in world.known:
                # Nobody said that he has it, so nobody else can tell that its lease ended.
                world.record("cause", lock=lock, what="expired")
            since_ms = (world.server.store.now_us // 1000 - end_ms) * 1000
            self._change(lock, b"", world.now - since_ms)

    def _change(self, lock: str, owner: bytes, at: int | None = None) -> None:
        before, since = self._owner.get(lock, (b"", 0))
        if before != owner:
            now = self._world.now
            self._owner[lock] = owner, now
            if self._world.ended.get(owner, now) < now - GRACE_US:
                # Judged as an orphan below; who waits behind it is not to blame.
                event = Event(now / US, "cause", lock=lock, what="revived", until=now / US + 3)
                self._world.history.append(event)
            if before in self._world.ended:  # it forgot its lease, or passed it on
                self._world.disowned.setdefault(before, now if at is None else at)
            done = self._world.disowned.get(before)
            if before and done is not None:
                start, end = max(since, done), now if at is None else at
                if end > start + GRACE_US:
                    self._orphans.append((lock, before, since, start, end))

    def finish(self, settle_s: float) -> None:
        """Judge what was seen: an orphan is excused by what befell anybody just before."""
        world = self._world
        for lock, (owner, _) in list(self._owner.items()):
            if owner:
                self._change(lock, b"")
        none = "revived", "expired", "orphan", "let_in"  # these excuse nothing here
        causes = Causes(
            [one for one in world.history if one.kind == "cause" and one.what not in none]
        )
        gone = {event.who: event.t for event in world.history if event.kind == "gone"}
        orphans = {(one.lock, round(one.t * US)) for one in world.history if one.what == "orphan"}
        for lock, token, taken, start, end in self._orphans:
            who, asked = world.asked[token]
            if gone.get(who, end / US) < end / US:
                continue  # its process died before it could make up for anything
            if causes.first_of(LOSSES, lock, asked, end / US):
                continue  # brought back from the dead
            of_job = lock.endswith(PLACE) and (lock.removesuffix(PLACE), taken) in orphans
            if of_job and end - taken <= (RESERVE_S + 1) * US:
                # A reservation that was lost came when the job had run already. Nobody lays it, for
                # by then its token may have another place; so it ends by itself, soon.
                continue
            if token in world.let_in:  # and that once, for one lease
                again = causes.first_of(("clock_back",), lock, start / US, end / US)
                if again or (end - start - GRACE_US) / US <= world.let_in[token]:
                    continue
            # A orphan may have taken it; it is laid when it has expired.
            since = max(start / US, world.ghost_until.get(token, 0.0))
            if end / US < since + GRACE_US / US:
                continue
            grace_s = GRACE_US / US
            excused = causes.excuses(lock, since - settle_s, since + grace_s, who)
            while excused and token in world.known and since + grace_s < end / US:
                # Its release is made up for when what kept it from the server has passed. (What is
                # kept for a job's retry, under the job's token, ends by itself.)
                since += 0.5
                excused = causes.excuses(lock, since - settle_s, since + grace_s, who)
            if not excused and since + grace_s < end / US:
                text = (
                    f"{lock} was held for {token.rstrip(b'.').decode()} from {start / US:.6f} to "
                    f"{end / US:.6f}, and nobody knew"
                )
                world.wrong("orphan", text)
