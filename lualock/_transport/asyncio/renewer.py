"""Renew the leases of an event loop, also while the loop is blocked."""

from __future__ import annotations

import asyncio
import inspect
import math
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import CancelledError
from typing import Any, ClassVar

from lualock._core import fork
from lualock._core.event import Event
from lualock._core.lease import LeaseBase
from lualock._core.renewal import log
from lualock._protocol import MIN_REQUEST_S, Pipeline, Steps
from lualock._transport.asyncio.driver import AsyncDriver
from lualock._transport.threads.driver import BlockingDriver
from lualock._transport.threads.renewer import RenewalThread
from lualock.errors import InvalidArgument, LockUnavailable

HUNG_TTLS = 5
"""An event loop that has not run for this many ttls of a lease counts as hung: the lease ends then.
"""


class LoopRenewer(RenewalThread):
    """Watch the leases of one event loop from a thread, so that they are renewed also while a
    coroutine blocks the loop.

    The thread asks the loop for a sign of life in each round. Without one, a lease lasts at most
    ``HUNG_TTLS`` ttls from the last sign on. The consequences of a loss are carried out in the
    loop. Each loop has its own thread, so that a blocked loop never costs the leases of another.

    While the loop runs, the loop sends the thread's requests: see :class:`_RenewalDriver`.
    """

    def __init__(self, driver: AsyncDriver, loop: asyncio.AbstractEventLoop) -> None:
        self.pid = fork.pid
        self.loop_driver = driver
        self._loop = weakref.ref(loop)  # or the thread would keep a loop that was just closed
        super().__init__(_RenewalDriver(self))
        self.closed = True  # until there is a lease
        self._ran_at = -math.inf  # when the loop is known to have run
        self._sign_requested = False  # a sign of life, from the loop
        self._hangs = False

    def add(self, lease: LeaseBase, check_at: float | None = None) -> None:
        if asyncio.get_running_loop() is self._loop():
            self._ran_at = self._clock()
            if self.closed:
                self.open()
        super().add(lease, check_at)

    def open(self) -> None:
        super().open()
        self.loop_driver.on_loop_end(self.close)

    def resume(self) -> None:
        """Go on after everything was closed, for leases that are still held."""
        self.open()
        self._wake_at(self._clock())

    def close(self) -> None:
        super().close()
        self._thread_ended()

    def _thread_ended(self) -> None:
        self._driver.close()

    def _in_loop(self) -> bool:
        """Return whether this code runs in the loop."""
        try:
            return asyncio.get_running_loop() is self._loop()
        except RuntimeError:
            return False

    def call(self, function: Callable[..., object], *args: object) -> bool:
        """Call a function in the loop; return false if it is closed."""
        loop = self._loop()
        try:
            if loop is not None:
                loop.call_soon_threadsafe(function, *args)
            return loop is not None
        except RuntimeError:
            return False

    def round(self) -> Steps[None]:
        loop = self._loop()
        if loop is None or loop.is_closed():
            self.close()
            return
        if not self._sign_requested:
            self._sign_requested = True
            self.call(self._give_sign)
        yield from super().round()

    def _give_sign(self) -> None:
        self._ran_at = self._clock()
        self._sign_requested = self._hangs = False

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
        if self._in_loop():
            super().lose(lease, why)
        elif not self.call(self._lose_in_loop, lease, why):
            self.drop(lease)  # the loop is closed: no code is left to notify

    def _lose_in_loop(self, lease: LeaseBase, why: str) -> None:
        """End a lease that the thread found lost, some time ago."""
        if lease._check_at == math.inf:
            return  # released since
        if lease._remaining_s() > 0 or self.closed:
            super().add(lease)  # it was extended; or the loss waits until the loop opens again
        else:
            super().lose(lease, why)

    def _tell(self, lease: LeaseBase) -> None:
        lease._wake_wait_lost()
        if lease._options.cancel_on_lost and (body := getattr(lease, "_body", None)) is not None:
            body.cancel()  # there is none where the lease is not used as a context manager
        if lease._options.on_lost is not None:
            self.loop_driver.background.spawn(_call_on_lost(lease._options.on_lost, lease))


