"""What the clients of a run do: the glue between the world and the shipped protocol.

Everything that knows how the library is called is here: what an acquisition asks for, and how a
lease is renewed and released. The shells (``lualock/_sync.py``) do the same with real drivers.
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from lualock._core import keys, options
from lualock._core.lease import LeaseBase, LeaseOptions
from lualock._core.renewal import LeaseRenewer
from lualock._protocol import (
    AcquireRequest,
    AwaitMessage,
    Steps,
    acquire,
    adopt,
    inspect,
    undo,
    watched,
)
from lualock._protocol.attempt import CLAIM_MS
from lualock.errors import KeyConflict, LeaseLost, LockError, NotAcquired, QueueFull
from lualock.jobs.verbs import reservation_key
from tests.simulation.lines import Sender
from tests.simulation.network import Interrupted, Process, Task
from tests.simulation.world import US

REFUSED_S = 1.0
"""How old may be what a refusal says, in a calm network."""


@dataclass(slots=True)
class Lock:
    """A lock of this run, and the resource behind it."""

    name: str
    fair: bool
    max_waiters: bytes
    top: int = -1  # the greatest fence that the resource has seen

    def __post_init__(self) -> None:
        self.key = keys.lock_key(b"sim", self.name)
        self.queue = keys.waiters_key(self.key)

    key: bytes = b""
    queue: bytes = b""

    def reservation(self) -> Lock:
        """The lock that a queued job has beside it."""
        reservation = Lock(f"{self.name}:reservation", self.fair, self.max_waiters)
        reservation.key = reservation_key(self.key)
        reservation.queue = keys.waiters_key(reservation.key)
        return reservation


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
    ending: str  # release, forget, extend, undo, pass


class Renewal(LeaseRenewer):
    """What the shells' renewal thread and timer are in the simulator: one for each process."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.holdings: list[Holding] = []  # of leases that somebody may look at meanwhile
        self.busy = False
        self._start_empty(process.server_clock)

    def _wake_at(self, look_at: float) -> None:
        self._wakes_at = look_at
        late_s = max(0.0, look_at - self._process.clock())
        self._process.soon(int(late_s * US) + 1, self._wake, look_at)

    def _wake(self, look_at: float) -> None:
        if not self.busy and look_at == self._wakes_at:
            self.busy = True
            self._process.start(self.round(), self._looked)

    def _looked(self, lost: Any, error: BaseException | None) -> None:
        self.busy, self._wakes_at = False, math.inf
        for holding in self.holdings:
            holding.note_end()
        next_check_at = self.next_check_at()
        if next_check_at < math.inf:
            self._wake_at(next_check_at)

    def _tell(self, lease: LeaseBase) -> None:
        pass


