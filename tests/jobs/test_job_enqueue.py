"""Unique jobs: reserve, push and confirm, and the start that ends the reservation."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
import typing
from contextlib import suppress
from functools import partial
from typing import Any

import pytest

import lualock
from lualock._transport.asyncio import background as asyncio_background
from lualock.jobs import RESERVE_S, Enqueued, Refused, Reserved, RetryLater, adapter, token_of
from lualock.jobs.identity import job_metadata
from tests.jobs.test_job_policies import ODD
from tests.jobs.test_jobs import Log, as_job
from tests.support.delivery import Queue, held, reservation_of
from tests.support.proxy import Proxy
from tests.support.world import World, settle


def queue_of(world: World, locks: Any = None, work: Any = None, **options: Any) -> Queue:
    """Make the queue of a job of this world's API."""

    def rebuild(shop: int = 1) -> str:
        return f"rebuilt {shop}"

    made = (locks or world.connect()).job(**options)(as_job(world, work or rebuild))
    return Queue(world, made)


def test_the_verbs_are_shown_as_they_are_called(locks: lualock.Locks) -> None:
    """help(), type hints and Python's own errors name a verb's parameters and result, both APIs."""
    work = adapter(locks.job(key="x")(print))
    for name in ("enqueue", "reserve", "confirm", "refuse", "cancel", "died"):
        for verb in (getattr(work, name), getattr(work, f"{name}_async")):
            hints = typing.get_type_hints(verb)
            assert list(hints) == [*inspect.signature(verb).parameters, "return"]
        with pytest.raises(TypeError, match=rf"^JobAdapter\.{name}\(\) "):
            getattr(work, name)(odd=1)


async def test_one_is_queued(world: World) -> None:
    """While a job is queued, another one is refused and gets its id; once it has begun, it is
    not."""
    queue = queue_of(world, unique="queued")
    first = await queue.put(1, job_id="a")
    token = queue.pushed[0][1]
    assert first == Enqueued("a", token, "pushed a")
    lock = queue.work.lock((1,))
    assert token[:22].encode() in world.client.get(reservation_of(lock))
    assert not held(world, lock.key)  # a queued job keeps no other out
    assert (await settle(queue.work.reservation((1,)).inspect())).metadata == "job a"
    refused = await queue.put(1, job_id="b")
    assert not refused
    assert (refused.job_id, refused.state) == ("a", "queued")
    assert await queue.put(2)
    assert len(queue.pushed) == 2
    assert await queue.deliver() == "rebuilt 1"
    assert not held(world, reservation_of(lock))
    assert await queue.put(1, job_id="b")


async def test_a_waiter_for_a_reservation(api: World) -> None:
    """A waiter gets the reservation when the queued job begins, not when it would have expired."""
    queue = queue_of(api, unique="queued")
    await queue.put(1)
    beside = queue.work.reservation((1,))
    waits = asyncio.ensure_future(api.beside(beside.acquire))
    await api.until_waiters(beside, 1)
    since = time.monotonic()  # a new waiter checks on its own
    await api.until(lambda: time.monotonic() > since + 0.15)
    assert await queue.deliver() == "rebuilt 1"
    lease = await asyncio.wait_for(waits, 3)
    assert not await queue.put(1)
    await settle(lease.release())


async def test_how_long_a_reservation_lasts(world: World) -> None:
    """A reservation lasts some seconds, so that a crash frees it; confirmed, it lasts for the
    queue's time and the delay."""
    queue = queue_of(world, unique="queued", queue_ttl=500)
    key = reservation_of(queue.work.lock((1,)))
    reserved = await settle(queue.verb("reserve")((1,), job_id="a"))
    assert isinstance(reserved, Reserved)
    assert 0 < world.client.pttl(key) <= RESERVE_S * 1000 <= 15_000
    assert await settle(queue.verb("confirm")((1,), token=reserved.token))
    assert 490_000 < world.client.pttl(key) <= 500_000
    await settle(queue.verb("cancel")((1,), token=reserved.token))
    assert not held(world, key)
    assert not await settle(queue.verb("confirm")((1,), token=reserved.token))
    await queue.put(1, delay=3600.0)
    assert 4_090_000 < world.client.pttl(key) <= 4_100_000
    # The lease is independent of how long the reservation lasted.
    left: list[int] = []

    def work() -> None:
        left.append(world.client.pttl(lock.key))

    seen = queue_of(world, unique="queued", work=work)
    lock = seen.work.lock()
    await seen.put(delay=3600.0)
    await seen.deliver()
    assert 29_000 < left[0] <= 30_000


