"""What only somebody who sees the server and the clients at once can tell.

The checker judges what the clients say; this looks at the server's own data after each script:

orphan     a lock is held under a token whose owner is done with it (released, gave up)
foreign    something else than a lock is at the key, and a script changed it or took it for one
inspect    ``inspect`` says what is not so
"""

from __future__ import annotations

from typing import Any

from lualock.protocol import INSPECT, Call
from tests.simulation.checker import Causes, Event
from tests.simulation.network import lock_of
from tests.simulation.world import US, World

GRACE_US = 120_000
"""How long after its owner is done with it a token may still have the lock in a calm network."""


class Audit:
    """Watches one server during one run."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._owner: dict[str, tuple[bytes, int]] = {}
        self._orphans: list[tuple[str, bytes, int, int, int]] = []
        world.server.watch = self._watch
        world.server.store.lost = self._lost

    def _watch(self, call: Call, reply: Any) -> None:
        record = self._world.server.store.data.get(call.parts[0])
        owner = b""
        if type(record) is bytes and record[:1] in (b"H", b"W"):
            owner = record[17:39]
        self._change(lock_of(call), owner)
        if call.script is INSPECT:
            self._check_inspect(call, record, reply)

    def _lost(self, key: bytes, value: Any, end_ms: int | None) -> None:
        """A key is gone."""
        if type(value) is not bytes or not key.endswith(b"}"):
            return
        lock = key.decode().partition("{")[2].rstrip("}")
        world = self._world
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
            done = self._world.disowned.get(before)
            if before and done is not None:
                start, end = max(since, done), now if at is None else at
                if end > start + GRACE_US:
                    self._orphans.append((lock, before, done, start, end))

    def _check_inspect(self, call: Call, record: Any, reply: Any) -> None:
        store = self._world.server.store
        queue = store.data.get(call.parts[1])
        if not isinstance(reply, list) or type(record) not in (bytes, type(None)):
            return
        waiters = len(queue.scores) if queue is not None else 0
        if record is None or record[:1] in (b"R", b"F"):
            wanted: list[Any] = [b"free", waiters]
        elif record[:1] in (b"H", b"W") and len(record) >= 61 and record[1:17].isdigit():
            left = store.ends[call.parts[0]] - store.now_us // 1000
            held_ms = (store.now_us - int(record[1:17])) // 1000
            wanted = [b"held", left, held_ms, record[1:17], record[61:], waiters]
        else:
            wanted = [b"conflict"]
        if reply != wanted:
            self._world.wrong("inspect", f"said {reply}, and it is {wanted}")

    def finish(self, settle_s: float) -> None:
        """Judge what was seen: an orphan is excused by what befell anybody just before."""
        world = self._world
        for lock, (owner, _) in list(self._owner.items()):
            if owner:
                self._change(lock, b"")
        causes = Causes(
            [
                event
                for event in world.history
                if event.kind == "cause" and event.what not in ("revived", "expired")
            ]
        )
        for lock, token, done, start, end in self._orphans:
            # Since it was done with: a failover may have brought it back.
            if not causes.excuses(lock, done / US - settle_s, end / US):
                text = (
                    f"{lock} was held for {token.rstrip(b'.').decode()} from {start / US:.6f} to "
                    f"{end / US:.6f}, and nobody knew"
                )
                world.wrong("orphan", text)
