"""Every script, every fault, at every step: at most one holder, and little time lost."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

import lualock
from lualock import aio
from lualock._protocol import CleanupLater, RunScript
from lualock._protocol.abandon import schedule_cleanup
from lualock.scripts import SCRIPTS, every
from tests.conftest import server_named
from tests.support.faults import Exchange, Fault, FaultProxy
from tests.support.servers import BINARIES, Server
from tests.support.tiers import full
from tests.support.witness import Witness
from tests.support.world import World, settle

TTL = 1.0
SOCKET_TIMEOUT = 0.4
SLACK = 0.8  # less than another lease, and enough for a busy machine
AT_ONCE = 12  # cases side by side: they mostly wait

FAULTS = {
    "request dropped": Fault("drop request"),
    "request dropped twice": Fault("drop request", times=2),
    "reply dropped": Fault("drop reply"),
    "reply dropped twice": Fault("drop reply", times=2),
    "request delayed": Fault("delay request", seconds=SOCKET_TIMEOUT / 4),
    "reply delayed": Fault("delay reply", seconds=SOCKET_TIMEOUT / 2),
    "request too late": Fault("delay request", seconds=SOCKET_TIMEOUT * 1.5),
    "reply too late": Fault("delay reply", seconds=SOCKET_TIMEOUT * 1.5),
    "half-open before": Fault("half-open"),
    "half-open after": Fault("half-reply"),
    "half-open twice": Fault("half-open", times=2),
    "deaf": Fault("deaf"),
    "orphan": Fault("orphan"),
}
READS_ONLY = {"inspect", "release_requested"}
WITH_JOBS = {"request_release", "withdraw", "jobs/reserve", "jobs/start"}
"""The scripts that ``test_job_faults`` tries."""
WITHOUT = {"jobs/died"}  # repeated by its caller, which is the parent of the dead worker


class Case:
    """A victim whose requests meet the fault, and rivals that use the server directly."""

    def __init__(
        self, world: World, proxy: FaultProxy, name: str, script: str, fault: Fault
    ) -> None:
        self.world = world
        self.proxy = proxy
        self.witness = Witness()
        self._name = name
        self._longest = TTL
        self._script = script
        self._fault = fault
        # A fault that strikes once is repaired: the repeated request meets none.
        self.mild = fault.times == 1
        self._victims = world.connect(f"{proxy.url}?socket_timeout={SOCKET_TIMEOUT}")
        self._rivals = world.connect()
        self._started: list[asyncio.Future[Any]] = []

    def victim(self, ttl: float = TTL, **options: Any) -> Any:
        self._longest = max(self._longest, ttl)
        return self._lock(self._victims, ttl, **options)

    def rival(self, ttl: float = TTL) -> Any:
        return self._lock(self._rivals, ttl)

    def _lock(self, locks: Any, ttl: float, **options: Any) -> Any:
        lock = locks.lock(self._name, ttl=ttl, **options)
        if not self._script.startswith("multi/"):
            return lock
        return locks.together(lock, locks.lock(f"{self._name}~", ttl=ttl, **options))

    def adopt(self, handle: str) -> Any:
        return self._victims.adopt(handle)

    def arm(self) -> None:
        """Inject the fault from now on."""
        self.proxy.inject(self._fault, self._script)

    async def met(self) -> Exchange:
        """Return once the fault has struck."""
        await self.world.until(lambda: self.proxy.met)
        return self.proxy.met[0]

    async def take(self, lock: Any, timeout: float | None = 4) -> Any:
        """Acquire; None if that failed for a reason that the fault gives."""
        return await self.have(lambda: lock.acquire(timeout=timeout))

    async def have(self, how: Callable[[], Any]) -> Any:
        """Get a lease in any way; None as in :meth:`take`."""
        try:
            lease = await self.world.beside(how)
        except (lualock.NotAcquired, lualock.LeaseLost):  # the lease in trust was lost
            return None
        except lualock.LockUnavailable as error:
            if self.mild and not self._too_slow(error):
                raise
            return None
        if lease is not None:
            self.witness.acquired(lease)
            self.promises_no_more(lease)
        return lease

    def promises_no_more(self, lease: Any) -> None:
        """Check that the lease does not promise more time than the server has for it."""
        end = time.monotonic() + lease.remaining()
        left_ms = self.world.client.pttl(self.rival().key)
        now = time.monotonic()
        if self._has(lease.token):
            assert end <= now + left_ms / 1000 + 0.002
        else:
            assert not lease.held

    def start(self, lock: Any) -> asyncio.Future[Any]:
        """Acquire in the background."""
        started = asyncio.ensure_future(self.take(lock))
        self._started.append(started)
        return started

    async def queued(self, lock: Any) -> asyncio.Future[Any]:
        """Start to wait for the lock, and return when it is in the queue."""
        before = self.world.waiters(lock)
        waiter = self.start(lock)
        await self.world.until_waiters(lock, before + 1)
        return waiter

    async def give(self, lease: Any) -> None:
        """Release, and check that the reported result is true."""
        if lease is None:
            return
        self.witness.releasing(lease)
        try:
            await self.world.beside(lease.release)
            assert not self._has(lease.token), "reported as released, and still holds the lock"
        except lualock.LeaseLost:
            assert not self._did_release(lease.token), "reported as lost, and had been released"
        except lualock.LockUnavailable as error:
            # The server remembers only the token before that of its holder.
            overtaken = self.witness.released_since(lease) or self._too_slow(error)
            if self.mild and not overtaken:
                raise
            unknown = error.outcome_unknown
            assert unknown or not self._did_release(lease.token), error  # noqa: PT017 - most cases do not raise
        self.witness.release_ended(lease)

    async def observe(self, seconds: float) -> None:
        """Check all leases for so long."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while loop.time() < end:
            self.witness.check()
            await asyncio.sleep(0.01)

    async def end(self) -> None:
        """Check that the lock can be acquired within one lease, and that nothing else is left."""
        assert self.proxy.met, "no request met the fault"
        await asyncio.to_thread(self.proxy.deliver)
        self.witness.check()
        lock = self.rival()
        lease = await self.take(lock, timeout=self._longest + SLACK)
        assert lease is not None, "the lock has no holder, and is not free"
        await asyncio.gather(*self._started)  # so no caller waits any more
        assert self.world.waiters(lock) == 0
        await self.give(lease)

    @staticmethod
    def _too_slow(error: Exception) -> bool:
        """Whether a busy machine did not even connect within the short timeout."""
        return "could not connect to the server" in str(error)

    def sent(self, script: str) -> int:
        """Return how many requests of that script have gone through the proxy for this lock."""
        key = self.rival().key
        return sum(one.script == script and one.parts[0] == key for one in self.proxy.seen)

    def _has(self, token: str) -> bool:
        record = self.world.client.get(self.rival().key) or b""
        return record[:1] in b"HW" and record[17:39] == token.encode()

    def _did_release(self, token: str) -> bool:
        return any(
            exchange.reply in (b"released", b"handed_over") and token.encode() in exchange.parts
            for exchange in self.proxy.seen
        )


