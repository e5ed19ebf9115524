"""What the clients of a run do: the glue between the world and the shipped protocol.

Only this module knows how the library is called: how a lock is acquired, and how a lease is renewed
and released. The APIs (``lualock/_sync``, ``lualock/aio``) do the same with real drivers.
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from lualock._core import keys, options
from lualock._core.lease import LeaseBase
from lualock._core.lock_options import LockOptions
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
from lualock._protocol.schedule import CLAIM_MS
from lualock.errors import KeyConflict, LeaseLost, LockError, NotAcquired, QueueFull
from lualock.jobs.verbs import reservation_key
from tests.simulation.connections import Sender
from tests.simulation.network import Interrupted, Process, Task
from tests.simulation.world import US

KEEP_S = 1.0
"""The ``hold_at_least`` of a turn that ends with *keep*."""

REFUSED_S = 1.0
"""How old the holder named by a refusal may be, in a calm network."""


@dataclass(slots=True)
class Lock:
    """A lock of this run, and the resource that it protects."""

    name: str
    max_waiters: bytes
    top: int = -1  # the greatest fence that the resource has seen

    def __post_init__(self) -> None:
        self.key = keys.lock_key(b"sim", self.name)
        self.queue = keys.waiters_key(self.key)

    key: bytes = b""
    queue: bytes = b""

    def reservation(self) -> Lock:
        """Return the reservation of this lock's jobs: a lock of its own."""
        reservation = Lock(f"{self.name}:reservation", self.max_waiters)
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
    careful: bool  # checks before each write that its lease is held
    ending: str  # release, forget, extend, undo, pass, keep