class Client:
    """A thread or a task that takes locks, one after the other."""

    def __init__(self, process: Process, name: str, renewal: Renewal) -> None:
        self.process = process
        self.renewal = renewal
        self.heirs: list[Client] = []  # who may be passed a lease
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
                    yield AwaitMessage(self.calm_at_s - self.world.t + 1e-6)
                yield from self._turn(turn)
            except Interrupted:
                continue
        self.done = True

    def _turn(self, turn: Turn, adopts: bytes = b"") -> Steps[None]:
        if not adopts:
            yield AwaitMessage(turn.idle_s)
        self._count += 1
        name, lock, process, world = (
            f"{self.name}.{self._count}",
            turn.lock,
            self.process,
            self.world,
        )
        token = name.ljust(22, ".").encode()
        ask = AcquireRequest(
            name=lock.name,
            key=lock.key,
            queue=lock.queue,
            token=token,
            ttl_ms=turn.ttl_ms,
            holder_info=name.encode(),
            priority_base=options.priority_base(turn.priority),
            max_waiters=lock.max_waiters,
            fair=b"1" if lock.fair else b"0",
            crowded=self._crowded.get(lock.name, False),
        )
        who = {"lock": lock.name, "who": process.name, "id": name}
        asked = {"wait_s": turn.wait_s, "fair": lock.fair, "priority": turn.priority}
        world.record("ask", what="adopt" if adopts else "", **who, **asked)
        why = "unavailable"
        world.asked[token] = process.name, world.t
        self.waits = who
        try:
            if adopts:
                grant = yield from adopt(ask, adopts, process.server_clock)
            else:
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
            self._check_refusal(lock, refused)
        except KeyConflict:
            why = "conflict"
            if not world.faults["overwrite"]:
                world.wrong("conflict", f"{name} was told of a conflict, and there is none")
        except Interrupted:
            why = "interrupted"
            raise
        except LockError:
            pass
        finally:
            self.waits = {}
            process.ear.forget(token)
            if why and not process.dead:
                world.record("gave_up", what=why, **who)
                world.disowned[token] = world.ended[token] = world.now
        if why:
            return
        self._crowded[lock.name] = grant.waited
        world.known.add(token)
        care = LeaseOptions(turn.renew)
        lease = LeaseBase(ask, grant, process, self.renewal if turn.renew else None, care)
        holding = Holding(self, turn, ask, lease, who)
        world.record("got", fence=grant.fence, until=holding.until(), **who)
        world.server.check_deadline(lock.key, token, holding.until())
        holding.check_certain()
        yield from holding.hold()

    def _check_refusal(self, lock: Lock, refused: NotAcquired) -> None:
        """Who is refused is told who has the lock now, not who had it once."""
        world, server = self.world, self.world.server
        record = server.store.data.get(lock.key)
        if type(record) is not bytes or record[:1] not in (b"H", b"W") or not refused.holder:
            return
        if world.excused(self.process.name, REFUSED_S) or world.faults["clock_back"]:
            return
        holder = options.split_holder_info(record[61:])[0]
        since_s = (server.clock_us() - int(record[1:17])) / US
        if holder != refused.holder and since_s > REFUSED_S:
            text = (
                f"it is refused for {refused.holder}, and {holder} has had it for {since_s:.6f} s"
            )
            world.wrong("refusal", text)

    def adopt(self, turn: Turn, token: bytes) -> None:
        """Take over somebody's lease, beside whatever else is being done."""
        other = Client(self.process, f"{self.name}x{self._count}", self.renewal)
        self._count += 1
        other.heirs = self.heirs
        other.done = True  # it has no turns of its own
        self.heirs.append(other)
        other.task = self.process.start(other._adopts(turn, token))
        if self.world.faults["interrupt"] and self.world.random.random() < 0.5:
            soon = int(self.world.random.random() * self.world.latency_us * 8)
            self.process.soon(soon, other.interrupt)

    def _adopts(self, turn: Turn, token: bytes) -> Steps[None]:
        with suppress(Interrupted):
            yield from self._turn(turn, token)

    def writes(self, process: Process, sender: Sender) -> bool:
        """Whether it is this one's request that is being written; or its loop's, where an
        interruption strikes them all."""
        if process is not self.process or self.task is None:
            return False
        return not process.threads or self.task.writes(sender)

    def interrupt(self) -> None:
        """Cancel it, wherever it is."""
        if self.waits:
            self.world.record("leave", **self.waits)
        if self.task is not None:
            self.task.interrupt()