async def test_while_one_runs(world: World) -> None:
    """unique= says whether a queued job, a running one, or either refuses the next one."""
    for unique, while_queued, while_running in (
        ("queued", False, True),
        ("running", True, False),
        ("both", False, False),
        (None, True, True),
    ):
        queue = queue_of(world, unique=unique, key=f"job {unique}")
        await queue.put(job_id="a")
        assert bool(await queue.put(job_id="b")) == while_queued
        queue.pushed.clear()
        world.client.delete(reservation_of(queue.work.lock()))
        lease = await settle(queue.work.lock().acquire())
        entry = await queue.put(job_id="c")
        assert bool(entry) == while_running
        if not entry:
            assert (entry.state, entry.job_id) == ("running", None)  # a plain lock, so no job's id
            assert entry.holder == (await settle(queue.work.lock().inspect())).holder
            assert not held(world, reservation_of(queue.work.lock()))
        await settle(lease.release())


async def test_there_is_no_gap_at_the_start(world: World) -> None:
    """With unique="both" there is no moment at which a job that begins is neither queued nor
    running."""
    seen = Log()

    def work() -> None:
        with lualock.connect(world.server.url) as locks:
            entry = locks.job(unique="both", key="no gap")(lambda: None)
            seen.append(adapter(entry).reserve(job_id="b"))

    queue = queue_of(world, work=work, unique="both", key="no gap")
    await queue.put(job_id="a")
    await queue.deliver()
    (refused,) = seen
    assert isinstance(refused, Refused)
    assert (refused.job_id, refused.state) == ("a", "running")
    assert await queue.put(job_id="b")


async def test_fifty_producers(world: World) -> None:
    """Of fifty producers that enqueue at once one succeeds, and the others get its job's id."""
    queue = queue_of(world, unique="queued")
    puts = [world.beside(partial(_put, queue, f"id-{i}")) for i in range(50)]
    outcomes = await asyncio.gather(*puts)
    (one,) = [outcome for outcome in outcomes if outcome]
    assert [job_id for job_id, _, _ in queue.pushed] == [one.job_id]
    assert {outcome.job_id for outcome in outcomes} == {one.job_id}


def _put(queue: Queue, job_id: str) -> Any:
    def push(token: str) -> None:
        queue.pushed.append((job_id, token, ()))

    return queue.verb("enqueue")(push, job_id=job_id)


async def test_never_two_under_pressure(api: World) -> None:
    """With producers and workers at full speed there is never more than one job from push to
    end."""
    here: list[str] = []  # pushed, and not at its end
    most: list[int] = []
    todo: list[tuple[str, str]] = []

    def work() -> None:
        most.append(len(here))
        here.pop()

    queue = queue_of(api, work=work, unique="both")

    def push(token: str) -> None:
        here.append(token)
        most.append(len(here))
        todo.append((f"job {len(most)}", token))

    async def produce(name: int) -> int:
        puts = [
            await api.beside(partial(queue.verb("enqueue"), push, job_id=f"{name}-{n}"))
            for n in range(40)
        ]
        return sum(map(bool, puts))

    async def consume() -> None:
        while not done.is_set() or todo:
            if todo:
                await queue.attempt(*todo.pop(), beside=True)
            await asyncio.sleep(0)

    done = asyncio.Event()
    workers = [asyncio.create_task(consume()) for _ in range(3)]
    pushed = sum(await asyncio.gather(*(produce(name) for name in range(6))))
    done.set()
    await asyncio.gather(*workers)
    assert set(most) == {1}
    assert len(most) == 2 * pushed
    assert pushed > 5


async def test_a_failed_push(api: World) -> None:
    """An exception of the push is raised, and the next job can be pushed at once."""
    queue = queue_of(api, unique="queued")

    def push(token: str) -> None:
        raise ZeroDivisionError("the broker's")

    with pytest.raises(ZeroDivisionError, match="the broker's"):
        await settle(queue.verb("enqueue")(push, job_id="a"))
    assert await queue.put()


async def test_what_cannot_be_enqueued_or_delivered(api: World) -> None:
    """A push that cannot be called and an invalid id are refused before anything is written."""
    queue = queue_of(api, unique="queued")
    for push in (None, api.connect().lock("x")):
        message = f"push must be a function, not {type(push).__name__}"
        with pytest.raises(lualock.InvalidArgument, match=message):
            await settle(queue.verb("enqueue")(push, job_id="a"))
    bad: list[Any] = [None, "", 7]
    for job_id in bad:
        with pytest.raises(lualock.InvalidArgument, match="a job's id must be a str"):
            await settle(queue.verb("enqueue")(print, job_id=job_id))
        with pytest.raises(lualock.InvalidArgument, match="a job's id must be a str"):
            await queue.attempt(job_id, None)
    assert api.client.keys() == []