Step = Callable[[Case], Awaitable[None]]
STEPS: dict[tuple[str, str], Step] = {}


def at(script: str, step: str) -> Callable[[Step], Step]:
    """Register a scenario in which that script is sent, once the case is armed."""

    def register(scenario: Step) -> Step:
        STEPS[script, step] = scenario
        return scenario

    return register


@at("acquire", "free")
async def _acquire(case: Case) -> None:
    case.arm()
    await case.give(await case.take(case.victim()))


@at("acquire", "one try")
async def _acquire_once(case: Case) -> None:
    case.arm()
    lease = await case.have(case.victim().try_acquire)
    assert lease is not None or not case.mild, "it is its own rival"
    await case.give(lease)


@at("acquire", "held")
async def _acquire_held(case: Case) -> None:
    held = await case.take(case.rival())
    case.arm()
    waiter = case.start(case.victim())
    await case.met()
    await case.give(held)
    await case.give(await waiter)


@at("wait", "first check")
async def _wait(case: Case) -> None:
    held = await case.take(case.rival())
    case.arm()
    waiter = case.start(case.victim())
    await case.met()
    await case.give(held)
    await case.give(await waiter)


@at("wait", "after the lease of the holder")
async def _wait_again(case: Case) -> None:
    held = await case.take(case.rival())
    waiter = await case.queued(case.victim())
    case.arm()
    await case.give(await waiter)
    await case.give(held)