class Holding:
    """A lease, and what is done while it lasts."""

    def __init__(
        self, client: Client, turn: Turn, ask: AcquireRequest, lease: LeaseBase, who: dict[str, str]
    ) -> None:
        self._client = client
        self.process, self.world = client.process, client.world
        self._turn, self._request, self._lease, self.who = turn, ask, lease, who
        self._told = self.until()
        self._over = self._forgets = False

    def until(self) -> float:
        """Its deadline, on the common clock."""
        return self._lease._state.deadline - self.process.offset_s

    def check_certain(self) -> None:
        """A lease is begun before its claim is answered only where much of its time is left."""
        claim: Any = self._lease._state.claim
        given_s = min(self._turn.ttl_ms, CLAIM_MS) / 1000
        if claim is None:
            return
        left_s = self._lease._state.deadline - claim.posted
        if left_s <= given_s / 2:
            text = f"it was begun with {left_s:.6f} s left, of {given_s:g} s until it is claimed"
            self.world.wrong("claim", text)

    def hold(self) -> Steps[None]:
        """Work, and let go."""
        turn, process = self._turn, self.process
        outcome = "unknown"
        broke = failed = 0
        try:
            try:
                for _ in range(3):
                    self.work()
                    yield AwaitMessage(turn.hold_s / 3)
                self.work()
                if turn.ending == "extend":
                    yield from self._extend()
                if turn.ending == "pass":
                    with suppress(LeaseLost):  # then the shell's `with` releases it
                        outcome = self._pass()
                        return
                if turn.ending == "forget":
                    self.drop()
                    self._over = True
                    # What was sent before it was forgotten still counts: its claim, its renewal.
                    while self._client.renewal.busy or self._claiming():
                        yield AwaitMessage(0.05)
                    self._forgets = True
                    return
            finally:
                if not process.dead:
                    self.let_go()
            self.drop()
            broke, failed = process.lost_replies, process.failures
            steps = self._lease._release()
            if steps is not None:
                yield from steps
            outcome = "released"
        except LeaseLost:
            outcome = "lost"
        except Interrupted:
            # The shell's `with` releases, whatever interrupted the body.
            if not self._lease._state.released:
                self.drop()
                process.start(self._last_release())
                outcome = ""
            raise
        except LockError as error:
            one_lost = process.lost_replies - broke == 1 and process.failures == failed
            answered = isinstance(error, KeyConflict) or "could not confirm" in str(error)
            if one_lost and not answered:
                self.world.wrong("repeat", f"a lost reply was not asked for again: {error}")
        finally:
            if outcome and not process.dead:
                self.world.record("released", what=outcome, **self.who)

    def _claiming(self) -> bool:
        return self._lease._state.claim is not None and self._lease.held

    def drop(self) -> None:
        if self._turn.renew:
            self._client.renewal.drop(self._lease)

    def _pass(self) -> str:
        """Pass the lease on to somebody else."""
        self._look()
        self._lease.handle()
        self._forgets = True
        self.world.record("let_go", **self.who)
        heir = self.world.random.choice(self._client.heirs)
        if heir.process.dead:
            if self._turn.renew:  # a program would drop the lease, which ends its renewal
                self._client.renewal.drop(self._lease)
            return "unknown"
        turn = replace(self._turn, ending="release", wait_s=None)
        # A message brings the handle.
        heir.process.soon(self.world.latency_us, heir.adopt, turn, self._request.token)
        if self.world.random.random() < 0.2:
            self.process.soon(0, self._take_back)  # it wants it back, if it was not adopted yet
        return "passed"

    def _take_back(self) -> None:
        steps = self._lease._release()
        if steps is not None:
            self.process.start(steps)

    def let_go(self) -> None:
        self._look()
        self.world.ended[self._request.token] = self.world.now
        if not self._forgets:
            self._over = True
            self.world.record("let_go", **self.who)
            self.world.disowned[self._request.token] = self.world.now

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
        self.world.record("released", what=outcome, **self.who)

    def _look(self) -> None:
        """What the lease says of itself now."""
        lease = self._lease
        claim: Any = lease._state.claim
        lease.remaining()  # reads the reply to the claim
        settled = claim is not None and lease._state.claim is None
        refused = settled and isinstance(claim.reply, (bytes, list)) and claim.reply != b"claimed"
        if refused and lease.held:
            self.world.wrong("claim", f"the claim was refused: {claim.reply}, and it is held")
        self.note_end()
        if lease._state.lost and not self._over:
            self._over = True
            self.world.record("let_go", **self.who)

    def note_end(self, *, answered: bool = False) -> None:
        """Write down when it ends, as far as it knows, where that has changed."""
        until = self.until()
        if until != self._told or answered:
            self._told = until
            what = "answered" if answered else ""
            self.world.record("until", until=until, what=what, **self.who)
            self.world.server.check_deadline(self._request.key, self._request.token, until)

    def work(self) -> None:
        self._look()
        lock, fence = self._turn.lock, self._lease.fence
        if self._lease.held or not self._turn.careful:
            accepted = fence >= lock.top
            lock.top = max(lock.top, fence)
            what = "accepted" if accepted else "refused"
            self.world.record("wrote", fence=fence, what=what, **self.who)

    def _extend(self) -> Steps[None]:
        # For as long as before, longer or shorter. What comes late must not take that away.
        # (No lease is longer than what a clock that was set excuses.)
        times = (1, max(1, min(4, 30_000 / self._turn.ttl_ms)), 0.5)[self._client._count % 3]
        with suppress(LockError):
            yield from watched(self._lease._extend(int(self._turn.ttl_ms * times)), self._look)
            self.note_end(answered=True)
        self._look()
        if times != 1:
            holdings = self._client.renewal.holdings
            holdings.append(self)
            try:
                yield AwaitMessage(self._turn.ttl_ms / 1000)
            finally:
                holdings.remove(self)
        self.work()


def observe(world_locks: list[Lock], process: Process, times: int) -> Steps[None]:
    """Somebody who looks who has a lock, now and then."""
    chance = process.world.random
    for _ in range(times):
        yield AwaitMessage(chance.random() * 2)
        lock = chance.choice(world_locks)
        try:
            yield from inspect(lock.name, lock.key, lock.queue)
        except (LockError, Interrupted):
            continue
