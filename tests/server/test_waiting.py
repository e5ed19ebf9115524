"""Waiting: first come, first served, without polling, through every fault."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import lualock
from lualock import aio
from lualock._protocol import CLAIM_MS
from lualock.scripts import SCRIPTS
from tests.interrupts.test_processes import program
from tests.support.proving import proof_of
from tests.support.proxy import Proxy
from tests.support.servers import BINARIES, Server
from tests.support.waiting import wait_until
from tests.support.world import World, few, settle

pytestmark = pytest.mark.slow


async def _queue(
    world: World, lock: Any, names: str, order: list[str], **options: Any
) -> list[Any]:
    """Start a waiter for each name, one after the other."""
    waiting = []
    locks = world.connect()
    for count, name in enumerate(names, start=1):
        own = locks.lock(lock.name, ttl=30, **options)

        async def turn(name: str = name, own: Any = own) -> None:
            lease = await world.beside(own.acquire)
            order.append(name)
            await settle(lease.release())

        waiting.append(asyncio.ensure_future(turn()))
        await world.until_waiters(lock, count)
    return waiting


async def test_a_lock_that_is_free_again(world: World) -> None:
    """After a wait one acquisition begins in the queue; if it finds the lock free, the next ones do
    not, and send no message."""
    lock = world.connect().lock("x", ttl=30)
    lease = await settle(world.connect().lock("x", ttl=30).acquire())
    waiting = asyncio.ensure_future(world.beside(lock.acquire))
    await world.until_waiters(lock, 1)
    await settle(lease.release())
    await settle((await waiting).release())
    await settle((await settle(lock.acquire())).release())
    world.client.config_resetstat()
    for _ in range(3):
        await settle((await settle(lock.acquire())).release())
    assert world.calls("publish") == 0


async def test_in_turn(world: World) -> None:
    """Waiters get the lock in the order of arrival, and no key is left."""
    lock = world.connect().lock("x", ttl=30)
    order: list[str] = []
    lease = await settle(lock.acquire())
    waiting = await _queue(world, lock, "abcdef", order)
    info = await settle(lock.inspect())
    assert (info.waiters, info.fence) == (6, lease.fence)
    await settle(lease.release())
    await asyncio.gather(*waiting)
    assert order == list("abcdef")
    assert not world.client.exists(lock.key + b":waiters")
    assert world.client.get(lock.key)[:1] == b"R"


@few
async def test_waiters_do_not_poll_and_one_message_hands_over(world: World) -> None:
    """Waiters of a held lock send nothing; a hand-over is one PUBLISH, and one more to a new head
    that has waited for long."""
    lock = world.connect().lock("x", ttl=30)
    order: list[str] = []
    lease = await settle(lock.acquire())
    waiting = await _queue(world, lock, "abcd", order)
    await asyncio.sleep(0.4)  # each newcomer checks once more
    for script in SCRIPTS.values():
        world.client.script_load(script.source)
    world.client.config_resetstat()
    await asyncio.sleep(0.3)  # the claim is that nothing happens
    assert "cmdstat_evalsha" not in world.client.info("commandstats")
    await settle(lease.release())
    await asyncio.gather(*waiting)
    stats = world.client.info("commandstats")
    assert stats["cmdstat_publish"]["calls"] == 4 + 3
    # A claim and a release each, and the first release, which found waiters.
    assert stats["cmdstat_eval"]["calls"] == 4
    assert stats["cmdstat_evalsha"]["calls"] == 4 + 2


async def test_a_lock_that_goes_round_fast_costs_one_message_each(world: World) -> None:
    """A new head that came just before gets no message, so a fast hand-over is one message."""
    lock = world.connect().lock("x", ttl=30)
    order: list[str] = []
    lease = await settle(lock.acquire())
    start = time.monotonic()
    waiting = await _queue(world, lock, "abcd", order)
    world.client.config_resetstat()  # a connection that opens publishes, too
    await settle(lease.release())
    await asyncio.gather(*waiting)
    if time.monotonic() - start < 0.05:  # otherwise they have waited for long, on a busy machine
        assert world.client.info("commandstats")["cmdstat_publish"]["calls"] == 4


@few
async def test_a_waiter_learns_that_it_became_the_head(world: World) -> None:
    """A waiter that becomes the head when a holder vanishes gets the lock at the end of that
    lease."""
    locks = world.connect()
    lock = locks.lock("x", ttl=30)
    order: list[str] = []
    lease = await settle(lock.acquire())
    waiting = await _queue(world, lock, "abc", order)
    vanishes = asyncio.ensure_future(world.beside(locks.lock("x", ttl=0.5).acquire))
    await world.until_waiters(lock, 4)
    last = asyncio.ensure_future(world.beside(lock.acquire))
    await world.until_waiters(lock, 5)
    await asyncio.sleep(0.4)  # far back in the queue, it checks again only after some seconds
    await settle(lease.release())
    await asyncio.gather(*waiting)
    gone = await vanishes
    got = await asyncio.wait_for(last, 0.5 + 1.0)
    assert gone.lost
    await settle(got.release())


@few
async def test_a_waiter_learns_that_the_waiters_ahead_have_left(world: World) -> None:
    """A waiter that becomes the head because others leave learns how long the lease lasts."""
    locks = world.connect()
    lease = await settle(locks.lock("x", ttl=1.2).acquire())
    leaving = [
        asyncio.ensure_future(world.beside(lambda: locks.lock("x", ttl=30).acquire(timeout=0.6)))
        for _ in range(9)  # the first eight check on their own
    ]
    await world.until_waiters(locks.lock("x"), 9)
    last = asyncio.ensure_future(world.beside(locks.lock("x", ttl=30).acquire))
    await world.until_waiters(locks.lock("x"), 10)
    left = await asyncio.gather(*leaving, return_exceptions=True)
    assert all(isinstance(error, lualock.NotAcquired) for error in left)
    got = await asyncio.wait_for(last, 1.2 + 1.0)
    assert lease.lost
    await settle(got.release())


async def test_priority(world: World) -> None:
    """A higher priority is served before a lower one; equal priorities in the order of arrival."""
    lock = world.connect().lock("x", ttl=30)
    order: list[str] = []
    lease = await settle(lock.acquire())
    locks = world.connect()
    waiting = []
    for count, (name, priority) in enumerate((("a", 0), ("b", 5), ("c", -5), ("d", 5)), start=1):
        own = locks.lock("x", ttl=30, priority=priority)

        async def turn(name: str = name, own: Any = own) -> None:
            held = await world.beside(own.acquire)
            order.append(name)
            await settle(held.release())

        waiting.append(asyncio.ensure_future(turn()))
        await world.until_waiters(lock, count)
    await settle(lease.release())
    await asyncio.gather(*waiting)
    assert order == ["b", "d", "a", "c"]


async def test_max_waiters(world: World) -> None:
    """A caller that finds the queue full is refused at once, with the number of waiters."""
    lock = world.connect().lock("x", ttl=30, max_waiters=2)
    order: list[str] = []
    lease = await settle(lock.acquire())
    waiting = await _queue(world, lock, "ab", order, max_waiters=2)
    with pytest.raises(lualock.QueueFull, match=r"full \(2 waiting, max_waiters=2\)") as caught:
        await settle(lock.acquire())
    assert caught.value.ahead == 2
    assert caught.value.holder
    assert world.waiters(lock) == 2
    await settle(lease.release())
    await asyncio.gather(*waiting)


def test_a_full_queue_checks_few_waiters(one_server: Server) -> None:
    """A newcomer at a full queue drops the dead ones among the first 32 waiters, and looks no
    further: its cost does not grow with the queue."""
    channels = {place: b"gone" if place in (3, 32, 33, 80) else b"alive" for place in range(1, 81)}
    tickets = {b"%022d30000 %b me" % (place, channels[place]): place for place in channels}
    with one_server.client() as client, lualock.connect(one_server.url) as locks:
        subscriber = client.pubsub()
        subscriber.subscribe("alive")
        assert subscriber.get_message(timeout=5)["type"] == "subscribe"
        locks.lock("x", ttl=30).acquire()
        lock = locks.lock("x", ttl=30, max_waiters=40)
        with pytest.raises(lualock.NotAcquired):
            lock.acquire(timeout=0.05)  # now the server knows the scripts
        client.zadd(lock.key + b":waiters", tickets)
        client.config_resetstat()
        with pytest.raises(lualock.QueueFull, match="78 waiting"):
            lock.acquire(timeout=5)
        assert client.zcard(lock.key + b":waiters") == 78
        assert client.info("commandstats")["cmdstat_pubsub|numsub"]["calls"] == 32
        subscriber.close()


async def test_a_timeout_leaves_the_queue(world: World) -> None:
    """The error of a timeout names the holder and how many waiters were ahead."""
    lock = world.connect(holder="the holder").lock("x", ttl=30)
    order: list[str] = []
    lease = await settle(lock.acquire())
    waiting = await _queue(world, lock, "ab", order)
    with pytest.raises(lualock.NotAcquired, match=r"within 0\.1 s: .* 2 waiters are") as caught:
        await settle(world.connect().lock("x", ttl=30).acquire(timeout=0.1))
    assert caught.value.holder == "the holder"
    assert caught.value.ahead == 2
    assert caught.value.held_s is not None
    assert caught.value.held_s >= 0.1
    assert caught.value.remaining_s is not None
    await world.until_waiters(lock, 2)  # on a busy machine it leaves in the background
    await settle(lease.release())
    await asyncio.gather(*waiting)
    assert order == ["a", "b"]


async def test_the_lease_of_a_waiter(world: World) -> None:
    """A granted lease lasts its whole ttl, can be extended, and has a greater fence."""
    lock = world.connect().lock("x", ttl=60)
    first = await settle(lock.acquire())
    waiter = asyncio.ensure_future(world.beside(world.connect().lock("x", ttl=60).acquire))
    await world.until(lambda: world.waiters(lock) == 1)
    await settle(first.release())
    lease = await waiter
    assert lease.held
    await world.until(lambda: lease.remaining() > CLAIM_MS / 1000)
    assert lease.remaining() <= 60
    assert world.client.pttl(lock.key) > 50_000
    assert lease.fence > first.fence
    await settle(lease.extend(90))
    assert lease.remaining() > 60
    await settle(lease.release())
    assert not lease.lost


@pytest.mark.full
async def test_a_body_that_lets_nothing_else_run_keeps_its_lock(one_server: Server) -> None:
    """A body that blocks its thread or event loop for longer than the claim window keeps its
    granted lease, because the claim is already sent."""
    blocked_s = CLAIM_MS / 1000 + 0.3

    def block(lease: Any, client: Any) -> None:
        give_up = time.monotonic() + blocked_s
        while time.monotonic() < give_up:  # as code without lualock does
            pass
        assert client.get("lualock:{x}")[17:39] == lease.token.encode()

    with one_server.client() as client, lualock.connect(one_server.url) as theirs:
        lock = theirs.lock("x", ttl=60)

        def waits() -> bool:
            return bool(client.exists("lualock:{x}:waiters"))

        with lualock.connect(one_server.url) as locks, ThreadPoolExecutor(1) as thread:
            first = lock.acquire()
            waiter = thread.submit(lambda: block(locks.lock("x", ttl=60).acquire(), client))
            await asyncio.to_thread(wait_until, waits)
            client.script_flush()
            first.release()
            await asyncio.to_thread(waiter.result)
        client.delete("lualock:{x}")
        async with aio.connect(one_server.url) as tasks:
            first = lock.acquire()

            async def wait() -> None:
                async with tasks.lock("x", ttl=60) as lease:
                    block(lease, client)

            task = asyncio.create_task(wait())
            while not waits():  # noqa: ASYNC110 - the server is watched, not a task
                await asyncio.sleep(0.01)
            client.script_flush()
            first.release()
            await task


@few
async def test_a_holder_that_is_gone_is_replaced(world: World) -> None:
    """The head gets the lock when the lease of a vanished holder expires."""
    lock = world.connect().lock("x", ttl=0.3)
    lost = await settle(lock.acquire())
    order: list[str] = []
    await asyncio.wait_for(asyncio.gather(*await _queue(world, lock, "ab", order)), 10)
    assert order == ["a", "b"]
    assert lost.lost


async def test_lost_messages(world: World) -> None:
    """A waiter whose connection for messages breaks opens another one and keeps its place."""
    lock = world.connect().lock("x", ttl=30)
    order: list[str] = []
    lease = await settle(lock.acquire())
    waiting = await _queue(world, lock, "abc", order)
    for _ in range(3):
        world.client.client_kill_filter(_type="pubsub")
        await world.until(lambda: len(world.client.pubsub_channels()) == 1)
    assert world.waiters(lock) == 3
    await settle(lease.release())
    await asyncio.wait_for(asyncio.gather(*waiting), 10)
    assert order == ["a", "b", "c"]


async def test_a_grant_that_reached_no_waiter(world: World) -> None:
    """A waiter that could not be reached has its place again when it is back."""
    lock = world.connect().lock("x", ttl=30)
    order: list[str] = []
    lease = await settle(lock.acquire())
    waiting = await _queue(world, lock, "ab", order)
    with world.client.pipeline(transaction=True) as both:  # no time to reconnect between the two
        both.client_kill_filter(_type="pubsub")
        script = SCRIPTS["hand_over"]
        parts = lock.key, lock.key + b":waiters", lease.token.encode()
        proof, words = proof_of(script, parts)
        both.eval(script.source.decode(), 2, *words)
        _, outcome = both.execute()
    assert outcome == proof + b"released"  # no waiter was reached
    await asyncio.wait_for(asyncio.gather(*waiting), 10)
    assert sorted(order) == ["a", "b"]


async def test_restarted_server(world: World) -> None:
    """Waiters wait on through a restart of the server."""
    name = world.server.name
    server = Server(name, BINARIES[name])
    try:
        lock = world.connect(server.url).lock("x", ttl=30)
        lease = await settle(lock.acquire())
        waiter = asyncio.ensure_future(world.beside(world.connect(server.url).lock("x").acquire))
        with server.client() as client:
            await world.until(lambda: client.zcard(lock.key + b":waiters") == 1)
        server.kill()
        os.unlink(server.socket)
        server.start()
        got = await asyncio.wait_for(waiter, 10)  # the server restarted without its data
        assert got.held
        with pytest.raises(lualock.LockError):
            await settle(lease.release())
        await settle(got.release())
    finally:
        server.close()


@pytest.mark.parametrize("trouble", ["paused", "gone"])
async def test_time_is_kept_without_a_server(api: World, trouble: str) -> None:
    """A timeout is kept whatever the server does, at the first try and while waiting."""
    world, name = api, api.server.name
    server = Server(name, BINARIES[name])
    try:
        lock = world.connect(server.url).lock("x", ttl=30)
        await settle(lock.acquire())
        waiter = asyncio.ensure_future(
            world.beside(lambda: world.connect(server.url).lock("x").acquire(timeout=0.6))
        )
        with server.client() as client:
            await world.until(lambda: client.zcard(lock.key + b":waiters") == 1)
        assert server.process is not None
        if trouble == "paused":
            server.process.send_signal(signal.SIGSTOP)
        else:
            server.kill()
        start = time.monotonic()
        with pytest.raises(lualock.LockError):
            await asyncio.wait_for(waiter, 5)
        with pytest.raises(lualock.LockUnavailable):
            await settle(world.connect(server.url).lock("x").acquire(timeout=0.3))
        # Far below the socket's timeout of 5 s; how exactly the time is kept, `bench` measures.
        assert 0.3 <= time.monotonic() - start < 2
        if trouble == "paused":
            server.process.send_signal(signal.SIGCONT)
    finally:
        server.close()


async def test_a_false_message_gives_nothing(world: World) -> None:
    """A message is only a hint: a waiter checks it at the server before it uses a lease."""
    lock = world.connect().lock("x", ttl=30)
    order: list[str] = []
    lease = await settle(lock.acquire())
    waiting = await _queue(world, lock, "a", order)
    ticket = world.client.zrange(lock.key + b":waiters", 0, 0)[0]
    token, channel = ticket[:22], ticket.split(b" ")[1]
    runs = world.calls("evalsha")
    world.client.publish(channel, token)  # check again
    await world.until(lambda: world.calls("evalsha") > runs)
    world.client.publish(channel, token + b"%016d" % (lease.fence - 1))  # an old grant
    world.client.publish(channel, b"x" * 22 + b"9" * 16)  # of another waiter
    await asyncio.sleep(0.1)  # the claim is that nothing happens
    assert order == []
    assert lease.held
    await settle(lease.release())
    await asyncio.gather(*waiting)


@few
async def test_thousands_of_hand_overs_in_turn(world: World) -> None:
    """In thousands of hand-overs no waiter is overtaken by a later one."""
    locks = world.connect()
    count, rounds = 8, 250
    taken: list[tuple[int, str]] = []

    async def worker() -> None:
        lock = locks.lock("x", ttl=30)
        for _ in range(rounds):
            lease = await world.beside(lock.acquire)
            taken.append((lease.fence, lease.token))
            await settle(lease.release())

    for script in SCRIPTS.values():  # otherwise the first request would be repeated
        world.client.script_load(script.source)
    # The server's requests in their order show which waiter came when.
    with world.server.client() as client, client.monitor() as monitor:
        first = await settle(locks.lock("x", ttl=30).acquire())
        workers = [asyncio.ensure_future(worker()) for _ in range(count)]
        await world.until(lambda: world.waiters(locks.lock("x")) == count)
        await settle(first.release())
        await asyncio.gather(*workers)
        world.client.echo("the end")
        came: dict[str, None] = {}
        while (command := monitor.next_command()["command"]) != "ECHO the end":
            # In a queue check the ticket follows the queue's key.
            _, _, ticket = command.partition("lualock:{x}:waiters ")
            if command.startswith("EVAL") and " lualock:wake:" in ticket:
                came.setdefault(ticket[:22])
    assert len({fence for fence, _ in taken}) == len(taken) == count * rounds
    in_turn = [token for _, token in sorted(taken)]
    queued = [token for token in in_turn if token in came]
    assert len(queued) > len(taken) / 2
    assert queued == list(came)


# Separate processes.

WAITER = """
import sys, lualock
locks = lualock.connect(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
lease = locks.lock("x", ttl=30).acquire()
print("has", lease.fence, flush=True)
sys.stdin.readline()
try:
    lease.check()
    lease.release()
    print("released", flush=True)
except lualock.LeaseLost:
    print("lost", flush=True)
"""


class Waiter:
    """A process that waits for the lock ``x`` on command."""

    def __init__(self, url: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", WAITER, url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.line() == "ready"

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()


each_server = pytest.mark.parametrize(
    ("server", "resp"),
    [(name, 2 + number % 2) for number, name in enumerate(BINARIES)],
    indirect=True,
)
"""For a slow test with processes: every server, with one protocol version each."""


@pytest.fixture
def new_waiters(server: Server, resp: int) -> Iterator[Callable[[int], list[Waiter]]]:
    """Return a function that starts waiting processes, queued in the order of the list."""
    started: list[Waiter] = []

    def start(count: int) -> list[Waiter]:
        started.extend(Waiter(f"{server.url}?protocol={resp}") for _ in range(count))
        with server.client() as client:
            for number, waiter in enumerate(started, start=1):
                waiter.go()
                _until_waiters(client, "x", number)
        return started

    yield start
    for waiter in started:
        waiter.end()


def test_dead_waiters(server: Server, new_waiters: Callable[[int], list[Waiter]]) -> None:
    """A release skips dead waiters and grants the lock to the first live one."""
    with lualock.connect(server.url) as locks, server.client() as client:
        lease = locks.lock("x", ttl=30).acquire()
        *dead, alive = new_waiters(8)
        for waiter in dead:
            waiter.process.kill()
        for waiter in dead:
            waiter.process.wait()
        wait_until(lambda: len(client.pubsub_channels()) == 1)
        lease.release()
        assert alive.line().startswith("has ")
        assert not client.exists("lualock:{x}:waiters")


@each_server
def test_a_holder_that_dies_with_those_in_front(
    server: Server, new_waiters: Callable[[int], list[Waiter]]
) -> None:
    """If the first waiters die with the holder, the first live one gets the lock at the end of the
    lease."""
    with lualock.connect(server.url) as locks:
        lease = locks.lock("x", ttl=30).acquire()
        *dead, alive = new_waiters(4)
        lease.extend(1.5)
        start = time.monotonic()
        for waiter in dead:
            waiter.process.kill()
        del lease  # as if dead: it is never released
        assert alive.line().startswith("has ")
        assert time.monotonic() - start < 1.5 + 1.5  # and not the ten seconds of a rare check


def test_a_claim_that_comes_late(server: Server) -> None:
    """A claim that a later request on another connection overtakes does not shorten the extended
    lease."""
    with lualock.connect(server.tcp_url) as locks, lualock.connect(server.url) as others:
        held = others.lock("x", ttl=30).acquire()
        lock = locks.lock("x", ttl=3)
        found: list[lualock.Lease] = []
        waiter = threading.Thread(target=lambda: found.append(lock.acquire()))
        waiter.start()
        wait_until(lambda: lock.inspect().waiters == 1)
        held.release()
        waiter.join()
        idle = locks._driver._idle
        aside = list(idle)  # one of the connections has it
        idle.clear()
        found[0].extend(60)
        idle.extend(aside)
        for _ in aside:
            lock.inspect()
            idle.rotate()
        wait_until(lambda: found[0]._state.claim is None)
        assert (lock.inspect().remaining_s or 0) > 50
        assert found[0].remaining() > 50
        found[0].release()


@each_server
def test_a_waiter_learns_of_a_sooner_end(
    server: Server, new_waiters: Callable[[int], list[Waiter]]
) -> None:
    """A waiter gets the lock at the sooner end of a holder that shortened its lease and
    vanished."""
    with lualock.connect(server.url) as locks:
        lease = locks.lock("x", ttl=30).acquire()
        (waiter,) = new_waiters(1)
        left_s = lease.remaining()
        wait_until(lambda: lease.remaining() < left_s - 0.3)  # its last check is over
        lease.extend(0.5)
        start = time.monotonic()
        assert waiter.line().startswith("has ")
        assert time.monotonic() - start < 5


CROWD = """
import asyncio
from lualock import aio

async def main():
    async with aio.connect() as locks:
        await asyncio.gather(*(locks.lock("x", ttl=30).acquire() for _ in range(12)))

asyncio.run(main())
"""


@pytest.mark.full
async def test_a_holder_that_dies_with_a_crowd_in_front(api: World) -> None:
    """However many waiters ahead die, a live one checks soon after the end of the lease."""
    lock = api.connect().lock("x", ttl=30)
    lease = await settle(lock.acquire())
    with program(CROWD, api.server.url):
        await api.until_waiters(lock, 12)
        await settle(lease.extend(3))
        start = time.monotonic()
        alive = asyncio.ensure_future(api.beside(api.connect().lock("x", ttl=30).acquire))
        await api.until_waiters(lock, 13)
    got = await asyncio.wait_for(alive, 20)
    assert time.monotonic() - start < 12  # half a second for each of the dead
    assert lease.lost
    await settle(got.release())


@each_server
def test_a_stopped_waiter_is_passed_over(
    server: Server, new_waiters: Callable[[int], list[Waiter]]
) -> None:
    """A stopped waiter that does not claim its grant loses it, and knows that when it runs
    again."""
    with lualock.connect(server.url) as locks:
        lock = locks.lock("x", ttl=30)
        lease = lock.acquire()
        stopped, other = new_waiters(2)
        stopped.process.send_signal(signal.SIGSTOP)
        lease.release()
        assert other.line().startswith("has ")
        fence = lock.inspect().fence
        stopped.process.send_signal(signal.SIGCONT)
        wait_until(lambda: lock.inspect().waiters == 1)  # it noticed, and waits again
        assert lock.inspect().fence == fence
        other.go()
        assert other.line() == "released"
        assert stopped.line().startswith("has ")


def test_a_killed_holder(server: Server, new_waiters: Callable[[int], list[Waiter]]) -> None:
    """A waiter gets the lock at the end of the lease of a killed holder."""
    code = """
        import sys, lualock
        lease = lualock.connect(sys.argv[1]).lock("x", ttl=2, renew=True).acquire()
        print("has", flush=True)
        sys.stdin.read()
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), server.url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "has\n"
        (waiter,) = new_waiters(1)
        holder.kill()
        assert waiter.line().startswith("has ")


