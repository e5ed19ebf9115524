"""Clients that take several locks as one lease, beside clients that take one of them.

While such a client waits it has some of the locks under another token. What that token has is
recorded when the server gives it (:meth:`note_owner`), because its client works only under the
lease.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lualock._core import keys, options
from lualock._core.lock_options import LockOptions
from lualock._core.multi import MultiLeaseBase
from lualock._protocol import AcquireRequest, AwaitMessage, MultiRequest, Steps, multi, undo
from lualock.errors import KeyConflict, LockError, NotAcquired, QueueFull
from tests.simulation.checker import Event
from tests.simulation.clients import Client, Holding, Lock, Renewal, Turn
from tests.simulation.network import Interrupted, Process
from tests.simulation.orphans import name_at
from tests.simulation.world import US, World


class MultiClient(Client):
    """A thread or a task that takes several locks at once."""

    def __init__(
        self, process: Process, name: str, renewal: Renewal, locks: Sequence[Lock]
    ) -> None:
        super().__init__(process, name, renewal)
        self._locks = locks

    def _turn(self, turn: Turn, adopts: bytes = b"") -> Steps[None]:
        if turn.ending == "pass":
            turn = replace(turn, ending="release")  # a handle names one lock
        yield AwaitMessage(turn.idle_s)
        self._count += 1
        world, process, name = self.world, self.process, f"{self.name}.{self._count}"
        began, tokens = world.t, list[bytes]()

        def new_token() -> bytes:
            if tokens:  # that try was refused
                world.disowned[tokens[-1]] = world.ended[tokens[-1]] = world.now
            tokens.append(f"{name}{'+' * len(tokens)}".ljust(22, ".").encode())
            world.requested_by[tokens[-1]] = process.name, began
            return tokens[-1]

        request = MultiRequest([self._request(turn, lock, name) for lock in self._locks], new_token)
        for one in request.turns:
            world.requested_by[one.token] = process.name, began
            world.turns[one.token] = process, request
            lock = name_at(one.key)
            identity = {"process": process.name, "id": world.waits_as(one.token)}
            world.record("acquire", lock=lock, **identity)
        why = "unavailable"
        try:
            state = yield from multi.acquire(request, process.server_clock, turn.wait_s)
            if turn.ending == "undo":  # interrupted before the caller has the lease
                yield from undo(request)
                raise Interrupted
            why = ""
        except QueueFull:
            why = "full"
        except NotAcquired:
            why = "timeout"
        except KeyConflict:
            why = "conflict"
        except Interrupted:
            why = "interrupted"
            raise
        except LockError:
            pass
        finally:
            for one in request.turns:
                process.subscriber.forget(one.token)
            if not process.dead:
                self._end_of_wait(request, why, began, turn)
        if why:
            return
        world.known.add(request.token)
        renewer = self.renewal if turn.renew else None
        lease = MultiLeaseBase(request, state, process, renewer, LockOptions(renew=turn.renew))
        places = [
            (lock, {"lock": lock.name, "process": process.name, "id": f"{name}@{lock.name}"})
            for lock in self._locks
        ]
        holding = _Holding(self, turn, request, lease, places)
        holding.begin()
        yield from holding.hold()

    def _request(self, turn: Turn, lock: Lock, name: str) -> AcquireRequest:
        return AcquireRequest(
            name=lock.name,
            key=lock.key,
            queue=lock.queue,
            token=f"{name}w{lock.name}".ljust(22, ".").encode(),
            ttl_ms=turn.ttl_ms,
            holder_info=name.encode(),
            priority_base=options.priority_base(0),
            max_waiters=lock.max_waiters,
            crowded=False,
        )

    def _end_of_wait(self, request: MultiRequest, why: str, began: float, turn: Turn) -> None:
        world, process = self.world, self.process.name
        if why:
            world.disowned[request.token] = world.ended[request.token] = world.now
        waited = any(one.state is not None for one in request.turns)
        for one in request.turns:
            world.disowned[one.token] = world.ended[one.token] = world.now
            lock, name = name_at(one.key), f"{self.name}.{self._count}"
            identity = {"lock": lock, "process": process, "id": f"{name}@{lock}"}
            ended = {**identity, "id": world.waits_as(one.token)}
            world.record("gave_up", what=why or "had it", **ended)
            # With the lease it takes over what it has, or takes free locks.
            what = "adopt" if waited else ""
            wait_s = turn.wait_s if one is request.turns[0] else None
            event = Event(began, "acquire", lock, process, identity["id"], what, wait_s=wait_s)
            world.history.append(event)
            if why:
                world.record("gave_up", what=why, **identity)


class _Holding(Holding):
    """A lease on several locks, and what is done while it lasts."""

    lost = "unknown"  # of one lock at least; the others were released


def note_owner(world: World, lock: str, before: bytes, after: bytes, *, expired: bool) -> None:
    """Record that a token which waits for other locks has this one now, or has it no more."""
    if before in world.turns:
        process, request = world.turns[before]
        identity = {"lock": lock, "process": process.name, "id": world.waits_as(before)}
        world.record("let_go", **identity)
        passed = after == request.token
        outcome = "passed" if passed else "lost" if expired else "released"
        world.record("released", what=outcome, **identity)
        if not passed and before not in world.disowned and not process.dead:
            world.lost_turns[before] += 1
            identity["id"] = world.waits_as(before)
            world.record("acquire", **identity)
    if after in world.turns and after not in world.disowned:
        fence = int(world.server.store.data[keys.lock_key(b"sim", lock)][1:17])
        if fence != world.turn_fences[after]:  # else a replica brought back what was lost
            world.turn_fences[after] = fence
            _record_end(world, "got", lock, after, fence=fence)


def note_end(world: World, lock: str, token: bytes) -> None:
    """Record until when such a token has the lock, if a script has just changed that."""
    ends = world.server.store.ends
    if token in world.turn_ends and ends[keys.lock_key(b"sim", lock)] != world.turn_ends[token]:
        _record_end(world, "until", lock, token)


def _record_end(world: World, kind: str, lock: str, token: bytes, **fields: int) -> None:
    store = world.server.store
    world.turn_ends[token] = end_ms = store.ends[keys.lock_key(b"sim", lock)]
    until = world.t + end_ms / 1000 - store.now_us / US
    identity = {"lock": lock, "process": world.turns[token][0].name, "id": world.waits_as(token)}
    world.record(kind, until=until, **fields, **identity)
