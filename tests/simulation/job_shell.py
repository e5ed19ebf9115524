"""A third shell, beside ``lualock/_sync.py`` and ``lualock/aio.py``: locks whose methods are steps.

With it the shipped order of events of jobs (``lualock/jobs``: enqueue, run, acquire, finish,
the policies) runs in the simulator as it is, and all that it does to locks and reservations is
written down.
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
from lualock._core.lock import LockBase, Settings
from lualock._core.with_statement import Blocks
from lualock._protocol import AcquireRequest, LeaseState, LockInfo, Steps, T
from lualock.errors import KeyConflict, LeaseLost, LockError, LockUnavailable, NotAcquired
from lualock.jobs import verbs
from lualock.jobs.actions import Actions
from tests.simulation import clients
from tests.simulation.clients import Client, Holding, Renewal, Turn
from tests.simulation.network import Process, clean
from tests.simulation.orphans import name_at

PLACE = verbs.reservation_key(b"")


def carry_out(actions: Actions[T]) -> Steps[T]:
    """Carry an order of events out: what ``lualock.jobs.actions.drive`` is to threads."""
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
    """Which generator it is."""
    return str(steps.__name__)


class Actor(Client):
    """Who does something with jobs: a producer, a worker."""

    def __init__(self, process: Process, name: str, renewal: Renewal, locks: list[clients.Lock]):
        super().__init__(process, name, renewal)
        self.locks = Locks(self)
        self.resources = {lock.key: lock for lock in locks}
        self.job = ""  # the id of the one in hand
        self.lease: Lease | None = None
        self.careful = True
        self.alone = False  # whether what it reserves is to be refused also while one runs
        self.pid = int(process.name[1:])

    def fresh(self) -> str:
        """An id that nobody had before."""
        self._count += 1
        return f"{self.name}-{self._count}"

    def note(self, kind: str, key: bytes, **fields: Any) -> None:
        """Write down what is done with the job in hand, and its place beside this lock."""
        where = {"lock": name_at(key), "who": self.process.name, "id": self.job}
        self.world.record(kind, **where, **fields)

    def asks(self, token: bytes) -> None:
        """A token is used."""
        self.world.asked[token] = self.process.name, self.world.t

    def until(self, deadline: float) -> float:
        """A time of this process on the common clock."""
        return deadline - self.process.offset_s

    def at_place(
        self, verb: str, ask: AcquireRequest, steps: Steps[Any], *, waits: bool
    ) -> Steps[Any]:
        """Do something to the place of the job in hand, and write down what is certain then.
        ``waits``: it takes it to wait for the lock there, and who is refused it is dropped."""
        since, key = self.world.t, ask.key
        self.asks(ask.token)
        if verb == "release":
            self.note("taking", key)
            with suppress(LeaseLost):
                yield from steps
            self.note("untaken", key, what="gone")
            return None
        if verb == "take":
            self.note("reserve", key)
        else:
            told = getgeneratorlocals(steps)
            self.note("keeping", key, until=since + told["ttl_ms"] / 1000)
        try:
            found = yield from steps
        except LeaseLost:
            self.note("unplaced", key, since=since)
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
        self.note("placed", key, since=since, until=until, what=what)
        return found

    def keeps(self, ask: AcquireRequest, steps: Steps[LeaseState]) -> Steps[LeaseState]:
        """The lock goes over to the job's token, for its retry."""
        lease = self.lease
        self.asks(ask.token)
        if lease is None or lease.over:
            return (yield from steps)
        lease.begin_end()
        self.world.kept.add(self.job)
        outcome = "unknown"
        try:
            grant = yield from steps
            outcome = "passed"
            return grant
        except LeaseLost:
            outcome = "lost"
            raise
        finally:
            lease.end(outcome)

    def acquires(self, lock: Lock, ask: AcquireRequest, steps: Steps[LeaseState]) -> Steps[Lease]:
        """Take the lock of a run."""
        world, process, key = self.world, self.process, ask.key
        starts = verb_of(steps) == "take"
        wait_s = 0 if starts else getgeneratorlocals(steps)["wait_s"]
        ident = ask.token.decode().rstrip("_")
        who = {"lock": name_at(key), "who": process.name, "id": ident}
        what = "adopt" if starts and self.job in world.kept else ""
        world.record("ask", wait_s=wait_s, what=what, other=self.job, **who)
        self.asks(ask.token)
        place, lost = verbs.reservation_key(key), process.lost_replies
        if starts:
            self.note("taking", place)
        why, stays = "unavailable", False
        self.waits = who
        try:
            grant = yield from steps
            why = ""
        except (NotAcquired, KeyConflict) as refused:
            stays = True
            why = "timeout" if not isinstance(refused, KeyConflict) else "conflict"
            if why == "conflict" and not world.faults["overwrite"]:
                world.wrong("conflict", f"{ident} was told of a conflict, and there is none")
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
                process.ear.forget(ask.token)
                if why:
                    world.record("gave_up", what=why, **who)
                    world.disowned[ask.token] = world.ended[ask.token] = world.now
                if starts and (not why or (stays and process.lost_replies == lost)):
                    self.note("untaken", place, what="stays" if why else "gone")
        return self._has(lock, ask, grant, who)

    def _has(
        self, lock: Lock, ask: AcquireRequest, grant: LeaseState, who: dict[str, str]
    ) -> Lease:
        world = self.world
        lock._crowded = grant.waited
        world.known.add(ask.token)
        care = lock._options
        watch = self.renewal if care.needed else None
        lease = Lease(ask, grant, self.locks._driver, watch, care)
        turn = Turn(
            *(self.resources[ask.key], 0.0, None, ask.ttl_ms, 0.0, 0),
            *(care.renew, self.careful, "release"),
        )
        lease.holding = holding = Holding(self, turn, ask, lease, who)
        lease.over = False
        world.record("got", fence=grant.fence, until=holding.until(), **who)
        world.server.check_deadline(ask.key, ask.token, holding.until())
        self.lease = lease
        return lease


