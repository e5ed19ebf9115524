"""The driver for threads: a connection for each call in flight, kept for the next call."""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from inspect import GEN_CLOSED, getgeneratorstate
from typing import Any, ClassVar

from hiredis import ReplyError

from lualock._core import clock, fork
from lualock._protocol import (
    MIN_REQUEST_S,
    AwaitMessage,
    CleanupLater,
    PendingReply,
    Pipeline,
    RunScript,
    SendScript,
    ServerClock,
    Steps,
    Subscribe,
    T,
)
from lualock._transport import codec, errors, sockets
from lualock._transport.connecting import connect_in_time
from lualock._transport.endpoint import Endpoint
from lualock._transport.threads.background import GRACE_S, BackgroundCleanup
from lualock._transport.threads.connection import Connection, first_to_answer
from lualock._transport.threads.pending import SentReply
from lualock._transport.threads.permit import Permit
from lualock._transport.threads.subscriber import Subscriber
from lualock.errors import LockError, LockUnavailable

MAX_CONNECTIONS = 12
"""Connections for calls; messages have one more."""

OVERTAKEN_S = 0.1
"""After how long a call that was sent without waiting has most probably arrived."""


class BlockingDriver:
    """Run protocols in the calling thread. Safe to share between threads."""

    blocks: Any
    """The ``with`` blocks on this server: :class:`lualock._core.with_statement.Blocks`."""

    def __init__(self, endpoint: Endpoint, prefix: bytes) -> None:
        self.endpoint = endpoint
        self.clock = clock.now
        self.server_clock = ServerClock(self.clock, endpoint.reply_s)
        self._server_checked = False
        self._silence_s = min(sockets.silence_s(endpoint.reply_s), endpoint.reply_s)
        self._subscriber = Subscriber(endpoint, prefix, self.clock)
        self._background = BackgroundCleanup(self.clock)
        self.after_fork()
        fork.tell(self)

    def after_fork(self) -> None:
        """Drop the parent's sockets: a child never uses them."""
        self._idle: deque[Connection] = deque()  # append and pop are atomic, so it needs no lock
        self._permits: weakref.WeakSet[Permit] = weakref.WeakSet()
        # Its own lock is entered, never the condition: that runs Python code, and a signal handler
        # that raises there leaves the lock taken for good.
        self._lock = threading.RLock()
        self._returned = threading.Condition(self._lock)
        self._waiting = 0  # threads that wait for a connection

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
                connection, (reply,) = self._hedge(connection, [call], request, [proof], [], until)
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
            return self._hedge(connection, calls, request, proofs, replies, until)
        return connection, replies

    # Send again where no reply comes, or an error.

    def _hedge(
        self,
        silent: Connection,
        calls: list[RunScript],
        request: bytes,
        proofs: list[bytes],
        replies: list[Any],
        until: float | None,
    ) -> tuple[Connection, list[Any]]:
        """Send the request on a fresh connection, too: the silent one may be dead (a NAT, a load
        balancer). Returns the connection that answers first, and its replies; closes the other.

        :param replies: those that the silent connection has already.
        :raises errors.ReplyTimeout: neither answered in time.
        """
        now = self.clock()
        end = now + self.endpoint.reply_s - silent.timeout_s
        if until is not None:
            end = min(end, until)
        total_s = self.endpoint.reply_s if until is None else end - now + silent.timeout_s
        if end - now <= sockets.MIN_TIMEOUT_S:
            raise errors.ReplyTimeout(f"no reply within {total_s:.3g} s")
        for call in calls:
            call.doubled, call.via = True, None
        attempts = [(silent, replies)]
        fresh: Connection | None = None
        try:
            try:
                fresh = self._connect(min(end, now + sockets.silence_s(end - now)))
                fresh.send(request)
                attempts.append((fresh, []))
            except (LockError, *errors.CONNECTION_ERRORS) as error:
                if not isinstance(error, LockError) and not errors.is_broken(error):
                    raise
            answered = first_to_answer(attempts, proofs, end, self.clock)
            if answered is None:
                raise errors.ReplyTimeout(f"no reply within {total_s:.3g} s")
            first, replies = answered
            if first is not silent:
                first.permit = silent.permit
                silent.close()
                self._close_idle()  # they are probably dead, too
            elif fresh is not None:
                fresh.close()
            return first, replies
        except BaseException:
            if fresh is not None:
                fresh.close()
            raise

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
        self._close_idle()
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

    # Take a connection, or open one.

    def _take(self, until: float | None) -> Connection:
        # Do nothing else here: an interruption must find the connection with the caller, which
        # closes it.
        if not fork.same[0]:
            fork.start_anew()
        try:
            return self._idle.pop()
        except IndexError:
            return self._wait_or_open(until)

    def _wait_or_open(self, until: float | None) -> Connection:
        permit = Permit()
        with self._lock:
            self._waiting += 1  # first, so that a thread that returns a connection notifies us
            try:
                connection = self._take_idle()
                while connection is None:
                    if len(self._permits) < MAX_CONNECTIONS:
                        self._permits.add(permit)
                        break
                    left_s = math.inf if until is None else until - self.clock()
                    if left_s <= 0:
                        raise LockUnavailable(
                            "could not send the request in time: all connections are busy"
                        )
                    self._returned.wait(min(1.0, left_s))
                    connection = self._take_idle()
            finally:
                self._waiting -= 1
        if connection is not None:
            return connection
        try:
            connection = self._connect(until)
            connection.permit = permit
            return connection
        except BaseException:
            if connection is not None:
                connection.close()
            self._permits.discard(permit)
            self._notify_returned()
            raise

    def _take_idle(self) -> Connection | None:
        try:
            return self._idle.pop()
        except IndexError:  # other threads took the last one
            return None

    def _notify_returned(self) -> None:
        with self._lock:
            self._returned.notify()

    def _at_least_one_request(self, until: float) -> float:
        return max(until, self.clock() + MIN_REQUEST_S)

    def _set_timeout(self, connection: Connection, until: float | None) -> None:
        """Set how long the connection may be silent from now on."""
        if until is not None:
            left_s = min(until - self.clock(), self.endpoint.reply_s)
            connection.set_timeout(min(left_s, sockets.silence_s(left_s)))
        else:
            connection.set_timeout(None)

    def _connect(self, until: float | None) -> Connection:
        connection = self.endpoint.blocking_connection()
        now = self.clock()
        end = now + self.endpoint.reply_s if until is None else max(until, now + MIN_REQUEST_S)
        try:
            connect_in_time(connection, end, self.clock)
            opened = Connection(connection, self._silence_s)
            if not self._server_checked:
                opened.set_timeout(end - self.clock())
                codec.check_hello(opened.ask(codec.HELLO, b""))
                self._server_checked = True
            opened.set_timeout(end - self.clock())
            echo, proof = codec.echo()  # proves that the time is not an older reply
            sent_at = self.clock()
            server_us = codec.server_us(opened.ask(codec.TIME + echo, b""))
            received_at = self.clock()
            opened.read(proof)
            self.server_clock.compare(sent_at, received_at, server_us)
        except BaseException as error:
            connection.disconnect()
            if not errors.is_broken(error):
                raise
            raise errors.connect_error(error, str(self.endpoint)) from error
        return opened

    # Close.

    def close(self) -> None:
        """Close the idle connections. The driver opens new ones when it is used again."""
        fork.current()  # a child closes nothing of its parent's
        self._background.drop_future()
        self._close_idle()
        self._subscriber.close()

    def resubscribe(self) -> None:
        """Receive messages by a new connection from now on: the old one may lead to a server that
        is not the primary."""
        self._subscriber.close()

    def _leave_server(self, connection: Connection) -> None:
        connection.close()
        self._close_idle()
        self.resubscribe()

    def _close_idle(self) -> None:
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:  # none is left, or other threads take or close them now
                return
            try:
                connection.collect()  # replies that have come are not lost with it
            except BaseException as error:
                if not errors.is_broken(error):
                    raise
            finally:
                connection.close()

    _PERFORM: ClassVar[dict[type, Callable[..., Any]]] = {
        RunScript: _call,
        SendScript: _send,
        Pipeline: _pipeline,
        CleanupLater: _cleanup_later,
        Subscribe: _listen,
        AwaitMessage: _wait,
    }
