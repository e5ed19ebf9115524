"""Leases that are lost: known at once, told to whoever wants to know, and never kept too long."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import threading
import time
import weakref
from typing import Any

import pytest
import redis

import lualock
from lualock import aio
from lualock._core import renewal as watch
from lualock._protocol import CLAIM_MS
from lualock._transport import errors
from tests.support.faults import Fault, FaultProxy
from tests.support.proxy import Proxy
from tests.support.servers import BINARIES, Server
from tests.support.waiting import threads_fail, wait_until
from tests.support.world import World, entered, few, settle

pytestmark = pytest.mark.slow


@few
async def test_on_lost_when_the_time_is_over(world: World) -> None:
    """The callback is called once, with the lease, which is lost by then."""
    told: list[Any] = []
    lock = world.connect().lock("x", ttl=0.3, on_lost=lambda lost: told.append((lost, lost.lost)))
    lease = await settle(lock.acquire())
    await world.until(lambda: told)
    assert told == [(lease, True)]
    await world.until(lambda: world.client.get(lock.key) is None)
    with pytest.raises(lualock.LeaseLost):
        await settle(lease.release())
    assert len(told) == 1


@few
async def test_on_lost_when_a_renewal_finds_it_gone(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """A renewed lease that somebody deleted is noticed with the next renewal, and logged."""
    told: list[Any] = []
    lock = world.connect().lock("x", ttl=0.6, renew=True, on_lost=told.append)
    with caplog.at_level(logging.ERROR, logger="lualock.watch"):
        lease = await settle(lock.acquire())
        world.client.delete(lock.key)
        await world.until(lambda: told)
    assert told == [lease]
    assert lease.lost
    assert "the lease of lock 'x' is lost" in caplog.text


@few
async def test_on_lost_is_not_called_for_what_was_released(world: World) -> None:
    """Neither after a release in time, nor when the release itself says that it was lost."""
    told: list[Any] = []
    locks = world.connect()
    lease = await settle(locks.lock("x", ttl=0.2, on_lost=told.append).acquire())
    await settle(lease.release())
    late = await settle(locks.lock("y", ttl=30, on_lost=told.append).acquire())
    world.client.delete("lualock:{y}")
    with pytest.raises(lualock.LeaseLost):
        await settle(late.release())
    other = await settle(locks.lock("z", ttl=0.3, on_lost=told.append).acquire())
    await world.until(lambda: told)  # by then the first would have been told of, too
    assert told == [other]


async def test_on_lost_when_extend_finds_it_gone(shell: World) -> None:
    """What extend() raises is told to the callback, too."""
    told: list[Any] = []
    lock = shell.connect().lock("x", ttl=30, on_lost=told.append)
    lease = await settle(lock.acquire())
    shell.client.delete(lock.key)
    with pytest.raises(lualock.LeaseLost):
        await settle(lease.extend(30))
    await shell.until(lambda: told)
    assert told == [lease]


async def test_a_longer_or_shorter_end_is_watched(shell: World) -> None:
    """After extend() the loss is told when the new end has come, be it later or sooner."""
    told: list[str] = []
    locks = shell.connect()
    longer = await settle(locks.lock("a", ttl=0.3, on_lost=lambda _: told.append("a")).acquire())
    await settle(longer.extend(1.0))
    sooner = await settle(locks.lock("b", ttl=60, on_lost=lambda _: told.append("b")).acquire())
    await settle(sooner.extend(0.5))
    await shell.until(lambda: len(told) == 2)
    assert told == ["b", "a"]


async def test_a_callback_that_raises_or_hangs(
    shell: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever a callback does, the other leases go on being renewed; what it raises is logged."""
    hang = threading.Event()

    def bad(lease: Any) -> None:
        if not shell.asynchronous:
            hang.wait(20)
        raise RuntimeError("from the callback")

    locks = shell.connect()
    renewed = await settle(locks.lock("renewed", ttl=0.3, renew=True).acquire())
    lost = await settle(locks.lock("x", ttl=0.1, on_lost=bad).acquire())
    await asyncio.sleep(1)  # the time in which the other lease must have been renewed
    assert renewed.held
    assert lost.lost
    hang.set()
    await shell.until(lambda: "on_lost of lock 'x' raised" in caplog.text)
    assert "from the callback" in caplog.text


