"""Lost leases: the loss is known at once, reported, and ends the lease in time."""

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
from lualock._core import renewal
from lualock._protocol import CLAIM_MS, RunScript
from lualock._transport import errors
from lualock._transport.asyncio.pending import SentReply
from lualock.scripts import SCRIPTS
from tests.support.faults import Fault, FaultProxy
from tests.support.proxy import Proxy
from tests.support.servers import BINARIES, Server
from tests.support.waiting import threads_fail, wait_until
from tests.support.world import World, entered, few, settle

pytestmark = pytest.mark.slow


@few
async def test_on_lost_when_the_time_is_over(world: World) -> None:
    """At the end of the lease ``on_lost`` is called once, with the lease, which is lost by then."""
    losses: list[Any] = []
    lock = world.connect().lock("x", ttl=0.3, on_lost=lambda lost: losses.append((lost, lost.lost)))
    lease = await settle(lock.acquire())
    await world.until(lambda: losses)
    assert losses == [(lease, True)]
    await world.until(lambda: world.client.get(lock.key) is None)
    with pytest.raises(lualock.LeaseLost):
        await settle(lease.release())
    assert len(losses) == 1


@few
async def test_on_lost_when_a_renewal_finds_it_gone(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """A renewed lease whose key was deleted is lost at its next renewal, and the log shows it."""
    losses: list[Any] = []
    lock = world.connect().lock("x", ttl=0.6, renew=True, on_lost=losses.append)
    with caplog.at_level(logging.ERROR, logger="lualock.renewal"):
        lease = await settle(lock.acquire())
        world.client.delete(lock.key)
        await world.until(lambda: losses)
    assert losses == [lease]
    assert lease.lost
    assert "the lease of lock 'x' is lost" in caplog.text


@few
async def test_on_lost_is_not_called_after_a_release(world: World) -> None:
    """``on_lost`` is not called after a release, even if the release itself finds the lease
    lost."""
    losses: list[Any] = []
    locks = world.connect()
    lease = await settle(locks.lock("x", ttl=0.2, on_lost=losses.append).acquire())
    await settle(lease.release())
    late = await settle(locks.lock("y", ttl=30, on_lost=losses.append).acquire())
    world.client.delete("lualock:{y}")
    with pytest.raises(lualock.LeaseLost):
        await settle(late.release())
    other = await settle(locks.lock("z", ttl=0.3, on_lost=losses.append).acquire())
    await world.until(lambda: losses)  # by then the first loss would be reported, too
    assert losses == [other]


async def test_on_lost_when_extend_finds_it_gone(api: World) -> None:
    """``on_lost`` is called when ``extend()`` raises ``LeaseLost``."""
    losses: list[Any] = []
    lock = api.connect().lock("x", ttl=30, on_lost=losses.append)
    lease = await settle(lock.acquire())
    api.client.delete(lock.key)
    with pytest.raises(lualock.LeaseLost):
        await settle(lease.extend(30))
    await api.until(lambda: losses)
    assert losses == [lease]


async def test_the_loss_is_reported_at_the_extended_end(api: World) -> None:
    """After ``extend()`` the loss is reported at the new end, sooner or later."""
    losses: list[str] = []
    locks = api.connect()
    longer = await settle(locks.lock("a", ttl=0.3, on_lost=lambda _: losses.append("a")).acquire())
    await settle(longer.extend(1.0))
    sooner = await settle(locks.lock("b", ttl=60, on_lost=lambda _: losses.append("b")).acquire())
    await settle(sooner.extend(0.5))
    await api.until(lambda: len(losses) == 2)
    assert losses == ["b", "a"]


async def test_a_callback_that_raises_or_hangs(
    api: World, caplog: pytest.LogCaptureFixture
) -> None:
    """A callback that raises or hangs does not stop the renewal of other leases; its error is
    logged."""
    called, hang = threading.Event(), threading.Event()

    def bad(lease: Any) -> None:
        called.set()
        if not api.asynchronous:
            hang.wait(20)
        raise RuntimeError("from the callback")

    locks = api.connect()
    renewed = await settle(locks.lock("renewed", ttl=3, renew=True).acquire())
    lost = await settle(locks.lock("x", ttl=0.1, on_lost=bad).acquire())
    await api.until(called.is_set)
    deadline = renewed._state.deadline
    await api.until(lambda: renewed._state.deadline > deadline)
    assert renewed.held
    assert lost.lost
    hang.set()
    await api.until(lambda: "on_lost of lock 'x' raised" in caplog.text)
    assert "from the callback" in caplog.text


@few
async def test_wait_lost(world: World) -> None:
    """``wait_lost()`` ends with the loss, with the release, or after its timeout."""
    locks = world.connect()
    lease = await settle(locks.lock("x", ttl=0.3).acquire())
    assert not await world.beside(lambda: lease.wait_lost(0.05))
    assert await world.beside(lease.wait_lost)
    assert lease.lost

    kept = await settle(locks.lock("y", ttl=30).acquire())
    waiting = asyncio.ensure_future(world.beside(kept.wait_lost))
    await asyncio.sleep(0.05)  # so that it probably waits by now; it ends in both cases
    await settle(kept.release())
    assert not await asyncio.wait_for(waiting, 5)
    with pytest.raises(lualock.InvalidArgument):
        await world.beside(lambda: kept.wait_lost(-1))


async def test_wait_lost_that_begins_while_the_lease_is_released(api: World) -> None:
    """``wait_lost()`` that begins during a release ends with the release, not with the ttl."""
    with FaultProxy(api.server.socket) as proxy:
        lease = await settle(api.connect(proxy.url).lock("x", ttl=30).acquire())
        proxy.inject(Fault("delay reply", seconds=0.3), "release")
        releasing = asyncio.ensure_future(api.beside(lease.release))
        await api.until(lambda: proxy.met)
        waiting = asyncio.ensure_future(api.beside(lease.wait_lost))
        await api.until(lambda: lease._wakeup)
        assert not releasing.done()
        await releasing
        await api.until(waiting.done, wait_s=2)
        assert not waiting.result()


@few
async def test_wait_lost_of_a_lease_that_is_found_gone(world: World) -> None:
    """The renewal that finds a lease gone ends ``wait_lost()``."""
    lock = world.connect().lock("x", ttl=0.6, renew=True)
    lease = await settle(lock.acquire())
    waiting = asyncio.ensure_future(world.beside(lease.wait_lost))
    world.client.delete(lock.key)
    assert await asyncio.wait_for(waiting, 5)


@few
async def test_max_hold(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """A lease is renewed until ``max_hold`` and then lost, at the server as in the client."""
    losses: list[Any] = []
    lock = world.connect().lock("x", ttl=0.4, renew=True, max_hold=0.9, on_lost=losses.append)
    start = time.monotonic()
    with caplog.at_level(logging.WARNING, logger="lualock.renewal"):
        lease = await settle(lock.acquire())
        await world.until(lambda: losses)
    assert 0.8 < time.monotonic() - start < 2
    assert lease.lost
    assert "max_hold is over" in caplog.text
    await world.until(lambda: not world.client.exists(lock.key))


async def test_a_max_hold_shorter_than_the_ttl(api: World) -> None:
    """A lease ends with ``max_hold`` even if its ttl is longer."""
    lock = api.connect().lock("x", max_hold=0.3)
    lease = await settle(lock.acquire())
    assert 0 < lease.remaining() <= 0.3
    assert api.client.pttl(lock.key) <= 300
    await api.until(lambda: lease.lost)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_hold": 5, "ttl": 30}, "max_hold needs a lease that is renewed"),
        ({"max_hold": 0}, "max_hold must be at least"),
        ({"max_hold": "5"}, "max_hold must be a number"),
        ({"on_lost": 5}, "on_lost must be a function"),
    ],
)
async def test_bad_options(api: World, options: dict[str, Any], message: str) -> None:
    """Options that cannot be combined are refused when the lock object is created."""
    with pytest.raises(lualock.InvalidArgument, match=message):
        api.connect().lock("x", **options)