# Threads.


def test_many_threads_on_many_locks(server: Server, resp: int) -> None:
    """500 threads that wait for 500 locks need at most 16 connections."""
    count = 500
    with lualock.connect(f"{server.url}?protocol={resp}") as locks, server.client() as client:
        before = len(client.client_list())
        leases = [locks.lock(f"l{number}", ttl=60).acquire() for number in range(count)]
        got: list[int] = []

        def wait(number: int) -> None:
            with locks.lock(f"l{number}", ttl=60):
                got.append(number)

        threads = [threading.Thread(target=wait, args=(number,)) for number in range(count)]
        for thread in threads:
            thread.start()

        def queues() -> int:
            return len(client.keys("lualock:*:waiters"))

        wait_until(lambda: queues() == count, wait_s=20)
        assert len(client.client_list()) - before <= 16
        for lease in leases:
            lease.release()
        for thread in threads:
            thread.join(20)
        assert sorted(got) == list(range(count))
        assert queues() == 0


def _until_waiters(client: Any, name: str, count: int) -> None:
    wait_until(lambda: client.zcard(f"lualock:{{{name}}}:waiters") == count)


def _until_done(done: list[str], name: str) -> None:
    wait_until(lambda: name in done)


def test_a_waiting_thread_reads_for_the_others(locks: lualock.Locks, one_client: Any) -> None:
    """When the thread that reads the messages has ended, another one reads."""
    names = [f"l{number}" for number in range(6)]
    leases = [locks.lock(name, ttl=60).acquire() for name in names]
    done: list[str] = []

    def wait(name: str) -> None:
        with locks.lock(name, ttl=60):
            done.append(name)

    threads = [threading.Thread(target=wait, args=(name,)) for name in names]
    for thread, name in zip(threads, names, strict=True):
        thread.start()
        _until_waiters(one_client, name, 1)
    for lease, name in zip(leases, names, strict=True):  # the first reads, and leaves first
        lease.release()
        _until_done(done, name)
    for thread in threads:
        thread.join(5)


