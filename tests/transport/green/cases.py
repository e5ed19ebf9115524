"""Greenlets that are killed or timed out wherever they wait, and greenlets that block all
others."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest

import lualock
from tests.chaos.worker import not_run_s
from tests.support.faults import Fault, FaultProxy
from tests.support.servers import Server
from tests.support.waiting import wait_until
from tests.transport.green.lane import Green

STANDSTILL_S = 0.3
"""For how long other greenlets may not run."""

AT_ONCE_S = 0.8


@pytest.fixture(autouse=True)
def _no_greenlet_is_blocked(green: Green) -> Iterator[None]:
    """Check that an idle greenlet runs whenever there is a processor for this process."""

    def now_s() -> float:
        return time.monotonic() - not_run_s()

    ticks = [now_s()]
    ended = False

    def tick() -> None:
        while not ended:
            ticks.append(now_s())
            time.sleep(0.01)

    ticking = green.spawn(tick)
    yield
    ticks.append(now_s())
    ended = True
    green.kill(ticking)
    longest_s = max(later - sooner for sooner, later in itertools.pairwise(ticks))
    assert longest_s < STANDSTILL_S, f"all other greenlets stood still for {longest_s:.2f} s"


@contextmanager
def stopped(server: Server) -> Iterator[None]:
    """Return a server that runs and does not answer."""
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        server.process.send_signal(signal.SIGCONT)


def queued(client: Any, name: str) -> int:
    count: int = client.zcard(f"lualock:{{{name}}}:waiters")
    return count


def _more_queued(client: Any, count: int) -> bool:
    return queued(client, "x") > count


def takes_s(call: Callable[[], object]) -> float:
    """Return how long a call takes to fail with an error of lualock."""
    began = time.monotonic()
    with pytest.raises(lualock.LockError):
        call()
    return time.monotonic() - began


def is_soon_free(locks: lualock.Locks, name: str, within_s: float = AT_ONCE_S) -> bool:
    try:
        locks.lock(name).acquire(timeout=within_s).release()
    except lualock.NotAcquired:
        return False
    return True


@pytest.mark.parametrize("by", ["unix", "tcp"])
def test_a_timeout_ends_in_time(one_server: Server, by: str) -> None:
    """A timeout is kept if the lock is held, if the server becomes silent meanwhile, and if it is
    silent on an old or a new connection."""
    url = one_server.url if by == "unix" else one_server.tcp_url
    with lualock.connect(url) as locks, locks.lock("x", ttl=30).acquire():
        lock = locks.lock("x")
        assert 0.5 <= takes_s(lambda: lock.acquire(timeout=0.5)) < 0.5 + AT_ONCE_S
        found: list[float] = []
        waiter = threading.Thread(
            target=lambda: found.append(takes_s(lambda: lock.acquire(timeout=1)))
        )
        waiter.start()
        with one_server.client() as client:
            wait_until(lambda: queued(client, "x"))
        with stopped(one_server):
            waiter.join()
            assert 1 <= found[0] < 1 + AT_ONCE_S
            assert takes_s(lambda: lock.acquire(timeout=0.5)) < 0.5 + AT_ONCE_S
            with lualock.connect(url) as others:
                new = others.lock("x")
                assert takes_s(lambda: new.acquire(timeout=0.5)) < 0.5 + AT_ONCE_S


def test_many_in_turn(green: Green, locks: lualock.Locks, one_client: Any) -> None:
    """Two hundred greenlets get the lock in the order in which they came."""
    count, had = 200, list[int]()

    def work(number: int) -> None:
        with locks.lock("x", ttl=30):
            had.append(number)

    with locks.lock("x", ttl=30):
        for number in range(count):
            green.spawn(work, number)
            wait_until(partial(_more_queued, one_client, number))
    wait_until(lambda: len(had) == count)
    assert had == list(range(count))


@pytest.mark.parametrize("how", ["killed", "timed out"])
def test_waiters_that_end(green: Green, locks: lualock.Locks, one_client: Any, how: str) -> None:
    """Killed waiters leave the queue at once, and the lock goes to none of them."""
    ended: list[float] = []

    def wait() -> None:
        try:
            with green.Timeout(0.5 if how == "timed out" else 30):
                locks.lock("x", ttl=30).acquire()
        finally:
            ended.append(time.monotonic())

    with locks.lock("x", ttl=30):
        began = time.monotonic()
        waiters = [green.spawn(_silently(green, wait)) for _ in range(10)]
        wait_until(lambda: queued(one_client, "x") == len(waiters))
        if how == "killed":
            for waiter in waiters:
                green.kill(waiter)
        wait_until(lambda: len(ended) == len(waiters))
        assert max(ended) - began < 0.5 + AT_ONCE_S
        wait_until(lambda: not queued(one_client, "x"))
    assert is_soon_free(locks, "x")


def _silently(green: Green, work: Callable[[], object]) -> Callable[[], None]:
    """Return a function for a greenlet that may be timed out, so that no traceback is printed."""

    def run() -> None:
        with contextlib.suppress(green.Timeout):
            work()

    return run


@pytest.mark.parametrize("error", [TimeoutError, TimeoutError("too slow"), ConnectionError])
@pytest.mark.parametrize("waits", ["for a lock", "for a reply", "for a connection"])
def test_a_timer_that_raises_what_a_connection_raises(
    green: Green, one_server: Server, locks: lualock.Locks, error: Any, waits: str
) -> None:
    """An error of the program's timer is not taken for a broken connection, whatever the greenlet
    waits for."""
    kind = error if isinstance(error, type) else type(error)
    with lualock.connect(one_server.url) as others, contextlib.ExitStack() as stack:
        stack.enter_context(others.lock("x", ttl=30).acquire())
        if waits != "for a connection":
            locks.lock("y").acquire().release()
        if waits != "for a lock":
            stack.enter_context(stopped(one_server))
        began = time.monotonic()
        with pytest.raises(kind) as raised, green.Timeout(0.5, error):
            locks.lock("x").acquire(timeout=4)
        assert type(raised.value) is kind
        assert time.monotonic() - began < 0.5 + AT_ONCE_S


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # eventlet's resolver is an old one
def test_a_name_that_does_not_exist() -> None:
    """An error of the library's own resolver is not taken for an error of the program."""
    with (
        lualock.connect("redis://nowhere.invalid:1") as locks,
        pytest.raises(lualock.LockUnavailable, match=r"could not connect to the server at nowhere"),
    ):
        locks.lock("x").acquire(timeout=3)


