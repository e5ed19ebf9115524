"""Processes that are stopped past the end of a lease, forked at any time, or ending at any time."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import lualock
from lualock._protocol import CLAIM_MS
from tests.support.faults import Fault, FaultProxy
from tests.support.servers import Server
from tests.support.waiting import wait_until
from tests.support.world import World, settle


@contextlib.contextmanager
def program(code: str, url: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run Python with this code; it is killed in the end."""
    command = [sys.executable, "-W", "error::ResourceWarning", "-W", "ignore::DeprecationWarning"]
    with subprocess.Popen(
        [*command, "-c", textwrap.dedent(code), *arguments],
        env={**os.environ, "LUALOCK_URL": url},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def line(process: subprocess.Popen[str]) -> str:
    """Return the next line that the process printed; without one, fail with its errors."""
    assert process.stdout is not None
    assert process.stderr is not None
    output = process.stdout.readline().strip()
    assert output, process.stderr.read()
    return output


def ends_well(process: subprocess.Popen[str], wait_s: float = 20, status: int = 0) -> str:
    """Check that it ends in time and without errors; return the rest of its output."""
    try:
        out, err = process.communicate(timeout=wait_s)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"it did not end: {process.communicate()}") from None
    assert (err, process.returncode) == ("", status)
    return out


# Stopped.

STOPPED = """
    import asyncio, sys, time
    import lualock
    from lualock import aio
    from tests.support.world import settle

    TTL = 0.5

    async def main(api, renew):
        locks = (aio if api == "asyncio" else lualock).connect()
        lease = await settle(locks.lock("x", ttl=TTL, renew=renew == "renewed").acquire())
        now = time.monotonic()  # read first: after the print this process may be stopped
        print("has", flush=True)
        while True:
            last, now = now, time.monotonic()
            lost = lease.lost  # the check of a body before its next step
            if now - last > TTL:  # we were stopped just before
                break
            await asyncio.sleep(0)
        print("lost" if lost and not lease.held else "held", flush=True)
        for late in (lambda: lease.check(), lambda: lease.extend(60), lambda: lease.release()):
            try:
                await settle(late())
            except lualock.LeaseLost:
                print("LeaseLost", flush=True)
            else:
                print("nothing", flush=True)
        await asyncio.sleep(TTL)  # for a renewal that would come late
        print("end", flush=True)

    asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.full
@pytest.mark.parametrize("renewed", ["renewed", "not renewed"])
async def test_stopped_past_the_end_of_its_lease(api: World, renewed: str) -> None:
    """A holder that was stopped learns at its first check that its lease is lost, and its later
    calls change nothing for the new holder."""
    mine = api.connect().lock("x", ttl=30)
    with program(STOPPED, api.server.url, "asyncio" if api.asynchronous else "", renewed) as p:
        assert line(p) == "has"
        p.send_signal(signal.SIGSTOP)
        stopped = time.monotonic()
        lease = await settle(mine.acquire(timeout=10))
        record = api.client.get(mine.key)
        # Its ttl of 0.5 s was counted from before it was stopped.
        await api.until(lambda: time.monotonic() > stopped + 0.6)
        p.send_signal(signal.SIGCONT)
        assert line(p) == "lost"
        assert [line(p) for _ in range(3)] == ["LeaseLost"] * 3
        assert line(p) == "end"
        assert api.client.get(mine.key) == record
        assert api.client.pttl(mine.key) <= 30_000
        await settle(lease.release())


# Forked.


def forked(code: str, url: str) -> str:
    """Run code that forks. ``child()`` is true in a child, which then runs to its end; ``joined()``
    is whether all children ended well and in time."""
    helpers = """
        import faulthandler, os, sys, threading, time
        import lualock
        children = []

        def child():
            pid = os.fork()
            if pid == 0:
                faulthandler.dump_traceback_later(15, exit=True)  # a child that hangs says where
                return True
            children.append(pid)
            return False

        def joined():
            ended = [os.waitpid(pid, 0)[1] for pid in children]
            children.clear()
            return not any(ended)

        def until(condition):
            end = time.monotonic() + 5
            while not condition():
                assert time.monotonic() < end
                time.sleep(0.002)
    """
    with program(textwrap.dedent(helpers) + textwrap.dedent(code), url) as process:
        return ends_well(process)


def test_forked_while_holding_and_waiting(one_server: Server) -> None:
    """A child can use locks and has its own place in the queue, and its end disturbs no other
    process."""
    code = """
        locks = lualock.connect()
        lock = locks.lock("x", ttl=30)
        lease = lock.acquire()
        turns = []

        def wait():
            with lock as mine:
                turns.append(mine.fence)

        waiters = [threading.Thread(target=wait) for _ in range(3)]
        for count, waiter in enumerate(waiters, start=1):
            waiter.start()
            until(lambda: lock.inspect().waiters == count)
        if child():
            assert not lease.held
            with locks.lock("y") as other:
                assert other.held
            try:
                lock.acquire(timeout=0.2)
            except lualock.NotAcquired as error:
                assert error.ahead == 3, error.ahead
            sys.exit()
        assert joined()
        if child():
            with lock as mine:
                assert mine.fence > lease.fence
            sys.exit()
        until(lambda: lock.inspect().waiters == 4)
        assert lease.held
        lease.release()
        for waiter in waiters:
            waiter.join(5)
        assert joined()
        assert len(turns) == 3
        assert min(turns) > lease.fence
        print(lock.inspect().waiters, lock.locked())
    """
    assert forked(code, one_server.url) == "0 False\n"


@pytest.mark.full
def test_forked_at_any_time(one_server: Server) -> None:
    """A child takes and waits for locks, whatever its parent's threads did at the fork."""
    code = """
        locks = lualock.connect()
        done = threading.Event()
        sys.setswitchinterval(1e-5)

        def use(number):
            while not done.is_set():
                with locks.lock(f"l{number % 2}", ttl=30, renew=True):
                    pass

        threads = [threading.Thread(target=use, args=(n,)) for n in range(6)]
        for thread in threads:
            thread.start()
        for turn in range(40):
            time.sleep(0.002)
            if child():
                for number in range(2):
                    with locks.lock(f"l{number}", ttl=30, renew=True) as lease:
                        assert lease.held
                sys.exit()
        ended = joined()
        done.set()
        for thread in threads:
            thread.join()
        assert ended
        for number in range(2):
            assert not locks.lock(f"l{number}").locked()
        print("well")
    """
    assert forked(code, one_server.url) == "well\n"


