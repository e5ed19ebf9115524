"""The driver for threads: each protocol runs in the calling thread."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from inspect import GEN_CLOSED, getgeneratorstate
from typing import Any, ClassVar

from hiredis import ReplyError

from lualock._core import fork
from lualock._protocol import (
    MIN_REQUEST_S,
    AwaitMessage,
    CleanupLater,
    PendingReply,
    Pipeline,
    RunScript,
    SendScript,
    Steps,
    Subscribe,
    T,
)
from lualock._transport import codec, errors, sockets
from lualock._transport.endpoint import Endpoint
from lualock._transport.threads.background import GRACE_S, BackgroundCleanup
from lualock._transport.threads.connection import Connection
from lualock._transport.threads.hedging import hedge
from lualock._transport.threads.pending import SentReply
from lualock._transport.threads.pool import ConnectionPool
from lualock._transport.threads.subscriber import Subscriber
from lualock.errors import LockError, LockUnavailable

OVERTAKEN_S = 0.1
"""After how long a call that was sent without waiting has most probably arrived."""


class BlockingDriver(ConnectionPool):
    """Run protocols in the calling thread. Safe to share between threads."""

    blocks: Any
    """The ``with`` blocks on this server: :class:`lualock._core.with_statement.Blocks`."""

    def __init__(self, endpoint: Endpoint, prefix: bytes) -> None:
        super().__init__(endpoint, prefix)
        self._subscriber = Subscriber(endpoint, prefix, self.clock)
        self._background = BackgroundCleanup(self.clock)

    # Run a protocol.

    def run(self, steps: Steps[T]) -> T:
        """Carry out the protocol to its end, and return or raise what it does."""
        subscribed: bytes | None = None
        error: BaseException | None = None
        handled: list[BaseException] | None = None
        step: Any
        perform, send = self._PERFORM, steps.send
        try:
            while True:
                try:
                    step = send(None) if error is None else steps.throw(error)
                    error = None
                    while True:
                        kind = type(step)
                        if kind is Subscribe:
                            subscribed = step.token
                        step = send(perform[kind](self, step))
                except StopIteration as done:
                    result: T = done.value
                    if handled is not None:
                        errors.drop_tracebacks(handled)
                    return result
                except BaseException as raised:
                    # An error of the protocol itself ends it; the protocol handles any other, also
                    # one that a signal handler raises between two of these lines.
                    if getgeneratorstate(steps) == GEN_CLOSED or isinstance(raised, GeneratorExit):
                        raise
                    error = raised
                    handled = [*(handled or ()), raised]
        finally:
            error = handled = None  # or they and this frame would keep each other alive
            if subscribed is not None:
                self._subscriber.forget(subscribed)

    def _listen(self, step: Subscribe) -> bytes:
        return self._subscriber.listen(step)

    def _wait(self, step: AwaitMessage) -> bytes | None:
        if step.token is not None:
            return self._subscriber.wait(step.token, step.seconds)
        time.sleep(step.seconds)
        return None

    # Make a call.

    def _call(self, call: RunScript) -> Any:
        if call.compensating:
            return self._compensate(call)
        connection, until = None, call.until
        if until is not None:
            until = self._at_least_one_request(until)
        try:
            connection = self._take(until)
            if until is not None or connection.unusual_timeout:
                self._set_timeout(connection, until)
            if call.script.deadline_at is not None:
                self.server_clock.stamp(call)
            request, proof = codec.pack(call)
            try:
                connection.send(request)
                reply = connection.read(proof)
            except errors.ReplyTimeout as timeout:
                if not errors.is_broken(timeout):
                    raise
                connection, (reply,) = hedge(self, connection, [call], request, [proof], [], until)
            if type(reply) is ReplyError:
                connection, (reply,) = self._check_errors(connection, [call], [reply], until)
            if type(reply) is ReplyError and errors.is_demoted(reply):
                self._leave_server(connection)
            else:
                self._idle.append(connection)
        except BaseException as error:
            if not self._close_broken(connection, error):
                raise
            raise errors.lost_reply_error(error, str(self.endpoint)) from error
        if self._waiting:
            self._notify_returned()
        if type(reply) is ReplyError:
            raise errors.reply_or_error(reply, call)
        return reply

    def _send(self, call: SendScript) -> PendingReply:
        connection: Connection | None = None
        try:
            connection = self._take(call.until)
            if connection.unusual_timeout:
                self._set_timeout(connection, None)
            if call.script.deadline_at is not None:
                self.server_clock.stamp(call)
            call.via = reply = connection.send_call(call, self._collect_idle)
            self._idle.append(connection)
        except BaseException as error:
            if connection is not None:
                connection.close()
            if not errors.is_broken(error):
                raise
            raise errors.lost_reply_error(error, str(self.endpoint)) from error
        if self._waiting:
            self._notify_returned()
        return reply

    def _collect_idle(self, connection: Connection) -> None:
        """Read the pending replies of a connection, unless a thread uses it, which reads them."""
        try:
            self._idle.remove(connection)
        except ValueError:
            return
        try:
            connection.collect()
            self._idle.append(connection)
        except BaseException as error:
            connection.close()
            if not errors.is_broken(error):
                raise
            return
        if self._waiting:
            self._notify_returned()

    def _compensate(self, call: RunScript) -> Any:
        call.compensating = False
        now = self.clock()
        overtime_s = 0.0 if call.until is None else now - call.until
        call.until = now + GRACE_S
        try:
            if overtime_s > GRACE_S / 2:  # an earlier request has used the rest
                raise LockUnavailable(
                    "could not clean up in time: no time is left. The clean-up goes on in the "
                    "background"
                )
            return self._call(call)
        except LockError as error:
            if isinstance(error, LockUnavailable):
                self._background.add(self._call, call)
            raise
        except BaseException:
            self._background.add(self._call, call)
            raise

    # Make several calls in one round trip.

    def call_all(self, calls: list[RunScript], until: float) -> list[Any]:
        """Make several calls from this thread. Returns a reply or a ``LockError`` for each.

        :raises LockUnavailable: the server did not answer by that time.
        """
        return BlockingDriver._pipeline(self, Pipeline(calls, until))

    def _pipeline(self, step: Pipeline) -> list[Any]:
        connection, until, calls = None, step.until, step.calls
        if until is not None:
            until = self._at_least_one_request(until)
        try:
            connection = self._take(until)
            self._set_timeout(connection, until)
            connection, replies = self._ask_all(connection, calls, until)
            connection, replies = self._check_errors(connection, calls, replies, until)
            if any(map(errors.is_demoted, replies)):
                self._leave_server(connection)
            else:
                self._idle.append(connection)
        except BaseException as error:
            if not self._close_broken(connection, error):
                raise
            raise errors.lost_reply_error(error, str(self.endpoint)) from error
        if self._waiting:
            self._notify_returned()
        return [
            errors.reply_or_error(reply, call) for reply, call in zip(replies, calls, strict=True)
        ]

    def _ask_all(
        self,
        connection: Connection,
        calls: list[RunScript],
        until: float | None,
        *,
        source: bool = False,
    ) -> tuple[Connection, list[Any]]:
        """Send calls in one piece. Returns the connection that answered, and its replies.

        :param source: the first call brings the script, which the server then knows.
        """
        packed = [codec.pack(call, source=source and not at) for at, call in enumerate(calls)]
        request, proofs = b"".join(words for words, _ in packed), [proof for _, proof in packed]
        replies: list[Any] = []
        connection.send(request)
        try:
            replies.extend(connection.read(proof) for proof in proofs)
        except errors.ReplyTimeout as timeout:
            if not errors.is_broken(timeout):
                raise
            return hedge(self, connection, calls, request, proofs, replies, until)
        return connection, replies

    # Check errors; send again what the server has forgotten.

    def _check_errors(
        self,
        connection: Connection,
        calls: list[RunScript],
        replies: list[Any],
        until: float | None,
    ) -> tuple[Connection, list[Any]]:
        """Check that the errors among the replies answer these calls. Send those calls again whose
        script the server has forgotten."""
        if any(type(reply) is ReplyError for reply in replies):
            self._check_order(connection, until)
        forgotten = [at for at, reply in enumerate(replies) if errors.is_noscript(reply)]
        if forgotten:
            self._set_timeout(connection, until)
            connection, new_replies = self._ask_all(
                connection, [calls[at] for at in forgotten], until, source=True
            )
            for at, reply in zip(forgotten, new_replies, strict=True):
                replies[at] = reply
            if any(type(reply) is ReplyError for reply in new_replies):
                self._check_order(connection, until)
        return connection, replies

    def _check_order(self, connection: Connection, until: float | None) -> None:
        """Check by another request that this connection's replies are in order: an error has no
        proof of its own."""
        self._set_timeout(connection, until)
        connection.ask(*codec.echo())

    def _close_broken(self, connection: Connection | None, error: BaseException) -> bool:
        """Close the connection after an error. Returns whether the error means that it broke.

        The caller raises the error: raised here, it and this frame would keep each other, and the
        connection, alive.
        """
        if connection is not None:
            connection.close()
        if not errors.is_broken(error):
            return False
        # The idle ones are probably broken, too, and the next try must not use one.
        self.close_idle()
        return True

    # Clean up in the background.

    def _cleanup_later(self, step: CleanupLater) -> None:
        sent = step.orphan.via
        if not isinstance(sent, SentReply) or not sent.answered:
            # Usually a later request on another connection has only overtaken the orphan, which
            # arrives soon. In the worst case it arrives just before it expires.
            self._background.add(self._call, step.call, self.clock() + OVERTAKEN_S)
            self._background.add(self._call, step.call, step.orphan.expires)

    def cleanup_in_background(self, call: RunScript) -> None:
        """Make a call that cleans up, from any thread; in the background if it takes long."""
        with suppress(LockError):
            self._compensate(call)

    def _at_least_one_request(self, until: float) -> float:
        return max(until, self.clock() + MIN_REQUEST_S)

    def _set_timeout(self, connection: Connection, until: float | None) -> None:
        """Set how long the connection may be silent from now on."""
        if until is not None:
            left_s = min(until - self.clock(), self.endpoint.reply_s)
            connection.set_timeout(min(left_s, sockets.silence_s(left_s)))
        else:
            connection.set_timeout(None)

    # Close.

    def close(self) -> None:
        """Close the idle connections. The driver opens new ones when it is used again."""
        fork.current()  # a child closes nothing of its parent's
        self._background.drop_future()
        self.close_idle()
        self._subscriber.close()

    def resubscribe(self) -> None:
        """Receive messages by a new connection from now on: the old one may lead to a server that
        is not the primary."""
        self._subscriber.close()

    def _leave_server(self, connection: Connection) -> None:
        connection.close()
        self.close_idle()
        self.resubscribe()

    _PERFORM: ClassVar[dict[type, Callable[..., Any]]] = {
        RunScript: _call,
        SendScript: _send,
        Pipeline: _pipeline,
        CleanupLater: _cleanup_later,
        Subscribe: _listen,
        AwaitMessage: _wait,
    }