# Renewal.


@pytest.mark.full
async def test_many_leases_are_renewed_in_few_round_trips(api: World, proxy: Proxy) -> None:
    """Leases that are due together are renewed in one round trip, and all stay held."""
    locks = api.connect(proxy.url)
    leases = [await settle(locks.lock(f"l{n}", ttl=1.5, renew=True).acquire()) for n in range(300)]
    await asyncio.sleep(3)  # long enough for two renewals of each lease
    assert all(lease.held for lease in leases)
    sent = [command for command in proxy.commands if command[-3:-1] == [b"1500", b"0"]]
    assert len(sent) >= 2 * 300  # each was extended some times
    assert proxy.packets < len(sent) / 4


@pytest.mark.full
async def test_renewal_survives_lost_replies_and_forgotten_scripts(
    api: World, proxy: Proxy
) -> None:
    """A batch whose reply is lost, or whose script is unknown, is repeated in time."""
    locks = api.connect(proxy.url)
    leases = [await settle(locks.lock(f"l{n}", ttl=1.5, renew=True).acquire()) for n in range(20)]
    for _ in range(6):
        proxy.lose_reply = 1
        api.client.script_flush()
        await asyncio.sleep(0.5)  # long enough for renewals, whatever is lost
        assert all(lease.held for lease in leases)
    assert all(api.client.exists(f"lualock:{{l{n}}}") for n in range(20))