def test_forked_while_a_thread_makes_shared_objects(one_server: Server) -> None:
    """A child makes its own copies of shared objects that a thread was making at the fork: the
    locks of the other API, and the event of ``wait_lost``."""
    code = """
        from lualock import aio, _sync as sync
        from lualock._transport.threads import waking

        @aio.connect().job
        def job():
            return "ran"

        making, go_on = threading.Event(), threading.Event()
        make = sync.Locks._of.__func__

        def make_slowly(*how):
            making.set()
            go_on.wait()
            return make(*how)

        def hold():
            with waking._making.lock:
                job()

        sync.Locks._of = classmethod(make_slowly)
        thread = threading.Thread(target=hold)
        thread.start()
        making.wait()
        sync.Locks._of = classmethod(make)
        if child():
            assert job() == "ran"
            sys.exit()
        if child():
            lease = lualock.connect().lock("x", ttl=0.1).acquire()
            assert lease.wait_lost(5)
            sys.exit()
        ended = joined()
        go_on.set()
        thread.join()
        print(ended, job())
    """
    assert forked(code, one_server.url) == "True ran\n"


def test_forked_in_a_coroutine(one_server: Server) -> None:
    """A child of an event loop uses its own loop, and the parent's tasks get the lock."""
    code = """
        import asyncio
        from lualock import aio
        locks = aio.connect()

        async def in_child(lease):
            assert not lease.held
            async with locks.lock("y") as other:
                assert other.held
            try:
                await locks.lock("x", ttl=30).acquire(timeout=0.2)
            except lualock.NotAcquired as error:
                assert error.ahead == 2, error.ahead

        async def wait():
            async with locks.lock("x", ttl=30, renew=True) as lease:
                return lease.fence

        async def main():
            lease = await locks.lock("x", ttl=0.5, renew=True).acquire()
            waiting = [asyncio.create_task(wait()) for _ in range(2)]
            while (await locks.lock("x").inspect()).waiters < 2:
                await asyncio.sleep(0.002)
            if child():
                asyncio._set_running_loop(None)
                asyncio.run(in_child(lease))
                os._exit(0)  # a child cannot leave its parent's loop in another way
            assert await asyncio.to_thread(joined)
            await asyncio.sleep(0.6)
            assert lease.held  # it was renewed
            await lease.release()
            for task in waiting:
                assert await asyncio.wait_for(task, 5) > lease.fence
            await locks.aclose()
            print("well")

        asyncio.run(main())
    """
    assert forked(code, one_server.url) == "well\n"


