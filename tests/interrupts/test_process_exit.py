"""The end of a process: a normal one releases what is still held, at once."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import lualock
from lualock._core import process_exit
from tests.support.servers import BINARIES, Server
from tests.support.waiting import wait_until

PROGRAM = """
import asyncio, atexit, multiprocessing, os, signal, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
import lualock
from lualock._core import process_exit
from lualock import aio

url = sys.argv[1]
locks = lualock.connect(url)

holds = threading.Event()

def say():
    holds.set()
    print("held", flush=True)

def hold(name="x"):
    global kept
    kept = locks.lock(name).acquire()
    say()

async def hold_async():
    global kept
    kept = await aio.connect(url).lock("x").acquire()
    say()

def drop():
    locks.lock("x").acquire()
    say()

async def drop_async():
    await aio.connect(url).lock("x").acquire()
    say()

def exit_at_sigterm():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))

def hold_at_exit():
    atexit.register(hold)

def begin(target, method):
    process = multiprocessing.get_context(method).Process(target=target)
    process.start()
    process.join()

if __name__ == "__main__":
    exec(sys.argv[2])
"""

WAYS = {
    "the end of the program": "hold()",
    "sys.exit": "hold(); sys.exit(3)",
    "an exception": "hold(); raise ValueError",
    "a dropped lease": "drop()",
    "asyncio": "asyncio.run(hold_async())",
    "asyncio, and a dropped lease": "asyncio.run(drop_async())",
    "asyncio, in a loop that is not closed": "loop = asyncio.new_event_loop(); "
    "loop.run_until_complete(hold_async())",
    "asyncio, and an exception": "async def main():\n    await hold_async()\n    raise ValueError\n"
    "asyncio.run(main())",
    "a thread of a pool": "ThreadPoolExecutor(1).submit(hold).result()",
    "a daemon thread": "threading.Thread(target=lambda: (hold(), time.sleep(60)), daemon=True)"
    ".start(); holds.wait()",
    "a with block in a daemon thread": "def work():\n    with locks.lock('x'):\n        say()\n"
    "        time.sleep(60)\nthreading.Thread(target=work, daemon=True).start()\n"
    "holds.wait()",
    "many leases": "kept = [locks.lock(f'y{n}').acquire() for n in range(600)]; hold()",
    "closed locks": "hold(); locks.close()",
    "an exit handler": "hold_at_exit()",
    "a forked child": "pid = os.fork()\nif pid: os.waitpid(pid, 0)\nelse: hold()",
    "multiprocessing, fork": "begin(hold, 'fork')",
    "multiprocessing, spawn": "begin(hold, 'spawn')",
    "multiprocessing, forkserver": "begin(hold, 'forkserver')",
    "SIGTERM": "exit_at_sigterm(); hold(); time.sleep(60)",
    "SIGTERM in asyncio": "exit_at_sigterm()\nasync def main():\n    await hold_async()\n"
    "    await asyncio.sleep(60)\nasyncio.run(main())",
    "SIGINT": "signal.signal(signal.SIGINT, signal.default_int_handler)\nhold(); time.sleep(60)",
}


def _run(url: str, code: str, folder: Path) -> subprocess.Popen[bytes]:
    program = folder / "program.py"  # multiprocessing imports it anew
    program.write_text(PROGRAM)
    return subprocess.Popen(
        [sys.executable, str(program), url, code],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )


def _held(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"


@pytest.mark.parametrize("way", WAYS)
def test_a_normal_exit_releases_what_is_held(way: str, one_server: Server, tmp_path: Path) -> None:
    """Whichever way a program ends normally, the lock is free when its process is gone."""
    with one_server.client() as client, lualock.connect(one_server.url) as locks:
        client.flushall()
        with _run(one_server.url, WAYS[way], tmp_path) as process:
            try:
                _held(process)
                if way.startswith("SIG"):
                    process.send_signal(getattr(signal, way[:7].strip()))
                process.wait(20)
            finally:
                process.kill()
        assert locks.lock("x").try_acquire() is not None
        assert not locks.lock("y599").locked()


@pytest.mark.parametrize(
    "code",
    [
        "hold(); sys.stdout.flush(); os._exit(0)",
        "hold(); os.kill(os.getpid(), signal.SIGKILL)",
        "hold(); print(kept.handle(), flush=True)",  # it belongs to the process that adopts it
        # A child that ends has nothing of its parent's, also if it was forked without hooks.
        "hold()\npid = os.fork()\nif pid: os.waitpid(pid, 0); os._exit(0)",
        "hold()\nbegin(print, 'fork'); os._exit(0)",
    ],
)
def test_what_an_exit_does_not_release(code: str, one_server: Server, tmp_path: Path) -> None:
    """A process that is killed, or is not the holder, leaves the lease to its end."""
    with one_server.client() as client, lualock.connect(one_server.url) as locks:
        client.flushall()
        with _run(one_server.url, code, tmp_path) as process:
            _held(process)
            process.wait(20)
        assert locks.lock("x").locked()


def test_a_silent_server_does_not_keep_the_process(tmp_path: Path) -> None:
    """An exit waits about a second for a server that does not answer."""
    name = next(iter(BINARIES))
    server = Server(name, BINARIES[name])
    assert server.process is not None
    try:
        code = "hold(); sys.stdin.readline()"
        program = tmp_path / "program.py"
        program.write_text(PROGRAM)
        with subprocess.Popen(
            [sys.executable, str(program), server.url, code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as process:
            _held(process)
            server.process.send_signal(signal.SIGSTOP)
            assert process.stdin is not None
            started = time.monotonic()
            process.stdin.close()
            assert process.wait(20) == 0
            assert time.monotonic() - started < 5
        server.process.send_signal(signal.SIGCONT)
    finally:
        server.close()


def test_a_successor_does_not_wait(one_server: Server, tmp_path: Path) -> None:
    """A waiter gets the lock when the holder's process exits, and not when the lease would end."""
    got: list[Any] = []
    with one_server.client() as client, lualock.connect(one_server.url) as locks:
        client.flushall()
        code = "exit_at_sigterm(); hold(); time.sleep(60)"
        with _run(one_server.url, code, tmp_path) as process:
            _held(process)
            waiter = threading.Thread(
                target=lambda: got.append(locks.lock("x").acquire(timeout=20))
            )
            waiter.start()
            wait_until(lambda: locks.lock("x").inspect().waiters == 1, what="it waits")
            process.send_signal(signal.SIGTERM)
            process.wait(20)
            waiter.join(5)
        assert got
        got[0].release()


def test_a_lock_that_is_first_used_when_no_thread_can_start(
    one_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python 3.12 starts no thread while exit handlers run: a lock works there, and what the
    handlers leave held is released, although the program keeps none of it."""

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    with one_server.client() as client:
        client.flushall()
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            assert lualock.connect(one_server.url).lock("x").acquire(timeout=5).held
            gc.collect()
        with lualock.connect(one_server.url) as locks:
            assert locks.lock("x").locked()
            process_exit.release_all()
            assert not locks.lock("x").locked()