@at("wait", "free")
async def _wait_free(case: Case) -> None:
    lock = case.victim()
    held = await case.take(case.rival())
    waiter = await case.queued(lock)
    await case.give(held)
    await case.give(await waiter)
    case.arm()
    await case.give(await case.take(lock))  # after a wait it does not try without a place


@at("wait", "others behind")
async def _wait_others(case: Case) -> None:
    held = await case.take(case.rival())
    case.arm()
    waiter = case.start(case.victim())
    await case.met()
    other = case.start(case.rival())
    await case.give(held)

    async def turn(waiting: asyncio.Future[Any]) -> None:
        await case.give(await waiting)

    await asyncio.gather(turn(waiter), turn(other))


@at("abandon", "time over")
async def _abandon(case: Case) -> None:
    held = await case.take(case.rival(ttl=5))  # it does not expire
    case.arm()
    await case.give(await case.take(case.victim(), timeout=0.6))
    await case.give(held)


@at("abandon", "others behind")
async def _abandon_others(case: Case) -> None:
    held = await case.take(case.rival(ttl=5))  # it does not expire
    case.arm()
    waiter = asyncio.ensure_future(case.take(case.victim(), timeout=0.8))
    await case.world.until(lambda: case.world.waiters(case.rival()))
    other = await case.queued(case.rival())
    await case.met()
    await case.give(held)
    await case.give(await waiter)
    await case.give(await other)


@at("extend", "explicit")
async def _extend(case: Case) -> None:
    lease = await case.take(case.victim())
    case.arm()
    other = await case.queued(case.rival())
    try:
        await case.world.beside(lambda: lease.extend(TTL))
        case.promises_no_more(lease)
    except lualock.LockUnavailable:
        await case.observe(TTL / 2)
    except lualock.LeaseLost:
        assert not lease.held
    case.witness.check()
    await case.give(lease)
    await case.give(await other)


@at("extend", "renewal")
async def _renew(case: Case) -> None:
    lease = await case.take(case.victim(renew=True))
    case.arm()
    other = await case.queued(case.rival())
    await case.met()
    await case.observe(TTL)
    await case.give(lease)
    await case.give(await other)


@at("force_release", "held")
async def _force_release(case: Case) -> None:
    held = await case.take(case.rival(ttl=5))  # it does not expire
    other = await case.queued(case.rival())
    case.witness.releasing(held)
    case.arm()
    try:
        assert await case.world.beside(case.victim().force_release)
    except lualock.LockUnavailable:
        await case.world.beside(case.rival().force_release)
    with suppress(lualock.LeaseLost):
        await case.world.beside(held.release)
    await case.give(await other)


@at("claim", "at once")
async def _claim(case: Case) -> None:
    held = await case.take(case.rival())
    waiter = await case.queued(case.victim())
    other = await case.queued(case.rival())
    # Its check as a new waiter would claim the lock, too.
    await case.world.until(lambda: case.sent("wait") > 1)
    case.arm()
    await case.give(held)
    await case.give(await waiter)
    await case.give(await other)