@few
async def test_wait_lost(world: World) -> None:
    """Waiting for the loss ends with it, with the release, or when the time is over."""
    locks = world.connect()
    lease = await settle(locks.lock("x", ttl=0.3).acquire())
    assert not await world.beside(lambda: lease.wait_lost(0.05))
    assert await world.beside(lease.wait_lost)
    assert lease.lost

    kept = await settle(locks.lock("y", ttl=30).acquire())
    waiting = asyncio.ensure_future(world.beside(kept.wait_lost))
    await asyncio.sleep(0.05)  # so that it probably waits by now; it must end either way
    await settle(kept.release())
    assert not await asyncio.wait_for(waiting, 5)
    with pytest.raises(lualock.InvalidArgument):
        await world.beside(lambda: kept.wait_lost(-1))


async def test_wait_lost_that_begins_while_the_lease_is_released(shell: World) -> None:
    """Ends as soon as the lease is released, not when it would have ended."""
    with FaultProxy(shell.server.socket) as proxy:
        lease = await settle(shell.connect(proxy.url).lock("x", ttl=30).acquire())
        proxy.inject(Fault("delay reply", seconds=0.3), "release")
        releasing = asyncio.ensure_future(shell.beside(lease.release))
        await shell.until(lambda: proxy.met)
        waiting = asyncio.ensure_future(shell.beside(lease.wait_lost))
        await shell.until(lambda: lease._wakeup)
        assert not releasing.done()
        await releasing
        await shell.until(waiting.done, wait_s=2)
        assert not waiting.result()


@few
async def test_wait_lost_of_a_lease_that_is_found_gone(world: World) -> None:
    """Who waits for the loss of a renewed lease is woken by the renewal that finds it gone."""
    lock = world.connect().lock("x", ttl=0.6, renew=True)
    lease = await settle(lock.acquire())
    waiting = asyncio.ensure_future(world.beside(lease.wait_lost))
    world.client.delete(lock.key)
    assert await asyncio.wait_for(waiting, 5)


