"""After any interruption a lock is held by a caller that knows it, or free."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import lualock
from lualock import _protocol as protocol
from lualock import aio
from lualock._protocol import (
    AcquireRequest,
    AwaitMessage,
    CleanupLater,
    LeaseState,
    RunScript,
    ServerClock,
    Subscribe,
)
from lualock._transport.asyncio import driver as asyncio_driver
from tests.support.faults import Fault, FaultProxy
from tests.support.servers import Server
from tests.support.steps import sent
from tests.support.world import World, settle

TOKEN, LOCK, QUEUE = b"t" * 22, b"p:{x}", b"p:{x}:waiters"


LOST, HELD_UP = Fault("drop reply"), Fault("delay request", seconds=0.3)


@pytest.fixture
def proxy(one_server: Server) -> Iterator[FaultProxy]:
    """Return a proxy before one server."""
    with FaultProxy(one_server.socket) as proxy:
        yield proxy


def _server(clock: Callable[[], float] = lambda: 0.0) -> ServerClock:
    server = ServerClock(clock, 5.0)
    server.compare(0.0, 0.0, 10**15)
    return server


def _request() -> AcquireRequest:
    return AcquireRequest("x", LOCK, QUEUE, TOKEN, 30_000, b"me", b"0", b"0", crowded=False)


def _release() -> protocol.Steps[None]:
    return protocol.release(_request(), LeaseState(1, b"", 30.0))


@pytest.mark.parametrize("broke", [KeyboardInterrupt, asyncio.CancelledError, SystemExit])
def test_an_interrupted_acquire_releases_its_token(broke: type[BaseException]) -> None:
    """``acquire`` that is interrupted while a request is under way releases the token first."""
    server = _server()
    steps = protocol.acquire(_request(), server, None)
    call = sent(next(steps), server)
    assert call.script.name == "acquire"
    later = steps.throw(broke())
    assert isinstance(later, CleanupLater)  # even if the request can no longer be under way
    assert (later.call.script.name, later.orphan) == ("abandon", call)
    back = next(steps)
    assert isinstance(back, RunScript)
    assert (back.script.name, back.compensating) == ("abandon", True)
    assert back.parts == (LOCK, QUEUE, TOKEN, b"", b"")
    with pytest.raises(broke):
        steps.send([b"left"])


def test_a_request_that_was_not_sent_leaves_nothing() -> None:
    """Interrupted while it waits for a connection, ``acquire`` has nothing to release."""
    steps = protocol.acquire(_request(), _server(), None)
    next(steps)
    with pytest.raises(asyncio.CancelledError):
        steps.throw(asyncio.CancelledError())


def test_a_repetition_that_was_not_sent_hides_no_orphan() -> None:
    """Interrupted while its repetition waits for a connection, ``acquire`` cleans up when the first
    request has expired."""
    server = _server()
    steps = protocol.acquire(_request(), server, None)
    first = sent(next(steps), server)
    assert isinstance(steps.throw(lualock.LockUnavailable("lost", outcome_unknown=True)), RunScript)
    later = steps.throw(asyncio.CancelledError())
    assert isinstance(later, CleanupLater)
    assert later.orphan is first
    assert later.orphan.expires == 5.0


def test_the_first_error_survives_a_failed_clean_up() -> None:
    """An error of the clean-up does not replace the first error."""
    server = _server()
    steps = protocol.acquire(_request(), server, None)
    sent(next(steps), server)
    steps.throw(KeyboardInterrupt("first"))
    next(steps)
    with pytest.raises(KeyboardInterrupt, match="first"):
        steps.throw(lualock.LockUnavailable("second"))


@pytest.mark.parametrize("broke", [KeyboardInterrupt, asyncio.CancelledError, SystemExit])
@pytest.mark.parametrize("verb", ["acquire", "release"])
def test_an_interrupted_clean_up_is_an_interruption(verb: str, broke: type[BaseException]) -> None:
    """An interruption during a clean-up replaces the error that caused the clean-up."""
    server = _server()
    steps: Any = _release() if verb == "release" else protocol.acquire(_request(), server, None)
    step = next(steps)
    while not step.compensating:
        if step.script.name == "acquire":
            sent(step, server)
        step = steps.throw(lualock.LockUnavailable("lost", outcome_unknown=True))
        step = next(steps) if isinstance(step, CleanupLater) else step
    assert step.script.name == "abandon"
    with pytest.raises(broke):
        steps.throw(broke())


def test_a_refusal_releases_nothing() -> None:
    """After a refusal there is nothing to release."""
    steps = protocol.acquire(_request(), _server(), None)
    next(steps)
    with pytest.raises(lualock.LockUnavailable, match="out of memory"):
        steps.throw(lualock.LockUnavailable("out of memory"))


def test_nothing_is_released_before_there_is_a_ticket() -> None:
    """Between the first try and the queue there is nothing to release."""
    steps = protocol.acquire(_request(), _server(), None)
    next(steps)
    assert isinstance(steps.send([b"held", 1000, 0, b"other"]), Subscribe)
    with pytest.raises(KeyboardInterrupt):
        steps.throw(KeyboardInterrupt())


def test_an_interrupted_wait_leaves_the_queue() -> None:
    """An interrupted wait leaves the queue first."""
    server = _server()
    steps = protocol.acquire(_request(), server, None)
    next(steps)
    steps.send([b"held", 1000, 0, b"other"])
    check = sent(steps.send(b"channel"), server)
    assert check.script.name == "wait"
    assert isinstance(steps.send([b"queued", 1000, 0, b"other", b"1" * 16, 0, b"5"]), AwaitMessage)
    later = steps.throw(KeyboardInterrupt())  # the reply to the queue check has not been read
    assert isinstance(later, CleanupLater)
    back = next(steps)
    assert isinstance(back, RunScript)
    assert (back.script.name, back.compensating) == ("abandon", True)
    parts = LOCK, QUEUE, TOKEN, TOKEN + b"30000 channel me", b""
    assert later.call.parts == back.parts == parts
    with pytest.raises(KeyboardInterrupt):
        steps.send([b"left"])


def test_an_interrupted_claim_gives_the_lock_back() -> None:
    """A waiter that is interrupted while it claims the lock, before it knows of its place, gives
    back what the message granted."""

    class Unanswered:
        """A reply that has not come."""

        def poll(self) -> None: ...

    server = _server()
    steps = protocol.acquire(_request(), server, None)
    sent(next(steps), server)
    steps.send([b"held", 1000, 0, b"other"])
    sent(steps.send(b"channel"), server)
    assert isinstance(steps.send(Unanswered()), AwaitMessage)
    claim = steps.send(b"%016d%016d" % (10**15 + 1, 10**15))
    assert isinstance(claim, RunScript)
    assert claim.script.name == "claim"
    back = steps.throw(asyncio.CancelledError())
    assert isinstance(back, RunScript)
    assert (back.script.name, back.compensating) == ("abandon", True)
    with pytest.raises(asyncio.CancelledError):
        steps.send([b"released"])


def test_a_closed_generator_sends_nothing() -> None:
    """A closed protocol (at the interpreter's end, or when a task is collected) yields no further
    step."""
    steps = protocol.acquire(_request(), _server(), None)
    next(steps)
    steps.close()
    release = _release()
    next(release)
    release.close()


def test_an_interrupted_release_is_finished() -> None:
    """An interrupted release is sent again before the interruption goes on."""
    steps = _release()
    next(steps)
    again = steps.throw(KeyboardInterrupt())
    assert isinstance(again, RunScript)
    assert (again.script.name, again.compensating) == ("abandon", True)
    with pytest.raises(KeyboardInterrupt):
        steps.send(b"released")


def test_a_release_that_may_have_happened_is_not_reported_as_expired() -> None:
    """A release whose reply was lost, and of which the server knows nothing, has an unknown
    outcome."""
    for reply in (b"missing", [b"held", b"other"]):
        state = LeaseState(1, b"", 30.0)
        steps = protocol.release(_request(), state)
        next(steps)
        again = steps.throw(lualock.LockUnavailable("lost", outcome_unknown=True))
        assert isinstance(again, RunScript)
        with pytest.raises(lualock.LockUnavailable, match="released, or had expired"):
            steps.send(reply)
        assert not state.released
        assert not state.lost
    steps = _release()
    next(steps)
    with pytest.raises(lualock.LeaseLost):
        steps.send(b"missing")


def test_a_repeated_request_counts_from_the_remaining_time() -> None:
    """The reply to a repeated ``acquire`` gives the first lease, with its remaining time."""
    times = iter([100.0, 100.0, 107.0, 107.0])
    server = _server(lambda: next(times))
    steps = protocol.acquire(_request(), server, 0)
    sent(next(steps), server)
    with pytest.raises(StopIteration) as done:
        steps.send([b"owned", 25_000, b"1795468272410195"])
    assert done.value.value == LeaseState(
        1795468272410195, b"1795468272410195" + _request().token, 125.0
    )


@pytest.mark.parametrize("answered", [True, False])
def test_two_callers_that_extend_a_lease_at_the_same_time(answered: bool) -> None:
    """A sooner end without an answer is not undone by the answer to another extension."""
    state = LeaseState(1, b"", 100.0)
    first = protocol.extend(_request(), state, 30_000, lambda: 0.0)
    second = protocol.extend(_request(), state, 1_000, lambda: 0.0)
    next(first)
    next(second)
    lost = lualock.LockUnavailable("lost", outcome_unknown=True)
    second.throw(lost)  # it is sent again
    with pytest.raises(lualock.LockUnavailable):
        second.throw(lost)
    if answered:
        with pytest.raises(StopIteration) as done:
            first.send(b"extended")
        assert done.value.value == 1.0
    else:
        with pytest.raises(lualock.LockUnavailable):
            first.throw(lualock.LockUnavailable("the server is busy"))
    assert (state.deadline, state.at_most_s) == (1.0, 1.0)


async def test_cancelled_acquire_leaves_nothing_held(one_server: Server) -> None:
    """A task that is cancelled anywhere in ``acquire`` leaves the lock free."""
    async with aio.connect(one_server.url) as locks:
        lock = locks.lock("x", ttl=60)
        for turns in range(12):  # cancelled after so many turns of the loop
            task = asyncio.create_task(lock.acquire())
            for _ in range(turns):
                await asyncio.sleep(0)
            cancelled = task.cancel()
            try:
                lease = await task
            except asyncio.CancelledError:
                assert cancelled
            else:
                await lease.release()
            assert not await lock.locked(), turns


async def test_cancelled_twice(one_server: Server) -> None:
    """A second cancellation does not stop the release that the first one caused."""
    async with aio.connect(one_server.url) as locks:
        lock = locks.lock("x", ttl=60)
        for turns in range(10):
            task = asyncio.create_task(lock.acquire())
            for _ in range(turns):
                await asyncio.sleep(0)
            while not task.done():
                task.cancel()
                await asyncio.sleep(0)
            if not task.cancelled():
                await task.result().release()
            await asyncio.wait(
                locks._driver.background._tasks or {asyncio.create_task(lock.locked())}
            )
            assert not await lock.locked(), turns


async def test_cancelled_release_releases(one_server: Server) -> None:
    """A task that is cancelled anywhere in ``release`` leaves the lock free."""
    async with aio.connect(one_server.url) as locks:
        lock = locks.lock("x", ttl=60)
        for turns in range(1, 12):
            lease = await lock.acquire()
            task = asyncio.create_task(lease.release())
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])
            assert not await lock.locked(), turns


@pytest.mark.parametrize("verb", ["acquire", "release"])
async def test_cancelled_while_it_cleans_up(
    one_server: Server, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """A task that is cancelled during a clean-up ends as cancelled, and the lock is free."""
    monkeypatch.setattr(asyncio_driver, "GRACE_S", 5.0)  # so that the cancellation comes in time
    async with aio.connect(proxy.url) as mine, aio.connect(one_server.url) as locks:
        lock = mine.lock("x", ttl=60)
        lease = await lock.acquire()
        if verb == "acquire":
            await lease.release()
        proxy.choose = {"acquire": LOST, "release": LOST, "abandon": HELD_UP}.get
        task = asyncio.create_task(lock.acquire() if verb == "acquire" else lease.release())
        give_up = time.monotonic() + 5
        while not proxy.met or proxy.met[-1].script != "abandon":
            assert time.monotonic() < give_up
            await asyncio.sleep(0.002)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        while await locks.lock("x").locked():
            assert time.monotonic() < give_up
            await asyncio.sleep(0.002)


async def test_cancelled_waiter_leaves_the_holder_alone(one_server: Server) -> None:
    """The cancellation of a waiter changes nothing for the holder."""
    async with aio.connect(one_server.url) as locks:
        lock = locks.lock("x", ttl=60)
        lease = await lock.acquire()
        waiter = asyncio.create_task(lock.acquire())
        await asyncio.sleep(0.02)
        waiter.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiter
        assert (await lock.inspect()).fence == lease.fence
        await lease.release()


def test_keyboard_interrupt_while_waiting(locks: lualock.Locks) -> None:
    """A signal ends a waiting ``acquire``, and the holder keeps the lock."""
    lock = locks.lock("x", ttl=60)
    lease = lock.acquire()

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KeyboardInterrupt):
            lock.acquire()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert lock.inspect().fence == lease.fence


def _run(code: str, server: Server) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", textwrap.dedent(code)],
        env={**os.environ, "LUALOCK_URL": server.url},
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


def test_after_a_fork_the_child_owns_nothing(one_server: Server) -> None:
    """A forked child neither holds nor releases its parent's lease, nor uses its sockets."""
    code = """
        import os, lualock
        locks = lualock.connect()
        lock = locks.lock("x")
        with lock as lease:
            if (child := os.fork()) == 0:
                assert not lease.held and lease.lost
                for use in (lease.release, lease.check, lambda: lease.extend(5)):
                    try:
                        use()
                    except lualock.LeaseLost as lost:
                        assert "forked child owns nothing" in str(lost), lost
                    else:
                        raise AssertionError
                assert not locks._driver._idle  # the parent's sockets are not used
                assert lock.locked()
                with locks.lock("other") as own:
                    assert own.held and str(os.getpid()) in locks.lock("other").inspect().holder
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
            assert lease.held and lock.inspect().fence == lease.fence
        assert not lock.locked()
        print("well")
    """
    done = _run(code, one_server)
    assert done.stdout == "well\n", done.stderr


def test_the_interpreter_exits_with_leases_held(one_server: Server) -> None:
    """Held and renewed leases neither delay the exit nor print anything."""
    code = """
        import asyncio, lualock
        from lualock import aio
        lease = lualock.connect().lock("x").acquire()
        async def main():
            global other
            other = await aio.connect().lock("y").acquire()
        asyncio.run(main())
        print("bye")
    """
    done = _run(code, one_server)
    assert (done.stdout, done.stderr, done.returncode) == ("bye\n", "", 0)


async def test_close_and_use_again(api: World) -> None:
    """After a close, which ends idle connections, the locks still work."""
    locks = api.connect()
    lock = locks.lock("x", ttl=30)
    lease = await settle(lock.acquire())
    await settle(locks.aclose() if api.asynchronous else locks.close())
    await settle(lease.release())
    assert not await settle(lock.locked())