class Driver:
    """What hands a protocol on to whoever carries the order of events out."""

    def __init__(self, actor: Actor) -> None:
        self._actor = actor
        self.clock = actor.process.clock
        self.server_clock = actor.process.server_clock

    def run(self, steps: Steps[Any]) -> Steps[Any]:
        """The steps, which write down what they do."""
        told, verb = getgeneratorlocals(steps), verb_of(steps)
        ask: AcquireRequest | None = told.get("request")
        if ask is not None and ask.key.endswith(PLACE):
            return self._actor.at_place(verb, ask, steps, waits=False)
        if "lease" in told:
            return self._actor.keeps(getgeneratorlocals(told["steps"])["request"], steps)
        return steps

    def resubscribe(self) -> None:
        """See the drivers."""
        self._actor.process.resubscribe()

    def later(self, step: protocol.CleanupLater) -> None:
        """See ``LeaseBase.handle``."""
        self._actor.process.later(step)

    def cleanup_in_background(self, call: protocol.RunScript) -> None:
        """Give back what nobody has in hand any more."""
        lease = self._actor.lease
        if lease is not None and not lease.over and call.parts[0] == lease._request.key:
            lease.begin_end()
        self._actor.process.start(self._abandon(call, self._actor.job))

    def _abandon(self, call: protocol.RunScript, job: str) -> Steps[None]:
        """``job``: it may have another in hand by the time that this is done."""
        actor, at_place = self._actor, call.parts[0].endswith(PLACE)
        where = {"lock": name_at(call.parts[0]), "who": actor.process.name, "id": job}
        if at_place:
            actor.world.record("taking", **where)
        yield from clean(actor.process, replace(call))
        if at_place:
            actor.world.record("untaken", what="gone", **where)


class Lease(LeaseBase):
    """A held lock."""

    __slots__ = ("holding", "over")
    holding: Holding
    over: bool

    def begin_end(self) -> None:
        """From now on it claims nothing."""
        self.over = True
        self.holding.let_go()
        self.holding.drop()

    def end(self, outcome: str) -> None:
        """It is over."""
        if not self.holding.process.dead:
            self.holding.world.record("released", what=outcome, **self.holding.who)

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
    """All actors share a thread, so a thread says nothing about which of them is inside a lock."""

    def refuse_own_wait(self, key: bytes, task: Any = None) -> None:
        """Refuse nothing."""


class Lock(LockBase):
    """A wish for a lock."""

    __slots__ = ()
    _locks: Locks

    def __init__(self, locks: Locks, name: str | bytes, ttl: float | None, metadata: str) -> None:
        settings = locks._settings
        super().__init__(settings, name, ttl, None, metadata, True, 0, None, None, None)
        self._locks = locks

    def _request(self) -> AcquireRequest:
        actor = self._locks.actor
        about = options.process_holder(actor.pid) + self._holder_info.metadata
        token = actor.fresh().ljust(22, "_").encode()
        return AcquireRequest(
            *(self._name, self._key, self._queue, token, self._ttl_ms, about),
            *(self._priority_base, self._max_waiters, self._fair, self._crowded),
        )

    def acquire(self, timeout: float | None = None) -> Steps[Lease]:
        """See :class:`lualock.Lock`."""
        ask, server = self._request(), self._locks._driver.server_clock
        return self._hold(ask, protocol.acquire(ask, server, options.wait_s(timeout)))

    def _hold(self, ask: AcquireRequest, steps: Steps[LeaseState]) -> Steps[Lease]:
        actor = self._locks.actor
        if not ask.key.endswith(PLACE):
            return (yield from actor.acquires(self, ask, steps))
        grant = yield from actor.at_place("take", ask, steps, waits=True)
        watch = actor.renewal if self._options.needed else None
        return Lease(ask, grant, self._locks._driver, watch, self._options)

    def inspect(self) -> Steps[LockInfo]:
        """See :class:`lualock.Lock`."""
        return protocol.inspect(self._name, self._key, self._queue)


class Locks:
    """The locks of a server, for one who does something with jobs."""

    def __init__(self, actor: Actor, ttl: float = 3.0) -> None:
        self.actor = actor
        self._settings = Settings("sim", ttl, None)
        self._blocks = _Blocks()
        self._driver = Driver(actor)

    def lock(self, name: str | bytes, ttl: float | None = None, *, metadata: str = "") -> Lock:
        """See :class:`lualock.Locks`."""
        return Lock(self, name, ttl, metadata)