def test_a_thread_that_gives_up_lets_another_read(locks: lualock.Locks) -> None:
    """A reading thread whose time is over leaves the messages of the others to them."""
    lease = locks.lock("x", ttl=60).acquire()
    other = locks.lock("y", ttl=60).acquire()
    outcome: list[str] = []

    def impatient() -> None:
        try:
            locks.lock("x", ttl=60).acquire(timeout=0.3)
        except lualock.NotAcquired:
            outcome.append("gave up")

    def patient() -> None:
        with locks.lock("y", ttl=60):
            outcome.append("got it")

    first = threading.Thread(target=impatient)
    first.start()
    wait_until(lambda: locks.lock("x").inspect().waiters == 1)
    second = threading.Thread(target=patient)
    second.start()
    wait_until(lambda: locks.lock("y").inspect().waiters == 1)
    first.join(5)
    other.release()
    second.join(5)
    assert outcome == ["gave up", "got it"]
    assert locks.lock("x").inspect().waiters == 0
    lease.release()


# Coroutines.


async def test_many_tasks_share_two_connections(server: Server, resp: int) -> None:
    """A thousand tasks need one connection for requests and one for messages."""
    async with aio.connect(f"{server.url}?protocol={resp}") as locks:
        with server.client() as client:
            before = len(client.client_list())
            most = 0

            async def use(number: int) -> None:
                nonlocal most
                for _ in range(3):
                    async with locks.lock(f"l{number % 500}", ttl=60):
                        if number % 100 == 0:
                            most = max(most, len(client.client_list()))

            await asyncio.gather(*(use(number) for number in range(1000)))
            assert most - before <= 2
            assert client.keys("lualock:*:waiters") == []


