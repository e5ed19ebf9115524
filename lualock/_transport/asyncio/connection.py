"""A connection for coroutines: many requests in flight at once, replies matched in order.

redis-py opens it (TLS, AUTH, HELLO); then its transport is ours. Requests of one turn of the event
loop leave in one piece. Invariants:

* Each request has exactly one place in the order of replies, also when its caller was cancelled: a
  cancelled caller never shifts the replies of other callers.
* When the connection breaks, each request in flight fails with an unknown outcome.
* A reply that answers another request ends the connection and is not believed.
* Each request is written once. If a signal handler raises during the write, it is unknown how much
  was sent: the connection ends.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from hiredis import ProtocolError

from lualock._protocol import RunScript
from lualock._transport import codec, errors, sockets
from lualock._transport.asyncio.futures import ReplyOverdue
from lualock.errors import LockUnavailable

TIMER_LOST_S = 0.2
"""A timer that is late by more than this is lost: a signal handler raised just when the loop was
about to run it."""


class PipelinedConnection(asyncio.Protocol):
    """Send requests and match replies on one connection that redis-py opened.

    With ``on_message``, messages of the subscribed channels go there. ``on_lost`` is called once,
    when the connection breaks.
    """

    def __init__(
        self,
        connection: Any,
        timeout_s: float,
        address: str,
        *,
        on_message: Callable[[bytes], None] | None = None,
        on_lost: Callable[[], None] | None = None,
    ) -> None:
        self._connection = connection
        self._timeout_s = timeout_s
        self._address = address
        self._on_message = on_message
        self._on_lost = on_lost
        self.loop = asyncio.get_running_loop()
        self._replies = codec.Replies()
        # Of each request: the future of its reply, when it was sent, what the reply must begin
        # with, and whether the future still fails with ReplyOverdue.
        self._in_flight: deque[tuple[asyncio.Future[Any], float, bytes, bool]] = deque()
        self._silence_s = min(sockets.silence_s(timeout_s), timeout_s)
        self._unsent: list[bytes] = []
        self._checked_by = 0.0
        self._watchdog: asyncio.TimerHandle | None = None
        self._writable: asyncio.Future[None] | None = None  # set while the peer does not read
        self.open = self.ready = True  # ready: and the peer reads what is sent
        self.received_at = self.loop.time()  # kept up to date only with ``on_message``
        # From here on received data comes to us. The stream that redis-py made still learns of the
        # connection's end, because closing the stream waits for that.
        self._transport: asyncio.Transport = connection._writer.transport
        self._stream: Any = self._transport.get_protocol()
        self._transport.set_protocol(self)

    def ask(
        self, request: bytes, proof: bytes, *, report_overdue: bool = False
    ) -> asyncio.Future[Any]:
        """Send a request; the future gets its reply, or fails when the connection breaks.

        :param proof: what the reply must begin with; empty: it has no proof.
        :param report_overdue: whether the future fails with :class:`ReplyOverdue` if no reply comes
            for a while.
        """
        future: asyncio.Future[Any] = self.loop.create_future()
        if not self.open:
            future.set_exception(self._lost_error("it was closed"))
            return future
        if not self._unsent:
            self.loop.call_soon(self._send)
        # First, because once the request is sent its reply must find its place.
        now = self.loop.time()
        self._in_flight.append((future, now, proof, report_overdue))
        self._unsent.append(request)
        if now > self._checked_by:
            self._check_at(now + self._silence_s)
        return future

    def call(self, call: RunScript, *, source: bool = False) -> asyncio.Future[Any]:
        """Send a call, with ``source`` its whole script: see :meth:`ask`."""
        return self.ask(*codec.pack(call, source=source), report_overdue=True)

    def mark_overdue(self, future: asyncio.Future[Any]) -> None:
        """Fail the future with :class:`ReplyOverdue`, if its reply has not come."""
        if not future.done():
            for index, (waiting, *_) in enumerate(self._in_flight):
                if waiting is future:
                    self._mark_overdue(index)
                    return

    def _mark_overdue(self, index: int) -> None:
        future, sent_at, proof, _ = self._in_flight[index]
        late = future
        if not future.done():
            late = self.loop.create_future()
            future.set_exception(ReplyOverdue(late))
        self._in_flight[index] = late, sent_at, proof, False

    def left_s(self, future: asyncio.Future[Any]) -> float:
        """How long this connection still waits for this reply."""
        for waiting, sent_at, *_ in self._in_flight:
            if waiting is future:
                return sent_at + self._timeout_s - self.loop.time()
        return 0.0

    def flush(self) -> None:
        """Send requests now instead of at the end of this turn of the loop."""
        if self._unsent:
            self._send()

    @property
    def busy(self) -> bool:
        """Whether replies are still to come."""
        return bool(self._in_flight)

    async def wait_writable(self, left_s: float | None) -> None:
        """Wait while the peer does not read what was sent.

        :raises LockUnavailable: the time is over and the peer still does not read. Nothing was
            sent.
        """
        end = None if left_s is None else self.loop.time() + left_s
        while self._writable is not None and self.open:
            left_s = None if end is None else end - self.loop.time()
            done, _ = await asyncio.wait({self._writable}, timeout=left_s)
            if not done:
                raise LockUnavailable(
                    f"could not send the request: the server at {self._address} reads no requests, "
                    "and the time is over"
                )

    def close(self) -> None:
        """Send the requests that are not sent yet, and close the connection."""
        self.flush()
        self._end("it was closed")

    def _send(self) -> None:
        unsent, self._unsent = self._unsent, []
        if self.open and unsent:
            try:
                self._transport.write(b"".join(unsent))
            except BaseException:
                self._end("sending was interrupted")
                raise

    def _check(self) -> None:
        self._checked_by = 0.0
        now = self.loop.time()
        if self._in_flight and self._in_flight[0][1] + self._timeout_s <= now:
            self._end(f"no reply within {self._timeout_s:g} s")
        if not self._in_flight:
            return
        # No later than the moment when a request that is sent from here on is overdue.
        next_at = min(self._in_flight[0][1] + self._timeout_s, now + self._silence_s)
        for index, (_, sent_at, _, report_overdue) in enumerate(self._in_flight):
            if report_overdue and sent_at + self._silence_s > now:
                next_at = min(next_at, sent_at + self._silence_s)
                break  # the requests behind it are younger
            if report_overdue:
                self._mark_overdue(index)
        self._check_at(next_at)

    def _check_at(self, when: float) -> None:
        self._checked_by = when + TIMER_LOST_S
        self._watchdog = self.loop.call_at(when, self._check)

    def _lost_error(self, why: str) -> LockUnavailable:
        return errors.lost_reply_error(ConnectionError(why), self._address)

    def _end(self, why: str) -> None:
        if not self.open:
            return
        self.open = self.ready = False
        if self._watchdog is not None:
            self._watchdog.cancel()
        self._transport.abort()
        self._connection._reader = self._connection._writer = None  # closed, for redis-py too
        self.resume_writing()
        while self._in_flight:
            future, *_ = self._in_flight.popleft()
            if not future.done():
                future.set_exception(self._lost_error(why))
        if self._on_lost is not None:
            self._on_lost()

    # The methods of asyncio.Protocol.

    def data_received(self, data: bytes) -> None:
        next_reply, in_flight, on_message = self._replies.gets, self._in_flight, self._on_message
        if on_message is not None:
            self.received_at = self.loop.time()
        try:
            self._replies.feed(data)
            while (reply := next_reply()) is not codec.INCOMPLETE:
                if type(reply) is not bytes:
                    if (
                        on_message is not None
                        and (message := codec.message_payload(reply)) is not None
                    ):
                        on_message(message)
                        continue
                    if on_message is None and type(reply) is codec.PushNotification:
                        continue  # RESP3: no reply to a request of ours
                future, _, proof, _ = in_flight[0]
                if type(reply) is bytes and (rest := reply.removeprefix(proof)) is not reply:
                    reply = rest  # the usual case, without a call
                elif proof:
                    reply = codec.strip_proof(reply, proof)
                in_flight.popleft()
                if not future.done():
                    future.set_result(reply)
        except (ProtocolError, IndexError, errors.CrossedReply) as error:
            self._end(f"it sent an invalid reply: {error}")
        except BaseException:
            self._end("reading was interrupted")  # which reply was being handled is unknown
            raise

    def eof_received(self) -> None:
        self._end("the server closed the connection")

    def connection_lost(self, error: Exception | None) -> None:
        self._stream.connection_lost(error)
        self._end(str(error or "the server closed the connection"))

    def pause_writing(self) -> None:
        self.ready = False
        if self._writable is None:
            self._writable = self.loop.create_future()

    def resume_writing(self) -> None:
        self.ready = self.open
        writable, self._writable = self._writable, None
        if writable is not None and not writable.done():
            writable.set_result(None)