@at("claim", "whose reply is read later")
async def _claim_later(case: Case) -> None:
    held = await case.take(case.rival())
    waiter = await case.queued(case.victim(ttl=1.5))  # enough to begin at once
    other = await case.queued(case.rival())
    await case.world.until(lambda: case.sent("wait") > 1)
    case.arm()
    await case.give(held)
    lease = await waiter
    await case.observe(TTL / 4)
    await case.give(lease)
    await case.give(await other)


@at("release", "free")
async def _release(case: Case) -> None:
    lease = await case.take(case.victim())
    case.arm()
    await case.give(lease)


@at("release", "others wait")
async def _release_waited(case: Case) -> None:
    lease = await case.take(case.victim())
    other = await case.queued(case.rival())
    case.arm()
    await case.give(lease)
    await case.give(await other)


@at("release", "others come and go meanwhile")
async def _release_overtaken(case: Case) -> None:
    lease = await case.take(case.victim())
    case.arm()
    giving = asyncio.ensure_future(case.give(lease))
    await case.met()
    await case.give(await case.take(case.rival()))
    last = await case.take(case.rival())
    await giving
    await case.give(last)


@at("hand_over", "to a waiter")
async def _hand_over(case: Case) -> None:
    lease = await case.take(case.victim())
    other = await case.queued(case.rival())
    case.arm()
    await case.give(lease)
    await case.give(await other)


@at("hand_over", "to the next in a chain")
async def _hand_over_on(case: Case) -> None:
    held = await case.take(case.rival())
    waiter = await case.queued(case.victim())
    other = await case.queued(case.rival())
    last = await case.queued(case.rival())
    await case.give(held)
    lease = await waiter
    case.arm()
    await case.give(lease)
    await case.give(await other)
    await case.give(await last)


@at("adopt", "from another process")
async def _adopt(case: Case) -> None:
    lease = await case.take(case.rival())
    handle = lease.handle()
    case.arm()
    case.witness.releasing(lease)
    adopted = await case.have(lambda: case.adopt(handle))
    case.witness.release_ended(lease)
    await case.give(adopted)
    await case.give(lease)


at("multi/acquire_all", "free")(_acquire)
at("multi/acquire_all", "one try")(_acquire_once)
at("multi/acquire_all", "held")(_acquire_held)


@at("multi/acquire_all", "after it has waited for each")
async def _acquire_all_waited(case: Case) -> None:
    held = await case.take(case.rival())
    waiter = await case.queued(case.victim())
    case.arm()
    await case.give(held)
    await case.give(await waiter)


def test_every_script_has_its_steps() -> None:
    """Every script that writes has a scenario, here or with jobs."""
    names = {path.removeprefix("lock/") for path in every()}
    assert {script for script, _ in STEPS} | WITH_JOBS == names - READS_ONLY - WITHOUT


@asynccontextmanager
async def faulty(world: World) -> AsyncIterator[FaultProxy]:
    """Return a proxy before a server that has the scripts."""
    for each in every().values():
        world.client.script_load(each.source)
    with FaultProxy(world.server.socket) as proxy:
        yield proxy
        if world.asynchronous:
            for locks in world.made:
                await locks.aclose()


async def play(server: Server, asynchronous: bool, script: str, step: str, fault: str) -> None:
    """Play one case."""
    with server.client() as client:
        world = World(server, asynchronous, 3, client)
        name = f"{script} {step} {fault} {asynchronous}"
        async with faulty(world) as proxy:
            case = Case(world, proxy, name, script, FAULTS[fault])
            await STEPS[script, step](case)
            await case.end()
        world.close()


