"""Real signals at any moment: a lock is held and known, or free, and no waiter is left queued.

``test_every_point`` tests every line and every await, one by one; here hundreds of signals come at
random times.

"""

from __future__ import annotations

import asyncio
import ctypes
import functools
import gc
import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import lualock
from lualock import aio
from lualock._protocol import Subscribe
from lualock._transport import connecting
from lualock._transport.threads import driver as threads_driver
from tests.interrupts.test_processes import line, program
from tests.support.faults import Fault, FaultProxy
from tests.support.proxy import Proxy
from tests.support.servers import Server
from tests.support.waiting import wait_until

# The destructor of a socket that redis-py was just opening warns; and an error of a signal handler
# in a destructor goes no further.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

STRIKES = 400


@pytest.fixture(autouse=True)
def _filter_warnings() -> Iterator[None]:
    yield
    gc.collect()


QUEUE = "lualock:{x}:waiters"


@pytest.fixture
def locks(one_server: Server) -> Iterator[lualock.Locks]:
    """Return the API for threads; a lost request is cleaned up after the socket's timeout."""
    with lualock.connect(f"{one_server.url}?socket_timeout=0.5") as locks:
        yield locks


@pytest.fixture
def proxy(one_server: Server) -> Iterator[FaultProxy]:
    """Return a proxy before one server."""
    with FaultProxy(one_server.socket) as proxy:
        yield proxy


class Alarm(Exception):
    """The error of a program's own handler of SIGALRM."""


@contextmanager
def alarms(error: type[BaseException]) -> Iterator[Callable[[float], None]]:
    """Let SIGALRM raise this error; yield a function that sets the timer."""

    def strike(*_: object) -> None:
        raise error

    before = signal.signal(signal.SIGALRM, strike)
    try:
        yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds) and None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Struck:
    """What the caller knew when the signal came."""

    def __init__(self) -> None:
        self.lease: Any = None
        self.count = 0


def _strike(
    error: type[BaseException],
    set_timer: Callable[[float], None],
    delay: float,
    work: Callable[[Struck], None],
    struck: Struck,
) -> None:
    """Do the work, with a signal after ``delay``, during or after it."""
    struck.lease = None
    try:
        try:
            set_timer(delay)
            work(struck)
        finally:
            set_timer(0)
    except error:
        struck.count += 1