async def test_the_callback(api: World) -> None:
    """The callback gets exactly the job's arguments, and the conflicting id if it has a parameter
    for it; its result is returned."""
    log = Log()

    def refused(shop: int, *, job_id: str) -> str:
        log.note(shop, job_id)
        return "sorry"

    queue = queue_of(api, unique="queued", on_enqueue_failed=refused)
    plain = queue_of(api, unique="queued", key="x", on_enqueue_failed=lambda *a: log.note(*a))
    await queue.put(5, job_id="a")
    assert (await queue.put(5)).result == "sorry"
    await plain.put(6)
    assert (await plain.put(6)).result is None
    assert log == [(5, "a"), (6,)]


async def test_a_system_that_refuses(api: World) -> None:
    """If the job system itself did not push the job, the same callback is called."""
    log = Log()

    def refused(shop: int, *, job_id: str) -> str:
        log.note(shop, job_id)
        return "sorry"

    queue = queue_of(api, unique="queued", on_enqueue_failed=refused)
    entry = await settle(queue.verb("refuse")((5,), job_id="a"))
    assert entry == Refused("a", "queued", None, "sorry")
    assert (
        await settle(queue.verb("refuse")((5,), job_id="a", state="running"))
    ).state == "running"
    assert log == [(5, "a"), (5, "a")]
    assert api.client.keys() == []


async def test_a_loner(api: World) -> None:
    """A loner is refused while a job with its lock is queued or runs, and the callback gets that
    job's id; after that it is enqueued."""
    log = Log()

    class Loner(lualock.LockedJob):
        locks = api.connect()
        loner = True

        @classmethod
        def loner_enqueue_failed(cls, number: int, *, job_id: str) -> None:
            log.note(number, job_id)

    async def perform(number: int) -> int:
        entries.append(await queue.put(number))
        if len(entries) == 1:
            raise ZeroDivisionError
        return number

    def perform_plain(number: int) -> int:
        entries.append(queue.work.enqueue(str, (number,), job_id="another"))
        if len(entries) == 1:
            raise ZeroDivisionError
        return number

    entries: list[Any] = []
    body = perform if api.asynchronous else perform_plain
    queue = Queue(api, type("Job", (Loner,), {"perform": staticmethod(body)}))
    assert await queue.put(5, job_id="a")
    token = queue.pushed[0][1]
    assert (await queue.put(5)).state == "queued"
    with pytest.raises(ZeroDivisionError):
        await queue.deliver(will_retry=lambda _: 0.0)
    assert (await queue.put(5)).state == "queued"  # it waits for its retry
    assert await queue.attempt("a", token, 5) == 5
    assert [(entry.job_id, entry.state) for entry in entries] == [("a", "running")] * 2
    assert log == [(5, "a")] * 4
    assert await queue.put(5)


async def test_a_loner_may_say_less(api: World) -> None:
    """The lock_unique of a class counts instead of its loner."""
    job = type(
        "Job",
        (lualock.LockedJob,),
        {
            "locks": api.connect(),
            "loner": True,
            "lock_unique": "queued",
            "perform": staticmethod(as_job(api, lambda: None)),
        },
    )
    queue = Queue(api, job)
    lease = await settle(queue.work.lock().acquire())
    assert await queue.put()
    assert not await queue.put()
    await settle(lease.release())


async def test_the_callback_of_a_class(api: World) -> None:
    """loner_enqueue_failed is called as in resque-lock, and is inherited."""
    log = Log()

    class Base(lualock.LockedJob):
        locks = api.connect()
        loner = True

        @classmethod
        def loner_enqueue_failed(cls, shop: int) -> None:
            log.note(cls.__name__, shop)

    job = type("Job", (Base,), {"perform": staticmethod(as_job(api, lambda shop: shop))})
    queue = Queue(api, job)
    await queue.put(5)
    assert not await queue.put(5)
    assert log == [("Job", 5)]
    assert await queue.deliver() == 5
    with pytest.raises(lualock.InvalidArgument, match="must be a classmethod"):
        type("Bad", (Base,), {"loner_enqueue_failed": lambda self: None})