async def test_a_failing_renewal_is_logged(
    api: World, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    """While the server is silent, renewal is logged and repeated; then the lease is lost."""
    losses: list[Any] = []
    lock = api.connect(proxy.url).lock("x", ttl=1, renew=True, on_lost=losses.append)
    with caplog.at_level(logging.WARNING, logger="lualock.renewal"):
        lease = await settle(lock.acquire())
        proxy.silent = True
        await api.until(lambda: losses)
    assert caplog.text.count("could not be renewed, trying again") >= 2
    assert "is lost: it expired" in caplog.text
    assert lease.lost


class _RaisingProvider(redis.CredentialProvider):
    """A credential provider that raises once, on request."""

    def __init__(self) -> None:
        self.raises = False

    def get_credentials(self) -> tuple[str, str]:
        if self.raises:
            self.raises = False
            raise RuntimeError("too many requests")
        return "default", "any"  # a server without passwords accepts any

    async def get_credentials_async(self) -> tuple[str, str]:
        return self.get_credentials()


async def test_renewal_goes_on_after_an_error_of_the_program(
    api: World, caplog: pytest.LogCaptureFixture
) -> None:
    """A credential provider that raises during a renewal costs no lease."""
    whims = _RaisingProvider()
    client: Any = redis.asyncio.Redis if api.asynchronous else redis.Redis
    make: Any = aio.Locks if api.asynchronous else lualock.Locks
    locks = make(client(unix_socket_path=api.server.socket, credential_provider=whims))
    api.made.append(locks)
    lock = locks.lock("x", ttl=1, renew=True)
    with caplog.at_level(logging.WARNING, logger="lualock.renewal"):
        lease = await settle(lock.acquire())
        deadline = lease._state.deadline
        whims.raises = True
        api.client.client_kill_filter(_type="normal", skipme=True)
        await api.until(lambda: lease._state.deadline > deadline)
    assert not whims.raises
    assert "too many requests" in caplog.text
    assert lease.held
    await settle(lease.release())


@pytest.mark.parametrize("begun", [False, True], ids=["not begun", "begun"])
async def test_renewal_goes_on_after_its_task_is_cancelled(one_server: Server, begun: bool) -> None:
    """If all tasks of a loop are cancelled, renewal begins again."""
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
def test_a_loss_is_reported_once_a_thread_can_be_started(
    locks: lualock.Locks, one_client: Any, monkeypatch: pytest.MonkeyPatch, found: str
) -> None:
    """If no thread can be started for ``on_lost``, it is tried again, and other leases are
    renewed."""
    monkeypatch.setattr(renewal, "RETRY_S", 0.1)
    losses: list[Any] = []
    gone = locks.lock("x", ttl=0.6, renew=True, on_lost=losses.append)
    lost = gone.acquire()
    other = locks.lock("y", ttl=0.6, renew=True).acquire()
    failed = threads_fail(monkeypatch, "lualock-lost")
    one_client.delete(gone.key)
    if found == "by extend":
        with pytest.raises(lualock.LeaseLost):
            lost.extend(0.6)
    wait_until(lambda: losses)
    assert failed == ["lualock-lost"] * 2
    assert losses == [lost]
    deadline = other._state.deadline
    wait_until(lambda: other._state.deadline > deadline)
    assert other.held
    other.release()


async def test_leases_are_watched_once_a_thread_can_be_started(
    api: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the renewing thread cannot be started the lock is not taken; the next acquisition is
    renewed."""
    failed = threads_fail(monkeypatch, "lualock-renewer", 1)
    lock = api.connect().lock("x", ttl=0.6, renew=True)
    with pytest.raises(RuntimeError, match="start"):
        await settle(lock.acquire())
    assert failed
    lease = await settle(lock.acquire(timeout=0))
    deadline = lease._state.deadline
    await api.until(lambda: lease._state.deadline > deadline)
    assert lease.held
    await settle(lease.release())


@pytest.mark.parametrize("when", ["acquired", "renewed"])
async def test_errors_keep_no_lease_alive(api: World, proxy: Proxy, when: str) -> None:
    """A dropped lease is freed at once, without the collector: no error with its frames keeps it
    alive and renewed."""
    gc.collect()
    gc.disable()
    try:
        lock = api.connect(proxy.url).lock("x", ttl=1, renew=True)
        proxy.lose_reply = 3 if when == "acquired" else 0
        lease = await settle(lock.acquire(timeout=5))
        if when == "renewed":
            proxy.lose_reply = 3
            await api.until(lambda: not proxy.lose_reply)
            proxy.commands.clear()
            await api.until(lambda: proxy.commands)  # and again, with or without success
        seen = weakref.ref(lease)
        del lease
        await api.until(lambda: seen() is None)
    finally:
        gc.enable()


async def test_extend_and_renewal_at_the_same_time(api: World) -> None:
    """A lease that is shortened during its renewal ends sooner, since their order is unknown; a
    longer end stays."""
    lease = await settle(api.connect().lock("x", ttl=30, renew=True).acquire())
    revision = lease._state.revision
    await settle(lease.extend(90))
    lease._state.extended(lease._clock() + 30, revision)
    assert lease.remaining() > 60
    await settle(lease.extend(10))
    lease._state.extended(lease._clock() + 30, revision)
    assert lease.remaining() <= 10
    lease._state.extended(lease._clock() + 60, lease._state.revision)
    assert lease.remaining() > 50


async def test_a_handed_over_lease_is_watched(api: World) -> None:
    """A waiter's lease, whose claim is read later, is renewed beyond the claim window."""
    locks = api.connect()
    first = await settle(locks.lock("x", ttl=60).acquire())
    waiter = asyncio.ensure_future(
        api.beside(locks.lock("x", ttl=CLAIM_MS / 1000 + 1, renew=True).acquire)
    )
    await api.until_waiters(locks.lock("x"), 1)
    await settle(first.release())
    lease = await waiter
    await api.until(lambda: lease.remaining() > CLAIM_MS / 1000, wait_s=2)
    await settle(lease.release())


# asyncio: the body.


async def test_a_lease_that_is_held_when_all_is_closed(api: World) -> None:
    """A held lease is renewed after ``aclose()``, and its loss is reported."""
    losses: list[Any] = []
    locks = api.connect()
    lock = locks.lock("x", ttl=0.6, renew=True, on_lost=losses.append)
    lease, released = await settle(lock.acquire()), await settle(locks.lock("y").acquire())
    await settle(released.release())
    end = time.monotonic() + lease.remaining()
    for _ in range(2):
        await settle(locks.aclose() if api.asynchronous else locks.close())
    await api.until(lambda: time.monotonic() + lease.remaining() > end + 0.5)
    assert losses == []
    api.client.delete(lock.key)
    await api.until(lambda: losses)
    assert losses == [lease]


@pytest.mark.parametrize("how", ["twice at once", "and acquired meanwhile", "and cancelled"])
async def test_a_lease_that_is_held_when_closing_fails(one_server: Server, how: str) -> None:
    """A held lease is renewed after an ``aclose()`` that is cancelled or fails."""
    locks = aio.connect(one_server.url)
    options: dict[str, Any] = {"ttl": 0.6, "renew": True}
    leases = [await locks.lock("x", **options).acquire()]
    cleaning = locks._driver.background.spawn(asyncio.sleep(0.01))  # ``aclose()`` waits for this
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


def test_an_outage_keeps_no_dropped_lease(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No error of an outage keeps the frames of the program, and with them a dropped lease that is
    renewed until the collector runs."""
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


async def test_a_lost_lease_that_is_extended_after_all_was_closed(one_server: Server) -> None:
    """A lost lease that is extended after ``aclose()`` is renewed, and its loss is reported."""
    losses: list[Any] = []
    locks = aio.connect(one_server.url)
    lock = locks.lock("x", ttl=0.6, renew=True, on_lost=losses.append)
    lease = await lock.acquire()
    with one_server.client() as client:
        client.pexpire(lock.key, 60_000)  # as if the server's clock were slower
        lease._state.deadline = lease._clock()  # and no renewal had been answered
        assert lease._renewer is not None
        lease._renewer.lose(lease, "the test says so")
        await locks.aclose()
        await lease.extend(0.6)
        end = time.monotonic() + lease.remaining()
        give_up = time.monotonic() + 5
        while time.monotonic() + lease.remaining() < end + 0.5:
            assert time.monotonic() < give_up
            await asyncio.sleep(0.01)
        del losses[:]
        client.delete(lock.key)
        while not losses:
            assert time.monotonic() < give_up
            await asyncio.sleep(0.01)
    await locks.aclose()


async def test_a_body_is_cancelled_also_when_all_is_closed(one_server: Server) -> None:
    """The lease of a body is watched after ``aclose()``."""
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
    """Nothing of a loop is left after ``aclose()`` and its end, even if leases were held."""
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
        wait_until(lambda: not client.exists("lualock:{x}"))  # it is no longer renewed


async def _body_with(server: Server, **options: Any) -> tuple[aio.Locks, aio.Lock]:
    locks = aio.connect(server.url)
    return locks, locks.lock("x", ttl=0.3, cancel_on_lost=True, **options)


async def test_the_body_is_cancelled(one_server: Server) -> None:
    """When the lease is lost its body is cancelled, and the block raises ``LeaseLost``."""
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


async def test_a_cancellation_by_the_program_goes_on(one_server: Server) -> None:
    """A task that is also cancelled by its program ends as cancelled."""
    locks, lock = await _body_with(one_server)

    async def work(both: bool) -> None:
        async with lock as lease:
            begun.set()
            try:
                await asyncio.sleep(5)
            finally:
                if both:  # lualock's cancellation has come; this is the program's
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


async def test_the_error_of_a_cancelled_body_is_kept(one_server: Server) -> None:
    """The body's own error during its cancellation is not replaced."""
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
    """A body that swallows its cancellation worked without the lock, so the block raises
    ``LeaseLost``."""
    locks, lock = await _body_with(one_server)
    with pytest.raises(lualock.LeaseLost):  # noqa: PT012 - its body is what is tested
        async with lock:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(5)
    await asyncio.sleep(0)
    await locks.aclose()


async def test_a_body_that_extends_its_lease_after_the_loss(one_server: Server) -> None:
    """A body that extends its lease during its cancellation is cut short, and the lease is
    released."""
    locks, lock = await _body_with(one_server)
    with one_server.client() as client:
        with pytest.raises(lualock.LeaseLost, match="cancelled"):  # noqa: PT012 - the body
            async with lock as lease:
                client.pexpire(lock.key, 60_000)  # as if the server's clock were slower
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
    """The task is not cancelled after the end of the body."""
    locks, lock = await _body_with(one_server, renew=True)
    async with lock as lease:
        await asyncio.sleep(0.5)  # renewed meanwhile
    assert not lease.lost
    await asyncio.sleep(0.5)
    await locks.aclose()


async def test_a_coroutine_as_callback(one_server: Server) -> None:
    """``on_lost`` may be a coroutine function."""
    losses: list[Any] = []

    async def on_lost(lease: aio.Lease) -> None:
        await asyncio.sleep(0)
        losses.append(lease)

    async with aio.connect(one_server.url) as locks:
        lease = await locks.lock("x", ttl=0.1, on_lost=on_lost).acquire()
        while not losses:  # noqa: ASYNC110 - the callback is what is tested
            await asyncio.sleep(0.01)
        assert losses == [lease]


async def test_entered_leases_are_watched_too(api: World) -> None:
    """A ``with`` block on a lease that ends in it raises at its end if its body succeeded."""
    losses: list[Any] = []
    lock = api.connect().lock("x", ttl=0.2, on_lost=losses.append)
    with pytest.raises(lualock.LeaseLost):  # noqa: PT012 - its body is what is tested
        async with entered(lock) as lease:
            await api.until(lambda: losses)
            await api.until(lambda: not api.client.exists(lock.key))
            assert lease.lost


async def test_a_lease_that_ended_in_the_client_only(api: World) -> None:
    """A lease that the server still has can be extended after its local end, and is watched
    again."""
    losses: list[Any] = []
    lock = api.connect().lock("x", ttl=0.3, on_lost=losses.append)
    lease = await settle(lock.acquire())
    api.client.pexpire(lock.key, 60_000)  # as if the server's clock were slower
    await api.until(lambda: losses)
    assert lease.lost
    await settle(lease.extend(0.4))
    assert lease.held
    assert not lease.lost
    await api.until(lambda: len(losses) == 2)


async def test_a_body_that_finds_the_loss_itself_is_not_cancelled(one_server: Server) -> None:
    """``LeaseLost`` of ``extend()`` leaves the block, and the task is not cancelled as well."""
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


async def test_a_body_that_has_ended_is_not_cancelled(one_server: Server) -> None:
    """A body that has ended is never cancelled, however late its loss is noticed."""
    async with aio.connect(one_server.url) as locks:
        lock = locks.lock("x", ttl=0.1, cancel_on_lost=True)
        lease = await lock.acquire()
        with pytest.raises(lualock.LeaseLost):
            async with lease:
                time.sleep(0.15)  # noqa: ASYNC251 - the loop is blocked, so no loss is reported
        locks._renewers.current()._tell(lease)
        await asyncio.sleep(0.01)  # a cancellation would come here


async def test_a_body_that_was_refused_is_not_cancelled(one_server: Server) -> None:
    """A task that could not enter the body, because the lease had expired, is not cancelled when
    the loss is reported."""
    async with aio.connect(one_server.url) as locks:
        lease = await locks.lock("x", ttl=0.1, cancel_on_lost=True).acquire()
        time.sleep(0.15)  # noqa: ASYNC251 - the loop is blocked, so no loss is reported
        with pytest.raises(lualock.LeaseLost):
            async with lease:
                pass
        locks._renewers.current()._tell(lease)
        await asyncio.sleep(0.01)  # a cancellation would come here


@few
async def test_wait_lost_of_a_lease_that_is_made_shorter(world: World) -> None:
    """``wait_lost()`` ends at the new end of a shortened lease."""
    lease = await settle(world.connect().lock("x", ttl=60).acquire())
    waiting = asyncio.ensure_future(world.beside(lease.wait_lost))
    await asyncio.sleep(0.1)  # so that it probably waits by now; it ends in both cases
    await settle(lease.extend(0.2))
    assert await asyncio.wait_for(waiting, 5)


async def test_a_loss_is_reported_during_a_slow_renewal(api: World, proxy: Proxy) -> None:
    """A loss is reported on time while a renewal waits for a silent server."""
    losses: list[Any] = []
    locks = api.connect(proxy.url)
    renewed = await settle(locks.lock("renewed", ttl=0.9, renew=True).acquire())
    lease = await settle(locks.lock("x", ttl=0.3, on_lost=losses.append).acquire())
    proxy.silent = True
    await api.until(lambda: losses, wait_s=2)
    assert losses == [lease]
    assert renewed.name == "renewed"


def test_a_lock_for_threads_refuses_a_coroutine_as_callback(locks: lualock.Locks) -> None:
    """A lock for threads refuses a coroutine function as callback, which it could not await."""

    async def on_lost(lease: Any) -> None: ...

    with pytest.raises(lualock.InvalidArgument, match="plain function"):
        locks.lock("x", on_lost=on_lost)


async def test_a_lost_reply_to_a_claim_keeps_no_lease_alive(one_server: Server) -> None:
    """A lease whose claim was never answered ends with its last reference, so it is not renewed
    until the garbage collector runs."""

    class Broken:
        def call(self, *_: Any, **__: Any) -> asyncio.Future[Any]:
            future = asyncio.get_running_loop().create_future()
            future.set_exception(lualock.LockUnavailable("the reply was lost"))
            return future

    async with aio.connect(one_server.url) as locks:
        lease = await locks.lock("x", ttl=30).acquire()
        claim = RunScript(SCRIPTS["claim"], (b"k", b"l", b"1", b"p"))
        state, broken = lease._state, Broken()
        state.claim = SentReply(locks._driver, claim, broken)  # type: ignore[arg-type]
        await asyncio.sleep(0)  # the reply is noticed
        assert lease.held
        seen = weakref.ref(lease)
        gc.disable()
        try:
            del lease
            assert seen() is None
        finally:
            gc.enable()