@pytest.mark.parametrize("how", ["killed", "timed out"])
def test_an_end_at_any_moment(green: Green, locks: lualock.Locks, how: str) -> None:
    """A greenlet that ends at any moment of acquire, body or release leaves the lock free."""
    chance = Random(1)

    def work(name: str, for_s: float) -> None:
        with green.Timeout(for_s):
            while True:
                with locks.lock(name, ttl=30):
                    time.sleep(0.001)

    end = time.monotonic() + 3
    for number in itertools.count():
        if time.monotonic() > end:
            break
        name = f"l{number}"
        for_s = [chance.uniform(0, 0.02) for _ in range(4)]
        greenlets = [
            green.spawn(_silently(green, partial(work, name, s if how == "timed out" else 30)))
            for s in for_s
        ]
        time.sleep(max(for_s))
        if how == "killed":
            for greenlet in greenlets:
                green.kill(greenlet)
        assert is_soon_free(locks, name, 2)
    assert number > 20


def test_a_request_that_comes_after_its_caller_was_killed(
    green: Green, one_server: Server, one_client: Any, locks: lualock.Locks
) -> None:
    """A clean-up on another connection may arrive before the request, so it is repeated soon."""
    with FaultProxy(one_server.socket) as proxy, lualock.connect(proxy.url) as slow:
        slow.lock("y", ttl=30).acquire().release()  # so that it is connected
        proxy.inject(Fault("delay request", seconds=0.05), "acquire")
        waiter = green.spawn(slow.lock("x", ttl=30).acquire)
        wait_until(lambda: proxy.met)
        green.kill(waiter)
        wait_until(lambda: one_client.exists(locks.lock("x").key))
        assert is_soon_free(locks, "x")


def test_killed_while_the_server_is_silent(green: Green, one_server: Server) -> None:
    """Killed greenlets end at once, and their requests are cleaned up when the server answers
    again."""
    with lualock.connect(one_server.url) as locks:
        locks.lock("x").acquire().release()
        with stopped(one_server):
            waiters = [green.spawn(locks.lock("x", ttl=30).acquire) for _ in range(3)]
            time.sleep(
                0.1
            )  # until they have sent their requests, which the stopped server cannot show
            began = time.monotonic()
            for waiter in waiters:
                green.kill(waiter)
            assert time.monotonic() - began < AT_ONCE_S
        assert is_soon_free(locks, "x", 3)


def test_renewal_beside_greenlets_that_are_busy(
    green: Green, locks: lualock.Locks, one_client: Any
) -> None:
    """A lease is renewed beside busy greenlets, and its loss is reported."""
    losses: list[Any] = []
    lock = locks.lock("x", ttl=2, renew=True, on_lost=losses.append)
    lease = lock.acquire()
    end = time.monotonic() + 3

    def compute() -> None:
        while time.monotonic() < end:
            until = time.monotonic() + 0.02
            while time.monotonic() < until:
                pass
            time.sleep(0.001)

    for _ in range(4):
        green.spawn(compute)
    while time.monotonic() < end:
        assert lease.held
        time.sleep(0.01)
    one_client.delete(lock.key)
    wait_until(lambda: losses)
    assert losses == [lease]
    assert lease.lost


def test_all_is_closed_while_greenlets_wait(
    green: Green, one_server: Server, one_client: Any
) -> None:
    """Greenlets wait on through a close, even the one that was reading messages."""
    had: list[int] = []

    def work(number: int) -> None:
        with locks.lock("x", ttl=30):
            had.append(number)

    with lualock.connect(one_server.url) as locks, contextlib.ExitStack() as files:
        with locks.lock("x", ttl=30):
            for number in range(3):
                green.spawn(work, number)
            wait_until(lambda: queued(one_client, "x") == 3)
            time.sleep(0.3)  # until none of them checks again on its own
            locks.close()
            # A new connection with the old descriptor number wakes the old reader.
            for _ in range(20):
                files.enter_context(open(os.devnull))
            time.sleep(0.1)  # until they are subscribed again, which no event shows
        wait_until(lambda: len(had) == 3, wait_s=2)


def test_an_embedded_server(green: Green, monkeypatch: pytest.MonkeyPatch) -> None:
    """One greenlet starts the server, and the others join it."""
    with tempfile.TemporaryDirectory(prefix="ll-", dir="/tmp") as folder:
        monkeypatch.setenv("LUALOCK_EMBEDDED_DIR", str(Path(folder, "server")))
        had: list[int] = []

        def work(number: int) -> None:
            with lualock.connect("embedded://") as locks, locks.lock("x"):
                had.append(number)

        for number in range(3):
            green.spawn(work, number)
        wait_until(lambda: len(had) == 3, wait_s=15)