class LoopRenewers:
    """The renewers of a ``Locks`` object, one for each event loop."""

    def __init__(self, driver: AsyncDriver) -> None:
        self._driver = driver
        self._renewers: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, LoopRenewer] = (
            weakref.WeakKeyDictionary()
        )

    def current(self) -> LoopRenewer:
        """Return the renewer of the running loop."""
        loop = asyncio.get_running_loop()
        found = self._renewers.get(loop)
        if found is None or found.pid != fork.current():
            for ref in self._renewers.keyrefs():  # a list, because other threads add their loops
                other = ref()
                ended = self._renewers.get(other) if other and other.is_closed() else None
                if ended is not None:
                    ended.close()  # else its thread waits until the next lease is due
            found = self._renewers[loop] = LoopRenewer(self._driver, loop)
        return found

    async def resume(self) -> None:
        """Go on renewing leases that are still held after the connections were closed."""
        loop = asyncio.get_running_loop()
        renewer = self._renewers.get(loop)
        if renewer is None:
            return
        if renewer.pid == fork.current() and renewer.leases() and await self._driver.begin():
            renewer.resume()
        else:
            del self._renewers[loop]


class _Answer:
    """What the loop answers to the thread. A future of :mod:`concurrent.futures` enters a lock by
    Python code, as an event of :mod:`threading` does: see :class:`Event`."""

    def __init__(self) -> None:
        self.ended = Event()
        self._free = threading.Lock()
        self._task: asyncio.Task[list[Any]] | None = None

    def take(self) -> bool:
        """Take up the request. Returns false if it is taken: by the loop, which makes it, or by the
        thread, which makes it itself."""
        return self._free.acquire(blocking=False)

    def end(self, task: asyncio.Task[list[Any]] | None = None) -> None:
        """Wake the thread; ``None``: the loop does not make the request."""
        self._task = task
        self.ended.set()

    def result(self) -> list[Any]:
        """Return the replies, or raise the loop's error."""
        if self._task is None or self._task.cancelled():
            raise CancelledError
        return self._task.result()


class _RenewalDriver(BlockingDriver):
    """Send the thread's renewals: over the loop's connection, or over the thread's own connection
    if the loop is blocked.

    A thread cannot connect where the client's connections (those of a Sentinel, or of a class of
    its own) or credentials exist for asyncio only. Then a lease is not renewed while the loop is
    blocked.
    """

    def __init__(self, renewer: LoopRenewer) -> None:
        super().__init__(renewer.loop_driver.endpoint, renewer.loop_driver.prefix)
        self._renewer = renewer

    def _pipeline(self, step: Pipeline) -> list[Any]:
        answer = _Answer()
        if not self._renewer.call(self._run_in_loop, step, answer):
            raise LockUnavailable("could not renew leases: the event loop is closed")
        if answer.ended.wait(self._left_s(step) / 2) or not answer.take():
            # The loop runs, and waits for the server.
            if answer.ended.wait(self._left_s(step) + MIN_REQUEST_S):
                return answer.result()
            if not self._renewer.closed:
                raise LockUnavailable(
                    "could not renew leases: the event loop has not read the reply"
                )
        if self._renewer.closed:
            raise CancelledError
        try:
            return super()._pipeline(step)
        except (InvalidArgument, NotImplementedError) as error:
            raise LockUnavailable(
                f"could not renew leases: the event loop is blocked, and in a thread {error}"
            ) from None

    def _left_s(self, step: Pipeline) -> float:
        until = math.inf if step.until is None else step.until
        return min(self.server_clock.reply_s, max(MIN_REQUEST_S, until - self.clock()))

    def _run_in_loop(self, step: Pipeline, answer: _Answer) -> None:
        if not answer.take():
            return
        if self._renewer.closed:
            answer.end()  # a task that begins now would still be there when the loop has ended
            return
        driver = self._renewer.loop_driver
        task = driver.background.spawn(driver.run(_only(step)), daemon=True)
        task.add_done_callback(answer.end)

    _PERFORM: ClassVar[dict[type, Callable[..., Any]]] = {
        **BlockingDriver._PERFORM,
        Pipeline: _pipeline,
    }


def _only(step: Pipeline) -> Steps[list[Any]]:
    replies: list[Any] = yield step
    return replies


async def _call_on_lost(on_lost: Callable[..., object], lease: LeaseBase) -> None:
    try:
        result = on_lost(lease)
        if inspect.isawaitable(result):
            await result
    except Exception:
        log.exception("on_lost of lock %r raised", lease.name)
