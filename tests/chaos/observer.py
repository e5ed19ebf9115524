"""Read the server while the workers contend: which waiters are queued, and which leases expire.

The workers cannot record that: the library does not report when an acquisition has a place.
"""

from __future__ import annotations

import threading
from typing import Any

import redis

from lualock._core import keys
from lualock._core.clock import now
from tests.chaos.event_log import EventLog
from tests.chaos.turns import LOCKS
from tests.support.servers import Server

CONFIG = ("--notify-keyspace-events", "Ex")
"""The server's configuration, so that it reports expired keys."""

INTERVAL_S = 0.025
LATE_S = 0.25
"""If the observer itself is that late, other processes may be late too."""

PREFIX = keys.DEFAULT_PREFIX.encode()
KEYS = {keys.lock_key(PREFIX, name): name for name in LOCKS}


class Observer:
    """Two threads with their own connections, which are cut and paused like all others."""

    def __init__(self, server: Server, log: EventLog) -> None:
        self._server = server
        self._log = log
        self._stop = threading.Event()
        self._seen: set[bytes] = set()  # tokens
        self.queued = 0
        self._threads = [
            threading.Thread(target=target, args=(self._client(),))
            for target in (self._read_queues, self._listen)
        ]

    def _client(self) -> Any:
        return redis.Redis(unix_socket_path=self._server.socket, protocol=2, socket_timeout=5)

    def __enter__(self) -> Observer:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _read_queues(self, client: Any) -> None:
        due = now()
        while not self._stop.wait(max(0.0, due - now())):
            if (at := now()) > due + LATE_S:
                # This process had no processor, and so perhaps no other process had one.
                self._log.record("cause", due, what="slow", until=at)
            try:
                with client.pipeline(transaction=False) as pipeline:
                    for key in KEYS:
                        pipeline.zrange(keys.waiters_key(key), 0, -1)
                    queues = pipeline.execute()
            except redis.RedisError:
                queues = []  # a fault of the server
            at = now()  # a ticket that was read had its place by now
            due = at + INTERVAL_S
            for name, tickets in zip(KEYS.values(), queues, strict=False):
                for ticket in tickets:
                    self._note_ticket(at, name, ticket)
        client.close()

    def _note_ticket(self, at: float, name: str, ticket: bytes) -> None:
        token, (_, _, id) = ticket[:22], ticket.partition(b"\n")
        if id and token not in self._seen:
            self._seen.add(token)
            self.queued += 1
            process, _, _ = id.decode().partition(".")
            self._log.record("queued", at, lock=name, process=process, id=id.decode())

    def _listen(self, client: Any) -> None:
        while not self._stop.is_set():
            try:
                with client.pubsub(ignore_subscribe_messages=True) as expired:
                    expired.psubscribe("__keyevent@*__:expired")
                    while not self._stop.is_set():
                        message = expired.get_message(timeout=0.2)
                        if message and message["data"] in KEYS:
                            lock = KEYS[message["data"]]
                            self._log.record("cause", lock=lock, what="expired")
            except (redis.RedisError, OSError):
                self._stop.wait(0.05)
        client.close()