async def test_cancelled_callers_shift_no_replies(server: Server, resp: int) -> None:
    """Replies to cancelled calls are read and dropped; the other calls get their own."""
    async with aio.connect(f"{server.url}?protocol={resp}") as locks:
        held = [await locks.lock(f"l{n}", ttl=60).acquire() for n in range(50)]
        fences = {lease.name: lease.fence for lease in held}

        async def inspect(name: str) -> None:
            assert (await locks.lock(name).inspect()).fence == fences[name]

        for turn in range(20):
            tasks = [asyncio.create_task(inspect(name)) for name in fences]
            for _ in range(turn % 5):
                await asyncio.sleep(0)
            for task in tasks[::3]:
                task.cancel()
            done = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(r is None or isinstance(r, asyncio.CancelledError) for r in done)


async def test_a_broken_connection_fails_all_calls_under_way(proxy: Proxy) -> None:
    """Each call that was under way on a broken connection is repeated."""
    async with aio.connect(proxy.url) as locks:
        await (await locks.lock("first").acquire()).release()
        proxy.lose_reply = 1
        leases = await asyncio.gather(*(locks.lock(f"l{n}", ttl=60).acquire() for n in range(20)))
        assert all(lease.held for lease in leases)
        assert len({lease.fence for lease in leases}) == 20
        await asyncio.gather(*(lease.release() for lease in leases))