class Renewal(LeaseRenewer):
    """The renewal thread or timer of a process."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.holdings: list[Holding] = []  # whose ends are recorded after each round
        self.busy = False
        self._start_empty(process.server_clock)

    def _wake_at(self, check_at: float) -> None:
        self._wakes_at = check_at
        late_s = max(0.0, check_at - self._process.clock())
        self._process.soon(int(late_s * US) + 1, self._wake, check_at)

    def _wake(self, check_at: float) -> None:
        if not self.busy and check_at == self._wakes_at:
            self.busy = True
            self._process.start(self.round(), self._round_done)

    def _round_done(self, lost: Any, error: BaseException | None) -> None:
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
        self.adopters: list[Client] = []  # the clients that a lease may be passed to
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
        """Do all turns."""
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
        request = AcquireRequest(
            name=lock.name,
            key=lock.key,
            queue=lock.queue,
            token=token,
            ttl_ms=turn.ttl_ms,
            holder_info=name.encode(),
            priority_base=options.priority_base(turn.priority),
            max_waiters=lock.max_waiters,
            crowded=self._crowded.get(lock.name, False),
        )
        identity = {"lock": lock.name, "process": process.name, "id": name}
        terms = {"wait_s": turn.wait_s, "priority": turn.priority}
        world.record("acquire", what="adopt" if adopts else "", **identity, **terms)
        why = "unavailable"
        world.requested_by[token] = process.name, world.t
        self.waits = identity
        try:
            if adopts:
                state = yield from adopt(request, adopts, process.server_clock)
            else:
                state = yield from acquire(request, process.server_clock, turn.wait_s)
            if turn.ending == "undo":  # interrupted before the caller has the lease
                world.record("leave", **identity)
                yield from undo(request)
                raise Interrupted
            why = ""
        except QueueFull:
            why = "full"
        except NotAcquired as refused:
            why = "timeout"
            if refused.holder == name:
                world.wrong("refusal", f"{name} was refused because of itself")
            self._check_refusal(lock, refused)
        except KeyConflict:
            why = "conflict"
            if not world.faults["overwrite"]:
                world.wrong("conflict", f"{name} got a KeyConflict without a conflict")
        except Interrupted:
            why = "interrupted"
            raise
        except LockError:
            pass
        finally:
            self.waits = {}
            process.subscriber.forget(token)
            if why and not process.dead:
                world.record("gave_up", what=why, **identity)
                world.disowned[token] = world.ended[token] = world.now
        if why:
            return
        self._crowded[lock.name] = state.waited
        world.known.add(token)
        renewer = self.renewal if turn.renew else None
        hold_at_least = KEEP_S if turn.ending == "keep" else None
        lock_options = LockOptions(renew=turn.renew, hold_at_least=hold_at_least)
        lease = LeaseBase(request, state, process, renewer, lock_options)
        holding = Holding(self, turn, request, lease, [(lock, identity)])
        holding.begin()
        holding.check_certain()
        yield from holding.hold()

    def _check_refusal(self, lock: Lock, refused: NotAcquired) -> None:
        """Report a violation if a refusal names a holder that no longer has the lock."""
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
        """Adopt a lease, beside the turns of this client."""
        other = Client(self.process, f"{self.name}x{self._count}", self.renewal)
        self._count += 1
        other.adopters = self.adopters
        other.done = True  # it has no turns of its own
        self.adopters.append(other)
        other.task = self.process.start(other._adopts(turn, token))
        if self.world.faults["interrupt"] and self.world.random.random() < 0.5:
            soon = int(self.world.random.random() * self.world.latency_us * 8)
            self.process.soon(soon, other.interrupt)

    def _adopts(self, turn: Turn, token: bytes) -> Steps[None]:
        with suppress(Interrupted):
            yield from self._turn(turn, token)

    def writes(self, process: Process, sender: Sender) -> bool:
        """Whether a request of this client is being written; in a loop, any request of it, since
        an interruption strikes the whole loop."""
        if process is not self.process or self.task is None:
            return False
        return not process.threads or self.task.writes(sender)

    def interrupt(self) -> None:
        """Cancel the task, whatever its step."""
        if self.waits:
            self.world.record("leave", **self.waits)
        if self.task is not None:
            self.task.interrupt()


class Holding:
    """A lease, and what is done while it lasts.

    :param places: each lock that the lease is on, and how its events are recorded.
    """

    lost = "lost"
    """The outcome of a release that finds the lease lost."""

    def __init__(
        self,
        client: Client,
        turn: Turn,
        request: AcquireRequest,
        lease: LeaseBase,
        places: list[tuple[Lock, dict[str, str]]],
    ) -> None:
        self._client = client
        self.process, self.world = client.process, client.world
        self._turn, self._request, self._lease, self._places = turn, request, lease, places
        self._recorded_until = self.until()
        self._over = self._forgets = False

    def record(self, kind: str, **fields: Any) -> None:
        """Record an event at each of its locks."""
        for _, identity in self._places:
            self.world.record(kind, **identity, **fields)

    def begin(self) -> None:
        """Record that the lease begins."""
        self.record("got", fence=self._lease.fence, until=self.until())
        self._check_deadline(self.until())

    def _check_deadline(self, until: float) -> None:
        for lock, _ in self._places:
            self.world.server.check_deadline(lock.key, self._request.token, until)

    def until(self) -> float:
        """Return its deadline, on the common clock."""
        return self._lease._state.deadline - self.process.offset_s

    def check_certain(self) -> None:
        """Report a violation if a lease is used with little time left, before its claim is
        answered."""
        claim: Any = self._lease._state.claim
        granted_s = min(self._turn.ttl_ms, CLAIM_MS) / 1000
        if claim is None:
            return
        left_s = self._lease._state.deadline - claim.posted
        if left_s <= granted_s / 2:
            text = f"used before its claim, with {left_s:.6f} s of {granted_s:g} s left"
            self.world.wrong("claim", text)

    def hold(self) -> Steps[None]:
        """Work, then end the lease as the turn says."""
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
                    with suppress(LeaseLost):  # then ``with`` releases it
                        outcome = self._pass()
                        return
                if turn.ending == "forget":
                    self.drop()
                    self._over = True
                    # Its claim and its renewal, if sent before, still count.
                    while self._client.renewal.busy or self._claiming():
                        yield AwaitMessage(0.05)
                    self._forgets = True
                    return
            finally:
                if not process.dead:
                    self.let_go()
            self.drop()
            broke, failed = process.lost_replies, process.failures
            outcome = yield from self._release()
        except LeaseLost:
            outcome = self.lost
        except Interrupted:
            # ``with`` releases, whatever interrupted the body.
            if not self._lease._state.released:
                self.drop()
                process.start(self._last_release())
                outcome = ""
            raise
        except LockError as error:
            one_lost = process.lost_replies - broke == 1 and process.failures == failed
            answered = isinstance(error, KeyConflict) or "could not confirm" in str(error)
            if one_lost and not answered:
                self.world.wrong(
                    "repeat", f"a request whose reply was lost was not repeated: {error}"
                )
        finally:
            if outcome and not process.dead:
                self.record("released", what=outcome)

    def _claiming(self) -> bool:
        return self._lease._state.claim is not None and self._lease.held

    def drop(self) -> None:
        if self._turn.renew:
            self._client.renewal.drop(self._lease)

    def _pass(self) -> str:
        """Pass the lease on to another client."""
        self._check()
        self._lease.handle()
        self._forgets = True
        self.record("let_go")
        adopter = self.world.random.choice(self._client.adopters)
        if adopter.process.dead:
            if self._turn.renew:  # a program drops the lease, which ends its renewal
                self._client.renewal.drop(self._lease)
            return "unknown"
        turn = replace(self._turn, ending="release", wait_s=None)
        # A message brings the handle.
        adopter.process.soon(self.world.latency_us, adopter.adopt, turn, self._request.token)
        if self.world.random.random() < 0.2:
            self.process.soon(
                0, self._release_again
            )  # its first holder ends it, unless it was adopted
        return "passed"

    def _release_again(self) -> None:
        steps = self._lease._release()
        if steps is not None:
            self.process.start(steps)

    def let_go(self) -> None:
        self._check()
        self.world.ended[self._request.token] = self.world.now
        if not self._forgets:
            self._over = True
            self.record("let_go")
            self.world.disowned[self._request.token] = self.world.now

    def _release(self) -> Steps[str]:
        """Release the lease; return the outcome."""
        steps = self._lease._release()
        if steps is None:
            return "released"
        kept_until = -math.inf
        if self._turn.ending == "keep":
            kept_until = self._lease._keep_until - self.process.offset_s
        kept = kept_until > self.world.t
        yield from steps
        if kept:
            self.record("kept", until=kept_until, fence=self._lease.fence)
        return "passed" if kept else "released"

    def _last_release(self) -> Steps[None]:
        outcome = "unknown"
        try:
            outcome = yield from self._release()
        except LeaseLost:
            outcome = self.lost
        except LockError:
            pass
        self.record("released", what=outcome)

    def _check(self) -> None:
        """Read the lease's state, and record what changed."""
        lease = self._lease
        claim: Any = lease._state.claim
        lease.remaining()  # reads the reply to the claim
        settled = claim is not None and lease._state.claim is None
        refused = settled and isinstance(claim.reply, (bytes, list)) and claim.reply != b"claimed"
        if refused and lease.held:
            self.world.wrong("claim", f"refused ({claim.reply}), and the lease is held")
        self.note_end()
        if lease._state.lost and not self._over:
            self._over = True
            self.record("let_go")

    def note_end(self, *, answered: bool = False) -> None:
        """Record the lease's deadline if it has changed."""
        until = self.until()
        if until != self._recorded_until or answered:
            self._recorded_until = until
            what = "answered" if answered else ""
            self.record("until", until=until, what=what)
            self._check_deadline(until)

    def work(self) -> None:
        self._check()
        fence = self._lease.fence
        for lock, identity in self._places:
            if self._lease.held or not self._turn.careful:
                what = "accepted" if fence >= lock.top else "refused"
                lock.top = max(lock.top, fence)
                self.world.record("wrote", fence=fence, what=what, **identity)

    def _extend(self) -> Steps[None]:
        # For the same time, longer, or shorter. A late copy must not undo it. No lease outlasts
        # the excuse of a stepped clock.
        times = (1, max(1, min(4, 30_000 / self._turn.ttl_ms)), 0.5)[self._client._count % 3]
        with suppress(LockError):
            yield from watched(self._lease._extend(int(self._turn.ttl_ms * times)), self._check)
            self.note_end(answered=True)
        self._check()
        if times != 1:
            holdings = self._client.renewal.holdings
            holdings.append(self)
            try:
                yield AwaitMessage(self._turn.ttl_ms / 1000)
            finally:
                holdings.remove(self)
        self.work()


def observe(world_locks: list[Lock], process: Process, times: int) -> Steps[None]:
    """Inspect the locks from time to time."""
    chance = process.world.random
    for _ in range(times):
        yield AwaitMessage(chance.random() * 2)
        lock = chance.choice(world_locks)
        try:
            yield from inspect(lock.name, lock.key, lock.queue)
        except (LockError, Interrupted):
            continue
