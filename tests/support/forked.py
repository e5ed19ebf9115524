"""Cases of a child that C code forks, which runs none of Python's hooks.

``python -m tests.support.forked CASE URL`` runs one case in its own process; a failure prints its
traceback.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import lualock
from lualock import aio, jobs
from lualock._core.lock import LockBase
from tests.support.waiting import wait_until

CASES: dict[str, Callable[[str], None]] = {}


def case(run: Callable[[str], None]) -> Callable[[str], None]:
    """Register a case by its name."""
    CASES[run.__name__] = run
    return run


def fork_in_c() -> int:
    """Fork without Python's hooks, while no other thread requests the interpreter's lock.

    CPython copies such a request to the child, where no thread is left to answer it: the child's
    main thread hands the lock over and waits for ever, in whatever code it is.
    """
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(60)
    try:
        time.sleep(4 * interval_s)  # a request under way is answered, and none comes after it
        return int(ctypes.PyDLL(None).fork())
    finally:
        sys.setswitchinterval(interval_s)


def fork(work: Callable[[], Any]) -> Callable[[], Any]:
    """Do some work in a child; return a function that waits for its result."""
    read, write = os.pipe()
    child = fork_in_c()
    if not child:
        try:
            answer = work()
        except BaseException as error:
            answer = repr(error)
        os.write(write, json.dumps(answer).encode())
        os._exit(0)
    os.close(write)

    def answer_of_child() -> Any:
        with os.fdopen(read) as pipe:
            answer = json.loads(pipe.read())
        os.waitpid(child, 0)
        return answer

    return answer_of_child


def _use(locks: lualock.Locks, name: str) -> list[str]:
    """Lock and inspect repeatedly; return what was wrong."""
    wrong = []
    end = time.monotonic() + 1
    while time.monotonic() < end:
        with locks.lock(f"of-{name}", ttl=5, metadata=name) as lease:
            info = locks.lock(f"of-{name}").inspect()
            if (info.metadata, info.fence) != (name, lease.fence):
                wrong.append(f"{name} read {info}")
    return wrong


@case
def both_use_locks(url: str) -> None:
    """Parent and child never read each other's replies."""
    locks = lualock.connect(url)
    with locks.lock("warm"):
        pass
    child = fork(lambda: _use(locks, "child"))
    assert _use(locks, "parent") == []
    assert child() == []


