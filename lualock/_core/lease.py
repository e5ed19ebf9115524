"""Define the common part of the lease of both APIs. No I/O.

``lualock.aio`` and ``lualock._sync`` add the methods that talk to the server.
"""

from __future__ import annotations

import math
from typing import Any

from lualock import _protocol as protocol
from lualock._core import fork, handles, options
from lualock._core.keys import display_name
from lualock._core.lock import new_token
from lualock._core.lock_options import LockOptions
from lualock._core.options import Seconds
from lualock._core.with_statement import Block
from lualock._protocol import AcquireRequest, AwaitMessage, Clock, LeaseState, Steps, stop_request
from lualock._protocol.replies import duration
from lualock.errors import LeaseLost, LockError


class LeaseBase:
    """A held lock: its token, its fencing token and its deadline.

    :meth:`Lock.acquire` returns one; do not make one yourself. A lease belongs to the process that
    acquired it; after a fork the child owns nothing.
    """

    __slots__ = (
        *("__weakref__", "_block", "_body", "_check_at", "_clock", "_driver", "_hold_until"),
        "_keep_until",
        *("_options", "_pid", "_renewed", "_renewer", "_request", "_state", "_ttl_ms", "_wakeup"),
        "fence",
    )

    fence: int
    """The fencing token: a number that grows with every acquisition of the lock. Send it with each
    write to what the lock protects, and let the receiver refuse a smaller one than it has seen."""

    _check_at: float  # set by the renewer only
    _keep_until: float  # only with ``hold_at_least``
    _block: Block  # only while the lease is entered by name, without a ``with`` statement
    _body: Any  # only in asyncio, while its loss cancels the body of a ``with`` block

    def __init__(
        self,
        request: AcquireRequest,
        state: LeaseState,
        driver: Any,
        renewer: Any,
        lock_options: LockOptions,
    ) -> None:
        self._request = request
        self._state = state
        self._ttl_ms = request.ttl_ms
        self._clock: Clock = driver.clock
        self._driver = driver
        self._renewer = renewer
        self._options = lock_options
        self._pid = request.pid
        self._wakeup: Any = None  # an event that wakes wait_lost()
        self.fence = state.fence
        if renewer is not None:
            self._renewed = lock_options.renewed
            self._hold_until = math.inf
            if lock_options.max_hold_s is not None:
                self._hold_until = self._acquired_at + lock_options.max_hold_s
            renewer.add(self)
        if lock_options.hold_at_least_s is not None:
            self._keep_until = self._acquired_at + lock_options.hold_at_least_s

    @property
    def _acquired_at(self) -> float:
        """When a lease that has just been acquired began."""
        until = max(self._state.deadline, self._state.claimed_deadline)
        return until - self._request.ttl_ms / 1000

    @property
    def name(self) -> str:
        """The lock's name, printable and not too long."""
        return display_name(self._request.name)

    @property
    def token(self) -> str:
        """The secret that proves ownership: any process that has it can release the lock."""
        return self._request.token.decode()

    def remaining(self) -> float:
        """Return the seconds until the lease ends unless renewed; 0.0 if it has ended.

        Counted from before the request was sent, so it is never more than on the server.
        """
        return 0.0 if self._state.passed_on else self._remaining_s()

    def _remaining_s(self) -> float:
        if self._state.released or self._state.lost or self._pid != fork.current():
            return 0.0
        if self._state.claim is not None:
            self._read_claim()
        return max(0.0, self._state.deadline - self._clock())

    @property
    def held(self) -> bool:
        """Whether the lease still holds the lock, as far as is known without a request."""
        return self.remaining() > 0

    @property
    def lost(self) -> bool:
        """Whether the lease ended without a release. True before the server expires it."""
        return not self._state.released and not self._state.passed_on and not self.held

    def _read_claim(self) -> bool:
        """Read the reply to the claim, if it has come; return whether it confirms the whole ttl.

        If the reply was lost, the lease lasts as long as is certain.
        """
        claim, state = self._state.claim, self._state
        if claim is None:
            return False
        reply = claim.poll()
        if reply is None:
            return False
        if isinstance(reply, LockError):
            state.claim_unanswered()
        elif reply == b"claimed":
            return state.claim_confirmed(claim)
        elif state.claim_refused(claim):
            # The message was late, or came by the wrong server: a former primary passes on the
            # messages of the new one.
            self._resubscribe()
        return False

    def _resubscribe(self) -> None:
        resubscribe = self._driver.resubscribe
        if self._renewer is None or not self._renewer.call(resubscribe):
            resubscribe()

    def check(self) -> None:
        """Raise :class:`LeaseLost` unless :attr:`held`. Cheap: call it before each step of work."""
        if not self.held:
            raise self._not_held_error("use")

    def _give_up_at(self, timeout: Seconds | None) -> float:
        wait_s = options.wait_s(timeout)
        return math.inf if wait_s is None else self._clock() + wait_s

    def _next_check_s(self, give_up: float) -> float:
        """Return how long to wait before the next check for the loss; 0: stop waiting."""
        if self._wakeup is not None:
            self._wakeup.clear()
        # Look after clearing the event: an end from here on sets it again.
        if self._state.released or self._state.passed_on:
            return 0.0
        return min(give_up - self._clock(), self._remaining_s() + 0.001)

    def _cancelled_error(self) -> LeaseLost:
        return LeaseLost(
            f"could not finish the body under lock {self.name!r}: the lease was lost, so its body "
            "was cancelled. Acquire the lock again",
            name=self.name,
        )

    def _not_held_error(self, verb: str) -> LeaseLost:
        if self._pid != fork.current():
            why = (
                f"it belongs to process {self._pid}, and a forked child owns nothing. "
                "Acquire the lock in this process"
            )
        elif self._state.released:
            why = "it was released before. Acquire the lock again"
        elif self._state.passed_on:
            why = "it was passed on: handle() was called. Adopt it, or acquire the lock again"
        elif self._state.is_release_unknown:
            why = (
                "its release failed, and is repeated as soon as the server can be reached. "
                "Acquire the lock again"
            )
        else:
            ago_s = self._clock() - self._state.deadline
            end = "the server has ended it" if ago_s < 0 else f"it expired {duration(ago_s)} ago"
            why = f"{end}. Stop the work, or acquire the lock again"
        given_up = self._state.released or self._state.passed_on
        return LeaseLost(
            f"could not {verb} the lease on {self.name!r}: {why}",
            name=self.name,
            given_up=given_up,
        )

    def _enter(self, block: Block, task: Any = None) -> None:
        if block.guard is None:
            self._block = block
        self._driver.blocks.push(self._request.key, block, self, task)

    def _pop_block(self) -> Block | None:
        """Return the block that no statement owns, and forget it."""
        block = getattr(self, "_block", None)
        if block is not None:
            del self._block
        return block

    def handle(self) -> str:
        """Pass the lease on: return a text for ``locks.adopt(handle)`` in another process.

        After this call this process does not hold the lease any more: it is kept alive for the
        process that adopts it, and leaving its ``with`` block does not release it. A renewed lease
        goes on being renewed until then, as long as this object lives. :meth:`release` releases
        the lease unless it has been adopted. ``on_lost`` is not called if the lease expires. The
        text is secret: any process that has it can take the lock.

        :raises LeaseLost: the lease has ended.
        """
        if self._state.released:
            raise self._not_held_error("pass on")
        if not self._state.passed_on:
            self.check()
            self._state.mark_passed_on()
            self._wake_wait_lost()
        request = self._request
        renewed = self._options.renewed
        return handles.write(request.key, request.token, self._ttl_ms, renew=renewed)

    def _release(self) -> Steps[None] | None:
        """Return the steps that release the lease; ``None`` if it was released before."""
        state = self._state
        if state.released:
            return None
        if not fork.same[0]:
            fork.start_anew()
        if self._pid != fork.pid:
            raise self._not_held_error("release")
        state.begin_release()
        if self._options.hold_at_least_s is not None and self._keep_until > self._clock():
            return self._release_later()
        return self._release_now()

    def _release_now(self) -> Steps[None]:
        return protocol.release(self._request, self._state)

    def _release_later(self) -> Steps[None]:
        ttl_ms = math.ceil((self._keep_until - self._clock()) * 1000)
        server = self._driver.server_clock
        return protocol.release_later(self._request, self._state, new_token(), ttl_ms, server)

    def _wake_wait_lost(self) -> None:
        if self._wakeup is not None:
            self._wakeup.set()

    def _extend(self, ttl_ms: int) -> Steps[None]:
        state = self._state
        given_up = state.released or state.passed_on or state.is_release_unknown
        if given_up or self._pid != fork.current():
            raise self._not_held_error("extend")
        shortens_claim = self._clock() + ttl_ms / 1000 < state.claimed_deadline
        while shortens_claim and state.claim is not None and self._remaining_s() > 0:
            # The claim went out on another connection: it may arrive later and undo the new ttl.
            yield AwaitMessage(0.001)
        shortens = state.may_outlast(self._clock() + ttl_ms / 1000)
        if shortens:
            state.next_revision()
        revision = state.revision
        steps = protocol.extend(self._request, state, ttl_ms, self._clock)
        if shortens:  # the sooner end counts as soon as the request is sent
            steps = protocol.watched(steps, self._end_changed)
        try:
            deadline = yield from steps
        except LeaseLost as error:
            if self._mark_lost(error) and self._renewer is not None:
                self._renewer.lose(self, str(error))
            raise
        if shortens:
            state.next_revision()
        state.extended(deadline, revision)
        state.mark_held()
        self._ttl_ms = ttl_ms
        self._end_changed()

    def _end_changed(self) -> None:
        if self._remaining_s() <= 0:
            return  # lost, which was reported, or released at the same time
        self._wake_wait_lost()  # it computes anew how long to wait
        if self._renewer is not None:
            self._renewer.add(self)

    def _release_requested(self) -> Steps[bool]:
        for turn in self._request.turns:
            # A request that came while the holder waited for its other locks is for it as well.
            fence = self.fence if turn.state is None else turn.state.fence
            if (yield from stop_request.release_requested(turn.key, fence, turn.token)):
                return True
        return False

    @property
    def _full_ttl_ms(self) -> int:
        """How long the lease lasts after a renewal."""
        return int(min(self._ttl_ms, self._state.at_most_s * 1000))

    def _renewal_ms(self, now: float, until: float) -> int | None:
        """Return the ttl of a renewal now, which ends at ``until`` at the latest.

        ``None``: do not renew.
        """
        if not self._renewed:
            return None
        left_s = until - now
        if left_s * 1000 >= self._full_ttl_ms:
            return self._full_ttl_ms
        # The last renewal, unless the lease lasts until then already.
        return int(left_s * 1000) if until > self._state.deadline + 0.001 else None

    def _set_renewed(self, renewed: bool) -> None:
        """Renew the lease from now on, or not any more."""
        self._renewed = renewed

    def _mark_lost(self, error: LockError) -> bool:
        """Note the server's report that the lease has ended; return whether it was lost."""
        if getattr(error, "given_up", False):
            self._state.mark_released()
        else:
            self._state.mark_lost()
        self._wake_wait_lost()
        return self._state.lost

    def _on_block_dropped(self) -> None:
        """Release the lease of a block that was dropped before its end, in the background."""
        state = self._state
        if state.released or state.lost or state.passed_on or self._pid != fork.current():
            return
        state.mark_released()
        if self._renewer is not None:
            self._renewer.drop(self)
        self._wake_wait_lost()
        self.abandon_in_background()

    # What other rooms of the library build on a lease. In asyncio the result of `keep_for` is
    # awaited.

    def keep_for(self, request: AcquireRequest) -> Any:
        """End the lease, and keep its lock for a later process that has the token of ``request``.

        On an error the lock is released, because no process renews it any more.

        :raises LeaseLost: the lease had ended before.
        :raises LockUnavailable: the server did not answer.
        """
        if self._renewer is not None:
            self._renewer.drop(self)
        self._state.mark_released()
        server = self._driver.server_clock
        return self._driver.run(protocol.keep_for(self._request, request.parts, server))

    def release_early(self) -> None:
        """Let a release free the lock at once, whatever ``hold_at_least`` says."""
        self._keep_until = -math.inf

    def stop_renewal(self) -> None:
        """Let the lease end on its own, unless it is extended. Its loss is reported."""
        self._set_renewed(False)
        if self._renewer is not None:
            self._renewer.expect_drop(self)

    def stop_watching(self) -> None:
        """Let the lease end on its own, without a report."""
        if self._renewer is not None:
            self._renewer.drop(self)

    def abandon_in_background(self) -> None:
        """Release the lock in the background, until the server answers."""
        for part in self._request.parts:
            self._driver.cleanup_in_background(protocol.abandon_request(part))

    def __reduce__(self) -> str:
        raise TypeError(
            "a lease cannot be pickled or copied: it belongs to the process that acquired it. "
            "Pass it on with handle()"
        )

    def __repr__(self) -> str:
        how = "released" if self._state.released else "lost"
        if self._state.passed_on and not self._state.released:
            how = "passed on"
        if self.held:
            how = "held"
        return f"<{type(self).__name__} {self.name!r} {how} fence={self.fence}>"