def test_a_crash_between_reserve_and_push(one_server: Any, one_client: Any) -> None:
    """A producer that is killed before it pushed blocks other jobs for some seconds, not longer."""
    code = """
        import sys, time, lualock
        from lualock.jobs import adapter
        def work(): pass
        job = lualock.connect(sys.argv[1]).job(unique="queued", key="x")(work)
        def push(token):
            print(token, flush=True)
            time.sleep(60)
        adapter(job).enqueue(push, job_id="a")
    """
    command = [sys.executable, "-c", textwrap.dedent(code), one_server.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as producer:
        assert producer.stdout is not None
        assert producer.stdout.readline()
        os.kill(producer.pid, signal.SIGKILL)
    key = b"lualock:{x}:reservation"
    assert 0 < one_client.pttl(key) <= RESERVE_S * 1000
    with lualock.connect(one_server.url) as locks:
        work = adapter(locks.job(unique="queued", key="x")(_nothing))
        refused = work.reserve(job_id="b")
        assert isinstance(refused, Refused)
        assert refused.job_id == "a"
        one_client.pexpire(key, 1)
        while one_client.exists(key):
            pass
        assert work.reserve(job_id="b")


def _nothing() -> None:
    """A job's body."""


async def test_a_reservation_that_expired_in_the_queue(world: World) -> None:
    """After a reservation has expired another job is enqueued; both run one after the other, and
    the reservation is the second job's."""
    log = Log()
    queue = queue_of(world, work=lambda shop: log.note(shop), unique="queued", key="x")
    await queue.put(1, job_id="a")
    world.client.delete(reservation_of(queue.work.lock((1,))))
    assert await queue.put(2, job_id="b")
    await queue.deliver()
    refused = await queue.put(3)
    assert refused.job_id == "b"  # "a" did not end the reservation of "b"
    await queue.deliver()
    assert log == [(1,), (2,)]
    assert await queue.put(3)


async def test_a_job_that_began_before_it_was_confirmed(world: World) -> None:
    """A worker may be faster than the producer; then the confirmation changes nothing."""
    queue = queue_of(world, unique="queued")
    reserved = await settle(queue.verb("reserve")(job_id="a"))
    assert await queue.attempt("a", reserved.token) == "rebuilt 1"
    assert not await settle(queue.verb("confirm")(token=reserved.token))
    assert not held(world, reservation_of(queue.work.lock()))


async def test_cancel(world: World) -> None:
    """A removed job releases its reservation; a running one is not affected."""
    seen: list[bool] = []

    def work() -> None:
        with lualock.connect(world.server.url) as locks:
            entry = adapter(locks.job(unique="both", key="to cancel")(_nothing))
            entry.cancel(token=mine.token)
        seen.append(held(world, entry.lock().key))

    queue = queue_of(world, work=work, unique="both", key="to cancel")
    mine = await queue.put()
    await settle(queue.verb("cancel")(token=mine.token))
    queue.pushed.clear()
    mine = await queue.put()
    await queue.deliver()
    assert seen == [True]


@pytest.mark.parametrize("given_up", ["cancelled", "not pushed"])
async def test_a_refused_release_ends_no_later_reservation(
    api: World, given_up: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reservation that the server refused to release is not ended later: the same job may have
    been enqueued again under that token."""
    monkeypatch.setattr(asyncio_background, "PAUSE_MIN_S", 0.3)  # before any next try
    locks = api.connect()
    queue = queue_of(api, locks, unique="queued")
    other = locks.lock("other", ttl=30)
    lease = await settle(other.acquire())
    again = partial(queue.put, 1, job_id="a", token=token_of("a"))

    def push(_: str) -> None:
        api.client.config_set("min-replicas-to-write", 1)
        raise ConnectionError("the broker's")

    try:
        if given_up == "cancelled":
            await again()
            api.client.config_set("min-replicas-to-write", 1)
            with pytest.raises(lualock.LockUnavailable, match="replicas"):
                await settle(queue.verb("cancel")((1,), job_id="a"))
        else:
            enqueue = queue.verb("enqueue")
            with pytest.raises(ConnectionError):
                await settle(enqueue(push, (1,), job_id="a", token=token_of("a")))
        with pytest.raises(lualock.LockUnavailable, match="replicas"):
            await settle(lease.release())
    finally:
        api.client.config_set("min-replicas-to-write", 0)
    assert await again()
    # Cleanups end in the order in which they began, and this one has ended.
    await api.until(lambda: not held(api, other.key))
    assert held(api, reservation_of(queue.work.lock((1,))))
    refused = await queue.put(1)
    assert (refused.job_id, refused.state) == ("a", "queued")


async def test_without_unique_a_job_is_just_pushed(api: World) -> None:
    """Without unique= no request is sent, and no token travels."""
    proxyless = queue_of(api)
    api.client.config_resetstat()
    entry = await proxyless.put(1)
    assert entry.token == ""
    assert api.calls("evalsha") + api.calls("eval") == 0
    assert await proxyless.deliver() == "rebuilt 1"
    await settle(proxyless.verb("cancel")((1,), token=""))


async def test_a_token_derived_from_the_id(api: World) -> None:
    """For a system that cannot carry a token, start finds the reservation by the job's id."""
    queue = queue_of(api, unique="queued")
    assert len(token_of("a")) == 22
    assert token_of("a") != token_of("b")
    await queue.put(1, job_id="a", token=token_of("a"))
    assert not await queue.put(1, job_id="b", token=token_of("b"))
    queue.pushed[0] = ("a", "", (1,))
    assert await queue.deliver() == "rebuilt 1"
    assert not held(api, reservation_of(queue.work.lock((1,))))


@pytest.mark.parametrize("lost", [1, 2])
async def test_a_reserve_whose_reply_is_lost(api: World, proxy: Proxy, lost: int) -> None:
    """After one lost reply the job gets the same reservation; after two the outcome is unknown,
    nothing is pushed, and the reservation is free again."""
    queue = queue_of(api, api.connect(proxy.url), unique="queued")
    await settle(queue.verb("cancel")(token=token_of("no job")))  # connected, scripts loaded
    await queue.put(2)
    queue.pushed.clear()
    proxy.lose_reply = lost
    key = reservation_of(queue.work.lock((1,)))
    if lost == 1:
        assert await queue.put(1)
        assert held(api, key)
        return
    with pytest.raises(lualock.LockUnavailable) as caught:
        await queue.put(1)
    assert caught.value.outcome_unknown
    assert queue.pushed == []
    await api.until(lambda: not held(api, key))


async def test_a_start_whose_reply_is_lost(api: World, proxy: Proxy) -> None:
    """A repeated start gets the same lease; the job runs once, and nothing stays behind."""
    log = Log()

    def work(shop: int) -> None:
        log.note(shop)

    queue = queue_of(api, api.connect(proxy.url), work=work, unique="both")
    for shop in (1, 2):
        await queue.put(shop)
        proxy.lose_reply = shop - 1  # the first time all is well, and the server learns the script
        await queue.deliver()
        assert proxy.lose_reply == 0
    assert log == [(1,), (2,)]
    for shop in (1, 2):
        lock = queue.work.lock((shop,))
        assert not held(api, lock.key)
        assert not held(api, reservation_of(lock))


async def test_unavailable(api: World, caplog: pytest.LogCaptureFixture) -> None:
    """While the server is unreachable nothing is pushed, or the job is pushed without a
    reservation, as it declares."""
    away = api.connect("unix:///tmp/lualock-no-such-socket")
    queue = queue_of(api, away, unique="queued")
    with pytest.raises(lualock.LockUnavailable):
        await queue.put()
    log = Log()
    queue = queue_of(
        api,
        away,
        unique="queued",
        when_unavailable="skip",
        on_enqueue_failed=lambda *a: log.note("refused", *a),
    )
    entry = await queue.put(7)
    assert (bool(entry), entry.state, log) == (False, "unavailable", [("refused", 7)])
    assert queue.pushed == []
    queue = queue_of(api, away, unique="queued", when_unavailable="run")
    with caplog.at_level(logging.WARNING, logger="lualock.jobs"):
        entry = await queue.put(7)
    assert entry.token == ""
    assert len(queue.pushed) == 1
    assert "without a reservation" in caplog.text


async def test_what_cannot_be_used(api: World) -> None:
    """Bad ids, tokens and options are refused by name."""
    queue = queue_of(api, unique="queued")
    for bad in (5, "", None):
        with pytest.raises(lualock.InvalidArgument, match="a job's id must be"):
            await settle(queue.verb("reserve")(job_id=bad))
    for token in ("short", "x" * 21 + "}", "\ud800" * 22, "ä" * 11, 5):
        with pytest.raises(lualock.InvalidArgument, match="not a job's token"):
            await settle(queue.verb("reserve")(job_id="a", token=token))
    with pytest.raises(lualock.InvalidArgument, match="unique must be None or 'queued'"):
        queue_of(api, unique="always")
    with pytest.raises(lualock.InvalidArgument, match="queue_ttl must be"):
        queue_of(api, queue_ttl=0)
    with pytest.raises(lualock.InvalidArgument, match="on_enqueue_failed must be a function"):
        queue_of(api, on_enqueue_failed="me")
    with pytest.raises(lualock.InvalidArgument, match="not a job of lualock"):
        adapter(len)
    wrong: tuple[Any, ...] = ("ab", b"ab", 5, {"a": 1}, None)
    for args in wrong:
        with pytest.raises(lualock.InvalidArgument, match="args must be a list or tuple"):
            queue.work.lock(args)
        with pytest.raises(lualock.InvalidArgument, match="args must be a list or tuple"):
            await settle(queue.verb("reserve")(args, job_id="a"))
    assert api.client.keys() == []


def test_a_push_that_is_not_awaited(one_server: Any) -> None:
    """Plain code that pushes by a coroutine function gets an error, and the job has no
    reservation."""
    one_server_client = one_server.client()
    one_server_client.flushall()

    async def push(token: str) -> None:
        raise AssertionError("no code awaits it")

    def body() -> None:
        """A job."""

    with lualock.connect(one_server.url) as locks:
        queue = adapter(locks.job(key="x", unique="queued")(body))
        with pytest.raises(lualock.InvalidArgument, match="returned a coroutine"):
            queue.enqueue(push, job_id="a")
        assert not queue.reservation().locked()
    one_server_client.close()


async def test_an_odd_delay(api: World) -> None:
    """A delay that is not valid is refused by name before the job has a reservation or is
    pushed."""
    for unique in ("queued", None):
        queue = queue_of(api, unique=unique)
        for bad in (*ODD, None, 367 * 86_400):
            with pytest.raises(lualock.InvalidArgument, match=r"^delay must be"):
                await queue.put(delay=bad)
            with pytest.raises(lualock.InvalidArgument, match=r"^delay must be"):
                await settle(queue.verb("confirm")(token="t" * 22, delay=bad))
        assert queue.pushed == []
        assert api.client.keys() == []
    assert await queue.put(delay=366 * 86_400)


async def test_an_id_that_is_not_valid_text(api: World) -> None:
    """Two ids with lone surrogates are two jobs, and each one's delivery is recognised."""
    queue = queue_of(api, unique="queued")
    first, second = "a\ud800", "a\ud801"
    assert job_metadata(first) != job_metadata(second) != job_metadata("a?")
    assert await queue.put(1, job_id=first)
    refused = await queue.put(1, job_id=second)
    assert (refused.job_id, refused.state) == (None, "queued")
    lock = queue.work.lock((1,))
    lock = lock.derived(metadata=job_metadata(first))
    lease = await settle(lock.acquire())
    with pytest.raises(RetryLater):
        await queue.deliver()
    assert not await settle(queue.verb("died")((1,), job_id=second))
    assert await settle(queue.verb("died")((1,), job_id=first))
    with suppress(lualock.LeaseLost):
        await settle(lease.release())


async def test_a_long_id(api: World) -> None:
    """A long id is reported whole or not at all, and its own delivery is recognised."""
    for length, reported in ((128, "x" * 128), (129, None)):
        queue = queue_of(api, unique="queued", key=f"job {length}")
        token = (await queue.put(1, job_id="x" * length)).token
        refused = await queue.put(1)
        assert refused.job_id == reported
        assert refused.holder
        assert await queue.deliver() == "rebuilt 1"
        running = api.connect().lock(f"job {length}", metadata=job_metadata("x" * length))
        lease = await settle(running.acquire())
        with pytest.raises(RetryLater):
            await queue.attempt("x" * length, token, 1)
        await settle(lease.release())


async def test_a_long_id_beside_a_long_holder(api: World) -> None:
    """If both do not fit, the holder is shortened and not the id, so the job is recognised."""
    queue = queue_of(api, api.connect(holder="\u00e9" * 125), unique="queued", key="x")
    job_id = "x" * 128
    token = (await queue.put(job_id=job_id)).token
    refused = await queue.put()
    assert refused.job_id == job_id
    assert refused.holder.startswith("\u00e9" * 61)
    lease = await settle(api.connect().lock("x", metadata=job_metadata(job_id)).acquire())
    with pytest.raises(RetryLater):
        await queue.attempt(job_id, token)
    await settle(lease.release())
    assert await queue.attempt(job_id, token) == "rebuilt 1"
