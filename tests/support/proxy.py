"""A proxy between lualock and a real server: counts commands, and loses chosen replies."""

from __future__ import annotations

import os
import socket
import tempfile
import threading
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

import hiredis

if TYPE_CHECKING:
    from typing_extensions import Self

HANDSHAKE = (b"HELLO", b"TIME", b"PING", b"CLIENT", b"SELECT", b"AUTH")


class Proxy:
    """Listens on a unix socket and forwards to another.

    ``commands`` are the requests so far, as lists of bytes. ``lose_reply`` is how many of the next
    replies are swallowed, each closing its connection: the request is carried out, and the client
    does not know it. ``rewrite`` may change the server's data. While ``silent``, requests are not
    forwarded and connections stay open; while ``mute``, new connections are not answered.
    ``packets`` counts the reads of the clients' data.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self.path = os.path.join(tempfile.mkdtemp(prefix="lp-", dir="/tmp"), "p")
        self.commands: list[list[bytes]] = []
        self.packets = 0
        self.lose_reply = 0
        self.silent = self.mute = False
        self.rewrite: Callable[[bytes], bytes] = lambda data: data
        self._ended = False
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        self._open: list[socket.socket] = [self._listener]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def url(self) -> str:
        return f"unix://{self.path}"

    def lead_to(self, target: str) -> None:
        """Forward later connections to another server, as a name that was moved does; present
        connections stay with their server."""
        self._target = target

    def scripts(self) -> list[bytes]:
        """The commands since the last call, without the handshake of a new connection."""
        seen, self.commands = self.commands, []
        return [c[0] for c in seen if c[0] not in HANDSHAKE]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # Not by shutting the listener: under eventlet that ends no accept().
        self._ended = True
        with socket.socket(socket.AF_UNIX) as last:
            last.connect(self.path)
        self._threads[0].join(5)
        for sock in self._open:
            shut(sock)
        for thread in self._threads:
            thread.join(5)
        for sock in self._open:
            sock.close()
        os.unlink(self.path)
        os.rmdir(os.path.dirname(self.path))

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._ended:
                client.close()
                return
            if self.mute:
                self._open.append(client)
                continue
            server = socket.socket(socket.AF_UNIX)
            self._open += [client, server]
            try:
                server.connect(self._target)
            except OSError:
                shut(client)
                continue
            self._serve(client, server)

    def _serve(self, client: socket.socket, server: socket.socket) -> None:
        for work in (self._requests, self._replies):
            self._start(work, client, server)

    def _start(self, work: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _requests(self, client: socket.socket, server: socket.socket) -> None:
        reader = hiredis.Reader()
        while data := receive(client):
            reader.feed(data)
            self.packets += 1
            while (command := reader.gets()) is not False:
                self.commands.append(command)
            if not self.silent:
                send(server, data)
        shut(server)

    def _replies(self, client: socket.socket, server: socket.socket) -> None:
        while data := receive(server):
            if self.lose_reply and self.commands[-1][0] in (b"EVALSHA", b"EVAL"):
                self.lose_reply -= 1
                break
            send(client, self.rewrite(data))
        shut(client)


def receive(sock: socket.socket) -> bytes:
    try:
        return sock.recv(65536)
    except OSError:
        return b""


def send(sock: socket.socket, data: bytes) -> None:
    try:
        sock.sendall(data)
    except OSError:
        shut(sock)


def shut(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        return
