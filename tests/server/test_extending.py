"""``extend()`` without an answer, beside other extensions, and during a close."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import lualock
from lualock import aio
from tests.support.faults import Fault, FaultProxy
from tests.support.servers import Server
from tests.support.tiers import full
from tests.support.waiting import wait_until
from tests.support.world import World, settle

pytestmark = pytest.mark.slow

LOST = Fault("drop reply", times=2)
"""The first reply and that to the repeated request."""


@pytest.fixture
def faulty(one_server: Server) -> Iterator[FaultProxy]:
    """Return a proxy that can lose or delay one request."""
    with FaultProxy(one_server.socket) as proxy:
        yield proxy


async def _held(world: World, proxy: FaultProxy, **options: Any) -> Any:
    """Return a lease, on a server that has the script of ``extend``."""
    lease = await settle(world.connect(proxy.url).lock("x", **options).acquire())
    await settle(lease.extend(options["ttl"]))
    return lease


async def _extending(world: World, lease: Any, ttl: float, proxy: FaultProxy) -> Any:
    """Call ``extend()`` beside the test, with a fault at its request."""
    met = len(proxy.met)
    extending = asyncio.ensure_future(world.beside(lambda: lease.extend(ttl)))
    await world.until(lambda: len(proxy.met) > met)
    return extending


async def _until_renewed(world: World, lease: Any) -> None:
    end = time.monotonic() + lease.remaining()
    await world.until(lambda: time.monotonic() + lease.remaining() > end + 0.1)


# A sooner end counts from its request.


@pytest.mark.parametrize("fault", [LOST, Fault("delay reply", seconds=2)], ids=["lost", "late"])
async def test_the_loss_at_a_sooner_end_that_is_not_answered(
    api: World, faulty: FaultProxy, fault: Fault
) -> None:
    """``on_lost`` is called once at the sooner end, although the request had no answer."""
    losses: list[Any] = []
    lease = await _held(api, faulty, ttl=30, on_lost=losses.append)
    waiting = asyncio.ensure_future(api.beside(lease.wait_lost))
    await api.until(lambda: lease._wakeup)
    faulty.inject(fault, "extend")
    extending = await _extending(api, lease, 0.4, faulty)
    await api.until(lambda: losses and waiting.done(), wait_s=1.5)
    assert waiting.result()
    assert extending.done() == (fault is LOST)
    await asyncio.gather(extending, return_exceptions=True)
    await _until_another_loss(api, losses)
    assert losses[:-1] == [lease]


async def test_the_loss_at_a_sooner_end_whose_request_was_cancelled(one_server: Server) -> None:
    """``on_lost`` is called at the sooner end, although the request was cancelled."""
    async with aio.connect(one_server.url) as locks:

        async def body() -> None:
            async with locks.lock("x", ttl=30, cancel_on_lost=True) as lease:
                extending = asyncio.create_task(lease.extend(0.4))
                await asyncio.sleep(0)
                extending.cancel()
                await asyncio.gather(extending, return_exceptions=True)
                await asyncio.sleep(20)

        done, _ = await asyncio.wait({asyncio.ensure_future(body())}, timeout=5)
        with pytest.raises(lualock.LeaseLost):
            await done.pop()


async def test_a_sooner_end_that_is_not_answered_is_renewed(api: World, faulty: FaultProxy) -> None:
    """A renewed lease is renewed before its sooner end, although the request had no answer."""
    losses: list[Any] = []
    lease = await _held(api, faulty, ttl=30, renew=True, on_lost=losses.append)
    faulty.inject(LOST, "extend")
    with pytest.raises(lualock.LockUnavailable):
        await settle(lease.extend(0.6))
    assert 0 < lease.remaining() <= 0.6
    await _until_renewed(api, lease)
    await _until_renewed(api, lease)
    assert losses == []
    await settle(lease.release())


async def test_a_sooner_end_is_renewed_while_its_answer_is_out(
    api: World, faulty: FaultProxy
) -> None:
    """A lease is renewed while ``extend()`` waits for its answer, if there is another
    connection."""
    lease = await _held(api, faulty, ttl=30, renew=True)
    faulty.inject(Fault("delay reply", seconds=0.6), "extend")
    extending = await _extending(api, lease, 0.9, faulty)
    await _until_renewed(api, lease)
    assert api.asynchronous or not extending.done()
    await extending
    await _until_renewed(api, lease)
    await settle(lease.release())


# One lease extended twice at the same time.


async def test_a_sooner_end_and_a_late_answer_to_a_later_one(
    api: World, faulty: FaultProxy
) -> None:
    """Of two extensions in unknown order the lease keeps the sooner end, as on the server."""
    lease = await _held(api, faulty, ttl=10)
    faulty.inject(Fault("delay reply", seconds=0.3), "extend")
    later = await _extending(api, lease, 60, faulty)
    await settle(lease.extend(1))
    assert lease.remaining() <= 1
    await later
    assert lease.remaining() <= 1
    assert api.client.pttl("lualock:{x}") <= 1000


async def test_two_later_ends_at_the_same_time(api: World, faulty: FaultProxy) -> None:
    """Of two later ends at one time neither shortens the lease."""
    lease = await _held(api, faulty, ttl=10)
    faulty.inject(Fault("delay reply", times=2, seconds=0.2), "extend")
    both = [await _extending(api, lease, ttl, faulty) for ttl in (60, 50)]
    assert lease.remaining() <= 10
    await asyncio.gather(*both)
    assert lease.remaining() > 40


async def test_a_late_answer_to_a_lease_whose_release_failed(
    api: World, faulty: FaultProxy
) -> None:
    """A late answer to ``extend()`` does not make a lease held again after a failed release."""
    lease = await _held(api, faulty, ttl=30)
    faulty.choose = {"extend": Fault("delay reply", seconds=0.4), "release": LOST}.get
    extending = await _extending(api, lease, 60, faulty)
    with pytest.raises(lualock.LockUnavailable):
        await settle(lease.release())
    await asyncio.gather(extending, return_exceptions=True)
    assert not lease.held


# The loss is reported once.


async def _until_another_loss(world: World, losses: list[Any]) -> None:
    """Return once a second loss was reported, and so every earlier one."""
    other = await settle(world.connect().lock("other", ttl=0.1, on_lost=losses.append).acquire())
    await world.until(lambda: other in losses)


async def test_extend_does_not_report_a_loss_again(api: World) -> None:
    """Repeated calls of ``extend()`` on a lost lease report its loss only once."""
    losses: list[Any] = []
    locks = api.connect()
    ended = await settle(locks.lock("x", ttl=0.2, on_lost=losses.append).acquire())
    await api.until(lambda: losses and not api.client.exists("lualock:{x}"))
    gone = await settle(locks.lock("y", ttl=30, on_lost=losses.append).acquire())
    api.client.delete("lualock:{y}")
    for lease, ttl in [(ended, 1), (ended, 30), (gone, 60), (gone, 1), (gone, 60)]:
        with pytest.raises(lualock.LeaseLost):
            await settle(lease.extend(ttl))
    await _until_another_loss(api, losses)
    assert losses[:-1] == [ended, gone]


@pytest.mark.full
@pytest.mark.parametrize(("first", "seconds"), [("renewal", 0.3), ("extend", 1.2)])
async def test_extend_and_a_renewal_find_the_loss_at_once(
    api: World, faulty: FaultProxy, first: str, seconds: float
) -> None:
    """A loss that ``extend()`` and a renewal both find is reported once, whatever their order."""
    losses: list[Any] = []
    lease = await _held(api, faulty, ttl=3, renew=True, on_lost=losses.append)
    api.client.delete("lualock:{x}")
    faulty.inject(Fault("delay reply", seconds=seconds), "extend")
    sent = len(faulty.seen)
    if first == "renewal":
        await api.until(lambda: faulty.met)
    extending = asyncio.ensure_future(api.beside(lambda: lease.extend(3)))
    await api.until(lambda: len(faulty.seen) == sent + 2)
    with pytest.raises(lualock.LeaseLost):
        await extending
    assert faulty.seen[sent].answered.is_set()
    await _until_another_loss(api, losses)
    assert losses[:-1] == [lease]


@pytest.mark.parametrize("answered", [True, *full(False)], ids=["released", "being released"])
def test_a_renewal_that_comes_after_the_release(
    one_server: Server, faulty: FaultProxy, caplog: pytest.LogCaptureFixture, answered: bool
) -> None:
    """A renewal that arrives after the release finds another holder, and reports no loss."""
    losses: list[Any] = []
    with (
        lualock.connect(faulty.url) as locks,
        lualock.connect(one_server.url) as others,
        ThreadPoolExecutor() as beside,
    ):
        others.lock("x").acquire().release()  # now the server has the script
        lease = locks.lock("x", ttl=3, renew=True, on_lost=losses.append).acquire()
        lease.extend(3)
        waiting = beside.submit(lease.wait_lost)
        late = Fault("delay reply", seconds=0.0 if answered else 1.0)
        faulty.choose = {"extend": Fault("delay request", seconds=0.3), "release": late}.get
        wait_until(lambda: faulty.met)
        releasing = beside.submit(lease.release)
        wait_until(lambda: len(faulty.met) > 1)
        assert faulty.met[1].answered.wait(5)
        for _ in range(2):
            others.lock("x").acquire(timeout=1).release()
        renewal = faulty.met[0]
        assert renewal.answered.wait(5)
        assert renewal.reply != b"extended"
        other = locks.lock("y", ttl=0.1, on_lost=losses.append).acquire()
        wait_until(lambda: losses)
        assert losses == [other]
        assert releasing.done() == answered
        releasing.result()
        assert not waiting.result(5)
        assert not lease.lost
        assert "'x' is lost" not in caplog.text


# Other loops, and a loop whose connections are closed.


@pytest.mark.full
async def test_what_is_extended_while_all_is_closed(one_server: Server, faulty: FaultProxy) -> None:
    """A lease that is extended during ``aclose()`` is renewed, and its loss is reported, even if
    the new renewer has made its round before the answer comes."""
    losses: list[Any] = []
    locks = aio.connect(faulty.url)
    lease = await locks.lock("x", ttl=3, renew=True, on_lost=losses.append).acquire()
    await lease.extend(3)
    other = await locks.lock("y", ttl=0.2, on_lost=losses.append).acquire()
    faulty.inject(Fault("delay reply", times=2, seconds=0.5), "extend")
    extending = asyncio.create_task(lease.extend(3))
    await _until(lambda: faulty.met)
    await locks.aclose()
    assert not extending.done()
    await extending
    assert losses == [other]
    end = time.monotonic() + lease.remaining()
    await _until(lambda: time.monotonic() + lease.remaining() > end + 0.5)
    with one_server.client() as client:
        client.delete("lualock:{x}")
    await _until(lambda: len(losses) == 2)
    assert losses == [other, lease]
    await locks.aclose()


@pytest.mark.full
@pytest.mark.parametrize("cancelled", [False, True], ids=["closed", "cancelled"])
async def test_renewal_goes_on_while_closing_takes_its_time(
    faulty: FaultProxy, monkeypatch: pytest.MonkeyPatch, cancelled: bool
) -> None:
    """During a slow ``aclose()`` and after it, old and new leases are renewed, even one whose
    renewal was under way."""
    monkeypatch.setattr("lualock._transport.asyncio.background.CLOSING_S", 10.0)
    locks = aio.connect(faulty.url)
    leases = [await locks.lock("x", ttl=0.9, renew=True).acquire()]
    cleaned = asyncio.Event()
    locks._driver.background.spawn(cleaned.wait())  # ``aclose()`` waits for this
    closing = asyncio.create_task(locks.aclose())
    await asyncio.sleep(0)
    leases.append(await locks.lock("y", ttl=0.9, renew=True).acquire())

    def until_all_are_renewed() -> Any:
        ends = [time.monotonic() + lease.remaining() for lease in leases]
        left = [lease.remaining for lease in leases]
        return _until(
            lambda: all(time.monotonic() + s() > e + 0.1 for s, e in zip(left, ends, strict=True))
        )

    await until_all_are_renewed()
    assert not closing.done()
    faulty.inject(Fault("delay reply", seconds=0.3), "extend")
    await _until(lambda: faulty.met)
    if cancelled:
        closing.cancel()
    cleaned.set()
    await asyncio.gather(closing, return_exceptions=True)
    assert closing.cancelled() == cancelled
    await until_all_are_renewed()
    assert all(lease.held for lease in leases)
    await locks.aclose()


def test_a_lease_that_another_loop_extends(one_server: Server) -> None:
    """When another loop shortens a lease, its own idle loop reports the loss at the new end."""
    locks = aio.connect(one_server.url)
    leases: list[aio.Lease] = []
    losses: list[aio.Lease] = []

    async def wait_in_loop() -> None:
        lost = asyncio.Event()

        def on_lost(lease: aio.Lease) -> None:
            losses.append(lease)
            lost.set()

        leases.append(await locks.lock("x", ttl=30, renew=False, on_lost=on_lost).acquire())
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(lost.wait(), 5)

    waiting = threading.Thread(target=asyncio.run, args=(wait_in_loop(),))
    waiting.start()
    wait_until(lambda: leases)
    start = time.monotonic()
    asyncio.run(leases[0].extend(0.4))
    waiting.join()
    assert losses == leases
    assert time.monotonic() - start < 3


def test_a_lease_of_a_loop_that_is_closed(one_server: Server) -> None:
    """A lease of a closed loop can be extended, shortened and released, although it is not
    watched."""
    locks = aio.connect(one_server.url)
    loop = asyncio.new_event_loop()
    lease = loop.run_until_complete(locks.lock("x", ttl=30, renew=True).acquire())
    loop.run_until_complete(locks.aclose())  # the lease is watched as before
    loop.close()

    async def use() -> None:
        await lease.extend(5)
        assert lease.remaining() <= 5
        await lease.release()

    asyncio.run(use())
    assert not lease.lost


async def _until(condition: Any) -> None:
    give_up = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < give_up
        await asyncio.sleep(0.002)
