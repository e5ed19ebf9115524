"""A third API, beside ``lualock/_sync`` and ``lualock/aio``: the methods of its locks are steps.

With it the shipped actions of jobs (``lualock/jobs``: enqueue, run, acquire, finish, the policies)
run in the simulator unchanged, and all that they do to locks and reservations is recorded.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import suppress
from contextvars import copy_context
from dataclasses import replace
from inspect import getgeneratorlocals
from typing import Any

from lualock import _protocol as protocol
from lualock._core import options
from lualock._core.lease import LeaseBase
from lualock._core.lock import Crowded, LockBase, Settings
from lualock._core.lock_options import LockOptions
from lualock._core.with_statement import Blocks
from lualock._protocol import AcquireRequest, LeaseState, LockInfo, Steps, T
from lualock.errors import KeyConflict, LeaseLost, LockError, LockUnavailable, NotAcquired
from lualock.jobs import verbs
from lualock.jobs.actions import Actions
from tests.simulation import clients
from tests.simulation.clients import Client, Holding, Renewal, Turn
from tests.simulation.network import Process, clean
from tests.simulation.orphans import name_at

RESERVATION = verbs.reservation_key(b"")


def carry_out(actions: Actions[T]) -> Steps[T]:
    """Carry actions out, as ``lualock.jobs.actions.drive`` does in threads."""
    context = copy_context()  # as each thread and each task has its own
    try:
        action = context.run(next, actions)
        while True:
            try:
                reply = context.run(action)
                if isinstance(reply, Generator):
                    reply = yield from reply
            except GeneratorExit:
                actions.close()
                raise
            except BaseException as error:
                action = context.run(actions.throw, error)
            else:
                action = context.run(actions.send, reply)
    except StopIteration as done:
        result: T = done.value
        return result


def verb_of(steps: Any) -> str:
    """Return the name of the verb whose generator this is."""
    return str(steps.__name__)


class Actor(Client):
    """A client that handles jobs: a producer or a worker."""

    def __init__(self, process: Process, name: str, renewal: Renewal, locks: list[clients.Lock]):
        super().__init__(process, name, renewal)
        self.locks = Locks(self)
        self.resources = {lock.key: lock for lock in locks}
        self.job = ""  # the id of the job in hand
        self.lease: Lease | None = None
        self.careful = True
        self.alone = False  # whether a running job also refuses its reservation
        self.pid = int(process.name[1:])

    def new_id(self) -> str:
        """Return a new id."""
        self._count += 1
        return f"{self.name}-{self._count}"

    def note(self, kind: str, key: bytes, **fields: Any) -> None:
        """Record an event of the job in hand, at a lock or its reservation."""
        where = {"lock": name_at(key), "process": self.process.name, "id": self.job}
        self.world.record(kind, **where, **fields)

    def uses(self, token: bytes) -> None:
        """Note that this process uses a token."""
        self.world.requested_by[token] = self.process.name, self.world.t

    def until(self, deadline: float) -> float:
        """Return a local time of this process on the common clock."""
        return deadline - self.process.offset_s

    def at_reservation(
        self, verb: str, request: AcquireRequest, steps: Steps[Any], *, waits: bool
    ) -> Steps[Any]:
        """Carry out a verb at the reservation of the job in hand, and record the result.

        ``waits``: the job takes the reservation to wait for its lock, and is dropped if refused.
        """
        since, key = self.world.t, request.key
        self.uses(request.token)
        if verb == "release":
            self.note("freeing", key)
            with suppress(LeaseLost):
                yield from steps
            self.note("freed", key, what="gone")
            return None
        if verb == "take":
            self.note("reserve", key)
        else:
            variables = getgeneratorlocals(steps)
            self.note("keeping", key, until=since + variables["ttl_ms"] / 1000)
        try:
            found = yield from steps
        except LeaseLost:
            self.note("not_reserved", key, since=since)
            raise
        except verbs.AlreadyHeld as other:
            self.note("answered", key)
            if waits:
                self.note("superseded", key, since=since, other=other.metadata[4:])
            raise
        if verb == "take":
            self.note("answered", key)
        until = self.until(found if verb == "extend" else found.deadline)
        what = "alone" if verb == "take" and self.alone else ""
        self.note("reserved", key, since=since, until=until, what=what)
        return found

    def keep_for_retry(
        self, request: AcquireRequest, steps: Steps[LeaseState]
    ) -> Steps[LeaseState]:
        """Pass the lock on to the job's token, for its retry."""
        lease = self.lease
        self.uses(request.token)
        if lease is None or lease.over:
            return (yield from steps)
        lease.begin_end()
        self.world.kept.add(self.job)
        outcome = "unknown"
        try:
            state = yield from steps
            outcome = "passed"
            return state
        except LeaseLost:
            outcome = "lost"
            raise
        finally:
            lease.end(outcome)

    def take_lock(
        self, lock: Lock, request: AcquireRequest, steps: Steps[LeaseState]
    ) -> Steps[Lease]:
        """Take the lock of a run."""
        world, process, key = self.world, self.process, request.key
        starts = verb_of(steps) == "take"
        wait_s = 0 if starts else getgeneratorlocals(steps)["wait_s"]
        ident = request.token.decode().rstrip("_")
        identity = {"lock": name_at(key), "process": process.name, "id": ident}
        what = "adopt" if starts and self.job in world.kept else ""
        world.record("acquire", wait_s=wait_s, what=what, other=self.job, **identity)
        self.uses(request.token)
        reservation, lost = verbs.reservation_key(key), process.lost_replies
        if starts:
            self.note("freeing", reservation)
        why, stays = "unavailable", False
        self.waits = identity
        try:
            state = yield from steps
            why = ""
        except (NotAcquired, KeyConflict) as refused:
            stays = True
            why = "timeout" if not isinstance(refused, KeyConflict) else "conflict"
            if why == "conflict" and not world.faults["overwrite"]:
                world.wrong("conflict", f"{ident} got a KeyConflict without a conflict")
            raise
        except LockUnavailable as error:
            stays = not error.outcome_unknown
            raise
        except LockError:
            raise
        except BaseException:
            why = "interrupted"
            raise
        finally:
            self.waits = {}
            if not process.dead:
                process.subscriber.forget(request.token)
                if why:
                    world.record("gave_up", what=why, **identity)
                    world.disowned[request.token] = world.ended[request.token] = world.now
                if starts and (not why or (stays and process.lost_replies == lost)):
                    self.note("freed", reservation, what="stays" if why else "gone")
        return self._hold_lease(lock, request, state, identity)

    def _hold_lease(
        self, lock: Lock, request: AcquireRequest, state: LeaseState, identity: dict[str, str]
    ) -> Lease:
        world = self.world
        if state.waited is not request.crowded:
            lock._locks._crowded.note(lock._key, state.waited)
        world.known.add(request.token)
        lock_options = lock._options
        renewer = self.renewal if lock_options.needs_renewer else None
        lease = Lease(request, state, self.locks._driver, renewer, lock_options)
        turn = Turn(
            *(self.resources[request.key], 0.0, None, request.ttl_ms, 0.0, 0),
            *(lock_options.renewed, self.careful, "release"),
        )
        lease.holding = Holding(self, turn, request, lease, [(turn.lock, identity)])
        lease.over = False
        lease.holding.begin()
        self.lease = lease
        return lease


