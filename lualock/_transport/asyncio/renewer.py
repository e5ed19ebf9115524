"""Renew the leases of an event loop, also while it is blocked."""

from __future__ import annotations

import asyncio
import inspect
import math
import weakref
from collections.abc import Callable
from concurrent import futures
from functools import partial
from typing import Any, ClassVar

from lualock._core import fork
from lualock._core.lease import LeaseBase
from lualock._core.renewal import log
from lualock._protocol import MIN_REQUEST_S, Pipeline, Steps
from lualock._transport.asyncio.driver import AsyncDriver
from lualock._transport.threads.driver import BlockingDriver
from lualock._transport.threads.renewer import RenewalThread
from lualock.errors import InvalidArgument, LockUnavailable

LONGEST_NAP_S = 86_400.0
HUNG_TTLS = 5
"""An event loop that has not run for this many ttls of a lease counts as hung: the lease ends then.
"""


class LoopRenewer(RenewalThread):
    """Watches the leases of one event loop from a thread, so that a loop that is blocked for a
    while, by a coroutine that does not let others run, keeps its leases.

    The thread asks the loop for a sign of life in each round. While there is none, a lease lasts at
    most ``HUNG_TTLS`` ttls from the last one on. What a loss leads to is done in the loop. A loop
    has a thread of its own, so that nothing that one loop does costs the leases of another.

    As long as the loop runs the thread has the loop send its requests: see :class:`_RenewalDriver`.
    """

    def __init__(self, driver: AsyncDriver, loop: asyncio.AbstractEventLoop) -> None:
        self.pid = fork.pid
        self.tasks = driver
        self._loop = weakref.ref(loop)  # or the thread would keep a loop that was just closed
        super().__init__(_RenewalDriver(self))
        self.closed = True  # until there is a lease
        self._ran_at = -math.inf  # when the loop is known to have run
        self._asked = False  # it for a sign of life
        self._hangs = False

    def add(self, lease: LeaseBase, check_at: float | None = None) -> None:
        if asyncio.get_running_loop() is self._loop():
            self._ran_at = self._clock()
            if self.closed:
                self.open()
        super().add(lease, check_at)

    def open(self) -> None:
        super().open()
        self.tasks.at_loop_end(self.close)

    def resume(self) -> None:
        """Go on, where all was closed and there are leases still."""
        self.open()
        self._wake_at(self._clock())

    def close(self) -> None:
        super().close()
        self._thread_ended()

    def _thread_ended(self) -> None:
        self._driver.close()

    def _is_here(self) -> bool:
        """Whether it is this loop that runs now."""
        try:
            return asyncio.get_running_loop() is self._loop()
        except RuntimeError:
            return False

    def call(self, what: Callable[..., object], *args: object) -> bool:
        """Call it in the loop; whether that is not closed."""
        loop = self._loop()
        try:
            if loop is not None:
                loop.call_soon_threadsafe(what, *args)
            return loop is not None
        except RuntimeError:
            return False

    def round(self) -> Steps[None]:
        loop = self._loop()
        if loop is None or loop.is_closed():
            self.close()
            return
        if not self._asked:
            self._asked = True
            self.call(self._runs)
        yield from super().round()

    def _runs(self) -> None:
        """The sign of life."""
        self._ran_at = self._clock()
        self._asked = self._hangs = False

    def _renewed_until(self, lease: LeaseBase) -> float:
        hangs_at = self._ran_at + HUNG_TTLS * lease._ttl_ms / 1000
        return min(super()._renewed_until(lease), hangs_at)

    def _not_renewed(self, lease: LeaseBase) -> None:
        if not lease._renewed or super()._renewed_until(lease) <= self._renewed_until(lease):
            super()._not_renewed(lease)
            return
        if not self._hangs:
            self._hangs = True
            log.warning(
                "the event loop has not run for %.1f s: lock %r is not renewed until it runs again",
                self._clock() - self._ran_at,
                lease.name,
            )
        self._check_again(lease, self._retry_at(lease, lease._full_ttl_ms))

    def lose(self, lease: LeaseBase, why: str) -> None:
        if self._is_here():
            super().lose(lease, why)
        elif not self.call(self._lost, lease, why):
            self.drop(lease)  # there is nobody left to tell

    def _lost(self, lease: LeaseBase, why: str) -> None:
        """The thread has found this lease lost, some time ago."""
        if lease._check_at == math.inf:
            return  # released since
        if lease._remaining_s() > 0 or self.closed:
            super().add(lease)  # it was extended; or nobody is told until all is opened again
        else:
            super().lose(lease, why)

    def _tell(self, lease: LeaseBase) -> None:
        if lease._ended is not None:
            lease._ended.set()
        if lease._options.cancel and (body := getattr(lease, "_body", None)) is not None:
            body.cancel()  # there is none where the lease is not used as a context manager
        if lease._options.on_lost is not None:
            self.tasks.spawn(_call(lease._options.on_lost, lease))


class _RenewalDriver(BlockingDriver):
    """Sends renewals for the thread: by the loop and its connection, or if the loop is blocked by
    a connection of the thread's own.

    Where the client's connections (those of a Sentinel, or of a class of its own) or credentials
    exist for asyncio only, a thread cannot connect, and a lease is not renewed while the loop is
    blocked.
    """

    def __init__(self, watch: LoopRenewer) -> None:
        super().__init__(watch.tasks.endpoint, watch.tasks.prefix)
        self._watch = watch

    def _batch(self, batch: Pipeline) -> list[Any]:
        answer: futures.Future[list[Any]] = futures.Future()
        if not self._watch.call(self._send, batch, answer):
            raise LockUnavailable("the event loop is closed")
        try:
            try:
                return answer.result(self._left_s(batch) / 2)
            except futures.TimeoutError:
                if not answer.cancel():  # the loop runs, and waits for the server
                    return answer.result(self._left_s(batch) + MIN_REQUEST_S)
        except futures.TimeoutError:
            if not self._watch.closed:
                raise LockUnavailable("the event loop has not read the answer") from None
        if self._watch.closed:
            raise futures.CancelledError
        try:
            return super()._batch(batch)
        except (InvalidArgument, NotImplementedError) as error:
            raise LockUnavailable(f"the event loop is blocked, and in a thread {error}") from None

    def _left_s(self, batch: Pipeline) -> float:
        until = math.inf if batch.until is None else batch.until
        return min(self.server_clock.reply_s, max(MIN_REQUEST_S, until - self.clock()))

    def _send(self, batch: Pipeline, answer: futures.Future[list[Any]]) -> None:
        if self._watch.closed or not answer.set_running_or_notify_cancel():
            answer.cancel()
            return  # what began now would be left over when the loop has ended
        task = self._watch.tasks.spawn(self._watch.tasks.run(_only(batch)), lasts=True)
        task.add_done_callback(partial(_answer, answer))

    _PERFORM: ClassVar[dict[type, Callable[..., Any]]] = {
        **BlockingDriver._PERFORM,
        Pipeline: _batch,
    }


def _only(batch: Pipeline) -> Steps[list[Any]]:
    replies: list[Any] = yield batch
    return replies


def _answer(answer: futures.Future[list[Any]], task: asyncio.Task[list[Any]]) -> None:
    if task.cancelled():
        answer.set_exception(futures.CancelledError())
    elif (error := task.exception()) is not None:
        answer.set_exception(error)
    else:
        answer.set_result(task.result())


async def _call(on_lost: Callable[..., object], lease: LeaseBase) -> None:
    try:
        result = on_lost(lease)
        if inspect.isawaitable(result):
            await result
    except Exception:
        log.exception("on_lost of lock %r raised", lease.name)
