"""The faults of a run, and when they strike.

Each seed draws its own mix (swarm testing): if every run had every fault, some faults would hide
the bugs that others reveal.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from lualock._protocol import AcquireRequest, Steps, force_release
from lualock.errors import LockError
from tests.simulation.clients import Client, Lock
from tests.simulation.network import Interrupted, Process
from tests.simulation.store import SortedSet, Value
from tests.simulation.subscriber import SubscriberConnection
from tests.simulation.world import US, World

JUNK: tuple[bytes, ...] = (
    b"",
    b"x",
    b"H" + b"1" * 20,
    b"Hnot a number....." + b"t" * 40,
    b"Z1800000000000000" + b"t" * 44 + b"web",
)


CHECK_US = 65 * US
"""A waiter far back in a queue checks that rarely. It cannot know earlier that a lease ended early,
that the queue was deleted, or that the waiters ahead died together with the holder."""


class Faults:
    """Causes faults in one world until its calm begins."""

    def __init__(
        self, world: World, processes: list[Process], clients: list[Client], locks: list[Lock]
    ) -> None:
        self.world = world
        self.processes = processes
        self.clients = clients
        self.locks = locks
        self.calm = 0
        self._junk: set[bytes] = set()  # the keys that hold foreign values now,
        self._ever: set[bytes] = set()  # and those that ever did
        self._losses = 0  # how often data were deleted or overwritten

    def plan(self, calm: int, *, deaths: bool, astray: bool) -> None:
        """Draw a mix of faults, and when each strikes; none lasts beyond ``calm``.

        ``deaths``: a process dies, because the run counts live waiters. ``astray``: an earlier
        primary keeps its connections after a fail-over.
        """
        self.calm, self._astray = calm, astray
        chance = self.world.random
        kinds = list(_KINDS)
        chance.shuffle(kinds)
        if deaths:
            kinds.insert(0, "crash")
        if astray:
            kinds.insert(0, "failover")
        for kind in kinds[: 1 + int(chance.random() ** 2 * 6)]:
            for _ in range(1 + int(chance.random() * 4)):
                self.world.at(int(chance.random() * calm * 0.9), _KINDS[kind], self)

    def plan_streams(self, calm: int, forked: Callable[[Process], None]) -> None:
        """The same for streams that lose their order, and for processes that are forked.

        ``forked`` starts the clients of a child.
        """
        self.calm, self._forked = calm, forked
        chance = self.world.random
        kinds: list[Callable[[], None]] = [self._cross, self._tear, self._fork]
        chance.shuffle(kinds)
        for kind in kinds[: chance.choice((1, 1, 2, 3))]:
            for _ in range(2 + int(chance.random() * 4)):
                self.world.at(int(chance.random() * calm * 0.9), kind)

    def plan_operator(self, calm: int) -> None:
        """The same for an operator that ends leases by force."""
        for _ in range(10):
            self.world.at(int(self.world.random.random() * calm * 0.9), self._force)

    def _force(self) -> None:
        """End the lease that has a lock, from any process."""
        process, lock = self._alive(), self.world.random.choice(self.locks)
        if process is not None:
            self.world.faults["force"] += 1
            token = b"o%d" % self.world.faults["force"]
            request = AcquireRequest(
                *(lock.name, lock.key, lock.queue, token.ljust(22, b".")),
                *(1000, b"operator", b"0", b"0"),
                crowded=False,
            )
            process.start(_quietly(force_release(request, None, process.server_clock)))

    def _cross(self) -> None:
        """Let a broken proxy drop, double or swap replies, or add errors; connections stay open."""
        world = self.world
        if "straight" in world.server.bugs:
            return
        world.faults["crossing"] += 1
        world.crossing = 0.05 + world.random.random() * 0.3
        world.after(self._lasts(5), self._not_crossing)

    def _not_crossing(self) -> None:
        self.world.crossing = 0.0

    def _tear(self) -> None:
        """Raise in a signal handler while a client writes its next request."""
        world = self.world
        running = [client for client in self.clients if client.task in client.process.tasks]
        if running and world.torn is None:
            world.torn = world.random.choice(running)
        if world.random.random() < 0.8 and world.now < self.calm * 0.9:
            world.after(int(world.random.random() * 300_000) + 1, self._tear)

    def _fork(self) -> None:
        """Fork a process in C: no hook runs, and the child has its parent's connections."""
        process = self._alive()
        if process is not None and not process.idle and self.world.now < self.calm * 0.9:
            self.world.after(int(self.world.random.random() * 50_000) + 1, self._fork)
        elif process is not None:
            self.world.faults["fork"] += 1
            child = process.fork(f"p{len(self.processes) + 1}")
            self.processes.append(child)
            self._forked(child)

    def _lasts(self, max_s: float) -> int:
        duration = int(self.world.random.random() ** 2 * max_s * US) + 1000
        return max(1, min(duration, self.calm - self.world.now))

    def _alive(self) -> Process | None:
        alive = [process for process in self.processes if not process.dead]
        return self.world.random.choice(alive) if alive else None

    def _unknowing(self, us: int = 0) -> None:
        """Record that waiters may not know of a change until they check again."""
        until = (self.world.now + us + CHECK_US) / US
        self.world.record("cause", what="unknowing", until=until)

    def flaky(self) -> None:
        """Break connections under requests."""
        world, lasts = self.world, self._lasts(5)
        world.faults["flaky"] += 1
        world.flaky = 0.05 + world.random.random() * 0.3
        world.after(lasts, self._not_flaky)
        if world.random.random() < 0.5:
            self.slow()  # so that other clients act while one repeats its request

    def _not_flaky(self) -> None:
        self.world.flaky = 0.0

    def slow(self) -> None:
        """Delay the messages of a process, each by another time."""
        process = self._alive()
        if process is not None:
            lasts = self._lasts(5)
            process.slow_us = int(self.world.random.random() * 400_000)
            # What was sent last may arrive last.
            self.world.fault("slow", lasts + 2 * process.slow_us, process=process.name)
            self.world.after(lasts, self._not_slow, process)

    def _not_slow(self, process: Process) -> None:
        process.slow_us = 0

    def cut(self) -> None:
        """Cut a process off; messages under way arrive later."""
        process = self._alive()
        if process is not None:
            lasts = self._lasts(8)
            process.cut_until = max(process.cut_until, self.world.now + lasts)
            self.world.fault("cut", lasts + US, process=process.name)

    def reset(self) -> None:
        """End a process's connection for messages. The process may notice late."""
        process = self._alive()
        if process is not None and process.subscriber.connection is not None:
            late = self._lasts(6) if self.world.random.random() < 0.5 else 150
            self.world.fault("cut", late + US, process=process.name)
            process.subscriber.connection.broken(late)

    def half_open(self) -> None:
        """End a process's connection for messages. The server notices late."""
        process = self._alive()
        if process is not None and (connection := process.subscriber.connection) is not None:
            late = self._lasts(6)
            self.world.fault("cut", late + US, process=process.name)
            connection.close()
            self.world.after(late, connection.broken)

    def pause(self) -> None:
        """Pause a process (SIGSTOP, later SIGCONT)."""
        process = self._alive()
        if process is not None:
            lasts = self._lasts(8)
            process.paused_until = max(process.paused_until, self.world.now + lasts)
            self.world.fault("pause", lasts, process=process.name)

    def crash(self) -> None:
        """Kill a process (SIGKILL). If its machine is gone too, the server notices late."""
        process = self._alive()
        if process is not None:
            late = self._lasts(6) if self.world.random.random() < 0.3 else 300
            self.world.faults["crash"] += 1
            self.world.record("gone", process=process.name)
            self.world.record(
                "cause", what="crash", process=process.name, until=(self.world.now + late) / US
            )
            process.crash()
            self._unknowing(late)
            if process.subscriber.connection is not None:
                self.world.after(late, process.subscriber.connection.broken)

    def interrupt(self) -> None:
        """Cancel a task, or raise KeyboardInterrupt in a thread."""
        running = [
            client
            for client in self.clients
            if client.task in client.process.tasks and self.world.now >= client.process.paused_until
        ]
        waiting = [
            client for client in running if client.task is not None and client.task.awaits_reply
        ]
        if waiting or (running and self.world.random.random() < 0.02):
            self.world.faults["interrupt"] += 1
            self.world.random.choice(waiting or running).interrupt()
            if self.world.random.random() < 0.8 and self.world.now < self.calm * 0.9:
                self.world.after(int(self.world.random.random() * 500_000), self.interrupt)
        elif running and self.world.now < self.calm * 0.9:
            # Most bugs need an interruption while a request is under way.
            self.world.after(int(self.world.random.random() * 20_000) + 1, self.interrupt)

    def stall(self) -> None:
        """Pause the server."""
        lasts = self._lasts(4)
        server = self.world.server
        server.stalled_until = max(server.stalled_until, self.world.now + lasts)
        self.world.fault("stall", lasts)

    def flush(self) -> None:
        """Make the server forget its scripts."""
        self.world.faults["flush"] += 1
        self.world.server.known = set()

    def oom(self) -> None:
        """Let the server run out of memory."""
        lasts = self._lasts(3)
        self.world.server.store.oom = True
        self.world.fault("oom", lasts)
        self.world.after(lasts, self._not_oom)

    def _not_oom(self) -> None:
        self.world.server.store.oom = False

    def read_only(self) -> None:
        """Make the server refuse writes."""
        lasts = self._lasts(2)
        self.world.server.store.read_only = True
        self.world.fault("read_only", lasts)
        self.world.after(lasts, self._writable)

    def _writable(self) -> None:
        self.world.server.store.read_only = False

    def forbid(self) -> None:
        """Let the server's rules forbid messages."""
        lasts = self._lasts(3)
        self.world.server.store.silent = True
        self.world.fault("forbidden", lasts)
        self._unknowing(lasts)
        self.world.after(lasts, self._allow)

    def _allow(self) -> None:
        self.world.server.store.silent = False

    def restart(self) -> None:
        """Restart the server with its data."""
        self._down("restart")

    def wipe(self) -> None:
        """Restart the server without its data."""
        server = self.world.server
        self._losses += 1
        server.store.data.clear()
        server.store.ends.clear()
        self._down("data_loss")

    def _down(self, what: str, spare: Callable[[SubscriberConnection], bool] | None = None) -> None:
        server, lasts = self.world.server, self._lasts(3)
        self.world.fault(what, lasts)
        server.down = True
        server.break_all(spare or (lambda subscriber: False))
        self.world.after(lasts, self._up)

    def _up(self) -> None:
        self.world.server.down = False

    def failover(self) -> None:
        """Let a replica take over that lacks the last writes."""
        self.world.server.tick()
        kept = self.world.server.store.snapshot()
        self.world.after(self._lasts(1), self._take_over, kept)

    def _take_over(self, kept: tuple[dict[bytes, Value], dict[bytes, int]]) -> None:
        self._losses += 1
        store = self.world.server.store
        store.restore(kept)
        for key in self._ever:  # otherwise it would stay for ever
            if key in store.data and not _ours(store.data[key]):
                del store.data[key]
                store.ends.pop(key, None)
        self._unknowing()  # an old lease may be back, and a queue of dead waiters
        self._down("failover", self._stays_connected if self._astray else None)

    def _stays_connected(self, subscriber: SubscriberConnection) -> bool:
        stays = self.world.random.random() < 0.7
        if stays:
            subscriber.go_astray(self._lasts(6))
        return stays

    def step(self) -> None:
        """Step the server's clock."""
        world = self.world
        size = int(10 ** (3 + world.random.random() * 4.3))
        server = world.server
        server.tick()
        if world.random.random() < 0.5:
            world.fault("clock_forward")
            self._unknowing()
            server.offset_us += size
        else:
            # Until the clock has caught up, its times repeat.
            world.fault("clock_back")
            self._unknowing()  # leases last longer than their holders and waiters know
            server.offset_us -= size
        server.tick()

    def evict(self) -> None:
        """Delete a key, as a user does, or an eviction policy."""
        world, store = self.world, self.world.server.store
        lock = world.random.choice(self.locks)
        key = world.random.choice((lock.key, lock.queue))
        if key in store.data:
            world.fault("data_loss", lock=lock.name)
            self._unknowing()
            self._losses += 1
            store.delete(key)

    def overwrite(self) -> None:
        """Write a foreign value to a lock's key, and remove it later."""
        world, store = self.world, self.world.server.store
        lock = world.random.choice(self.locks)
        key = world.random.choice((lock.key, lock.key, lock.queue))
        junk: Value = world.random.choice((*JUNK, None))
        if junk is None or key == lock.queue:
            junk = SortedSet() if key == lock.key else b"junk"
            if key == lock.key:
                junk.add(b"junk", 1.0)
        if key in self._junk:
            return
        lasts = self._lasts(3)
        world.fault("data_loss", lasts, lock=lock.name)
        self._unknowing(lasts)
        world.faults["overwrite"] += 1
        self._junk.add(key)
        self._ever.add(key)
        store.data[key] = junk
        store.ends.pop(key, None)
        self._losses += 1
        world.after(lasts, self._restore, key, junk, self._losses)

    def _restore(self, key: bytes, junk: Value, losses: int) -> None:
        store = self.world.server.store
        self._junk.discard(key)
        if key not in store.data:
            return  # another fault deleted it
        if store.data[key] is junk:
            del store.data[key]
        elif self._losses == losses:
            self.world.wrong("foreign", f"the foreign value at {key!r} was changed")


def _quietly(steps: Steps[bool]) -> Steps[None]:
    with suppress(LockError, Interrupted):
        yield from steps


def _ours(value: Value) -> bool:
    """Whether lualock wrote it."""
    if isinstance(value, SortedSet):
        return b"junk" not in value.scores
    return value not in (*JUNK, b"junk")


_KINDS: dict[str, Callable[[Faults], None]] = {
    name: value
    for name, value in vars(Faults).items()
    if callable(value) and not name.startswith(("_", "plan"))
}