class Driver:
    """Passes a protocol on to the caller that carries the actions out."""

    def __init__(self, actor: Actor) -> None:
        self._actor = actor
        self.clock = actor.process.clock
        self.server_clock = actor.process.server_clock

    def run(self, steps: Steps[Any]) -> Steps[Any]:
        """Return the steps, which then record what they do."""
        variables, verb = getgeneratorlocals(steps), verb_of(steps)
        request: AcquireRequest | None = variables.get("request")
        if request is not None and request.key.endswith(RESERVATION):
            return self._actor.at_reservation(verb, request, steps, waits=False)
        if verb == "keep_for":
            return self._actor.keep_for_retry(variables["parts"][0], steps)
        return steps

    def resubscribe(self) -> None:
        """Connect again: see the drivers."""
        self._actor.process.resubscribe()

    def later(self, step: protocol.CleanupLater) -> None:
        """See ``LeaseBase.handle``."""
        self._actor.process.later(step)

    def cleanup_in_background(self, call: protocol.RunScript) -> None:
        """Release what no caller has any more."""
        lease = self._actor.lease
        if lease is not None and not lease.over and call.parts[0] == lease._request.key:
            lease.begin_end()
        self._actor.process.start(self._abandon(call, self._actor.job))

    def _abandon(self, call: protocol.RunScript, job: str) -> Steps[None]:
        """Make the call, for ``job``: the actor may have another one in hand by then."""
        actor, at_reservation = self._actor, call.parts[0].endswith(RESERVATION)
        where = {"lock": name_at(call.parts[0]), "process": actor.process.name, "id": job}
        if at_reservation:
            actor.world.record("freeing", **where)
        yield from clean(actor.process, replace(call))
        if at_reservation:
            actor.world.record("freed", what="gone", **where)