def _longest(work: Callable[[], None]) -> float:
    """Return how long the work takes undisturbed: a median."""
    took = []
    for _ in range(21):
        start = time.perf_counter()
        work()
        took.append(time.perf_counter() - start)
    return sorted(took)[len(took) // 2]


def _is_free(client: Any) -> bool:
    record: bytes = client.get("lualock:{x}") or b""
    return record[:1] not in (b"H", b"W") and not client.exists(QUEUE)


def _held_and_known_or_free(struck: Struck, client: Any) -> None:
    """Check that after a signal the holder knows its lease, or the lock is free."""
    lease = struck.lease
    if lease is not None and lease.held:
        # The lease is held as it says.
        record = client.get("lualock:{x}")
        assert record[17:39] == lease.token.encode()
        lease.release()
    wait_until(lambda: _is_free(client), what=f"free again: {client.get('lualock:{x}')}")


class _Raises:
    """A handler that is an object."""

    def __call__(self, *_: object) -> None:
        raise TimeoutError("the program's own")

    def method(self, *_: object) -> None:
        raise TimeoutError("the program's own")


HANDLERS: dict[str, Callable[..., None]] = {
    "method": _Raises().method,
    "object": _Raises(),
    "partial": functools.partial(_Raises().method, 1),
    "partial of a partial of an object": functools.partial(functools.partial(_Raises(), 1), 2),
}


@pytest.mark.full
@pytest.mark.parametrize("kind", HANDLERS)
@pytest.mark.parametrize("waits", [True, False], ids=["waits", "requests"])
def test_any_kind_of_handler(one_server: Server, proxy: FaultProxy, kind: str, waits: bool) -> None:
    """A TimeoutError of the program's own handler is raised, and not taken for a broken connection,
    while waiting for a message or for a reply."""
    before = signal.signal(signal.SIGALRM, HANDLERS[kind])
    try:
        with lualock.connect(one_server.url) as other, lualock.connect(proxy.url) as locks:
            other.lock("x").acquire()
            if not waits:
                locks.lock("x").locked()
                proxy.inject(Fault("half-open", times=99))
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            with pytest.raises(TimeoutError, match="the program's own"):
                locks.lock("x").acquire(timeout=3) if waits else locks.lock("x").locked()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("silent", [True, False], ids=["silent", "closed"])
def test_the_error_of_a_handler_is_not_raised_again(
    proxy: FaultProxy, one_client: Any, silent: bool
) -> None:
    """A caller that handles an error of a signal handler can acquire, by a fresh connection if the
    old one is dead."""

    def stop(*_: object) -> None:
        raise TimeoutError("the program's own")

    before = signal.signal(signal.SIGALRM, stop)
    try:
        with lualock.connect(proxy.url) as locks:
            locks.lock("x").acquire().release()
            if silent:
                proxy.fall_silent()
            else:
                one_client.client_kill_filter(_type="normal", skipme=True)
            try:
                signal.raise_signal(signal.SIGALRM)
            except TimeoutError:
                locks.lock("x").acquire(timeout=3).release()
    finally:
        signal.signal(signal.SIGALRM, before)


class _Stopped(TimeoutError):
    """The error by which a job system stops a thread."""


@pytest.mark.full
@pytest.mark.parametrize("error", [_Stopped, TimeoutError, ConnectionError])
@pytest.mark.parametrize("waits", [True, False], ids=["waits", "requests"])
def test_an_error_that_is_raised_in_a_thread(
    one_server: Server, proxy: FaultProxy, error: type[Exception], waits: bool
) -> None:
    """An error that another thread raises in this one is raised, and not taken for a broken
    connection, even if its class is that of one."""
    raised: list[BaseException] = []

    def work() -> None:
        try:
            mine.lock("x").acquire(timeout=3)
        except BaseException as broke:
            raised.append(broke)

    with lualock.connect(one_server.url) as other, lualock.connect(proxy.url) as mine:
        mine.lock("x").acquire().release()
        held = other.lock("x").acquire()
        if not waits:
            proxy.inject(Fault("delay reply", seconds=0.4))
        thread = threading.Thread(target=work)
        thread.start()
        wait_until(lambda: other.lock("x").inspect().waiters if waits else proxy.met)
        throw = ctypes.pythonapi.PyThreadState_SetAsyncExc
        throw(ctypes.c_ulong(thread.ident or 0), ctypes.py_object(error))
        if waits:
            held.release()  # the error is raised when the thread runs Python again
        thread.join(5)
        assert [type(broke) for broke in raised] == [error]
        held.release()
        other.lock("x").acquire(timeout=2).release()


def test_a_handler_that_waits_while_its_thread_connects(one_server: Server) -> None:
    """A handler that interrupts the opening of the connection for messages is refused at once, and
    the interrupted caller goes on."""
    errors: list[tuple[BaseException, float]] = []
    struck, over = threading.Event(), threading.Event()

    def wait_too(*_: object) -> None:
        start = time.monotonic()
        try:
            mine.lock("y").acquire(timeout=3)
        except lualock.LockError as error:
            errors.append((error, time.monotonic() - start))
        finally:
            over.set()

    def strike(data: bytes) -> bytes:
        if b"subscribe" in data and not struck.is_set():
            struck.set()
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)
            over.wait(5)
        return data

    before = signal.signal(signal.SIGALRM, wait_too)
    try:
        with (
            Proxy(one_server.socket) as proxy,
            lualock.connect(one_server.url) as other,
            lualock.connect(proxy.url) as mine,
        ):
            proxy.rewrite = strike
            held = [other.lock(name).acquire() for name in "xy"]
            with pytest.raises(lualock.NotAcquired):
                mine.lock("x").acquire(timeout=1)
            assert struck.is_set()
            ((error, took_s),) = errors
            assert isinstance(error, lualock.LockUnavailable)
            assert "signal handler" in str(error)
            assert took_s < 1
            for lease in held:
                lease.release()
            assert mine.lock("y").acquire(timeout=3).held
    finally:
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("error", [KeyboardInterrupt, Alarm, TimeoutError])
def test_a_free_lock(locks: lualock.Locks, one_client: Any, error: type[BaseException]) -> None:
    """A signal anywhere in acquire and release of a free lock leaves it held and known, or free."""
    lock = locks.lock("x", ttl=60)
    struck = Struck()

    def work(struck: Struck) -> None:
        struck.lease = lock.acquire()
        struck.lease.release()

    chance = random.Random(1)
    with alarms(error) as set_timer:
        longest = _longest(lambda: work(Struck()))
        for _ in range(STRIKES):
            _strike(error, set_timer, chance.uniform(1e-6, longest * 1.2), work, struck)
            _held_and_known_or_free(struck, one_client)
    assert struck.count > STRIKES / 20


