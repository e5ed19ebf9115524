"""A proxy that puts the replies of a connection out of order, as a broken proxy does."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

from tests.support.faults import _frame_end
from tests.support.proxy import Proxy, receive, send, shut

Spoil = Callable[[list[bytes]], list[bytes]]


class Crossed(Proxy):
    """Forwards to a server; ``spoil`` may change the replies of every connection.

    It gets the replies that have come and returns those to send now; it may keep some.
    """

    def __init__(self, target: str) -> None:
        self.spoil: Spoil = lambda replies: replies
        self._lock = threading.Lock()
        super().__init__(target)

    def _replies(self, client: socket.socket, server: socket.socket) -> None:
        buffer = b""
        while data := receive(server):
            buffer, at, frames = buffer + data, 0, []
            while (end := _frame_end(buffer, at)) > 0:
                frames.append(buffer[at:end])
                at = end
            buffer = buffer[at:]
            with self._lock:
                for frame in self.spoil(frames):
                    send(client, frame)
        shut(client)