_inherited: list[lualock.Locks] = []


def _count(url: str, path: str, rounds: int) -> None:
    """Count a number in a file up, which loses counts unless only one process does so at a time."""
    locks = _inherited[0] if _inherited else lualock.connect(url)
    for _ in range(rounds):
        with locks.lock("count", ttl=30):
            number = int(Path(path).read_text())
            Path(path).write_text(str(number + 1))


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(one_server: Server, tmp_path: Path, method: str) -> None:
    """Child processes of either kind exclude each other and their parent; forked ones use new
    connections."""
    context: Any = multiprocessing.get_context(method)
    path = tmp_path / "count"
    path.write_text("0")
    with lualock.connect(one_server.url) as locks:
        if method == "fork":
            _inherited.append(locks)
        try:
            with locks.lock("parent", ttl=30) as lease:
                arguments = (one_server.url, str(path), 50)
                processes = [context.Process(target=_count, args=arguments) for _ in range(3)]
                for process in processes:
                    process.start()
                _count(*arguments)
                for process in processes:
                    process.join(20)
                    assert process.exitcode == 0
                lease.check()
            assert path.read_text() == "200"
            assert not locks.lock("parent").locked()
        finally:
            _inherited.clear()


BODY = """
    import os, sys, lualock
    with lualock.connect() as locks:
        try:
            with locks.lock("x", ttl=30) as lease:
                child = os.fork()
                if child == 0:
                    raise ValueError("the body's")
                _, status = os.waitpid(child, 0)
                print(os.waitstatus_to_exitcode(status), lease.held)
        except ValueError as error:
            os._exit(7 if str(error) == "the body's" else 8)
"""


def test_a_forked_child_leaves_the_block(one_server: Server) -> None:
    """The error of a child's body is raised unchanged, and the parent keeps its lease."""
    with program(BODY, one_server.url) as process:
        assert ends_well(process) == "7 True\n"


# Ending.

STRUCK = """
    import ctypes, functools, signal, lualock

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job has none

    class Interrupt:  # by a signal out of C code, which is handled as the next function is entered
        __neg__ = functools.partial(ctypes.CDLL(None)["raise"], 2)

    interrupt = Interrupt()
    lock = lualock.connect().lock("x")
    with WHAT:
        -interrupt
"""


@pytest.mark.parametrize("what", ["lock", "lock.acquire()"])
def test_ctrl_c_as_a_block_ends(one_server: Server, one_client: Any, what: str) -> None:
    """Ctrl-C just as ``__exit__`` is entered ends the program at once, and the lock is free, even
    if the last traceback is kept."""
    with program(STRUCK.replace("WHAT", what), one_server.url) as process:
        _, err = process.communicate(timeout=20)
        assert "KeyboardInterrupt" in err
        assert process.returncode == -signal.SIGINT
    assert (one_client.get("lualock:{x}") or b"R")[:1] == b"R"


