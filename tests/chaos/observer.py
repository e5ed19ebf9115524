"""Looks at the server while the workers contend: who stands in which queue, and which leases end by
themselves. Nobody else can tell: the library does not say when an acquisition has a place."""

from __future__ import annotations

import threading
from typing import Any

import redis

from lualock._core import keys
from lualock._core.clock import now
from tests.chaos.diary import Diary
from tests.chaos.turns import LOCKS
from tests.support.servers import Server

CONFIG = ("--notify-keyspace-events", "Ex")
"""What the server must be told, so that it says which keys expired."""

EVERY_S = 0.025
LATE_S = 0.25
"""By how much later than it should the observer itself must run before others may be late too."""

PREFIX = keys.DEFAULT_PREFIX.encode()
KEYS = {keys.lock_key(PREFIX, name): name for name in LOCKS}


class Observer:
    """A thread with connections of its own, which are cut and paused like all others."""

    def __init__(self, server: Server, diary: Diary) -> None:
        self._server = server
        self._diary = diary
        self._stop = threading.Event()
        self._seen: set[bytes] = set()  # tokens
        self.queued = 0
        self._threads = [
            threading.Thread(target=look, args=(self._client(),))
            for look in (self._look_at_queues, self._listen)
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

    def _look_at_queues(self, client: Any) -> None:
        due = now()
        while not self._stop.wait(max(0.0, due - now())):
            if (at := now()) > due + LATE_S:
                # There was no processor for us, and so perhaps for nobody.
                self._diary.tell("cause", due, what="slow", until=at)
            try:
                with client.pipeline(transaction=False) as pipeline:
                    for key in KEYS:
                        pipeline.zrange(keys.waiters_key(key), 0, -1)
                    queues = pipeline.execute()
            except redis.RedisError:
                queues = []  # the server was sabotaged
            at = now()  # who had a place at some time before has had it by now
            due = at + EVERY_S
            for name, tickets in zip(KEYS.values(), queues, strict=False):
                for ticket in tickets:
                    self._saw(at, name, ticket)
        client.close()

    def _saw(self, at: float, name: str, ticket: bytes) -> None:
        token, (_, _, id) = ticket[:22], ticket.partition(b"\n")
        if id and token not in self._seen:
            self._seen.add(token)
            self.queued += 1
            who, _, _ = id.decode().partition(".")
            self._diary.tell("queued", at, lock=name, who=who, id=id.decode())

    def _listen(self, client: Any) -> None:
        while not self._stop.is_set():
            try:
                with client.pubsub(ignore_subscribe_messages=True) as expired:
                    expired.psubscribe("__keyevent@*__:expired")
                    while not self._stop.is_set():
                        said = expired.get_message(timeout=0.2)
                        if said and said["data"] in KEYS:
                            lock = KEYS[said["data"]]
                            self._diary.tell("cause", lock=lock, what="expired")
            except (redis.RedisError, OSError):
                self._stop.wait(0.05)
        client.close()