async def test_a_server_that_reads_nothing() -> None:
    """If the server reads nothing, nothing more is sent and a timeout is kept; sent requests are
    answered later."""
    name = next(iter(BINARIES))
    server = Server(name, BINARIES[name])
    try:
        async with aio.connect(f"{server.url}?socket_timeout=30") as locks:
            lock = locks.lock("x", ttl=60)
            await (await lock.acquire()).release()
            assert server.process is not None
            server.process.send_signal(signal.SIGSTOP)
            requests = [  # three megabytes
                asyncio.create_task(locks.lock(f"{number:04d}" * 250).locked())
                for number in range(3000)
            ]
            done, _ = await asyncio.wait(requests, timeout=0.1)
            assert not done
            start = time.monotonic()
            with pytest.raises(lualock.LockUnavailable, match="reads no requests") as caught:
                await lock.acquire(timeout=0.2)
            assert 0.2 <= time.monotonic() - start < 2
            assert not caught.value.outcome_unknown  # it was not sent
            waiter = asyncio.create_task(lock.acquire())
            server.process.send_signal(signal.SIGCONT)
            assert not any(await asyncio.gather(*requests))
            await (await asyncio.wait_for(waiter, 5)).release()
    finally:
        server.close()


async def test_loops_do_not_share_connections(server: Server, resp: int) -> None:
    """One ``Locks`` in several loops at once waits and is woken in each of them."""
    locks = aio.connect(f"{server.url}?protocol={resp}")
    got: list[int] = []

    async def use(number: int) -> None:
        for _ in range(20):
            async with locks.lock("x", ttl=60):
                got.append(number)

    threads = [threading.Thread(target=lambda n=n: asyncio.run(use(n))) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join, 20)
    assert sorted(got) == [n for n in range(4) for _ in range(20)]
    await locks.aclose()


