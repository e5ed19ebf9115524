"""What the clients of a run do: the glue between the world and the shipped protocol.

Everything that knows how the library is called is here: what an acquisition asks for, and how a
lease is renewed and released. The shells (``lualock/sync.py``) do the same with real drivers.
"""

from __future__ import annotations

from dataclasses import dataclass

from lualock import keys, options
from lualock.errors import KeyConflict, LeaseLost, LockError, NotAcquired, QueueFull
from lualock.lease import BaseLease
from lualock.protocol import Ask, Steps, Wait, acquire, inspect, undo
from tests.simulation.network import Interrupted, Process, Task


@dataclass(slots=True)
class Lock:
    """A lock of this run, and the resource behind it."""

    name: str
    fair: bool
    max_waiters: bytes
    top: int = -1  # the greatest fence that the resource has seen

    def __post_init__(self) -> None:
        self.key = keys.lock_key(b"sim", self.name)
        self.queue = keys.queue_key(self.key)

    key: bytes = b""
    queue: bytes = b""


@dataclass(slots=True)
class Turn:
    """One acquisition, and what is done with it."""

    lock: Lock
    idle_s: float
    wait_s: float | None
    ttl_ms: int
    hold_s: float
    priority: int
    renew: bool
    careful: bool  # looks whether it has the lease before it writes
    ending: str  # release, forget, extend, undo


class Client:
    """A thread or a task that takes locks, one after the other."""

    def __init__(self, process: Process, name: str) -> None:
        self.process = process
        self.world = process.world
        self.name = name
        self.turns: list[Turn] = []
        self.calm_turns: list[Turn] = []
        self.calm_at_s = 0.0
        self.task: Task | None = None
        self.done = False
        self.waits: dict[str, str] = {}  # the acquisition under way
        self._count = 0
        self._crowded: dict[str, bool] = {}

    def life(self) -> Steps[None]:
        """All turns."""
        for turn in (*self.turns, *self.calm_turns):
            try:
                while turn in self.calm_turns and self.world.t < self.calm_at_s:
                    yield Wait(self.calm_at_s - self.world.t + 1e-6)
                yield from self._turn(turn)
            except Interrupted:
                continue
        self.done = True

    def _turn(self, turn: Turn) -> Steps[None]:
        yield Wait(turn.idle_s)
        self._count += 1
        name, lock, process, world = (
            f"{self.name}.{self._count}",
            turn.lock,
            self.process,
            self.world,
        )
        token = name.ljust(22, ".").encode()
        ask = Ask(
            name=lock.name,
            key=lock.key,
            queue=lock.queue,
            token=token,
            ttl_ms=turn.ttl_ms,
            about=name.encode(),
            band=options.band(turn.priority),
            max_waiters=lock.max_waiters,
            fair=b"1" if lock.fair else b"0",
            crowded=self._crowded.get(lock.name, False),
        )
        who = {"lock": lock.name, "who": process.name, "id": name}
        asked = {"wait_s": turn.wait_s, "fair": lock.fair, "priority": turn.priority}
        world.record("ask", **who, **asked)
        why = "unavailable"
        self.waits = who
        try:
            grant = yield from acquire(ask, process.server_clock, turn.wait_s)
            if turn.ending == "undo":  # interrupted just before anybody heard of it
                world.record("leave", **who)
                yield from undo(ask)
                raise Interrupted
            why = ""
        except QueueFull:
            why = "full"
        except NotAcquired as refused:
            why = "timeout"
            if refused.holder == name:
                world.wrong("refusal", f"{name} was refused for its own sake")
        except KeyConflict:
            why = "conflict"
        except Interrupted:
            why = "interrupted"
            raise
        except LockError:
            pass
        finally:
            self.waits = {}
            process.ear.forget(token)
            if why:
                world.record("gave_up", what=why, **who)
                world.disowned[token] = world.ended[token] = world.now
        if why:
            return
        self._crowded[lock.name] = grant.waited
        world.known.add(token)
        holding = _Holding(self, turn, ask, BaseLease(ask, grant, process, None), who)
        world.record("got", fence=grant.fence, until=holding.until(), **who)
        yield from holding.hold()

    def interrupt(self) -> None:
        """Cancel it, wherever it is."""
        if self.waits:
            self.world.record("leave", **self.waits)
        if self.task is not None:
            self.task.interrupt()