@pytest.fixture(scope="module")
def outcomes(request: pytest.FixtureRequest) -> dict[str, BaseException | None]:
    """Return the outcomes of the chosen cases. They run side by side, since each mostly waits for a
    timeout or the end of a lease."""
    server = server_named(next(iter(BINARIES)))
    chosen = [item for item in request.session.items if item.name.startswith("test_fault[")]
    ended: dict[str, BaseException | None] = {}

    async def play_all() -> None:
        places = asyncio.Semaphore(AT_ONCE)

        async def play_one(item: Any) -> None:
            async with places:
                try:
                    await asyncio.wait_for(play(server, **item.callspec.params), 30)
                    ended[item.name] = None
                except Exception as error:
                    ended[item.name] = error

        await asyncio.gather(*map(play_one, chosen))

    asyncio.run(play_all())
    return ended


@pytest.mark.full
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(("script", "step"), STEPS)
@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "asyncio"])
def test_fault(
    request: pytest.FixtureRequest,
    outcomes: dict[str, BaseException | None],
    asynchronous: bool,
    script: str,
    step: str,
    fault: str,
) -> None:
    """A fault makes no two holders, costs at most one lease, reports no release as lost, and keeps
    fences increasing."""
    error = outcomes[request.node.name]
    if error is not None:
        raise error


async def _cold(world: World, proxy: FaultProxy, fault: Fault, nth: int) -> None:
    case = Case(world, proxy, f"{nth} {fault}", "acquire", fault)
    proxy.inject(fault, nth=nth)
    lease = await case.take(case.victim())
    await case.give(lease)
    await case.end()


@pytest.mark.parametrize("fault", ["request dropped", "reply dropped", "reply dropped twice"])
async def test_scripts_that_the_server_forgot(api: World, fault: str) -> None:
    """The same holds for the request that sends a whole script because the server forgot it."""
    for nth in (1, 2, 3, 4):  # EVALSHA, EVAL, and the same for the release
        async with faulty(api) as proxy:
            api.client.script_flush()
            await _cold(api, proxy, FAULTS[fault], nth)


@pytest.mark.parametrize("step", ["acquire", *full("wait", "wait behind another")])
async def test_an_orphan_that_comes_late_does_nothing(api: World, step: str) -> None:
    """An orphaned request that arrives late takes neither the lock nor a place in the queue."""
    async with faulty(api) as proxy:
        case = Case(api, proxy, "x", step.split()[0], Fault("orphan", times=9))
        lock, fence = case.victim(), None
        if step != "acquire":  # after a wait it does not try without a place
            held = await case.take(case.rival())
            waiter = await case.queued(lock)
            await case.give(held)
            await case.give(await waiter)
        if step == "wait behind another":
            fence = (await case.take(case.rival(ttl=30))).fence
        case.arm()
        assert await case.take(lock, timeout=0.1) is None
        await asyncio.sleep(SOCKET_TIMEOUT * 2 + 0.5)  # an orphan that arrives after all deadlines
        replies = proxy.deliver()
        assert replies
        info = await settle(lock.inspect())
        assert (info.fence, info.waiters) == (fence, 0), replies


@pytest.mark.parametrize("end", ["released", *full("passed on", "in trust")])
async def test_an_orphan_of_a_lease_that_was_acquired(api: World, end: str) -> None:
    """A lock that an orphaned request takes after the lease of its repetition is released when the
    orphan has expired; the lease itself is not."""
    async with faulty(api) as proxy:
        lock = api.connect(f"{proxy.url}?socket_timeout=1").lock("x", ttl=30)
        proxy.inject(Fault("stray"), "acquire")
        lease = await settle(lock.acquire())
        direct = api.connect()
        if end == "released":
            await settle(lease.release())
        else:
            handle = lease.handle()
        if end == "passed on":
            await settle((await settle(direct.adopt(handle))).release())
        (reply,) = proxy.deliver()
        if end == "in trust":
            assert reply[0] == b"owned"
        else:
            assert int(reply) > lease.fence, "an orphan has the lock"
        await api.until(lambda: any(one.script == "abandon" and one.reply for one in proxy.seen))
        if end == "in trust":
            await settle((await settle(direct.adopt(handle))).release())
        assert not await settle(lock.locked())


