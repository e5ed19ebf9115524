"""The driver for threads: a connection for each call under way, kept for the next."""

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
    Connect,
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
from lualock._transport.threads.background import BackgroundCleanup
from lualock._transport.threads.connection import Connection, SentReply, first_to_answer
from lualock._transport.threads.permit import Permit
from lualock._transport.threads.subscriber import Subscriber
from lualock.errors import LockError, LockUnavailable

MAX_LINES = 12
"""Connections for calls; messages have one more."""

OVERTAKEN_S = 0.1
"""After how long a request that was sent, and not waited for, has most probably arrived."""

GRACE_S = 0.02
"""How long a caller waits for its own clean-up: from its interruption, or the end of its time."""


class BlockingDriver:
    """Runs protocols in the calling thread. Safe to share between threads."""

    blocks: Any
    """The ``with`` blocks on this server: :class:`lualock._core.with_statement.Blocks`."""

    def __init__(self, endpoint: Endpoint, prefix: bytes) -> None:
        self.endpoint = endpoint
        self.clock = clock.now
        self.server_clock = ServerClock(self.clock, endpoint.reply_s)
        self._server_checked = False
        self._silence_s = min(sockets.silence_s(endpoint.reply_s), endpoint.reply_s)
        self._ear = Subscriber(endpoint, prefix, self.clock)
        self._cleaner = BackgroundCleanup(self.clock)
        self.after_fork()
        fork.tell(self)

    def after_fork(self) -> None:
        """The sockets are the parent's: the child drops its copies and never uses them."""
        self._idle: deque[Connection] = deque()  # append and pop are atomic, so it needs no lock
        self._seats: weakref.WeakSet[Permit] = weakref.WeakSet()
        self._room = threading.Condition()
        self._short = 0  # threads that wait for a line

    def run(self, steps: Steps[T]) -> T:
        """Carry the protocol out to its end, and return or raise what it does."""
        listens: bytes | None = None
        error: BaseException | None = None
        met: list[BaseException] | None = None
        perform, send = self._PERFORM, steps.send
        try:
            while True:
                try:
                    step = send(None) if error is None else steps.throw(error)
                    error = None
                    while True:
                        if type(step) is Subscribe:
                            listens = step.token
                        step = send(perform[type(step)](self, step))
                except StopIteration as done:
                    result: T = done.value
                    if met is not None:
                        errors.dealt_with(met)
                    return result
                except BaseException as broke:
                    # What the protocol raised itself ends it; all else, also what breaks in
                    # between two of these lines, is the protocol's to deal with.
                    if getgeneratorstate(steps) == GEN_CLOSED or isinstance(broke, GeneratorExit):
                        raise
                    error = broke
                    met = [*(met or ()), broke]
        finally:
            error = met = None  # or they and this frame would keep each other alive
            if listens is not None:
                self._ear.forget(listens)

    def _listen(self, step: Subscribe) -> bytes:
        return self._ear.listen(step)

    def _wait(self, step: AwaitMessage) -> bytes | None:
        if step.token is not None:
            return self._ear.wait(step.token, step.seconds)
        time.sleep(step.seconds)
        return None

    def close(self) -> None:
        """Close the idle connections. The driver opens new ones when it is used again."""
        fork.current()  # a child closes nothing of its parent's
        self._cleaner.forget()
        self._drop_idle()
        self._ear.close()

    def listen_anew(self) -> None:
        """Hear messages by a new connection from now on: the old one may be to the wrong server."""
        self._ear.close()

    def _leave_server(self, line: Connection) -> None:
        line.close()
        self._drop_idle()
        self.listen_anew()

    def _drop_idle(self) -> None:
        while True:
            try:
                line = self._idle.pop()
            except IndexError:  # at last, or others take some, or close them, at the same time
                return
            try:
                line.collect()  # what has come already is not to be lost with it
            except BaseException as error:
                if not errors.is_broken(error):
                    raise
            finally:
                line.close()

    def _call(self, call: RunScript) -> Any:
        if call.compensating:
            return self._compensate(call)
        line, until = None, call.until
        if until is not None:
            until = self._last_word(until)
        try:
            line = self._line(until)
            if until is not None or line.hurried:
                self._limit(line, until)
            question, proof = codec.pack(call)
            try:
                reply = line.ask(question, proof)
            except errors.Unanswered as silence:
                if not errors.is_broken(silence):
                    raise
                line, (reply,) = self._ask_again(line, [call], question, [proof], [], until)
            if type(reply) is ReplyError:
                line, (reply,) = self._errors_proved(line, [call], [reply], until)
            if type(reply) is ReplyError and errors.is_demoted(reply):
                self._leave_server(line)
            else:
                self._idle.append(line)
        except BaseException as error:
            if not self._broke(line, error):
                raise
            raise errors.lost_reply(error, str(self.endpoint)) from error
        if self._short:
            self._tell_room()
        if type(reply) is ReplyError:
            raise errors.answer(reply, call)
        return reply

    def _batch(self, batch: Pipeline) -> list[Any]:
        line, until, calls = None, batch.until, batch.calls
        if until is not None:
            until = self._last_word(until)
        try:
            line = self._line(until)
            self._limit(line, until)
            line, replies = self._ask_all(line, calls, until)
            line, replies = self._errors_proved(line, calls, replies, until)
            if any(map(errors.is_demoted, replies)):
                self._leave_server(line)
            else:
                self._idle.append(line)
        except BaseException as error:
            if not self._broke(line, error):
                raise
            raise errors.lost_reply(error, str(self.endpoint)) from error
        if self._short:
            self._tell_room()
        return [errors.answer(reply, call) for reply, call in zip(replies, calls, strict=True)]

    def _ask_all(
        self, line: Connection, calls: list[RunScript], until: float | None, *, source: bool = False
    ) -> tuple[Connection, list[Any]]:
        """Send calls in one piece; the line that answered, and its replies. ``source``: the first
        one brings the script, and those behind it find it there."""
        packed = [codec.pack(call, source=source and not at) for at, call in enumerate(calls)]
        question, proofs = b"".join(words for words, _ in packed), [proof for _, proof in packed]
        replies: list[Any] = []
        line.send(question)
        try:
            replies.extend(line.read(proof) for proof in proofs)
        except errors.Unanswered as silence:
            if not errors.is_broken(silence):
                raise
            return self._ask_again(line, calls, question, proofs, replies, until)
        return line, replies

    def _ask_again(
        self,
        line: Connection,
        calls: list[RunScript],
        question: bytes,
        proofs: list[bytes],
        replies: list[Any],
        until: float | None,
    ) -> tuple[Connection, list[Any]]:
        """The line is silent, and may be dead without a word: send the question on a fresh one,
        too. Returns the line that answers first, with its replies, and closes the other one.

        :raises errors.Unanswered: none did in time.
        """
        now = self.clock()
        end = now + self.endpoint.reply_s - line.silent_s
        if until is not None:
            end = min(end, until)
        most_s = self.endpoint.reply_s if until is None else end - now + line.silent_s
        if end - now <= sockets.LEAST_S:
            raise errors.Unanswered(f"no reply within {most_s:.3g} s")
        for call in calls:
            call.doubled, call.via = True, None
        asked = [(line, replies)]
        fresh: Connection | None = None
        try:
            try:
                fresh = self._connect(min(end, now + sockets.silence_s(end - now)))
                fresh.send(question)
                asked.append((fresh, []))
            except (LockError, *errors.LINE_ERRORS) as error:
                if not isinstance(error, LockError) and not errors.is_broken(error):
                    raise
            answered = first_to_answer(asked, proofs, end, self.clock)
            if answered is None:
                raise errors.Unanswered(f"no reply within {most_s:.3g} s")
            first, replies = answered
            if first is not line:
                first.seat = line.seat
                line.close()
                self._drop_idle()  # they probably went the same way
            elif fresh is not None:
                fresh.close()
            return first, replies
        except BaseException:
            if fresh is not None:
                fresh.close()
            raise

    def _errors_proved(
        self, line: Connection, calls: list[RunScript], replies: list[Any], until: float | None
    ) -> tuple[Connection, list[Any]]:
        """Send those again whose script the server has forgotten; make sure that the other errors
        answer these calls."""
        if any(type(reply) is ReplyError for reply in replies):
            self._prove_order(line, until)
        again = [at for at, reply in enumerate(replies) if errors.is_noscript(reply)]
        if again:
            self._limit(line, until)
            line, found = self._ask_all(line, [calls[at] for at in again], until, source=True)
            for at, reply in zip(again, found, strict=True):
                replies[at] = reply
            if any(type(reply) is ReplyError for reply in found):
                self._prove_order(line, until)
        return line, replies

    def _prove_order(self, line: Connection, until: float | None) -> None:
        """Make sure that the errors that this line answered were for what was asked."""
        self._limit(line, until)
        line.ask(*codec.echo())

    def _broke(self, line: Connection | None, error: BaseException) -> bool:
        """Close the connection; whether that is what broke. (It does not raise the error itself:
        an error and a frame that has it keep each other, and the connection, alive.)"""
        if line is not None:
            line.close()
        if not errors.is_broken(error):
            return False
        # The others probably went the same way, and the next try must not meet a dead one.
        self._drop_idle()
        return True

    def _line(self, until: float | None) -> Connection:
        # Nothing else here: an interruption must find it with the caller, who closes it.
        if not fork.same[0]:
            fork.start_anew()
        try:
            return self._idle.pop()
        except IndexError:
            return self._open(until)

    def _last_word(self, until: float) -> float:
        return max(until, self.clock() + MIN_REQUEST_S)

    def _limit(self, line: Connection, until: float | None) -> None:
        """How long the line may be silent from now on."""
        if until is not None:
            left_s = min(until - self.clock(), self.endpoint.reply_s)
            line.limit(min(left_s, sockets.silence_s(left_s)))
        else:
            line.limit(None)

    def _reach(self, step: Connect) -> None:
        self._idle.append(self._open(step.until))
        self._tell_room()

    def later(self, step: CleanupLater) -> None:
        """Carry out this step, which waits for nothing."""
        posted = step.orphan.via
        if not isinstance(posted, SentReply) or not posted.answered:
            # Mostly it is only overtaken, on another connection, by what followed it.
            self._cleaner.add(self._call, step.call, self.clock() + OVERTAKEN_S)
            self._cleaner.add(self._call, step.call, step.orphan.expires)

    def cleanup_in_background(self, call: RunScript) -> None:
        """Make a call that cleans up, from wherever this may be; in the background if it takes
        long."""
        with suppress(LockError):
            self._compensate(call)

    def _compensate(self, call: RunScript) -> Any:
        call.compensating = False
        now = self.clock()
        over_s = 0.0 if call.until is None else now - call.until
        call.until = now + GRACE_S
        try:
            if over_s > GRACE_S / 2:  # the last request had the rest
                raise LockUnavailable("no time is left to wait for the clean-up")
            return self._call(call)
        except LockError as error:
            if isinstance(error, LockUnavailable):
                self._cleaner.add(self._call, call)
            raise
        except BaseException:
            self._cleaner.add(self._call, call)
            raise

    def _post(self, call: SendScript) -> PendingReply:
        line: Connection | None = None
        try:
            line = self._line(call.until)
            if line.hurried:
                self._limit(line, None)
            call.via = owed = line.post(call, self._collect)
            self._idle.append(line)
        except BaseException as error:
            if line is not None:
                line.close()
            if not errors.is_broken(error):
                raise
            raise errors.lost_reply(error, str(self.endpoint)) from error
        if self._short:
            self._tell_room()
        return owed

    def _collect(self, line: Connection) -> None:
        try:
            self._idle.remove(line)
        except ValueError:
            return  # another thread uses it now, and reads what it owes
        try:
            line.collect()
            self._idle.append(line)
        except BaseException as error:
            line.close()
            if not errors.is_broken(error):
                raise
            return
        if self._short:
            self._tell_room()

    def _tell_room(self) -> None:
        with self._room:
            self._room.notify()

    def _open(self, until: float | None) -> Connection:
        seat = Permit()
        with self._room:
            self._short += 1  # before looking, so that who puts one back from here on tells us
            try:
                line = self._take_idle()
                while line is None:
                    if len(self._seats) < MAX_LINES:
                        self._seats.add(seat)
                        break
                    left_s = math.inf if until is None else until - self.clock()
                    if left_s <= 0:
                        raise LockUnavailable("all connections were busy until the time was over")
                    self._room.wait(min(1.0, left_s))
                    line = self._take_idle()
            finally:
                self._short -= 1
        if line is not None:
            return line
        try:
            line = self._connect(until)
            line.seat = seat
            return line
        except BaseException:
            if line is not None:
                line.close()
            self._seats.discard(seat)
            self._tell_room()
            raise

    def _take_idle(self) -> Connection | None:
        try:
            return self._idle.pop()
        except IndexError:  # others took the last one
            return None

    def _connect(self, until: float | None) -> Connection:
        connection = self.endpoint.blocking_connection()
        now = self.clock()
        end = now + self.endpoint.reply_s if until is None else max(until, now + MIN_REQUEST_S)
        try:
            connect_in_time(connection, end, self.clock)
            line = Connection(connection, self._silence_s)
            if not self._server_checked:
                line.limit(end - self.clock())
                codec.check_hello(line.ask(codec.HELLO, b""))
                self._server_checked = True
            line.limit(end - self.clock())
            echo, proof = codec.echo()
            sent = self.clock()
            server_us = codec.server_us(line.ask(codec.TIME + echo, b""))
            received = self.clock()
            line.read(proof)
            self.server_clock.compare(sent, received, server_us)
        except BaseException as error:
            connection.disconnect()
            if not errors.is_broken(error):
                raise
            raise errors.connect_error(error, str(self.endpoint)) from error
        return line

    _PERFORM: ClassVar[dict[type, Callable[..., Any]]] = {
        RunScript: _call,
        SendScript: _post,
        Pipeline: _batch,
        CleanupLater: later,
        Connect: _reach,
        Subscribe: _listen,
        AwaitMessage: _wait,
    }