@case
def threads_begin_together(url: str) -> None:
    """The child's first threads, which begin together, replace its connections once."""
    locks = lualock.connect(url)
    with locks.lock("warm"):
        pass

    def work() -> list[str]:
        wrong: list[str] = []
        threads = [
            threading.Thread(target=lambda n=n: wrong.extend(_use(locks, f"thread-{n}")))
            for n in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return wrong

    assert fork(work)() == []


@case
def leases_are_the_parents(url: str) -> None:
    """The child can neither use, extend nor release its parent's lease."""
    locks = lualock.connect(url)
    lease = locks.lock("x", ttl=30).acquire()

    def refused(call: Callable[[], Any]) -> bool:
        try:
            call()
        except lualock.LeaseLost:
            return True
        return False

    def work() -> list[bool]:
        return [
            not lease.held,
            lease.remaining() == 0,
            refused(lease.check),
            refused(lease.release),
            refused(lambda: lease.extend(5)),
            refused(lease.handle),
        ]

    assert fork(work)() == [True] * 6
    assert lease.held
    assert locks.lock("x").locked()
    lease.release()


@case
def a_block_is_left_in_the_child(url: str) -> None:
    """The parent's lock stays when the child leaves the ``with`` block."""
    locks = lualock.connect(url)
    with locks.lock("x", ttl=30):
        child = fork_in_c()
        if child:
            os.waitpid(child, 0)
            assert locks.lock("x").locked()
    if not child:
        os._exit(0)


@case
def renewal(url: str) -> None:
    """Parent and child each renew their own leases."""
    locks = lualock.connect(url)
    mine = locks.lock("parent", ttl=1, renew=True).acquire()

    def work() -> list[bool]:
        lease = locks.lock("child", ttl=1, renew=True).acquire()
        time.sleep(2.5)  # longer than the ttl
        return [lease.held, locks.lock("child").locked()]

    assert fork(work)() == [True, True]
    assert mine.held
    assert locks.lock("parent").locked()
    mine.release()


@case
def waiting(url: str) -> None:
    """Parent and child wait for one lock, and each gets its own message."""
    locks = lualock.connect(url)
    with locks.lock("x"), lualock.connect(url) as other:  # the parent is subscribed before it forks
        threading.Thread(target=lambda: locks.lock("x").acquire(timeout=5).release()).start()
        wait_until(lambda: other.lock("x").inspect().waiters == 1)
    wait_until(lambda: not locks.lock("x").locked())
    with lualock.connect(url) as other:
        held = other.lock("x", ttl=30).acquire()
        child = fork(lambda: locks.lock("x").acquire(timeout=5).release())
        wait_until(lambda: other.lock("x").inspect().waiters == 1)
        own = threading.Thread(target=lambda: locks.lock("x").acquire(timeout=5).release())
        own.start()
        wait_until(lambda: other.lock("x").inspect().waiters == 2)
        began = time.monotonic()
        held.release()
        assert child() is None
        own.join()
        assert time.monotonic() - began < 2


@case
def the_child_closes_first(url: str) -> None:
    """A child that only closes its locks neither ends nor reads a connection of the parent."""
    locks = lualock.connect(url)
    with lualock.connect(url).lock("x"):
        waiter = threading.Thread(target=lambda: locks.lock("x").acquire(timeout=5).release())
        waiter.start()
        wait_until(lambda: locks.lock("x").inspect().waiters == 1)
        subscriber = locks._driver._subscriber
        connection, count = subscriber._connection, subscriber._generation
        assert fork(locks.close)() is None
        with locks.lock("another"):
            pass
        assert (subscriber._connection, subscriber._generation) == (connection, count)
        # A shutdown by the child ends the connection for the parent, too.
        assert select.select([subscriber._socket], [], [], 0.1)[0] == []
    waiter.join()


@case
def holder_has_the_childs_pid(url: str) -> None:
    """The holder's name has the child's process id."""
    locks = lualock.connect(url)
    with locks.lock("warm"):
        pass

    def work() -> bool:
        with locks.lock("x"):
            return f":{os.getpid()}:" in str(locks.lock("x").inspect().holder)

    assert fork(work)() is True


@case
def between_the_reply_and_the_lease(url: str) -> None:
    """A lease that was acquired before the fork is the parent's, even if both build it."""
    locks = lualock.connect(url)
    run = locks._driver.run
    child = -1

    def run_and_fork(steps: Any) -> Any:
        nonlocal child
        result = run(steps)
        child = fork_in_c() if child < 0 else child
        return result

    locks._driver.run = run_and_fork  # type: ignore[method-assign]
    lease = locks.lock("x", ttl=30).acquire()
    if not child:
        os._exit(1 if lease.held else 0)
    assert os.waitpid(child, 0)[1] == 0, "the child believes that the lease is its own"
    assert lease.held
    lease.release()


@case
def a_thread_enqueues_a_job(url: str) -> None:
    """The child enqueues a job, though at the fork a thread prepared the reservation of another."""
    locks = lualock.connect(url)
    work = jobs.adapter(locks.job(unique="queued", key=str)(lambda name: None))
    derived, prepares, goes_on = LockBase.derived, threading.Event(), threading.Event()

    def slowly(*args: Any, **options: Any) -> Any:
        if threading.current_thread() is thread:
            prepares.set()
            goes_on.wait()
        return derived(*args, **options)

    def in_child() -> bool:
        signal.alarm(5)  # it must not hang
        return bool(work.enqueue(str, ["child"], job_id="b"))

    LockBase.derived = slowly  # type: ignore[method-assign]
    thread = threading.Thread(target=work.enqueue, args=(str, ["parent"]), kwargs={"job_id": "a"})
    thread.start()
    assert prepares.wait(5)
    answer_of_child = fork(in_child)
    goes_on.set()
    assert answer_of_child() is True
    thread.join()


@case
def event_loops(url: str) -> None:
    """A child that runs its own event loop replaces its connections."""
    locks = aio.connect(url)

    async def use(name: str) -> list[str]:
        wrong = []
        end = time.monotonic() + 1
        while time.monotonic() < end:
            async with locks.lock(f"of-{name}", ttl=5, metadata=name) as lease:
                info = await locks.lock(f"of-{name}").inspect()
                if (info.metadata, info.fence) != (name, lease.fence):
                    wrong.append(f"{name} read {info}")
        async with locks.lock(f"of-{name}", ttl=1, renew=True) as lease:
            await asyncio.sleep(2.2)
            if not lease.held:
                wrong.append(f"{name} was not renewed")
        return wrong

    async def main() -> None:
        async with locks.lock("warm"):
            pass
        child = fork(
            lambda: asyncio.new_event_loop().run_until_complete(_run_coroutine(use("child")))
        )
        assert await use("parent") == []
        assert child() == []
        await locks.aclose()

    async def _run_coroutine(work: Any) -> Any:
        return await work

    def in_thread() -> None:
        asyncio.run(main())

    thread = threading.Thread(target=in_thread)
    thread.start()
    thread.join()


if __name__ == "__main__":
    CASES[sys.argv[1]](sys.argv[2])
    sys.stdout.write("ok\n")
