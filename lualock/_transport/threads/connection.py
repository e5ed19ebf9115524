"""A connection for threads: one request, one reply, and replies that are read later."""

from __future__ import annotations

import socket
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

from hiredis import ReplyError

from lualock._protocol import SendScript
from lualock._transport import codec, errors, sockets
from lualock._transport.sockets import TIMED_OUT, Timeout
from lualock._transport.threads.pending import SentReply


class Connection:
    """Send requests and read replies on one connection that redis-py opened."""

    __slots__ = (
        *("__weakref__", "_connection", "_more_flag", "_pending", "_pending_first", "_replies"),
        *("_timeout", "_usual_s", "unusual_timeout", "permit", "socket"),
    )

    def __init__(self, connection: Any, usual_s: float) -> None:
        self._connection = connection
        # For a connection that an interruption left without an owner. Not a destructor: an error
        # and its frames may keep it in a cycle, and the collector could come to the socket first.
        weakref.finalize(self, connection.disconnect).atexit = False
        self.socket: socket.socket = connection._sock
        self._replies = codec.Replies()
        self._pending: deque[SentReply] = deque()  # to calls that were sent without waiting
        self._pending_first = 0  # how many of them come before the reply that is awaited
        self._usual_s = usual_s
        self._timeout = Timeout(self.socket, usual_s)
        self.permit: object = None
        self.unusual_timeout = False  # its timeout is not the usual one
        # This flag lets the kernel hold data back until more comes, at most 0.2 s.
        by_tcp = self.socket.family in (socket.AF_INET, socket.AF_INET6)
        plain = type(self.socket) is socket.socket
        self._more_flag: int = getattr(socket, "MSG_MORE", 0) if by_tcp and plain else 0

    def set_timeout(self, left_s: float | None) -> None:
        """Set how long a send or a receive may take from now on; ``None``: as long as usual."""
        timeout_s = self._usual_s if left_s is None else max(left_s, sockets.MIN_TIMEOUT_S)
        self._timeout.set(timeout_s)
        self.unusual_timeout = timeout_s != self._usual_s

    @property
    def timeout_s(self) -> float:
        """How long a receive may take now."""
        return self._timeout.seconds

    def send(self, request: bytes) -> None:
        """Send a request, or several in one piece. If this raises, a part of it may have been sent:
        the connection must be closed."""
        self._pending_first = len(self._pending)
        try:
            self.socket.sendall(request)
        except TIMED_OUT:
            raise self._send_timeout() from None

    def _send_timeout(self) -> ConnectionError:
        return ConnectionError(f"not sent within {self._timeout.seconds:.3g} s")

    def ask(self, request: bytes, proof: bytes) -> Any:
        """Send a request, as :meth:`send` does, and wait for its reply, as :meth:`read` does."""
        self.send(request)
        return self.read(proof)

    def read(self, proof: bytes, *, now: bool = False) -> Any:
        """Wait for the next reply to what was sent.

        :param proof: what the reply must begin with; empty: it has no proof.
        :param now: do not wait; :data:`codec.INCOMPLETE` if the reply has not come yet.
        :raises errors.ReplyTimeout: it did not come in time. It can be read later.
        """
        replies, connected = self._replies, self.socket
        rest: Any
        while True:
            while (reply := replies.gets()) is not codec.INCOMPLETE:
                oldest = self._pending[0] if self._pending_first else None
                wanted = proof if oldest is None else oldest.proof
                # What codec.strip_proof does, without a call: with 32 processes at one lock the
                # calls here, and the current thread's in a `with` block, cost 4 % of the rate.
                if type(reply) is bytes and (rest := reply.removeprefix(wanted)) is not reply:
                    pass
                elif type(reply) is list and reply and reply[0] == wanted:
                    del reply[0]
                    rest = reply
                elif type(reply) is codec.PushNotification:
                    continue  # RESP3: no reply to a request of ours
                elif oldest is not None:
                    self._resolve_oldest(reply)
                    self._pending_first -= 1
                    continue
                else:
                    rest = codec.strip_proof(reply, proof) if proof else reply
                if oldest is None:
                    return rest
                oldest.resolve(rest)
                self._pending.popleft()
                self._pending_first -= 1
            try:
                if now:
                    received = sockets.receive_now(connected)
                else:
                    received = connected.recv(sockets.RECEIVE_BYTES)
            except TIMED_OUT:
                if now:
                    return codec.INCOMPLETE
                raise self._reply_timeout() from None
            if not received:
                raise ConnectionResetError("the server closed the connection")
            replies.feed(received)

    def _reply_timeout(self) -> errors.ReplyTimeout:
        return errors.ReplyTimeout(f"no reply within {self._timeout.seconds:.3g} s")

    def send_call(self, call: SendScript, collect: Callable[[Connection], None]) -> SentReply:
        """Send a call whose reply is read later: before the reply to the next request, or when
        ``collect`` is called."""
        request, proof = codec.pack(call, source=call.lazy)
        reply = SentReply(call, proof, self, collect)
        try:
            self.socket.sendall(request, self._more_flag if call.lazy else 0)
        except TIMED_OUT:
            raise self._send_timeout() from None
        self._pending.append(reply)
        return reply

    def collect(self) -> None:
        """Read the pending replies that have come. Does not wait."""
        if self._pending and self._more_flag:
            # A caller needs the reply: send now what the kernel still holds back.
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while self._pending:
            reply = self._replies.next()
            if reply is codec.INCOMPLETE:
                try:
                    received = sockets.receive_now(self.socket)
                except BlockingIOError:
                    return
                if not received:
                    raise ConnectionResetError("the server closed the connection")
                self._replies.feed(received)
            else:
                self._resolve_oldest(reply)

    def _resolve_oldest(self, reply: Any) -> None:
        pending = self._pending[0]  # it stays pending if this is interrupted, or refuses the reply
        if type(reply) is ReplyError and errors.is_noscript(reply) and not pending.call.moot:
            # The server has forgotten the script: send the whole script, and wait for that reply.
            request, pending.proof = codec.pack(pending.call, source=True)
            self.socket.sendall(request)
            self._pending.append(pending)
        else:
            pending.resolve(codec.strip_proof(reply, pending.proof))
        self._pending.popleft()

    def close(self) -> None:
        """Close the connection. Pending replies will never come."""
        self._connection.disconnect()
        self.permit = None
        while self._pending:
            self._pending.popleft().resolve(None)