async def test_a_waiter_is_woken_after_connections_were_closed(one_server: Server) -> None:
    """A waiter is woken over new connections when all were closed meanwhile."""
    async with aio.connect(one_server.url) as theirs, aio.connect(one_server.url) as locks:
        with one_server.client() as client:
            held = await theirs.lock("x", ttl=60).acquire()
            waiter = asyncio.create_task(locks.lock("x", ttl=60).acquire())

            def waits() -> bool:
                return bool(client.exists("lualock:{x}:waiters"))

            await asyncio.to_thread(wait_until, waits)
            await locks.aclose()
            channel = b"lualock:wake:*"
            await asyncio.to_thread(wait_until, lambda: client.pubsub_channels(channel) != [])
            await held.release()
            lease = await asyncio.wait_for(waiter, 5)
            assert lease.held
            await lease.release()


async def test_no_cancellation_is_lost_while_a_connection_is_made(one_server: Server) -> None:
    """A task that is cancelled at any turn of its first acquisition ends, and holds nothing."""
    async with aio.connect(one_server.url) as theirs:
        with one_server.client() as client:
            held = await theirs.lock("x", ttl=60).acquire()
            for turns in range(40):
                async with aio.connect(one_server.url) as locks:
                    task = asyncio.create_task(locks.lock("x", ttl=60).acquire())
                    for _ in range(turns):
                        await asyncio.sleep(0)
                    task.cancel()
                    done, _ = await asyncio.wait({task}, timeout=5)
                    assert done
                    assert task.cancelled()
            await held.release()
            await asyncio.to_thread(wait_until, lambda: not client.exists("lualock:{x}:waiters"))
            assert (client.get("lualock:{x}") or b"R")[:1] == b"R"


