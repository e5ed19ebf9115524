"""A proxy that puts one fault between lualock and a real server, at a chosen request.

It splits the stream into requests and replies, so that it can lose, delay or hold back just one of
them. It also knows the replies that the client never gets, and so what really happened.
"""

from __future__ import annotations

import socket
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import hiredis

from lualock._transport import codec
from lualock.jobs import verbs
from lualock.scripts import MULTI, SCRIPTS
from tests.support.proxy import Proxy, receive, send, shut

_ALL = SCRIPTS | MULTI | verbs.SCRIPTS
_BY_SHA = {script.sha.encode(): name for name, script in _ALL.items()}
_BY_SOURCE = {script.source: name for name, script in _ALL.items()}


@dataclass(frozen=True)
class Fault:
    """What happens to a script request, and to the next ones like it: to ``times`` in all.

    ============= ====================================================================
    kind          effect
    ============= ====================================================================
    drop request  never forwarded; the connection is closed
    drop reply    carried out; the reply is lost with the connection
    delay request forwarded after ``seconds``, even if the client has hung up by then
    delay reply   carried out at once; the reply comes after ``seconds``
    half-open     swallowed, as is all later traffic, both ways; the connection stays open
    half-reply    the same from the reply on, so that the request is carried out
    deaf          half-open, as are all other connections at this time
    orphan        as half-open, but forwarded when :meth:`FaultProxy.deliver` is called
    stray         as an orphan, but its connection is closed at once
    ============= ====================================================================
    """

    kind: str
    times: int = 1
    seconds: float = 0.0


@dataclass(eq=False)
class Exchange:
    """A script request, and the server's reply, even if that was lost."""

    script: str
    parts: list[bytes]
    fault: Fault | None
    reply: Any = None
    answered: threading.Event = field(default_factory=threading.Event)


class FaultProxy(Proxy):
    """Forwards to a server; ``choose`` decides the fault of each script request.

    ``seen`` are the exchanges so far, ``met`` those with a fault.
    """

    def __init__(self, target: str) -> None:
        self.choose: Callable[[str], Fault | None] = lambda script: None
        self.seen: list[Exchange] = []
        self.met: list[Exchange] = []
        self.ended = threading.Event()
        self.pipes: list[_Pipe] = []
        self._orphans: list[tuple[_Pipe, Exchange, list[bytes]]] = []
        self._deciding = threading.Lock()  # only one request is decided at a time
        super().__init__(target)

    def __exit__(self, *error: Any) -> None:
        self.ended.set()
        super().__exit__(*error)

    def inject(self, fault: Fault, script: str | None = None, nth: int = 1) -> None:
        """Inject the fault at the ``nth`` request from now on, or the nth of that script."""
        left = iter([None] * (nth - 1) + [fault] * fault.times)
        self.choose = lambda name: next(left, None) if script in (None, name) else None

    def fall_silent(self) -> None:
        """Swallow all traffic from now on, both ways, on every present connection."""
        for pipe in self.pipes:
            pipe.swallows = True

    def deliver(self) -> list[Any]:
        """Forward the orphans; return the server's replies."""
        orphans, self._orphans = self._orphans, []
        for pipe, exchange, command in orphans:
            pipe.forward(exchange, command)
            assert exchange.answered.wait(5)
        return [exchange.reply for _, exchange, _ in orphans]

    def hold(self, pipe: _Pipe, exchange: Exchange, command: list[bytes]) -> None:
        """Hold back an orphan."""
        self._orphans.append((pipe, exchange, command))

    def exchange(self, command: list[bytes]) -> Exchange | None:
        """Note a request; return None if it runs no script of lualock."""
        verb = command[0]
        if verb not in (b"EVALSHA", b"EVAL"):
            return None
        script = (_BY_SHA if verb == b"EVALSHA" else _BY_SOURCE)[command[1]]
        with self._deciding:
            made = Exchange(script, command[3:], self.choose(script))
            self.seen.append(made)
            if made.fault is not None:
                self.met.append(made)
        return made

    def _serve(self, client: socket.socket, server: socket.socket) -> None:
        pipe = _Pipe(self, client, server)
        self.pipes.append(pipe)
        self._start(pipe.requests)
        self._start(pipe.replies)


