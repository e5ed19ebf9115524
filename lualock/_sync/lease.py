"""The lease, for threads."""

from __future__ import annotations

import threading
from types import TracebackType

from lualock import _protocol as protocol
from lualock._core import fork, options
from lualock._core.lease import LeaseBase
from lualock._core.with_statement import begin, block_end, end
from lualock._transport.threads.driver import BlockingDriver
from lualock._transport.threads.renewer import ThreadRenewer

_making = fork.Mutex()  # of the event that several threads may wait for


class Lease(LeaseBase):
    """A held lock. Use it as a context manager, which raises :class:`LeaseLost` if it is over
    already, or call :meth:`release`."""

    __slots__ = ()
    _driver: BlockingDriver
    _renewer: ThreadRenewer | None

    def release(self) -> None:
        """Give the lock back. Releasing a second time does nothing.

        :raises LeaseLost: the lease had ended before: somebody else may have, or have had, the
            lock. Nothing was changed.
        :raises LockUnavailable: the server did not answer. The lease is over all the same: it is
            given back as soon as the server answers again, if that is within a minute; else it
            ends with its ttl. To release it again may raise ``LeaseLost``.
        """
        if self._renewer is not None:
            self._renewer.drop(self)
        steps = self._release()
        if steps is not None:
            try:
                self._driver.run(steps)
            finally:
                if self._ended is not None:  # also who began to wait for its loss meanwhile
                    self._ended.set()

    def extend(self, ttl: float) -> None:
        """Let the lease last ``ttl`` seconds from now on, whatever was left of it.

        Who asks for less than is left, and has no answer (:class:`LockUnavailable`), has a lease
        that promises no more than that from then on: the request may arrive at any time.

        :raises LeaseLost: the lease had ended, or was released, before. Nothing was changed.
        :raises InvalidArgument: ``ttl`` is not from 0.001 to 366 days.
        """
        self._driver.run(self._extend(options.ttl_ms(ttl)))

    def release_requested(self) -> bool:
        """Whether somebody has asked for this lease to be released: :meth:`Lock.request_release`.

        One round trip, or two in a job that has a ``read_old``. Who holds a lock for long may ask
        between its steps, and stop if so.

        :raises LockUnavailable: the server did not answer.
        """
        return self._driver.run(self._release_requested())

    def wait_lost(self, timeout: float | None = None) -> bool:
        """Wait until the lease is lost, for up to ``timeout`` seconds (``None``: without an end).

        Returns ``True`` when it is lost, ``False`` when it was released or passed on before, or
        the time is over.
        """
        give_up = self._give_up_at(timeout)
        while not self.lost:
            if (nap_s := self._next_check_s(give_up)) <= 0:
                return False
            with _making.lock:
                if self._ended is None:
                    self._ended = threading.Event()
                ended = self._ended
            ended.wait(min(nap_s, threading.TIMEOUT_MAX))
        return True

    def __enter__(self) -> Lease:
        block = begin(self)
        self.check()  # or the body would run without the lock
        self._enter(block)
        return self

    @block_end
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        block = self._pop_block()
        if block is None:
            self._leave(kind, error, trace)
        else:
            end(block, kind, error, trace)

    def _leave(self, _: object, error: BaseException | None, __: object) -> None:
        if not fork.same[0]:
            fork.start_anew()
        if self._passed or self._pid != fork.pid:
            return  # to whoever adopts it; the parent's
        if self._renewer is not None:
            self._renewer.drop(self)
        if not self._state.released:
            steps = protocol.release(self._request, self._state)
            try:
                self._driver.run(steps if error is None else protocol.leave(steps, error))
            finally:
                if self._ended is not None:
                    self._ended.set()