def test_a_loop_that_was_just_closed_is_forgotten(one_server: Server) -> None:
    """A closed loop gives no notice; the next loop finds it closed."""
    locks = aio.connect(one_server.url)

    async def use() -> None:
        async with locks.lock("x", ttl=60):
            pass

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # of asyncio, about such a loop
        for _ in range(3):
            loop = asyncio.new_event_loop()
            loop.run_until_complete(use())
            loop.close()
        asyncio.run(use())
        gc.collect()
    assert len(locks._driver._loops) == 0


def test_a_waiter_in_a_loop_that_was_just_closed(
    monkeypatch: pytest.MonkeyPatch, one_server: Server
) -> None:
    """A waiter in a closed loop is destroyed without a warning, and the next one gets the lock."""
    raised: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda broke: raised.append(broke.exc_value))
    locks = aio.connect(one_server.url)

    def waits() -> bool:
        loops = list(locks._driver._loops.values())
        return any(
            inbox.waiter for each in loops for inbox in list(each.subscriber._inboxes.values())
        )

    async def use() -> bool:
        async with locks.lock("x", ttl=60) as lease:
            return lease.held

    async def wait() -> asyncio.Task[bool]:
        task = asyncio.ensure_future(use())
        await asyncio.to_thread(wait_until, waits)
        return task

    with lualock.connect(one_server.url) as others, warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # of asyncio, about such a loop
        held = others.lock("x").acquire()
        loop = asyncio.new_event_loop()
        loop.run_until_complete(wait())
        loop.close()
        del loop
        held.release()
        assert asyncio.run(use())
        gc.collect()
    assert raised == []
    assert len(locks._driver._loops) == 0