@pytest.mark.parametrize("error", [KeyboardInterrupt, Alarm])
@pytest.mark.parametrize("ttl", [60, None], ids=["not renewed", "renewed"])
def test_a_body(
    locks: lualock.Locks,
    one_client: Any,
    error: type[BaseException],
    ttl: float | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A signal anywhere around and in a ``with lock:`` block, even as ``__exit__`` is entered,
    leaves the lock free and is not swallowed."""
    lock = locks.lock("x", ttl=ttl)
    struck = Struck()

    def work(struck: Struck) -> None:
        with lock as struck.lease:
            pass

    swallowed: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", swallowed.append)
    chance = random.Random(2)
    with alarms(error) as set_timer:
        longest = _longest(lambda: work(Struck()))
        for _ in range(STRIKES):
            _strike(error, set_timer, chance.uniform(1e-6, longest * 1.2), work, struck)
            wait_until(lambda: _is_free(one_client))
    assert struck.count > STRIKES / 20
    assert not [one for one in swallowed if "lualock" in repr(one.object)]


def _give_requests_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each request, and its deadline at the server, more time than its caller has left: how
    busy the machine is decides nothing then."""
    for name, module in list(sys.modules.items()):
        if name.startswith("lualock.") and hasattr(module, "MIN_REQUEST_S"):
            monkeypatch.setattr(module, "MIN_REQUEST_S", 2.0)


def _open_connections(locks: lualock.Locks) -> None:
    """Open the connections that a signal has closed."""
    locks.lock("other").locked()
    token = b"t" * 22
    locks._driver._subscriber.listen(Subscribe(token, None))
    locks._driver._subscriber.forget(token)


@pytest.mark.parametrize("error", [KeyboardInterrupt, Alarm, TimeoutError])
@pytest.mark.parametrize("timeout", [None, 0.0005], ids=["waits", "gives up"])
def test_a_contended_lock(
    one_server: Server,
    locks: lualock.Locks,
    one_client: Any,
    error: type[BaseException],
    timeout: float | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same holds for a lock that another holder has at first."""
    _give_requests_time(monkeypatch)
    with lualock.connect(one_server.url) as theirs:
        lock, other = locks.lock("x", ttl=60), theirs.lock("x", ttl=60)
        struck = Struck()

        def work(struck: Struck) -> None:
            struck.lease = lock.acquire(timeout=timeout)
            struck.lease.release()

        chance = random.Random(3)
        with alarms(error) as set_timer:
            for _ in range(STRIKES // 2):
                _open_connections(locks)  # a caller of 0.5 ms has no time for it
                held = other.acquire()
                back = threading.Timer(chance.uniform(0, 0.001), held.release)
                back.start()
                try:
                    _strike(error, set_timer, chance.uniform(1e-6, 0.002), work, struck)
                except lualock.NotAcquired:
                    assert timeout is not None
                finally:
                    back.join()
                _held_and_known_or_free(struck, one_client)
        assert struck.count > STRIKES / 20


def test_wait_lost(locks: lualock.Locks, one_client: Any) -> None:
    """A signal anywhere in ``wait_lost()`` raises its handler's error, and the loss of the lease
    still ends later calls and is reported."""
    losses: list[Any] = []
    lease = locks.lock("x", ttl=0.6, renew=True, on_lost=losses.append).acquire()
    chance = random.Random(4)
    struck = Struck()
    with alarms(Alarm):
        for _ in range(STRIKES * 5):
            try:
                try:
                    # Twice, so that a call that hangs fails.
                    signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-6, 1e-4), 2)
                    lease.wait_lost(1e-6)
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
            except Alarm:
                struck.count += 1
        one_client.delete("lualock:{x}")
        signal.setitimer(signal.ITIMER_REAL, 10)
        assert lease.wait_lost()
        wait_until(lambda: losses == [lease])
    assert struck.count > STRIKES / 20


def _interrupt_queue_check(proxy: FaultProxy, strike: Callable[[], object]) -> None:
    """Interrupt while a queue check that sends its whole script is under way."""

    def choose(script: str) -> Fault | None:
        if script != "wait":
            return None
        strike()
        return Fault("delay reply", seconds=0.05)

    proxy.choose = choose


def _nothing_comes_after_the_abandon(proxy: FaultProxy, client: Any) -> None:
    def abandoned() -> bool:
        return any(each.script == "abandon" and each.reply for each in proxy.seen)

    wait_until(abandoned)
    with lualock.connect(proxy.url) as locks:  # earlier requests have arrived by then
        locks.lock("x").inspect()
    assert [each.script for each in proxy.seen if each.script != "inspect"][-1] == "abandon"
    assert not client.exists(QUEUE)


def test_a_queue_check_is_not_sent_again_once_abandoned(
    locks: lualock.Locks, proxy: FaultProxy, one_client: Any
) -> None:
    """An interrupted queue check whose script the server forgot is not sent again: it would arrive
    after its clean-up."""
    with locks.lock("x", ttl=60), lualock.connect(proxy.url) as mine, alarms(Alarm):
        main = threading.get_ident()
        _interrupt_queue_check(proxy, lambda: signal.pthread_kill(main, signal.SIGALRM))
        with pytest.raises(Alarm):
            mine.lock("x", ttl=60).acquire()
        _nothing_comes_after_the_abandon(proxy, one_client)


def test_struck_again_while_it_cleans_up(
    locks: lualock.Locks, proxy: FaultProxy, one_client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second signal ends the wait for the clean-up, which then goes on in the background."""
    monkeypatch.setattr(threads_driver, "GRACE_S", 5.0)  # so that the second comes in time
    proxy.inject(Fault("half-open"), "abandon")
    main = threading.get_ident()

    def looked() -> bool:  # so that nothing of it is under way
        checks = [each for each in proxy.seen if each.script == "wait"]
        return sum(isinstance(each.reply, list) for each in checks) >= 2

    def strike() -> None:
        for happened in (looked, lambda: proxy.met):
            wait_until(happened)
            signal.pthread_kill(main, signal.SIGALRM)

    with locks.lock("x", ttl=60), lualock.connect(proxy.url) as mine, alarms(Alarm):
        other = threading.Thread(target=strike)
        other.start()
        start = time.monotonic()
        with pytest.raises(Alarm):
            mine.lock("x", ttl=60).acquire(timeout=10)
        assert time.monotonic() - start < 4
        other.join()
        wait_until(lambda: not one_client.exists(QUEUE))


@pytest.mark.parametrize("verb", ["acquire", "release"])
def test_struck_while_it_cleans_up_after_an_error(
    proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """A signal handler's error during a clean-up replaces the first error, and the lock is free."""
    monkeypatch.setattr(threads_driver, "GRACE_S", 5.0)  # so that the signal comes in time
    lost, held_up = Fault("drop reply"), Fault("delay request", seconds=0.3)
    main = threading.get_ident()

    def strike() -> None:
        wait_until(lambda: proxy.met and proxy.met[-1].script == "abandon")
        signal.pthread_kill(main, signal.SIGALRM)

    with lualock.connect(f"{proxy.url}?socket_timeout=0.5") as mine, alarms(Alarm):
        lock = mine.lock("x", ttl=60)
        lease = lock.acquire()
        if verb == "acquire":
            lease.release()
        proxy.choose = {"acquire": lost, "release": lost, "abandon": held_up}.get
        other = threading.Thread(target=strike)
        other.start()
        with pytest.raises(Alarm):
            lock.acquire() if verb == "acquire" else lease.release()
        other.join()
        wait_until(lambda: not lock.locked())


async def test_a_cancelled_queue_check_is_not_sent_again(
    locks: lualock.Locks, proxy: FaultProxy, one_client: Any
) -> None:
    """The same holds in asyncio, for a task that is cancelled."""
    with locks.lock("x", ttl=60):
        async with aio.connect(proxy.url) as mine:
            loop = asyncio.get_running_loop()
            task = asyncio.create_task(mine.lock("x", ttl=60).acquire())
            _interrupt_queue_check(proxy, lambda: loop.call_soon_threadsafe(task.cancel))
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.to_thread(_nothing_comes_after_the_abandon, proxy, one_client)


EVENT_LOOP = """
    import asyncio, os, random, signal, sys, threading, time
    from lualock import aio

    # asyncio turns the first SIGINT into a cancellation of main(); until it does, and when main()
    # has ended, the signal has another handler.
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job has none
    ready = threading.Event()
    chance = random.Random(4)

    async def contend(locks):
        for _ in range(20):
            async with locks.lock("x", ttl=60):
                await asyncio.sleep(0)

    async def main():
        async with aio.connect() as locks:
            ready.set()
            tasks = [asyncio.create_task(contend(locks)) for _ in range(3)]
            try:
                await asyncio.gather(*tasks)
                await asyncio.sleep(5)
            finally:  # as a TaskGroup does: no task goes on when the locks are closed
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)

    def strike():
        ready.wait()
        time.sleep(chance.uniform(0, 0.02))
        os.kill(os.getpid(), signal.SIGINT)

    for turn in range(80):
        ready.clear()
        other = threading.Thread(target=strike)
        other.start()
        try:
            asyncio.run(main())
        except KeyboardInterrupt:
            other.join()
            print("struck", flush=True)
            sys.stdin.readline()
"""


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio does not handle SIGINT before")
def test_an_event_loop(one_server: Server, one_client: Any) -> None:
    """Ctrl-C at any moment of ``asyncio.run`` leaves the lock free, and no waiter queued."""
    with program(EVENT_LOOP, one_server.url) as process:
        for _ in range(80):
            assert line(process) == "struck"
            wait_until(lambda: _is_free(one_client))
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        assert process.wait(10) == 0  # redis-py's connections, struck, may have complained


@pytest.mark.full
def test_a_signal_anywhere_in_a_busy_loop(one_server: Server) -> None:
    """A handler that raises at any point of an event loop leaves no lock held for its ttl."""
    command = [sys.executable, "-m", "tests.support.busy_loop", one_server.url, "150", "1"]
    ended = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=120, check=True
    )
    found = json.loads(ended.stdout)
    assert found["awake"] > 75
    assert found["left"] == 0


def _by_name(server: Server) -> str:
    return server.tcp_url.replace("127.0.0.1", "localhost")


def test_a_handler_that_raises_a_runtime_error_while_a_thread_starts(
    one_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handler's RuntimeError is raised, and not taken for an interpreter that cannot start
    threads."""

    class TimeLimit(RuntimeError):
        pass

    def interrupted(_: Any) -> None:
        signal.raise_signal(signal.SIGALRM)

    monkeypatch.setattr(connecting._ConnectThread, "start", interrupted)
    with (
        alarms(TimeLimit),
        lualock.connect(_by_name(one_server)) as locks,
        pytest.raises(TimeLimit),
    ):
        locks.lock("x").acquire(timeout=1)


def test_no_thread_can_be_started(one_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """If no thread can be started, as at the interpreter's end, a name is looked up in the caller's
    thread."""

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    with lualock.connect(_by_name(one_server)) as locks:
        monkeypatch.setattr(threading, "_start_new_thread", refuse, raising=False)
        monkeypatch.setattr(threading, "_start_joinable_thread", refuse, raising=False)
        lease = locks.lock("x", ttl=5).acquire(timeout=1)
        monkeypatch.undo()
        lease.release()