@pytest.mark.parametrize("lives", [True, False])
async def test_an_orphan_whose_connection_breaks_later(server: Server, lives: bool) -> None:
    """On a living connection nothing arrives after the request that undid it. If that breaks, the
    undoing request was repeated on another connection, and the orphan may come later: it is cleaned
    up."""
    async with aio.connect(server.url) as locks:
        lock = locks.lock("x", ttl=30)
        await (await lock.acquire()).release()
        driver = locks._driver
        request, connections = lock._request(), driver._loops[asyncio.get_running_loop()]
        via = connections.connection
        assert via is not None
        deadline = b"9" * 16
        parts = (request.key, request.token, b"30000", deadline, request.holder_info)
        orphan = RunScript(SCRIPTS["acquire"], parts, expires=driver.clock() + 0.2, via=via)
        for cleanup in schedule_cleanup(request, orphan):
            assert isinstance(cleanup, CleanupLater)
            connections.cleanup_later(cleanup)
        if not lives:
            via.close()
        with server.client() as client:
            client.eval(SCRIPTS["acquire"].source.decode(), 1, *parts)  # it arrives
        await asyncio.sleep(0.3)  # until it has expired
        assert await lock.locked() == lives


@pytest.mark.full
async def test_a_claim_that_never_arrives(api: World) -> None:
    """A holder whose claim is lost unnoticed ends before the claim window does, and the lock goes
    to the next."""
    async with faulty(api) as proxy:
        case = Case(api, proxy, "x", "claim", Fault("half-open", times=99))
        held = await case.take(case.rival())
        waiter = await case.queued(case.victim(ttl=30))
        other = await case.queued(case.rival())
        case.arm()
        await case.give(held)
        lease = await waiter
        assert lease.held
        while not other.done():
            case.witness.check()
            await asyncio.sleep(0.005)
        assert lease.lost
        await case.give(await other)


class Chance:
    """Draws faults from a seed: a value for :attr:`FaultProxy.choose`."""

    def __init__(self, seed: int, share: float) -> None:
        self._random = random.Random(seed)
        self._share = share
        self.struck = 0

    def __call__(self, script: str) -> Fault | None:
        if self._random.random() > self._share:
            return None
        self.struck += 1
        kinds = ("drop request", "drop reply", "delay request", "delay reply", "half-open")
        kind = self._random.choice((*kinds, "half-reply", "orphan"))
        return Fault(kind, seconds=self._random.uniform(0, SOCKET_TIMEOUT * 2))


@pytest.mark.full
@pytest.mark.parametrize("seed", [1, 2])
async def test_contenders_with_faults_by_chance(api: World, seed: int) -> None:
    """Six contenders break no rule while a tenth of all requests meet a fault and orphans come at
    any time."""
    chance = Chance(seed, share=0.1)
    async with faulty(api) as proxy:
        proxy.choose = chance
        case = Case(api, proxy, f"chance {seed}", "", Fault("", times=99))
        loop = asyncio.get_running_loop()
        end = loop.time() + 2
        turns = 0

        async def contend(lock: Any) -> None:
            nonlocal turns
            while loop.time() < end:
                lease = await case.take(lock)
                if lease is not None:
                    turns += 1
                    await asyncio.sleep(0.001)
                    case.witness.check()
                    await case.give(lease)

        async def deliver_orphans() -> None:
            while loop.time() < end:
                await asyncio.sleep(0.3)
                await asyncio.to_thread(proxy.deliver)

        lockers = [case.victim(renew=n % 2 == 0) for n in range(4)]
        lockers += [case.rival(), case.rival()]
        await asyncio.wait_for(asyncio.gather(deliver_orphans(), *map(contend, lockers)), 30)
        assert chance.struck > 5, f"{turns} turns, and nearly no fault"
        assert turns > 20
        proxy.choose = lambda script: None
        await case.end()
