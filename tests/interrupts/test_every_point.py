"""Interruptions at every point: each await of a coroutine, each line of a thread."""

from __future__ import annotations

import asyncio
import itertools
import linecache
import sys
import threading
import time
import types
from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import lualock
from lualock import aio, jobs
from tests.support.servers import Server
from tests.support.waiting import wait_until

SOURCE = str(Path(lualock.__file__).parent)
QUEUE = "lualock:{x}:waiters"


class Points:
    """Runs a coroutine, counts its suspensions, and cancels its task at one of them."""

    def __init__(self, at: int | None = None) -> None:
        self.at = at
        self.count = 0

    @types.coroutine
    def run(self, work: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
        try:
            future = work.send(None)
            while True:
                self.count += 1
                if self.count == self.at:
                    task = asyncio.current_task()
                    assert task is not None
                    task.cancel()  # takes effect at this very suspension
                try:
                    value = yield future
                except BaseException as error:
                    future = work.throw(error)
                else:
                    future = work.send(value)
        except StopIteration as done:
            return done.value


async def _nothing_is_left(locks: aio.Locks, client: Any) -> None:
    """Check that after the clean-up the lock is free and no waiter is queued."""
    for _ in range(500):
        if not await locks.lock("x").locked() and not client.exists(QUEUE):
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"left: {await locks.lock('x').inspect()} {client.zrange(QUEUE, 0, -1)}")


def _url(server: Server, resp: int) -> str:
    return f"{server.url}?protocol={resp}"


async def _every_point(
    server: Server, resp: int, scenario: Callable[[aio.Locks, Points], Coroutine[Any, Any, None]]
) -> int:
    """Run the scenario undisturbed, and then cancelled at each of its suspensions.

    Returns how many it has when the connections exist and no lock is known to have waiters.
    """

    async def prepare(locks: aio.Locks, state: str) -> None:
        if state != "new":
            await scenario(locks, Points())
        if state == "connected":
            locks._crowded.clear()

    counts = {}
    with server.client() as client:
        for state in ("new", "connected", "crowded"):  # also the points at which it connects
            points = Points()
            async with aio.connect(_url(server, resp)) as locks:
                await prepare(locks, state)
                await scenario(locks, points)
            assert points.count > 0
            counts[state] = points.count
            for at in range(1, points.count + 1):
                async with aio.connect(_url(server, resp)) as locks:
                    await prepare(locks, state)
                    # The error does not matter here, only what is left.
                    await asyncio.gather(scenario(locks, Points(at)), return_exceptions=True)
                    await _nothing_is_left(locks, client)
    return counts["connected"]


async def _take_and_give(locks: aio.Locks, points: Points) -> None:
    lease = await points.run(locks.lock("x", ttl=60).acquire())
    await points.run(lease.release())


async def test_every_await_of_a_free_lock(server: Server, resp: int) -> None:
    """A task that is cancelled at any await of acquire and release of a free lock leaves
    nothing."""
    assert await _every_point(server, resp, _take_and_give) >= 2


async def _queued(locks: aio.Locks, waiting: asyncio.Task[Any]) -> None:
    """Return once the task is in the queue, or done."""
    while not waiting.done():
        if (await locks.lock("x").inspect()).waiters:
            return
        await asyncio.sleep(0)


async def _wait_and_give(locks: aio.Locks, points: Points, patient: bool = False) -> None:
    holder = await locks.lock("x", ttl=60).acquire()

    async def waiter() -> None:
        await _take_and_give(locks, points)

    waiting = asyncio.create_task(waiter())
    await _queued(locks, waiting)
    if patient:  # it reads the reply with its place, and waits on
        before = points.count
        while points.count == before and not waiting.done():  # noqa: ASYNC110 - no event tells
            await asyncio.sleep(0)
    await holder.release()
    await asyncio.wait([waiting])
    if not waiting.cancelled():
        waiting.exception()


async def test_every_await_of_a_waiter(server: Server, resp: int) -> None:
    """A waiter that is cancelled at any await of its hand-over leaves nothing."""
    assert await _every_point(server, resp, _wait_and_give) >= 3


async def _wait_long_and_give(locks: aio.Locks, points: Points) -> None:
    await _wait_and_give(locks, points, patient=True)


@pytest.mark.full
async def test_every_await_of_a_waiter_that_waits_long(server: Server, resp: int) -> None:
    """The same holds for a waiter that has read the reply with its place."""
    assert await _every_point(server, resp, _wait_long_and_give) >= 4


async def _time_out(locks: aio.Locks, points: Points) -> None:
    holder = await locks.lock("x", ttl=60).acquire()
    waiting = asyncio.create_task(_give_up(locks, points))
    await asyncio.wait([waiting])
    await holder.release()


