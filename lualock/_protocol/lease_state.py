"""Keep the end of a lease: :class:`LeaseState` is the one writer of it.

A lease ends on the server. The client keeps an end of its own, ``deadline`` on the driver's clock,
which is never later. Callers count each end from before its request was sent.

* A request in flight can arrive late. One that only extends never takes anything away on the
  server, so of two confirmed ends the later counts.
* A request for a sooner end may be executed as soon as it is sent. So the sooner end counts from
  then on. Until the reply is read, later extensions promise no more than that request would leave
  of them (``at_most_s``).
* The holder and the renewing thread may both have requests in flight, and read the replies at the
  same time. ``revision`` grows whenever a request to shorten or release the lease begins or ends.
  The reply to an extension sets a later end only at the revision at which it was sent.
* The end is set later, or sooner for a request, under a mutex. A release does not take it, because
  of its cost: it only raises the revision. So ``extended`` reads the revision again after it has
  set the end.
* A lease that a message granted is certain only until ``deadline``. ``claim`` is the pending reply
  that makes it last until ``claimed_deadline``.

=====================  =============================================================================
event                  what changes
=====================  =============================================================================
``extended``           at the same revision: no claim, the later end; else the sooner end
``shorten_to``         no claim, the sooner end, ``at_most_s``; ``revision`` grows
``shortened``          ``at_most_s`` as before, unless the revision has changed
``claim_confirmed``    no claim, the later of the end and ``claimed_deadline``
``claim_refused``      no claim, ``lost``
``claim_unanswered``   no claim: the lease lasts as long as is certain
``claim_superseded``   no ``claimed_deadline``
``next_revision``      ``revision`` grows; also upon ``begin_release``
``release_unknown``    no claim, an end before any other
``mark_released``      ``released``
``mark_passed_on``     ``passed_on``
``mark_lost``          ``lost``; upon ``mark_held`` not ``lost``
=====================  =============================================================================
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from lualock._core import fork
from lualock._protocol.effects import PendingReply

_mutex = fork.Mutex()
"""Held while an end is moved. One for all leases, because a mutex for each would cost every
acquisition its construction."""


class Shortening(NamedTuple):
    """What a request for a sooner end replaced, and what counts since it was sent.

    ``believed``: ``at_most_s`` and the revision. Another request for a sooner end may have left the
    same ``at_most_s``, so the revision is compared too.
    """

    at_most_s: float
    believed: tuple[float, int]


@dataclass(slots=True)
class LeaseState:
    """The state of a lease. Any module reads its fields; only this class sets them.

    ``lease_id``: the lease as the server's record has it, its fence and its token. The fence is
    included because a lost request may take the lock again under the same token after the lease has
    ended and another holder has had the lock. Of a job's reservation only the token is known.
    ``waited``: the lock may have waiters.
    """

    fence: int
    lease_id: bytes
    deadline: float
    waited: bool = False
    claim: PendingReply | None = None
    claimed_deadline: float = 0.0
    at_most_s: float = math.inf
    """What is left of the lease if a request to shorten it, whose reply was lost, is executed late.
    """
    released: bool = False
    lost: bool = False
    """The server reported that the lease has ended, or its loss was reported."""
    passed_on: bool = False
    """The lease belongs to the process that adopts it."""
    revision: int = 0

    # Extending.

    def may_outlast(self, until: float) -> bool:
        """Return whether the lease may last longer than that already.

        A claim without an answer may have been executed.
        """
        return until < max(self.deadline, self.claimed_deadline)

    def certain_until(self, sent_at: float, ttl_s: float) -> float:
        """Return the end that the reply to an extension by ``ttl_s`` confirms."""
        return sent_at + min(ttl_s, self.at_most_s)

    def extended(self, until: float, revision: int) -> None:
        """Note the reply to an extension that was sent at this revision."""
        with _mutex.lock:
            if revision == self.revision and not self.is_release_unknown:
                self.claim = None
                self.deadline = max(self.deadline, until)
                if revision != self.revision:
                    # A release has just begun. If it has failed already, the line above undid what
                    # it noted.
                    self.release_unknown()
            elif until < self.deadline:
                # Shortened or released at the same time; which came second is unknown.
                self.deadline = until

    # A sooner end.

    def next_revision(self) -> None:
        """Note that a request for a sooner end begins, or that its reply has come."""
        with _mutex.lock:
            self.revision += 1

    def shorten_to(self, until: float, ttl_s: float) -> Shortening:
        """Believe a sooner end: its request, by ``ttl_s``, may be executed at any time."""
        with _mutex.lock:
            self.revision += 1
            at_most_s = self.at_most_s
            self.claim, self.deadline = None, min(self.deadline, until)
            self.at_most_s = min(at_most_s, ttl_s)
            return Shortening(at_most_s, (self.at_most_s, self.revision))

    def shortened(self, shortening: Shortening) -> None:
        """Note the reply to that request, of which no copy is in flight."""
        with _mutex.lock:
            if shortening.believed == (self.at_most_s, self.revision):
                self.at_most_s = shortening.at_most_s

    # A claim.

    def claim_confirmed(self, claim: PendingReply) -> bool:
        """Note that the claim was executed; false: another thread has noted it.

        The end may have changed since that.
        """
        with _mutex.lock:
            if self.claim is not claim:
                return False
            self.claim = None
            self.deadline = max(self.deadline, self.claimed_deadline)
            return True

    def claim_refused(self, claim: PendingReply) -> bool:
        """Note that the claim came too late; false: another thread has noted it."""
        with _mutex.lock:
            if self.claim is not claim:
                return False
            self.claim = None
            self.lost = True
            return True

    def claim_unanswered(self) -> None:
        """Note that the reply to the claim was lost."""
        self.claim = None

    def claim_superseded(self) -> None:
        """Note an extension after the claim: the lease lasts no longer because of the claim."""
        self.claimed_deadline = 0.0

    # The end.

    def begin_release(self) -> None:
        """Note that a release begins: replies to earlier extensions change nothing any more."""
        self.revision += 1

    def release_unknown(self) -> None:
        """End a lease that was, or will be, released: another holder may have the lock."""
        self.claim, self.deadline = None, -math.inf

    @property
    def is_release_unknown(self) -> bool:
        """Whether the lease was, or will be, released, without a confirmation yet."""
        return self.deadline == -math.inf

    def mark_released(self) -> None:
        """Note that the lease was given up."""
        self.released = True

    def mark_passed_on(self) -> None:
        """Note that the lease belongs to the process that adopts it."""
        self.passed_on = True

    def mark_lost(self) -> None:
        """Note that the lease ended without a release."""
        self.lost = True

    def mark_held(self) -> None:
        """Note that the server still had a lease that was lost by the local clock."""
        self.lost = False