@few
async def test_max_hold(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A lease is renewed up to max_hold and then lost, on the server as here."""
    told: list[Any] = []
    lock = world.connect().lock("x", ttl=0.4, renew=True, max_hold=0.9, on_lost=told.append)
    start = time.monotonic()
    with caplog.at_level(logging.WARNING, logger="lualock.watch"):
        lease = await settle(lock.acquire())
        await world.until(lambda: told)
    assert 0.8 < time.monotonic() - start < 2
    assert lease.lost
    assert "max_hold is over" in caplog.text
    await world.until(lambda: not world.client.exists(lock.key))


async def test_a_max_hold_shorter_than_the_ttl(shell: World) -> None:
    """The lease ends with max_hold, whatever its ttl."""
    lock = shell.connect().lock("x", max_hold=0.3)
    lease = await settle(lock.acquire())
    assert 0 < lease.remaining() <= 0.3
    assert shell.client.pttl(lock.key) <= 300
    await shell.until(lambda: lease.lost)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_hold": 5, "ttl": 30}, "max_hold needs a lease that is renewed"),
        ({"max_hold": 0}, "max_hold must be at least"),
        ({"max_hold": "5"}, "max_hold must be a number"),
        ({"on_lost": 5}, "on_lost must be callable"),
    ],
)
async def test_bad_options(shell: World, options: dict[str, Any], said: str) -> None:
    """What cannot be is refused when the lock is made."""
    with pytest.raises(lualock.InvalidArgument, match=said):
        shell.connect().lock("x", **options)


# Renewal.


@pytest.mark.full
async def test_many_leases_are_renewed_in_few_round_trips(shell: World, proxy: Proxy) -> None:
    """What falls due together is sent together, and everything stays held."""
    locks = shell.connect(proxy.url)
    leases = [await settle(locks.lock(f"l{n}", ttl=1.5, renew=True).acquire()) for n in range(300)]
    await asyncio.sleep(3)  # the time in which each falls due at least twice
    assert all(lease.held for lease in leases)
    sent = [command for command in proxy.commands if command[-3:-1] == [b"1500", b"0"]]
    assert len(sent) >= 2 * 300  # each was extended some times
    assert proxy.packets < len(sent) / 4


@pytest.mark.full
async def test_renewal_survives_lost_replies_and_forgotten_scripts(
    shell: World, proxy: Proxy
) -> None:
    """A batch whose reply is lost, or whose script is unknown, is made good in time."""
    locks = shell.connect(proxy.url)
    leases = [await settle(locks.lock(f"l{n}", ttl=1.5, renew=True).acquire()) for n in range(20)]
    for _ in range(6):
        proxy.lose_reply = 1
        shell.client.script_flush()
        await asyncio.sleep(0.5)  # the time in which renewals must come, whatever is lost
        assert all(lease.held for lease in leases)
    assert all(shell.client.exists(f"lualock:{{l{n}}}") for n in range(20))


async def test_renewal_says_what_it_cannot_do(
    shell: World, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    """While the server is silent that is logged and tried again; at last the lease is lost."""
    told: list[Any] = []
    lock = shell.connect(proxy.url).lock("x", ttl=1, renew=True, on_lost=told.append)
    with caplog.at_level(logging.WARNING, logger="lualock.watch"):
        lease = await settle(lock.acquire())
        proxy.silent = True
        await shell.until(lambda: told)
    assert caplog.text.count("could not be renewed, trying again") >= 2
    assert "is lost: it expired" in caplog.text
    assert lease.lost


class _Whims(redis.CredentialProvider):
    """Raises once, when told to."""

    def __init__(self) -> None:
        self.raises = False

    def get_credentials(self) -> tuple[str, str]:
        if self.raises:
            self.raises = False
            raise RuntimeError("too many requests")
        return "default", "any"  # who may come in without a password may come in with one

    async def get_credentials_async(self) -> tuple[str, str]:
        return self.get_credentials()


async def test_renewal_goes_on_after_an_error_that_is_not_ours(
    shell: World, caplog: pytest.LogCaptureFixture
) -> None:
    """A credential provider that raises while leases are renewed costs none of them."""
    whims = _Whims()
    client: Any = redis.asyncio.Redis if shell.asynchronous else redis.Redis
    make: Any = aio.Locks if shell.asynchronous else lualock.Locks
    locks = make(client(unix_socket_path=shell.server.socket, credential_provider=whims))
    shell.made.append(locks)
    lock = locks.lock("x", ttl=1, renew=True)
    with caplog.at_level(logging.WARNING, logger="lualock.watch"):
        lease = await settle(lock.acquire())
        deadline = lease._state.deadline
        whims.raises = True
        shell.client.client_kill_filter(_type="normal", skipme=True)
        await shell.until(lambda: lease._state.deadline > deadline)
    assert not whims.raises
    assert "too many requests" in caplog.text
    assert lease.held
    await settle(lease.release())


@pytest.mark.parametrize("begun", [False, True], ids=["not begun", "begun"])
async def test_renewal_goes_on_after_its_task_is_cancelled(one_server: Server, begun: bool) -> None:
    """Who cancels all tasks of a loop that goes on cancels a renewal too, and it comes again."""
    async with aio.connect(one_server.url) as locks:
        lease = await locks.lock("x", ttl=0.6, renew=True).acquire()
        me, give_up = asyncio.current_task(), time.monotonic() + 5
        others: set[asyncio.Task[Any]] = set()
        while not others:
            assert time.monotonic() < give_up
            await asyncio.sleep(0)
            others = asyncio.all_tasks() - {me}
        if begun:
            await asyncio.sleep(0)
        for other in others:
            other.cancel()
        deadline = lease._state.deadline
        while lease._state.deadline == deadline:
            assert lease.held
            assert time.monotonic() < give_up
            await asyncio.sleep(0.002)
        await lease.release()


@pytest.mark.parametrize("found", ["by the renewal", "by extend"])
def test_a_loss_is_told_once_a_thread_can_be_started(
    locks: lualock.Locks, one_client: Any, monkeypatch: pytest.MonkeyPatch, found: str
) -> None:
    """Where no thread can be started for on_lost that is tried again, and others are renewed."""
    monkeypatch.setattr(watch, "RETRY_S", 0.1)
    told: list[Any] = []
    gone = locks.lock("x", ttl=0.6, renew=True, on_lost=told.append)
    lost = gone.acquire()
    other = locks.lock("y", ttl=0.6, renew=True).acquire()
    failed = threads_fail(monkeypatch, "lualock-lost")
    one_client.delete(gone.key)
    if found == "by extend":
        with pytest.raises(lualock.LeaseLost):
            lost.extend(0.6)
    wait_until(lambda: told)
    assert failed == ["lualock-lost"] * 2
    assert told == [lost]
    deadline = other._state.deadline
    wait_until(lambda: other._state.deadline > deadline)
    assert other.held
    other.release()


async def test_leases_are_watched_once_a_thread_can_be_started(
    shell: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the thread that renews cannot be started the lock is not taken; the next one is, and
    is renewed."""
    failed = threads_fail(monkeypatch, "lualock-watch", 1)
    lock = shell.connect().lock("x", ttl=0.6, renew=True)
    with pytest.raises(RuntimeError, match="start"):
        await settle(lock.acquire())
    assert failed
    lease = await settle(lock.acquire(timeout=0))
    deadline = lease._state.deadline
    await shell.until(lambda: lease._state.deadline > deadline)
    assert lease.held
    await settle(lease.release())


@pytest.mark.parametrize("when", ["acquired", "renewed"])
async def test_trouble_keeps_no_lease_alive(shell: World, proxy: Proxy, when: str) -> None:
    """A lease that the program drops goes at once, not when the collector comes: until then it is
    renewed. So the errors that were met on its way, and their frames, do not keep it."""
    gc.collect()
    gc.disable()
    try:
        lock = shell.connect(proxy.url).lock("x", ttl=1, renew=True)
        proxy.lose_reply = 3 if when == "acquired" else 0
        lease = await settle(lock.acquire(timeout=5))
        if when == "renewed":
            proxy.lose_reply = 3
            await shell.until(lambda: not proxy.lose_reply)
            proxy.commands.clear()
            await shell.until(lambda: proxy.commands)  # and again, in vain or not
        seen = weakref.ref(lease)
        del lease
        await shell.until(lambda: seen() is None)
    finally:
        gc.enable()


async def test_extend_and_renewal_at_the_same_time(shell: World) -> None:
    """Where the lease was made to end sooner while it was renewed, nobody knows which came second,
    so it does end sooner. Nothing else takes anything away."""
    lease = await settle(shell.connect().lock("x", ttl=30, renew=True).acquire())
    revision = lease._revision
    await settle(lease.extend(90))
    lease._confirm_until(lease._clock() + 30, revision)
    assert lease.remaining() > 60
    await settle(lease.extend(10))
    lease._confirm_until(lease._clock() + 30, revision)
    assert lease.remaining() <= 10
    lease._confirm_until(lease._clock() + 60, lease._revision)
    assert lease.remaining() > 50


async def test_a_handed_over_lease_is_watched(shell: World) -> None:
    """A waiter's lease, whose claim is read later, is renewed beyond the claim window."""
    locks = shell.connect()
    first = await settle(locks.lock("x", ttl=60).acquire())
    waiter = asyncio.ensure_future(
        shell.beside(locks.lock("x", ttl=CLAIM_MS / 1000 + 1, renew=True).acquire)
    )
    await shell.until_waiters(locks.lock("x"), 1)
    await settle(first.release())
    lease = await waiter
    await shell.until(lambda: lease.remaining() > CLAIM_MS / 1000, wait_s=2)
    await settle(lease.release())


# asyncio: the body.


async def test_what_is_held_when_all_is_closed(shell: World) -> None:
    """Is renewed as before, and its loss is told."""
    told: list[Any] = []
    locks = shell.connect()
    lock = locks.lock("x", ttl=0.6, renew=True, on_lost=told.append)
    lease, released = await settle(lock.acquire()), await settle(locks.lock("y").acquire())
    await settle(released.release())
    end = time.monotonic() + lease.remaining()
    for _ in range(2):
        await settle(locks.aclose() if shell.asynchronous else locks.close())
    await shell.until(lambda: time.monotonic() + lease.remaining() > end + 0.5)
    assert told == []
    shell.client.delete(lock.key)
    await shell.until(lambda: told)
    assert told == [lease]


@pytest.mark.parametrize("how", ["twice at once", "and acquired meanwhile", "and cancelled"])
async def test_what_is_held_when_closing_is_disturbed(one_server: Server, how: str) -> None:
    """Is renewed as before all the same."""
    locks = aio.connect(one_server.url)
    options: dict[str, Any] = {"ttl": 0.6, "renew": True}
    leases = [await locks.lock("x", **options).acquire()]
    cleaning = locks._driver.background.spawn(asyncio.sleep(0.01))  # what closing waits for
    closing = asyncio.create_task(locks.aclose())
    await asyncio.sleep(0)
    if how == "twice at once":
        await locks.aclose()
    elif how == "and acquired meanwhile":
        leases.append(await locks.lock("y", **options).acquire())
        assert not cleaning.done()
    else:
        closing.cancel()
    await asyncio.gather(closing, return_exceptions=True)
    ends = [time.monotonic() + lease.remaining() for lease in leases]
    give_up = time.monotonic() + 5
    while min(map(lambda at, lease: time.monotonic() + lease.remaining() - at, ends, leases)) < 0.5:
        assert not any(lease.lost for lease in leases)
        assert time.monotonic() < give_up
        await asyncio.sleep(0.01)
    for lease in leases:
        await lease.release()
    await locks.aclose()


def test_nothing_keeps_what_was_waited_for_while_the_server_was_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No error that was met on the way has the program's frames, and with them a lease that was
    dropped, which would be renewed until the collector comes."""
    name, path = next(iter(BINARIES.items()))
    server = Server(name, path)
    real, failed = errors.connect_error, threading.Semaphore(0)

    def counted(error: BaseException, where: str) -> lualock.LockError:
        failed.release()
        return real(error, where)

    monkeypatch.setattr(errors, "connect_error", counted)
    refs: list[Any] = []

    def take(locks: lualock.Locks) -> None:
        refs.append(weakref.ref(locks.lock("x", ttl=30).acquire(timeout=9)))

    with (
        contextlib.closing(server),
        lualock.connect(server.tcp_url) as locks,
        server.client() as client,
    ):
        lualock.connect(server.url).lock("x", ttl=30).acquire()
        thread = threading.Thread(target=take, args=(locks,))
        gc.disable()
        try:
            thread.start()
            wait_until(lambda: client.zcard("lualock:{x}:waiters"))
            server.kill()
            for _ in range(5):
                assert failed.acquire(timeout=5)
            server.start()
            thread.join(10)
            assert refs[0]() is None
        finally:
            gc.enable()


async def test_what_is_extended_after_its_loss_when_all_was_closed(one_server: Server) -> None:
    """Is watched again: its renewal, and its loss."""
    told: list[Any] = []
    locks = aio.connect(one_server.url)
    lock = locks.lock("x", ttl=0.6, renew=True, on_lost=told.append)
    lease = await lock.acquire()
    with one_server.client() as client:
        client.pexpire(lock.key, 60_000)  # as if its clock went slower
        lease._state.deadline = lease._clock()  # and nothing had been heard of a renewal
        assert lease._renewer is not None
        lease._renewer.lose(lease, "the test says so")
        await locks.aclose()
        await lease.extend(0.6)
        end = time.monotonic() + lease.remaining()
        give_up = time.monotonic() + 5
        while time.monotonic() + lease.remaining() < end + 0.5:
            assert time.monotonic() < give_up
            await asyncio.sleep(0.01)
        del told[:]
        client.delete(lock.key)
        while not told:
            assert time.monotonic() < give_up
            await asyncio.sleep(0.01)
    await locks.aclose()


async def test_a_body_is_cancelled_also_when_all_is_closed(one_server: Server) -> None:
    """Its lease is watched as before."""
    locks = aio.connect(one_server.url)
    cancelled: list[bool] = []

    async def body() -> None:
        async with locks.lock("x", ttl=0.6, renew=True, cancel_on_lost=True):
            await locks.aclose()
            with one_server.client() as client:
                client.delete("lualock:{x}")
            try:
                await asyncio.sleep(5)
            except asyncio.CancelledError:
                cancelled.append(True)
                raise

    with pytest.raises(lualock.LeaseLost):
        await body()
    assert cancelled == [True]


@pytest.mark.parametrize("renewed", [False, True], ids=["at once", "later"])
def test_a_loop_that_ends_after_aclose(one_server: Server, renewed: bool) -> None:
    """Nothing is left of it, also where leases were held to its end."""
    locks = aio.connect(one_server.url)
    kept: list[Any] = []

    async def main() -> asyncio.AbstractEventLoop:
        kept.append(await locks.lock("x", ttl=0.6, renew=True).acquire())
        end = time.monotonic() + kept[0].remaining()
        await locks.aclose()
        give_up = time.monotonic() + 5
        while renewed and time.monotonic() + kept[0].remaining() < end + 0.1:
            assert time.monotonic() < give_up
            await asyncio.sleep(0.01)
        return asyncio.get_running_loop()

    loop = asyncio.run(main())
    assert asyncio.all_tasks(loop) == set()
    assert len(locks._driver._loops) == 0
    with one_server.client() as client:
        wait_until(lambda: not client.exists("lualock:{x}"))  # it is renewed no more


async def _body_with(server: Server, **options: Any) -> tuple[aio.Locks, aio.Lock]:
    locks = aio.connect(server.url)
    return locks, locks.lock("x", ttl=0.3, cancel_on_lost=True, **options)


async def test_the_body_is_cancelled(one_server: Server) -> None:
    """When the lease is lost its body is cancelled, and what comes out is LeaseLost."""
    locks, lock = await _body_with(one_server)
    reached = False
    with pytest.raises(lualock.LeaseLost, match="so its body was cancelled"):  # noqa: PT012 - the body
        async with lock:
            await asyncio.sleep(5)
            reached = True
    assert not reached
    await asyncio.sleep(0)  # the task itself is not cancelled
    with pytest.raises(lualock.LeaseLost):
        async with await lock.acquire():
            await asyncio.sleep(5)
    await locks.aclose()


async def test_a_cancellation_from_elsewhere_goes_on(one_server: Server) -> None:
    """A task that somebody else cancels too ends as cancelled."""
    locks, lock = await _body_with(one_server)

    async def work(both: bool) -> None:
        async with lock as lease:
            begun.set()
            try:
                await asyncio.sleep(5)
            finally:
                if both:  # by now our own cancellation has come; here is the other
                    assert lease.lost
                    own.cancel()

    for both in (False, True):
        begun = asyncio.Event()
        own = asyncio.create_task(work(both))
        await begun.wait()
        if not both:
            own.cancel()
        with pytest.raises(asyncio.CancelledError):
            await own
    await locks.aclose()


async def test_what_the_body_raises_survives_its_cancellation(one_server: Server) -> None:
    """A body that answers the cancellation with an error of its own is not overruled."""
    locks, lock = await _body_with(one_server)
    with pytest.raises(RuntimeError, match="own"):  # noqa: PT012 - its body is what is tested
        async with lock:
            try:
                await asyncio.sleep(5)
            except asyncio.CancelledError:
                raise RuntimeError("own") from None
    await asyncio.sleep(0)
    await locks.aclose()


async def test_a_body_that_swallows_its_cancellation(one_server: Server) -> None:
    """What it did after the loss it did without the lock: that is said."""
    locks, lock = await _body_with(one_server)
    with pytest.raises(lualock.LeaseLost):  # noqa: PT012 - its body is what is tested
        async with lock:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(5)
    await asyncio.sleep(0)
    await locks.aclose()


async def test_a_body_that_extends_its_lease_after_the_loss(one_server: Server) -> None:
    """The server had it still, so it is given back; but the body had been cut short."""
    locks, lock = await _body_with(one_server)
    with one_server.client() as client:
        with pytest.raises(lualock.LeaseLost, match="cancelled"):  # noqa: PT012 - the body
            async with lock as lease:
                client.pexpire(lock.key, 60_000)  # a clock there that is slower than ours
                try:
                    await asyncio.sleep(5)
                except asyncio.CancelledError:
                    await lease.extend(30)
                    assert lease.held
                    raise
        assert not lease.held
    assert not await lock.locked()
    await locks.aclose()


async def test_a_body_that_ends_in_time_is_left_alone(one_server: Server) -> None:
    """Nothing is cancelled after the body, whatever the lease does then."""
    locks, lock = await _body_with(one_server, renew=True)
    async with lock as lease:
        await asyncio.sleep(0.5)  # renewed meanwhile
    assert not lease.lost
    await asyncio.sleep(0.5)
    await locks.aclose()


async def test_a_coroutine_as_callback(one_server: Server) -> None:
    """on_lost may be a coroutine function."""
    told: list[Any] = []

    async def on_lost(lease: aio.Lease) -> None:
        await asyncio.sleep(0)
        told.append(lease)

    async with aio.connect(one_server.url) as locks:
        lease = await locks.lock("x", ttl=0.1, on_lost=on_lost).acquire()
        while not told:  # noqa: ASYNC110 - the callback is what is tested
            await asyncio.sleep(0.01)
        assert told == [lease]


async def test_entered_leases_are_watched_too(shell: World) -> None:
    """A with block on a lease whose time runs out says so at its end, if its body succeeded."""
    told: list[Any] = []
    lock = shell.connect().lock("x", ttl=0.2, on_lost=told.append)
    with pytest.raises(lualock.LeaseLost):  # noqa: PT012 - its body is what is tested
        async with entered(lock) as lease:
            await shell.until(lambda: told)
            await shell.until(lambda: not shell.client.exists(lock.key))
            assert lease.lost


async def test_a_lease_that_was_over_here_but_not_there(shell: World) -> None:
    """What the server extends was never another's: the lease goes on, and is watched again."""
    told: list[Any] = []
    lock = shell.connect().lock("x", ttl=0.3, on_lost=told.append)
    lease = await settle(lock.acquire())
    shell.client.pexpire(lock.key, 60_000)  # a clock there that is slower than ours
    await shell.until(lambda: told)
    assert lease.lost
    await settle(lease.extend(0.4))
    assert lease.held
    assert not lease.lost
    await shell.until(lambda: len(told) == 2)


async def test_a_body_that_finds_the_loss_itself_is_not_cancelled(one_server: Server) -> None:
    """What extend() raises comes out of the block, and the task is not cancelled besides."""
    async with aio.connect(one_server.url) as locks:
        client = one_server.client()
        with pytest.raises(lualock.LeaseLost, match="extended"):  # noqa: PT012 - the body
            async with locks.lock("x", ttl=30, cancel_on_lost=True) as lease:
                client.delete("lualock:{x}")
                await lease.extend(5)
        client.close()
        task = asyncio.current_task()
        assert task is not None
        await asyncio.sleep(0.01)  # a cancellation would come here


async def test_a_lease_that_is_left_is_not_told_of(one_server: Server) -> None:
    """A body that has ended is never cancelled, however late its loss is noticed."""
    async with aio.connect(one_server.url) as locks:
        lock = locks.lock("x", ttl=0.1, cancel_on_lost=True)
        lease = await lock.acquire()
        with pytest.raises(lualock.LeaseLost):
            async with lease:
                time.sleep(0.15)  # noqa: ASYNC251 - the loop stands still, and nobody is told
        locks._renewer()._tell(lease)
        await asyncio.sleep(0.01)  # a cancellation would come here


@few
async def test_wait_lost_of_a_lease_that_is_made_shorter(world: World) -> None:
    """Who waits for the loss is told at the new end."""
    lease = await settle(world.connect().lock("x", ttl=60).acquire())
    waiting = asyncio.ensure_future(world.beside(lease.wait_lost))
    await asyncio.sleep(0.1)  # so that it probably waits by now; it must end either way
    await settle(lease.extend(0.2))
    assert await asyncio.wait_for(waiting, 5)


async def test_a_loss_is_told_while_others_are_being_renewed(shell: World, proxy: Proxy) -> None:
    """A server that hangs does not keep back what needs no server."""
    told: list[Any] = []
    locks = shell.connect(proxy.url)
    renewed = await settle(locks.lock("renewed", ttl=0.9, renew=True).acquire())
    lease = await settle(locks.lock("x", ttl=0.3, on_lost=told.append).acquire())
    proxy.silent = True
    await shell.until(lambda: told, wait_s=2)
    assert told == [lease]
    assert renewed.name == "renewed"


def test_a_coroutine_function_is_no_callback_of_a_plain_lock(locks: lualock.Locks) -> None:
    """It would never be awaited."""

    async def on_lost(lease: Any) -> None: ...

    with pytest.raises(lualock.InvalidArgument, match="plain function"):
        locks.lock("x", on_lost=on_lost)