async def _give_up(locks: aio.Locks, points: Points) -> None:
    with pytest.raises(lualock.NotAcquired):
        await points.run(locks.lock("x", ttl=60).acquire(timeout=0.1))


@pytest.mark.full
async def test_every_await_of_one_that_gives_up(server: Server, resp: int) -> None:
    """A waiter that is cancelled at any await after its timeout leaves nothing."""
    assert await _every_point(server, resp, _time_out) >= 4


async def test_cancelled_while_the_lock_is_being_handed_over(server: Server, resp: int) -> None:
    """A waiter that is cancelled at any turn around the hand-over has the lock or hands it over."""
    with server.client() as client:
        async with aio.connect(_url(server, resp)) as locks:
            for turns in range(25):
                holder = await locks.lock("x", ttl=60).acquire()
                waiting = asyncio.create_task(locks.lock("x", ttl=60).acquire())
                await _queued(locks, waiting)
                release = asyncio.create_task(holder.release())
                for _ in range(turns):
                    await asyncio.sleep(0)
                waiting.cancel()
                await asyncio.wait([waiting, release])
                assert release.exception() is None
                if not waiting.cancelled():
                    await waiting.result().release()
                await _nothing_is_left(locks, client)


class Struck(BaseException):
    """The error of an interruption."""


class Lines:
    """Raises at one line of lualock in this thread; counts all lines.

    It does not raise on the way out of a ``with`` block, nor at a ``try:`` directly in one. A trace
    function could raise there before the block's lock is released, but a signal handler cannot. The
    interpreter runs handlers after calls, at the start of functions and after backward jumps. None
    of these stands between the last call of a block and the call that leaves it, or at a bare
    ``try:``.
    """

    def __init__(self, at: int | None = None) -> None:
        self.at = at
        self.count = 0
        self.where = ""
        self._last: dict[Any, int] = {}  # the line before, in each frame

    def __enter__(self) -> Lines:
        sys.settrace(self._trace)
        return self

    def __exit__(self, *error: object) -> None:
        sys.settrace(None)
        self._last.clear()

    def _trace(self, frame: Any, event: str, argument: object) -> Any:
        if not frame.f_code.co_filename.startswith(SOURCE):
            return None
        if event == "line" and not self._out_of_reach(frame):
            self.count += 1
            if self.count == self.at:
                self.where = f"{frame.f_code.co_filename[len(SOURCE) :]}:{frame.f_lineno}"
                raise Struck
        return self._trace

    def _out_of_reach(self, frame: Any) -> bool:
        name, number = frame.f_code.co_filename, frame.f_lineno
        line = linecache.getline(name, number)
        before, self._last[frame] = self._last.get(frame, 0), number
        if line.strip() == "try:":
            indent = line[: line.index("try:")]
            around = itertools.takewhile(
                lambda above: above.startswith(indent) or not above.strip(),
                (linecache.getline(name, n) for n in range(number - 1, 0, -1)),
            )
            block = number - 1 - len(list(around))
            return linecache.getline(name, block).strip().startswith("with ")
        return line.strip().startswith("with ") and before > number


def _struck_at_every_line(
    server: Server,
    resp: int,
    scenario: Callable[[lualock.Locks, Lines], None],
    also: str | None = None,
) -> int:
    with server.client() as client, lualock.connect(_url(server, resp)) as locks:
        scenario(locks, Lines())  # connections and scripts are there
        quiet = Lines()
        scenario(locks, quiet)
        for at in range(1, quiet.count + 1):
            lines = Lines(at)
            scenario(locks, lines)
            wait_until(
                lambda: (
                    not locks.lock("x").locked()
                    and not client.exists(QUEUE)
                    and (also is None or not locks.lock(also).locked())
                ),
                what=f"nothing is left after {lines.where}",  # used at once
            )
    return quiet.count


def _use(lock: lualock.Lock, lines: Lines, **how: Any) -> None:
    """Acquire and release, whatever interrupts; a known lease is released."""
    lease = None
    try:
        with lines:
            lease = lock.acquire(**how)
            lease.release()
    except (Struck, lualock.NotAcquired, lualock.LockUnavailable):  # a busy machine is late
        if lease is not None and lease.held:
            lease.release()


# The lines do not depend on the server, so one server is enough.


def test_every_line_of_a_free_lock(one_server: Server, resp: int) -> None:
    """An interruption at any line of acquire and release of a free lock leaves nothing."""
    count = _struck_at_every_line(
        one_server, resp, lambda locks, lines: _use(locks.lock("x"), lines)
    )
    assert count > 50


