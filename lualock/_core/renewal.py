"""Renew leases in time, and report their loss. No I/O.

The transports provide the thread or task that runs :meth:`LeaseRenewer.round` when a lease is due.

* A lease is renewed after a quarter to a third of its ttl. Leases differ in that, so that processes
  that started together do not renew together.
* Leases that are due at about the same time are renewed in one round trip.
* The renewer refers to leases weakly: a lease that the program dropped is not renewed for ever.
* A failure is logged and retried until the local deadline, which is no later than the server's.
  Then the lease is lost, and its loss is reported.
"""

from __future__ import annotations

import heapq
import logging
import math
import sys
import warnings
import weakref
from collections.abc import Callable
from functools import partial

from lualock import _protocol as protocol
from lualock._core import fork
from lualock._core.keys import display_name
from lualock._core.lease import LeaseBase
from lualock._protocol import (
    CLAIM_MS,
    MIN_REQUEST_S,
    AcquireRequest,
    LeaseState,
    RunScript,
    ServerClock,
    Steps,
)
from lualock.errors import LockError, LockUnavailable

log = logging.getLogger("lualock.renewal")

RENEW_AT = 2 / 3
"""What is left of the ttl when a lease is renewed, as a share of it."""

JITTER = 1 / 12
"""By how much earlier than that at most, as a share of the ttl."""

ROUND = 1 / 20
"""Leases that are due within this share of their ttl are renewed in the same round."""

RETRY_S, RETRY = 1.0, 1 / 10
"""The pause after a failure: the shorter of a time and a share of the ttl."""

WITHIN = 1 / 4
"""How long one attempt may take, as a share of what is left of the lease that ends first."""

ERROR_PAUSE_S = 0.02
"""How long the renewer pauses after an unexpected error, which may come again at once."""

MIN_TRY_S = 1.0
"""One attempt may take at least this long even if another lease is due meanwhile: a slow server
must do."""


_Entry = tuple["weakref.ref[LeaseBase]", AcquireRequest, LeaseState]
"""A lease, and what releases its lock if the program dropped the lease."""


def _dropped(renewer: weakref.ref[LeaseRenewer], lease: weakref.ref[LeaseBase]) -> None:
    """Warn that the program dropped a lease that it had to release, for it was renewed."""
    found = renewer()
    entries = [] if found is None or sys.is_finalizing() else found.entries()
    for ref, request, state in entries:
        over = state.released or state.lost or state.passed_on or state.is_release_unknown
        if ref is lease and not over and request.pid == fork.current():
            warnings.warn(
                f"the lease on {display_name(request.name)!r} was dropped while it was held: the "
                "lock stays held until the lease ends. Keep what acquire() or try_acquire() "
                "returns and release it, or use the lock in a with statement",
                ResourceWarning,
                stacklevel=2,  # the line that dropped it
            )


