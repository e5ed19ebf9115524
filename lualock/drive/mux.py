"""A connection for coroutines: many questions under way at once, replies matched in order.

redis-py opens it (TLS, AUTH, HELLO); then its transport is ours. What is written within one turn
of the event loop leaves in one piece. Rules that hold here:

* Every question has exactly one place in the order of replies, whether or not anybody still waits
  for its reply: a caller that was cancelled never shifts the others'.
* When the connection breaks, every question that is out fails with an unknown outcome.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from hiredis import ProtocolError

from lualock.drive import wire
from lualock.errors import LockUnavailable


class Mux(asyncio.Protocol):
    """Talks on one connection of redis-py's.

    With ``hear``, messages of the channels it is subscribed to go there. ``lost`` is called once,
    when the connection breaks.
    """

    def __init__(
        self,
        connection: Any,
        timeout_s: float,
        where: str,
        *,
        hear: Callable[[bytes], None] | None = None,
        lost: Callable[[], None] | None = None,
    ) -> None:
        self._connection = connection
        self._timeout_s = timeout_s
        self._where = where
        self._hear = hear
        self._lost = lost
        self.loop = asyncio.get_running_loop()
        self._replies = wire.Replies()
        self._waiting: deque[tuple[asyncio.Future[Any], float]] = deque()
        self._unsent: list[bytes] = []
        self._watchdog: asyncio.TimerHandle | None = None
        self._room: asyncio.Future[None] | None = None  # set while the peer does not read
        self.open = self.ready = True  # ready: and the peer reads what is sent
        self.heard = self.loop.time()
        # From here on what arrives comes to us. The stream that redis-py made is told when the
        # connection ends, for it waits for that when it is closed.
        self._transport: asyncio.Transport = connection._writer.transport
        self._stream: Any = self._transport.get_protocol()
        self._transport.set_protocol(self)

    def ask(self, question: bytes) -> asyncio.Future[Any]:
        """Send a question; the future gets its reply, or fails when the connection breaks."""
        future: asyncio.Future[Any] = self.loop.create_future()
        if not self.open:
            future.set_exception(self._broken("it was closed"))
            return future
        if not self._unsent:
            self.loop.call_soon(self._send)
        self._unsent.append(question)
        self._waiting.append((future, self.loop.time()))
        if self._watchdog is None:
            self._watchdog = self.loop.call_later(self._timeout_s, self._watch)
        return future

    def flush(self) -> None:
        """Send what was asked now, not only when this turn of the loop is over."""
        if self._unsent:
            self._send()

    @property
    def busy(self) -> bool:
        """Whether replies are still to come."""
        return bool(self._waiting)

    async def room(self, left_s: float | None) -> None:
        """Wait while the peer does not read what was sent.

        :raises LockUnavailable: it still did not when the time was over; nothing was sent.
        """
        give_up = None if left_s is None else self.loop.time() + left_s
        while self._room is not None and self.open:
            left_s = None if give_up is None else give_up - self.loop.time()
            done, _ = await asyncio.wait({self._room}, timeout=left_s)
            if not done:
                raise LockUnavailable(
                    f"the server at {self._where} reads no requests, and the time was over"
                )

    def close(self) -> None:
        """Close the connection, behind what was asked already."""
        self.flush()
        self._end("it was closed")

    def _send(self) -> None:
        if self.open and self._unsent:
            self._transport.write(b"".join(self._unsent))
        self._unsent.clear()

    def _watch(self) -> None:
        self._watchdog = None
        if not self._waiting:
            return
        left_s = self._waiting[0][1] + self._timeout_s - self.loop.time()
        if left_s <= 0:
            self._end(f"no reply within {self._timeout_s:g} s")
        else:
            self._watchdog = self.loop.call_later(left_s, self._watch)

    def _broken(self, why: str) -> LockUnavailable:
        return wire.lost_reply(ConnectionError(why), self._where)

    def _end(self, why: str) -> None:
        if not self.open:
            return
        self.open = self.ready = False
        if self._watchdog is not None:
            self._watchdog.cancel()
        self._transport.abort()
        self._connection._reader = self._connection._writer = None  # closed, for redis-py too
        self.resume_writing()
        while self._waiting:
            future, _ = self._waiting.popleft()
            if not future.done():
                future.set_exception(self._broken(why))
        if self._lost is not None:
            self._lost()

    # What asyncio calls.

    def data_received(self, data: bytes) -> None:
        self.heard = self.loop.time()
        next_reply, waiting, hear = self._replies.gets, self._waiting, self._hear
        try:
            self._replies.feed(data)
            while (reply := next_reply()) is not wire.MORE:
                if hear is not None and (payload := wire.payload(reply)) is not None:
                    hear(payload)
                    continue
                if hear is None and type(reply) is wire.PushNotification:
                    continue  # RESP3: nothing that we asked for
                future, _ = waiting.popleft()
                if not future.done():
                    future.set_result(reply)
        except (ProtocolError, IndexError) as error:
            self._end(f"it sent what is no reply: {error}")

    def eof_received(self) -> None:
        self._end("the server closed the connection")

    def connection_lost(self, error: Exception | None) -> None:
        self._stream.connection_lost(error)
        self._end(str(error or "the server closed the connection"))

    def pause_writing(self) -> None:
        self.ready = False
        if self._room is None:
            self._room = self.loop.create_future()

    def resume_writing(self) -> None:
        self.ready = self.open
        room, self._room = self._room, None
        if room is not None and not room.done():
            room.set_result(None)