@pytest.mark.parametrize("first", [False, True], ids=["connected in it", "connected before it"])
@pytest.mark.parametrize("held", [False, True])
def test_a_generator_that_closes_all_as_it_ends_with_its_loop(
    one_server: Server, caplog: pytest.LogCaptureFixture, held: bool, first: bool
) -> None:
    """A generator may close the connections that its ending loop closes, too."""
    kept: list[Any] = []
    made = aio.connect(one_server.url)

    async def numbers() -> AsyncIterator[int]:
        async with made:
            lease = await made.lock("x", ttl=60, renew=True).acquire()
            if not held:
                await lease.release()
            yield 1

    async def main() -> None:
        if first:
            await made.lock("y").locked()
        kept.append(numbers())
        await anext(kept[0])

    asyncio.run(main())
    assert caplog.text == ""
    assert len(made._driver._loops) == 0


def test_a_generator_that_ends_with_its_loop_releases_its_lock(one_server: Server) -> None:
    """A generator that ends with its loop releases its lock on the existing connection."""
    locks = aio.connect(one_server.url)
    kept = []

    async def numbers() -> AsyncIterator[int]:
        async with locks.lock("x", ttl=60):
            yield 1

    async def main() -> None:
        kept.append(numbers())
        await anext(kept[0])

    asyncio.run(main())
    with one_server.client() as client:
        assert client.get("lualock:{x}")[:1] == b"R"
    assert len(locks._driver._loops) == 0


async def test_a_long_wait_names_the_holder_once(
    api: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A waiter logs the holder after ``LONG_WAIT_S``, once; a short wait logs nothing."""
    monkeypatch.setattr("lualock._protocol.attempt.LONG_WAIT_S", 0.2)
    caplog.set_level("INFO", "lualock")
    locks = api.connect(holder="tester")
    holder = await settle(locks.lock("x: y", metadata="monthly run").acquire())
    with pytest.raises(lualock.NotAcquired):
        await settle(locks.lock("x: y").acquire(timeout=0.05))
    assert not caplog.records
    with pytest.raises(lualock.NotAcquired):
        await settle(locks.lock("x: y").acquire(timeout=0.8))
    (record,) = caplog.records
    assert re.fullmatch(
        r"still waiting for lock 'x: y' after 0\.\d s: held by tester \(\"monthly run\"\) for "
        r".*; its lease expires in .* s unless renewed; no waiter is ahead",
        record.getMessage(),
    )
    await settle(holder.release())