class LeaseRenewer:
    """The leases of one renewing thread or task.

    Adding or dropping a lease is one operation of a dictionary if a check is scheduled early
    enough, which is the usual case.
    """

    def _start_empty(self, server: ServerClock) -> None:
        self._clock, self._reply_s = server.clock, server.reply_s
        self._new: dict[bytes, _Entry] = {}  # added since the last check
        self._known: dict[bytes, _Entry] = {}
        # A heap of the times to check known leases. An entry counts only if it is the lease's
        # current one: the lease may have been dropped, or have another entry.
        self._due: list[tuple[float, bytes]] = []
        self._wakes_at = math.inf  # the time of the next check; infinity: none is scheduled
        self._added = False  # since the last check
        self._dropped = partial(_dropped, weakref.ref(self))

    def add(self, lease: LeaseBase, check_at: float | None = None) -> None:
        """Renew this lease from now on; call it also when its end has changed."""
        if check_at is None:
            check_at = self._first_check_at(lease)
        lease._check_at = check_at
        ref = weakref.ref(lease, self._dropped if lease._renewed else None)
        self._new[lease._request.token] = ref, lease._request, lease._state
        self._added = True
        if check_at < self._wakes_at:
            self._wake_at(check_at)

    def drop(self, lease: LeaseBase) -> bool:
        """Stop renewing this lease; return whether it was renewed."""
        watched = lease._check_at < math.inf
        lease._check_at = math.inf  # seen by a thread that moves it from one to the other now
        self._new.pop(lease._request.token, None)
        self._known.pop(lease._request.token, None)
        return watched

    def expect_drop(self, lease: LeaseBase) -> None:
        """Let the program drop this lease, which is not renewed any more, without a warning."""
        for entries in self._new, self._known:
            if (entry := entries.get(lease._request.token)) is not None:
                entries[lease._request.token] = weakref.ref(lease), *entry[1:]

    def leases(self) -> list[LeaseBase]:
        """Return the leases that are renewed now."""
        return [lease for ref, _, _ in self.entries() if (lease := ref()) is not None]

    def entries(self) -> list[_Entry]:
        """Return what is known of these leases, also of those that the program dropped."""
        return list({**self._known, **self._new}.values())

    def release_calls(self) -> list[RunScript]:
        """Return the requests that release what is still held, also by a lease that the program
        dropped; these leases are over."""
        calls: list[RunScript] = []
        for _, request, state in self.entries():
            over = state.released or state.lost or state.passed_on
            if not over and request.pid == fork.current() and state.deadline > self._clock():
                state.mark_released()
                calls += map(protocol.abandon_request, request.parts)
        return calls

    def next_check_at(self) -> float:
        """Return the time of the next check; infinity: there is no lease."""
        self._take_new()
        while self._due and self._entry(*self._due[0]) is None:
            heapq.heappop(self._due)
        return self._due[0][0] if self._due else math.inf

    def round(self) -> Steps[None]:
        """Check the leases that are due: report lost ones, then renew the others."""
        now = self._clock()
        due = self._take_due(now)
        try:
            yield from self._check_at(due, now)
        except BaseException:
            # An extension of redis-py, a cancellation, a bug: put the leases back into the heap.
            for lease in due:
                self._check_again(lease, self._retry_at(lease, lease._full_ttl_ms))
            raise

    def _check_at(self, due: list[LeaseBase], now: float) -> Steps[None]:
        renewals: list[tuple[LeaseBase, int, int]] = []
        ends = math.inf
        for lease in due:
            if lease._state.released:
                self.drop(lease)
            elif lease._remaining_s() <= 0:
                self.lose(lease, "it expired")
            elif lease._read_claim():
                self._check_again(lease, self._first_check_at(lease))
            elif (ttl_ms := lease._renewal_ms(now, self._renewed_until(lease))) is not None:
                renewals.append((lease, ttl_ms, lease._state.revision))
                ends = min(ends, lease._state.deadline)
            else:
                self._not_renewed(lease)
        if renewals:
            # If the server hangs, a lease that is due meanwhile must not wait for long.
            patience_s = max(MIN_TRY_S, self.next_check_at() - now)
            within_s = min(self._reply_s, patience_s, max(MIN_REQUEST_S, (ends - now) * WITHIN))
            yield from self._renew(renewals, within_s)

    def _renewed_until(self, lease: LeaseBase) -> float:
        """Return when the last renewal of this lease ends."""
        return lease._hold_until

    def _not_renewed(self, lease: LeaseBase) -> None:
        """Schedule the end of a lease that is not renewed any more."""
        if lease._renewed:
            lease._set_renewed(False)
            log.warning("lock %r is not renewed any more: max_hold is over", lease.name)
        self._check_again(lease, lease._state.deadline)

    def _renew(self, renewals: list[tuple[LeaseBase, int, int]], within_s: float) -> Steps[None]:
        requests = [
            (part, lease._state, ttl_ms)
            for lease, ttl_ms, _ in renewals
            for part in lease._request.parts
        ]
        outcomes = iter((yield from protocol.extend_all(requests, self._clock, within_s)))
        failures: list[LockError] = []
        for lease, ttl_ms, revision in renewals:
            outcome = protocol.worst([next(outcomes) for _ in lease._request.parts])
            if isinstance(outcome, float):
                lease._state.extended(outcome, revision)
                self._check_again(lease, self._first_check_at(lease))
            elif isinstance(outcome, LockUnavailable):
                # Retried until the local deadline.
                self._check_again(lease, self._retry_at(lease, ttl_ms))
                failures.append(outcome)
            elif lease._check_at < math.inf and lease._mark_lost(outcome):
                self.lose(lease, str(outcome))
            else:
                self.drop(lease)  # passed on; or released, or reported, at the same time
        if failures:
            log.warning(
                "%d leases could not be renewed, trying again: %s", len(failures), failures[0]
            )

    def lose(self, lease: LeaseBase, why: str) -> None:
        """Report the loss of a lease, found here or by its holder."""
        if not self.drop(lease):
            return  # released, or reported, at the same time
        if lease._state.passed_on:
            log.warning("the lease of lock %r was passed on and is now lost: %s", lease.name, why)
            return
        lease._state.mark_lost()
        log.error("the lease of lock %r is lost: %s", lease.name, why)
        try:
            self._tell(lease)
        except Exception:  # no thread can be started: renew the other leases
            log.exception("the loss of lock %r could not be reported, trying again", lease.name)
            self.add(lease, self._clock() + RETRY_S)

    def call(self, function: Callable[..., object], *args: object) -> bool:
        """Call a function in the event loop of the leases; return whether that loop runs."""
        return False

    def _wake_at(self, check_at: float) -> None:
        """Schedule a check at that time."""
        raise NotImplementedError

    def _tell(self, lease: LeaseBase) -> None:
        """Report the loss to waiters and callbacks. Never waits."""
        raise NotImplementedError

    def _first_check_at(self, lease: LeaseBase) -> float:
        state = lease._state
        if not lease._renewed:
            return state.deadline
        ttl_s = lease._full_ttl_ms / 1000
        ahead_s = ttl_s * (RENEW_AT + JITTER * (lease._request.token[0] % 16) / 15)
        if state.claim is not None:
            # Claimed, and the reply is not read yet: read it before the certain time ends.
            ahead_s = min(ahead_s, CLAIM_MS / 3000)
        return state.deadline - ahead_s

    def _retry_at(self, lease: LeaseBase, ttl_ms: int) -> float:
        retry_s = min(RETRY_S, ttl_ms / 1000 * RETRY)
        return min(self._clock() + retry_s, lease._state.deadline)

    def _check_again(self, lease: LeaseBase, check_at: float) -> None:
        token = lease._request.token
        if token in self._known:
            lease._check_at = check_at
            heapq.heappush(self._due, (check_at, token))
            if lease._state.deadline < check_at:
                # The holder has just shortened the lease, and the line above overwrote the time
                # of its check.
                LeaseRenewer.add(self, lease)

    def _entry(self, check_at: float, token: bytes) -> LeaseBase | None:
        """Return the lease of this entry; ``None`` if the entry does not count any more."""
        entry = self._known.get(token)
        if entry is None:
            return None
        lease = entry[0]()
        if lease is None:
            self._known.pop(token, None)
            return None
        return lease if lease._check_at == check_at else None

    def _take_new(self) -> None:
        while self._new:
            try:
                token, entry = self._new.popitem()
            except KeyError:
                return  # other threads drop leases at the same time
            self._known[token] = entry
            lease = entry[0]()
            check_at = math.inf if lease is None else lease._check_at
            if check_at < math.inf:
                heapq.heappush(self._due, (check_at, token))
            else:
                self._known.pop(token, None)

    def _take_due(self, now: float) -> list[LeaseBase]:
        self._take_new()
        found = []
        while self._due:
            lease = self._entry(*self._due[0])
            if lease is not None:
                soon_s = lease._full_ttl_ms / 1000 * ROUND if lease._renewed else 0.0
                if self._due[0][0] > now + soon_s:
                    break
                found.append(lease)
            heapq.heappop(self._due)
        return found