class Lease(LeaseBase):
    """A held lock."""

    __slots__ = ("holding", "over")
    holding: Holding
    over: bool

    def begin_end(self) -> None:
        """Note that from now on it does not rely on its lock."""
        self.over = True
        self.holding.let_go()
        self.holding.drop()

    def end(self, outcome: str) -> None:
        """Record the result of the release."""
        if not self.holding.process.dead:
            self.holding.record("released", what=outcome)

    def release(self) -> Steps[None]:
        """See :class:`lualock.Lease`."""
        steps = self._release()
        if self.over or steps is None:
            return
        self.begin_end()
        outcome = "unknown"
        try:
            yield from steps
            outcome = "released"
        except LeaseLost:
            outcome = "lost"
            raise
        finally:
            self.end(outcome)


class _Blocks(Blocks):
    """All actors share a thread, so a thread does not identify the actor inside a block."""

    def refuse_own_wait(self, key: bytes, task: Any = None) -> None:
        """Refuse nothing."""


class Lock(LockBase):
    """A reusable lock object."""

    __slots__ = ()
    _locks: Locks

    def _request(self) -> AcquireRequest:
        actor = self._locks.actor
        holder_info = options.process_holder(actor.pid) + self._holder_info.metadata
        token = actor.new_id().ljust(22, "_").encode()
        return AcquireRequest(
            *(self._name, self._key, self._queue, token, self._ttl_ms, holder_info),
            *(self._options.priority_base, self._options.waiters_limit),
            self._key in self._locks._crowded,
        )

    def acquire(self, timeout: float | None = None) -> Steps[Lease]:
        """See :class:`lualock.Lock`."""
        request, server = self._request(), self._locks._driver.server_clock
        return self._hold(request, protocol.acquire(request, server, options.wait_s(timeout)))

    def _hold(self, request: AcquireRequest, steps: Steps[LeaseState]) -> Steps[Lease]:
        actor = self._locks.actor
        if not request.key.endswith(RESERVATION):
            return (yield from actor.take_lock(self, request, steps))
        state = yield from actor.at_reservation("take", request, steps, waits=True)
        renewer = actor.renewal if self._options.needs_renewer else None
        return Lease(request, state, self._locks._driver, renewer, self._options)

    def inspect(self) -> Steps[LockInfo]:
        """See :class:`lualock.Lock`."""
        return protocol.inspect(self._name, self._key, self._queue)


class Locks:
    """The locks of a server, for one actor."""

    def __init__(self, actor: Actor, ttl: float = 3.0) -> None:
        self.actor = actor
        self._settings = Settings("sim", ttl, None)
        self.prefix = self._settings.prefix
        self._blocks = _Blocks()
        self._crowded = Crowded()
        self._driver = Driver(actor)

    def lock(
        self,
        name: str | bytes,
        ttl: float | None = None,
        *,
        renew: bool | None = None,
        max_hold: float | None = None,
        hold_at_least: float | None = None,
    ) -> Lock:
        """See :class:`lualock.Locks`."""
        lock_options = LockOptions(
            ttl=ttl, renew=renew, max_hold=max_hold, hold_at_least=hold_at_least
        )
        return Lock(self, name, lock_options)
