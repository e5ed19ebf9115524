"""Layer 4, shared: which leases are renewed, and when. The shells bring the thread or the timer.

Leases are renewed at a third of their ttl, so two renewals may fail before one is lost. They are
held weakly: a lease that the program dropped is not renewed for ever.
"""

from __future__ import annotations

import logging
import math
import weakref

from lualock.errors import LockError
from lualock.lease import BaseLease
from lualock.protocol import CLAIM_MS, Steps

log = logging.getLogger("lualock.renewal")

# Leases that fall due this soon (as a share of their ttl) are renewed in the same round.
ROUND_SHARE = 0.05


class Renewals:
    """The leases that are renewed. In the usual case somebody looks in time already, and adding
    one is a single operation of a dictionary, as dropping it is."""

    def _start_empty(self) -> None:
        self._leases: dict[bytes, weakref.ref[BaseLease]] = {}
        self._wakes_at = math.inf  # when somebody looks; infinity: nobody does
        self._added = False  # since somebody looked last

    def add(self, lease: BaseLease) -> None:
        """Renew this lease from now on."""
        grant, ahead_s = lease._grant, lease._ttl_ms / 1500
        if grant.claim is not None:
            # Claimed, but the reply is not read yet: look at it before what is certain ends.
            ahead_s = min(ahead_s, CLAIM_MS / 3000)
        lease._renew_at = due = grant.deadline - ahead_s
        self._leases[lease._ask.token] = weakref.ref(lease)
        self._added = True
        if due < self._wakes_at:
            self._wake_at(due)

    def drop(self, lease: BaseLease) -> None:
        """Renew this lease no more."""
        self._leases.pop(lease._ask.token, None)

    def _wake_at(self, due: float) -> None:
        """See to it that somebody looks then."""
        raise NotImplementedError

    def _alive(self) -> list[BaseLease]:
        alive = []
        # An atomic copy: other threads add and drop leases at the same time.
        for token, ref in list(self._leases.items()):
            lease = ref()
            if lease is None:
                self._leases.pop(token, None)
            else:
                alive.append(lease)
        return alive

    def due(self, now: float) -> list[BaseLease]:
        """The leases to renew now."""
        return [
            lease
            for lease in self._alive()
            if lease._renew_at <= now + lease._ttl_ms / 1000 * ROUND_SHARE
        ]

    def next_due(self) -> float:
        """When the next lease falls due; infinity when there is none."""
        return min((lease._renew_at for lease in self._alive()), default=math.inf)

    def renew(self, lease: BaseLease) -> Steps[None]:
        """Renew one lease. Never raises a :class:`LockError`: it is logged, and tried again."""
        if not lease.held:
            self.drop(lease)
            if lease.lost:
                log.error("the lease of lock %r ended: it could not be renewed in time", lease.name)
            return
        if lease._claimed():
            self.add(lease)
            return
        try:
            yield from lease._extend(lease._ttl_ms)
        except LockError as error:
            if lease._grant.lost:
                self.drop(lease)
                log.error("renewal stopped: %s", error)
                return
            # Trying goes on until the local deadline, when the lease counts as lost.
            lease._renew_at = lease._clock() + min(1.0, lease._ttl_ms / 10_000)
            log.warning("lock %r was not renewed, trying again: %s", lease.name, error)
        else:
            self.add(lease)