class _Holding:
    """A lease, and what is done while it lasts."""

    def __init__(
        self, client: Client, turn: Turn, ask: Ask, lease: BaseLease, who: dict[str, str]
    ) -> None:
        self._client = client
        self._process, self._world = client.process, client.world
        self._turn, self._ask, self._lease, self._who = turn, ask, lease, who
        self._told = self.until()
        self._over = self._forgets = False

    def until(self) -> float:
        """Its deadline, on the common clock."""
        return self._lease._grant.deadline - self._process.offset_s

    def hold(self) -> Steps[None]:
        """Work, and let go."""
        turn, process = self._turn, self._process
        if turn.renew:
            process.start(self._renew())
        outcome = "unknown"
        try:
            try:
                for _ in range(3):
                    self._work()
                    yield Wait(turn.hold_s / 3)
                self._work()
                if turn.ending == "extend":
                    yield from self._extend()
                if turn.ending == "forget":
                    self._over = True
                    while self._lease._grant.claim is not None and self._lease.held:
                        yield Wait(0.05)
                    self._forgets = True
                    return
            finally:
                self._let_go()
            steps = self._lease._release()
            if steps is not None:
                yield from steps
            outcome = "released"
        except LeaseLost:
            outcome = "lost"
        except Interrupted:
            # The shell's `with` releases, whatever interrupted the body.
            if not self._lease._grant.released:
                process.start(self._last_release())
                outcome = ""
            raise
        except LockError:
            pass
        finally:
            if outcome:
                self._world.record("released", what=outcome, **self._who)

    def _let_go(self) -> None:
        self._look()
        self._world.ended[self._ask.token] = self._world.now
        if not self._forgets:
            self._over = True
            self._world.record("let_go", **self._who)
            self._world.disowned[self._ask.token] = self._world.now

    def _last_release(self) -> Steps[None]:
        outcome = "unknown"
        try:
            steps = self._lease._release()
            if steps is not None:
                yield from steps
            outcome = "released"
        except LeaseLost:
            outcome = "lost"
        except LockError:
            pass
        self._world.record("released", what=outcome, **self._who)

    def _look(self) -> None:
        """What the lease says of itself now."""
        lease = self._lease
        lease.remaining()  # reads the reply to the claim
        until = self.until()
        if until != self._told:
            self._told = until
            self._world.record("until", until=until, **self._who)
        if lease._grant.lost and not self._over:
            self._over = True
            self._world.record("let_go", **self._who)

    def _work(self) -> None:
        self._look()
        lock, fence = self._turn.lock, self._lease.fence
        if self._lease.held or not self._turn.careful:
            accepted = fence >= lock.top
            lock.top = max(lock.top, fence)
            what = "accepted" if accepted else "refused"
            self._world.record("wrote", fence=fence, what=what, **self._who)

    def _extend(self) -> Steps[None]:
        try:
            yield from self._lease._extend(self._turn.ttl_ms)
        except LockError:
            pass
        self._look()

    def _renew(self) -> Steps[None]:
        """As the renewal of ``lualock/renewal.py`` does: at a third of the ttl."""
        lease, clock, ttl_s = self._lease, self._process.clock, self._turn.ttl_ms / 1000
        while True:
            left_s = lease._grant.deadline - ttl_s * 2 / 3 - clock()
            yield Wait(max(left_s, ttl_s / 10))
            if self._over or not lease.held:
                return
            yield from self._extend()


def observe(world_locks: list[Lock], process: Process, times: int) -> Steps[None]:
    """Somebody who looks who has a lock, now and then."""
    chance = process.world.random
    for _ in range(times):
        yield Wait(chance.random() * 2)
        lock = chance.choice(world_locks)
        try:
            yield from inspect(lock.name, lock.key, lock.queue)
        except (LockError, Interrupted):
            continue