@pytest.mark.full
@pytest.mark.parametrize("connected", [True, False])
def test_every_line_of_a_waiter(one_server: Server, resp: int, connected: bool) -> None:
    """An interruption at any line of a waiter and its hand-over leaves nothing."""

    def scenario(locks: lualock.Locks, lines: Lines) -> None:
        if not connected:
            locks.close()
        holder = locks.lock("x", ttl=60).acquire()
        ended = threading.Event()

        def hand_over() -> None:
            while not ended.is_set() and locks.lock("x").inspect().waiters == 0:
                pass
            holder.release()

        other = threading.Thread(target=hand_over)
        other.start()
        try:
            _use(locks.lock("x", ttl=60), lines)
        finally:
            ended.set()
            other.join()

    assert _struck_at_every_line(one_server, resp, scenario) > 100


@pytest.mark.full
def test_every_line_of_one_that_gives_up(one_server: Server, resp: int) -> None:
    """An interruption at any line of a waiter after its timeout leaves nothing."""

    def scenario(locks: lualock.Locks, lines: Lines) -> None:
        with locks.lock("x", ttl=60):
            _use(locks.lock("x", ttl=60), lines, timeout=0.005)

    assert _struck_at_every_line(one_server, resp, scenario) > 100


@pytest.mark.full
@pytest.mark.parametrize("delivered", [False, True])
def test_every_line_of_a_job(one_server: Server, resp: int, delivered: bool) -> None:
    """An interruption at any line of a job, queued or not, leaves nothing."""

    def scenario(locks: lualock.Locks, lines: Lines) -> None:
        job = locks.job(key="x", ttl=3600)(lambda: None)
        work = jobs.adapter(job)
        with suppress(Struck), lines:
            work.run((), {}, jobs.Delivery("a") if delivered else None)
        assert jobs.current_lease() is None

    assert _struck_at_every_line(one_server, resp, scenario) > 100


@pytest.mark.full
@pytest.mark.parametrize("timeout", [0.005, 5])
def test_every_line_of_a_job_with_two_names(
    one_server: Server, timeout: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interruption at any line of a job that waits for the second of two locks leaves none."""
    # Traced code is slow, and would leave all clean-up to the background.
    monkeypatch.setattr("lualock._transport.threads.driver.GRACE_S", 5.0)

    def scenario(locks: lualock.Locks, lines: Lines) -> None:
        policy = jobs.Wait(timeout)
        job = locks.job(key="x", previous_key="w", ttl=3600, policy=policy)(lambda: None)
        holder = locks.lock("x", ttl=60).acquire()
        ended = threading.Event()

        def hand_over() -> None:
            while not ended.is_set() and (timeout < 1 or not locks.lock("x").inspect().waiters):
                time.sleep(0.001)
            holder.release()

        other = threading.Thread(target=hand_over)
        other.start()
        try:
            with suppress(Struck, lualock.LockUnavailable), lines:
                job()
        finally:
            ended.set()
            other.join()

    assert _struck_at_every_line(one_server, 3, scenario, also="w") > 1000


class Waits(Lines):
    """Acquires another lock at a line instead of raising there, as a signal handler may."""

    def __init__(self, at: int, other: lualock.Lock) -> None:
        super().__init__(at)
        self._other = other
        self.refused = False

    def _trace(self, frame: Any, event: str, argument: object) -> Any:
        try:
            super()._trace(frame, event, argument)
        except Struck:
            with pytest.raises(lualock.LockError):
                self._other.acquire(timeout=0.005)
            self.refused = True
        return self._trace


@pytest.mark.full
def test_a_signal_handler_that_waits(one_server: Server) -> None:
    """A signal handler can wait for another lock at any line of a waiter."""
    locks = lualock.connect(one_server.url)  # one that hangs cannot be closed
    other = locks.lock("y", ttl=60)
    strikes, wheres = itertools.count(1), ["the start"]

    def work() -> None:
        for at in strikes:
            lines = Waits(at, other)
            _use(locks.lock("x", ttl=60), lines, timeout=0.005)
            if not lines.refused:
                break
            wheres.append(lines.where)

    with lualock.connect(one_server.url) as theirs:
        with theirs.lock("x", ttl=60), theirs.lock("y", ttl=60):
            thread = threading.Thread(target=work, daemon=True)
            thread.start()
            done = 0
            while thread.is_alive():
                thread.join(2)
                assert not thread.is_alive() or len(wheres) > done, f"hangs after {wheres[-1]}"
                done = len(wheres)
        assert len(wheres) > 100
    for lock in (other, locks.lock("x")):
        lock.acquire(timeout=1).release()
    locks.close()
