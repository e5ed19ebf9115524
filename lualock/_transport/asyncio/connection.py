"""A connection for coroutines: many questions under way at once, replies matched in order.

redis-py opens it (TLS, AUTH, HELLO); then its transport is ours. What is written within one turn
of the event loop leaves in one piece. Rules that hold here:

* Every question has exactly one place in the order of replies, whether or not anybody still waits
  for its reply: a caller that was cancelled never shifts the others'.
* When the connection breaks, every question that is out fails with an unknown outcome.
* A reply that answers another question ends the connection, and is not believed.
* What is written is written once. If an exception (a signal handler's) comes while it is, nobody
  knows how much of it left: the connection ends.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from hiredis import ProtocolError

from lualock._protocol import RunScript
from lualock._transport import codec, errors, sockets
from lualock.errors import LockUnavailable

LOST_S = 0.2
"""By how much the loop may be late before what it was to call counts as lost: a signal handler
that raised just when the loop took it up."""


class Silence(Exception):
    """No reply has come for a while. ``later`` gets it, if it comes all the same."""

    def __init__(self, later: asyncio.Future[Any]) -> None:
        super().__init__()
        self.later = later


class PipelinedConnection(asyncio.Protocol):
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
        self._replies = codec.Replies()
        # Of each question: who gets the reply, when it was asked, what the reply must begin with,
        # and whether a silence is still to be told.
        self._waiting: deque[tuple[asyncio.Future[Any], float, bytes, bool]] = deque()
        self._silence_s = min(sockets.silence_s(timeout_s), timeout_s)
        self._unsent: list[bytes] = []
        self._watches_by = 0.0
        self._watchdog: asyncio.TimerHandle | None = None
        self._room: asyncio.Future[None] | None = None  # set while the peer does not read
        self.open = self.ready = True  # ready: and the peer reads what is sent
        self.heard = self.loop.time()  # at the last message; only where messages go to ``hear``
        # From here on what arrives comes to us. The stream that redis-py made is told when the
        # connection ends, for it waits for that when it is closed.
        self._transport: asyncio.Transport = connection._writer.transport
        self._stream: Any = self._transport.get_protocol()
        self._transport.set_protocol(self)

    def ask(self, question: bytes, proof: bytes, *, tell: bool = False) -> asyncio.Future[Any]:
        """Send a question; the future gets its reply, or fails when the connection breaks.

        :param proof: what the reply must begin with; empty: it has no proof.
        :param tell: whether the future fails with :class:`Silence` where none comes for a while.
        """
        future: asyncio.Future[Any] = self.loop.create_future()
        if not self.open:
            future.set_exception(self._broken("it was closed"))
            return future
        if not self._unsent:
            self.loop.call_soon(self._send)
        # First, for once it is sent its reply must find its place.
        now = self.loop.time()
        self._waiting.append((future, now, proof, tell))
        self._unsent.append(question)
        if now > self._watches_by:
            self._watch_at(now + self._silence_s)
        return future

    def call(self, call: RunScript, *, source: bool = False) -> asyncio.Future[Any]:
        """Send a call, with ``source`` its whole script: see :meth:`ask`."""
        return self.ask(*codec.pack(call, source=source), tell=True)

    def silent(self, future: asyncio.Future[Any]) -> None:
        """Let a question's future fail with :class:`Silence`, if its reply has not come."""
        if not future.done():
            for place, (waiting, *_) in enumerate(self._waiting):
                if waiting is future:
                    self._tell_silence(place)
                    return

    def _tell_silence(self, place: int) -> None:
        future, asked, proof, _ = self._waiting[place]
        later = future
        if not future.done():
            later = self.loop.create_future()
            future.set_exception(Silence(later))
        self._waiting[place] = later, asked, proof, False

    def left_s(self, future: asyncio.Future[Any]) -> float:
        """How long this connection still waits for the reply to a question."""
        for waiting, asked, *_ in self._waiting:
            if waiting is future:
                return asked + self._timeout_s - self.loop.time()
        return 0.0

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
        unsent, self._unsent = self._unsent, []
        if self.open and unsent:
            try:
                self._transport.write(b"".join(unsent))
            except BaseException:
                self._end("sending was interrupted")
                raise

    def _watch(self) -> None:
        self._watches_by = 0.0
        now = self.loop.time()
        if self._waiting and self._waiting[0][1] + self._timeout_s <= now:
            self._end(f"no reply within {self._timeout_s:g} s")
        if not self._waiting:
            return
        # No later than what is asked from here on may be silent.
        again = min(self._waiting[0][1] + self._timeout_s, now + self._silence_s)
        for place, (_, asked, _, tell) in enumerate(self._waiting):
            if tell and asked + self._silence_s > now:
                again = min(again, asked + self._silence_s)
                break  # those behind it are younger
            if tell:
                self._tell_silence(place)
        self._watch_at(again)

    def _watch_at(self, when: float) -> None:
        self._watches_by = when + LOST_S
        self._watchdog = self.loop.call_at(when, self._watch)

    def _broken(self, why: str) -> LockUnavailable:
        return errors.lost_reply(ConnectionError(why), self._where)

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
            future, *_ = self._waiting.popleft()
            if not future.done():
                future.set_exception(self._broken(why))
        if self._lost is not None:
            self._lost()

    # What asyncio calls.

    def data_received(self, data: bytes) -> None:
        next_reply, waiting, hear = self._replies.gets, self._waiting, self._hear
        if hear is not None:
            self.heard = self.loop.time()
        try:
            self._replies.feed(data)
            while (reply := next_reply()) is not codec.MORE:
                if type(reply) is not bytes:
                    if hear is not None and (payload := codec.payload(reply)) is not None:
                        hear(payload)
                        continue
                    if hear is None and type(reply) is codec.PushNotification:
                        continue  # RESP3: nothing that we asked for
                future, _, proof, _ = waiting[0]
                if type(reply) is bytes and (said := reply.removeprefix(proof)) is not reply:
                    reply = said  # the usual case, without a call
                elif proof:
                    reply = codec.proved(reply, proof)
                waiting.popleft()
                if not future.done():
                    future.set_result(reply)
        except (ProtocolError, IndexError, errors.CrossedReply) as error:
            self._end(f"it sent what is no reply: {error}")
        except BaseException:
            self._end("reading was interrupted")  # what it was about to do is not known
            raise

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
