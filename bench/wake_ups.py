"""Three ways to wake a waiting thread, beside each other.

A message goes round a ring of waiting threads: each thread that gets it sends it to the next. This
looks below the public API, because nothing else is measured: at the library's own ``Subscriber``,
which all threads of a process share and one of them reads, and at the two alternatives: a separate
reading thread, and a connection for each waiting thread.

"""

from __future__ import annotations

import itertools
import socket
import statistics
import threading
import time
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import hiredis
import redis

from bench.processes import CONTEXT
from bench.setting import Setting, Targets
from bench.stats import ratio
from lualock._core import clock
from lualock._protocol import Subscribe
from lualock._transport.endpoint import Endpoint
from lualock._transport.threads.subscriber import Subscriber

HOPS, QUICK_HOPS = 3_000, 1_000
PATIENCE_S = 30.0
# How many processes, and how many threads wait in each.
SHAPES, QUICK_SHAPES = ((2, 1), (8, 1), (1, 16), (2, 16)), ((2, 1), (2, 16))


TITLE = "three ways to wake a waiting thread"
WORDS = __doc__
COLUMNS = (
    ("", "way"),
    ("processes", "processes"),
    ("threads", "threads"),
    ("hops a second", "per_s:,.0f"),
    ("shared reading is so many times as fast", "times_shared:.2f"),
    ("connections a process", "connections"),
)


@dataclass(frozen=True)
class Row:
    """One way for one shape: hops per second (median of the rounds), the shared reading's times
    that, and the connections of one process."""

    way: str
    processes: int
    threads: int
    per_s: float
    times_shared: float
    connections: int


def _connect(url: str) -> socket.socket:
    parts = urlsplit(url)
    connected = socket.create_connection((parts.hostname or "", parts.port or 0))
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connected


def _packed(*words: str | bytes) -> bytes:
    parts: Any = words  # hiredis' type hints know tuples of one element only
    packed: bytes = hiredis.pack_command(parts)
    return packed


class Subscription:
    """A connection that is subscribed to one channel."""

    def __init__(self, url: str, channel: str) -> None:
        self._socket = _connect(url)
        self._reader = hiredis.Reader()
        self._socket.sendall(_packed("SUBSCRIBE", channel))
        self.next()

    def next(self) -> Any:
        """Wait for the next message."""
        while (reply := self._reader.gets()) is False:
            self._reader.feed(self._socket.recv(4096))
        return reply[2]


class OwnConnection:
    """Each waiting thread reads its own connection."""

    def __init__(self, url: str, process: int, threads: int) -> None:
        self.channels = [f"own:{process}:{thread}" for thread in range(threads)]
        self._connections = [Subscription(url, channel) for channel in self.channels]
        self.connections = threads

    def wait(self, thread: int) -> None:
        """Return when the message for this thread has come."""
        self._connections[thread].next()


class ReaderThread:
    """A separate thread reads, and wakes the right one."""

    connections = 1

    def __init__(self, url: str, process: int, threads: int) -> None:
        channel = f"reader:{process}"
        self.channels = [channel] * threads
        self._connection = Subscription(url, channel)
        self._come = [threading.Semaphore(0) for _ in range(threads)]
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        while True:
            self._come[int(self._connection.next()[:22])].release()

    def wait(self, thread: int) -> None:
        """Return when the message for this thread has come."""
        self._come[thread].acquire()


class SharedReading:
    """One of the waiting threads reads, and wakes the right one: the library's way."""

    connections = 1

    def __init__(self, url: str, process: int, threads: int) -> None:
        with redis.Redis.from_url(url) as client:
            endpoint = Endpoint.of_client(client, asynchronous=False)
        self._ear = Subscriber(endpoint, b"ring", clock.now)
        self._tokens = [b"%022d" % thread for thread in range(threads)]
        self.channels = [self._ear.listen(Subscribe(token)).decode() for token in self._tokens]

    def wait(self, thread: int) -> None:
        """Return when the message for this thread has come."""
        while not self._ear.wait(self._tokens[thread], PATIENCE_S):
            pass


WAYS: tuple[type[Any], ...] = (SharedReading, ReaderThread, OwnConnection)


def run(setting: Setting) -> list[Row]:
    """Measure every way in turn, round after round, for each shape."""
    server, quick = setting.server, setting.quick
    hops = QUICK_HOPS if quick else HOPS
    rows = []
    shapes = QUICK_SHAPES if quick else SHAPES
    for processes, threads in shapes:
        ways = {
            way.__name__: partial(_ring, server.tcp_url, way, processes, threads, hops)
            for way in WAYS
        }
        rates = setting.rounds("wake_ups", ways, share=1 / len(shapes))
        shared = rates[SharedReading.__name__]
        for name, found in rates.items():
            count = threads if name == OwnConnection.__name__ else 1
            median, times = statistics.median(found), ratio(shared, found)
            rows.append(Row(name, processes, threads, median, times, count))
    return rows


def _ring(url: str, way: Any, processes: int, threads: int, hops: int) -> float:
    """Return hops per second."""
    context = CONTEXT
    pipes = [context.Pipe() for _ in range(processes)]
    workers = [
        context.Process(target=_work, args=(url, way, number, threads, theirs))
        for number, (_, theirs) in enumerate(pipes)
    ]
    for worker in workers:
        worker.start()
    channels = [ours.recv() for ours, _ in pipes]
    # Through all processes in turn, so that every hop leaves its process if possible.
    ring = [(p, t) for t in range(threads) for p in range(processes)]
    following = dict(zip(ring, itertools.islice(itertools.cycle(ring), 1, None), strict=False))
    for number, (ours, _) in enumerate(pipes):
        to = [following[number, thread] for thread in range(threads)]
        ours.send([(channels[p][t], b"%022d" % t) for p, t in to])
        ours.recv()
    turns = hops // len(ring)
    start = time.monotonic()
    for ours, _ in pipes:
        ours.send(turns)
    with redis.Redis.from_url(url) as client:
        client.publish(channels[0][0], b"%022d" % 0 + b"1")
    ended = max(ours.recv() for ours, _ in pipes)
    for worker in workers:
        worker.join()
    took_s: float = ended - start
    return turns * len(ring) / took_s


def _work(url: str, way: Any, number: int, threads: int, pipe: Any) -> None:
    waiting = way(url, number, threads)
    pipe.send(waiting.channels)
    following = pipe.recv()
    pipe.send("ready")
    turns = pipe.recv()

    def turn(thread: int) -> None:
        with _connect(url) as connection:
            channel, token = following[thread]
            passed_on = _packed("PUBLISH", channel, token + b"1")
            for _ in range(turns):
                waiting.wait(thread)
                connection.sendall(passed_on)
                connection.recv(64)

    running = [threading.Thread(target=turn, args=(thread,)) for thread in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    pipe.send(time.monotonic())


def targets(_: list[Row]) -> Targets:
    """Return no target: the scenario explains a decision."""
    return []