HELD = """
    import lualock
    locks = lualock.connect()
    leases = [locks.lock(f"l{n}", ttl=0.3, renew=True).acquire() for n in range(5)]
"""
THREADS = """
    import threading, lualock
    locks = lualock.connect()
    leases = [locks.lock(f"l{n}", ttl=30).acquire() for n in range(3)]
    for n in range(6):
        wait = lambda n=n: locks.lock(f"l{n % 3}", ttl=30).acquire()
        threading.Thread(target=wait, daemon=True).start()
"""
TASKS = """
    import asyncio, sys, lualock
    from lualock import aio
    locks, leases = aio.connect(), []

    async def main():
        leases.extend([await locks.lock(f"l{n}", ttl=0.3, renew=True).acquire() for n in range(3)])
        for n in range(6):
            wait = locks.lock(f"l{n % 3}", ttl=30).acquire()
            leases.append(asyncio.create_task(wait))
        await asyncio.get_running_loop().run_in_executor(None, ready)
        END

    asyncio.run(main())
"""
READY = """
    import sys

    def ready():
        print("ready", flush=True)
        sys.stdin.readline()
        print("bye", flush=True)
"""


def _until_waiters(client: Any, count: int) -> None:
    def waiting() -> int:
        return sum(client.zcard(f"lualock:{{l{n}}}:waiters") for n in range(3))

    wait_until(lambda: waiting() == count)


@pytest.mark.full
@pytest.mark.parametrize("silent", [False, True], ids=["", "silent server"])
@pytest.mark.parametrize(
    ("code", "waiters", "status"),
    [
        pytest.param(HELD + "    ready()", 0, 0, id="held"),
        pytest.param(HELD + "    ready(); sys.exit(3)", 0, 3, id="held, exit(3)"),
        pytest.param(THREADS + "    ready()", 6, 0, id="threads wait"),
        pytest.param(TASKS.replace("END", "return"), 6, 0, id="tasks wait"),
        pytest.param(TASKS.replace("END", "sys.exit(3)"), 6, 3, id="tasks wait, exit(3)"),
        pytest.param(TASKS.replace("END", "await locks.aclose()"), 6, 0, id="tasks wait, aclose"),
    ],
)
def test_the_end_of_the_interpreter(
    one_server: Server, one_client: Any, code: str, waiters: int, status: int, silent: bool
) -> None:
    """A program with leases, renewals and blocked waiters ends within a second and without output,
    even if the server is silent; its leases are soon free."""
    with FaultProxy(one_server.socket) as proxy:
        with program(READY + code, f"{proxy.url}?socket_timeout=5") as process:
            assert line(process) == "ready"
            _until_waiters(one_client, waiters)
            if "renew" in code:
                seen = len(proxy.seen)
                if silent:
                    proxy.inject(Fault("deaf"))
                wait_until(lambda: any(e.script == "extend" for e in proxy.seen[seen:]))
            elif silent:
                proxy.fall_silent()
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
            assert line(process) == "bye"
            start = time.monotonic()
            ends_well(process, status=status)
            assert time.monotonic() - start < 1
        if "renew" in code and not silent:
            # A waiter of the same process may be granted the lock, which it does not claim.
            held = partial(one_client.get, "lualock:{l0}")
            wait_until(lambda: not (held() or b"").startswith(b"H"), wait_s=CLAIM_MS / 1000 + 2)


def test_the_end_while_it_cleans_up(one_server: Server) -> None:
    """A clean-up in the background that the server does not answer does not delay the end of a
    program."""
    code = """
        import sys, lualock
        locks = lualock.connect()
        locks.lock("x").acquire().release()
        print("ready", flush=True)
        sys.stdin.readline()
        try:
            locks.lock("x").acquire(timeout=0.1)
        except lualock.LockUnavailable:
            print("bye", flush=True)
    """
    with (
        FaultProxy(one_server.socket) as proxy,
        program("import sys\n" + textwrap.dedent(code), proxy.url) as process,
    ):
        assert line(process) == "ready"
        proxy.inject(Fault("half-open", times=99))
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        assert line(process) == "bye"
        start = time.monotonic()
        ends_well(process)
        assert time.monotonic() - start < 1