class _Pipe:
    """A client's connection, and its other half to the server."""

    def __init__(self, proxy: FaultProxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self._expected: deque[Exchange | None] = deque()  # the requests that have no reply yet
        self.swallows = False

    def forward(self, exchange: Exchange | None, command: list[bytes]) -> None:
        """Forward a request to the server."""
        self._expected.append(exchange)
        packed: Any = tuple(command)  # its type hints know tuples of one element only
        send(self._server, hiredis.pack_command(packed))

    def requests(self) -> None:
        """Forward requests until the client hangs up; a thread runs this."""
        reader = hiredis.Reader()
        while data := receive(self._client):
            reader.feed(data)
            while (command := reader.gets()) is not False:
                if not self.swallows and not self._request(command):
                    return self._cut()
        if not self.swallows:
            shut(self._server)
        return None

    def replies(self) -> None:
        """Forward replies until the server hangs up; a thread runs this."""
        buffer = b""
        while data := receive(self._server):
            buffer, at = buffer + data, 0
            while (end := _frame_end(buffer, at)) > 0:
                if not self._reply(buffer[at:end]):
                    return self._cut()
                at = end
            buffer = buffer[at:]
        if not self.swallows:
            shut(self._client)
        return None

    def _cut(self) -> None:
        shut(self._client)
        shut(self._server)

    def _request(self, command: list[bytes]) -> bool:
        """Handle one request; return False if it ends the connection."""
        exchange = self._proxy.exchange(command)
        fault = exchange.fault if exchange is not None else None
        if exchange is not None and fault is not None:
            if fault.kind == "drop request":
                return False
            if fault.kind in ("half-open", "deaf", "orphan", "stray"):
                self.swallows = True
                if fault.kind == "deaf":
                    self._proxy.fall_silent()
                if fault.kind in ("orphan", "stray"):
                    self._proxy.hold(self, exchange, command)
                if fault.kind == "stray":
                    shut(self._client)
                return True
            if fault.kind == "delay request":
                self._proxy.ended.wait(fault.seconds)
        self.forward(exchange, command)
        return True

    def _reply(self, frame: bytes) -> bool:
        """Handle one reply or message; return False if it ends the connection."""
        if not frame.startswith(b">") and self._expected:
            exchange = self._expected.popleft()
            if exchange is not None:
                reader = hiredis.Reader()
                reader.feed(frame)
                at = _ALL[exchange.script].proof_at
                proof = exchange.parts[-1 if at is None else at]
                exchange.reply = codec.strip_proof(reader.gets(), proof)
                exchange.answered.set()
            fault = exchange.fault if exchange is not None else None
            if fault is not None:
                if fault.kind == "drop reply":
                    return False
                if fault.kind == "half-reply":
                    self.swallows = True
                elif fault.kind == "delay reply":
                    self._proxy.ended.wait(fault.seconds)
        if not self.swallows:
            send(self._client, frame)
        return True


def _frame_end(data: bytes, at: int) -> int:
    """Return where the reply that begins at ``at`` ends; -1 if it is not complete."""
    line_end = data.find(b"\r\n", at)
    if line_end < 0:
        return -1
    kind, head = data[at : at + 1], data[at + 1 : line_end]
    at = line_end + 2
    if kind in b"$!=" and not head.startswith(b"-"):
        at += int(head) + 2
        return at if at <= len(data) else -1
    if kind in b"*~>%":
        for _ in range(max(0, int(head)) * (2 if kind == b"%" else 1)):
            at = _frame_end(data, at)
            if at < 0:
                return -1
    return at
