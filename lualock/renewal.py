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
from lualock.protocol import Steps

log = logging.getLogger("lualock.renewal")

# Leases that fall due this soon (as a share of their ttl) are renewed in the same round.
ROUND_SHARE = 0.05


class RenewalPlan:
    """The leases that are renewed. Adding and dropping one are single dictionary operations."""

    def __init__(self) -> None:
        self._leases: weakref.WeakValueDictionary[bytes, BaseLease] = weakref.WeakValueDictionary()

    def add(self, lease: BaseLease) -> float:
        """Renew this lease from now on; returns when it falls due, on the lease's clock."""
        lease._renew_at = lease._deadline - lease._ttl_ms / 1000 * (2 / 3)
        self._leases[lease._token] = lease
        return lease._renew_at

    def drop(self, lease: BaseLease) -> None:
        """Renew this lease no more."""
        self._leases.pop(lease._token, None)

    def _alive(self) -> list[BaseLease]:
        # One atomic copy of the references: other threads add leases at the same time.
        return [lease for ref in self._leases.valuerefs() if (lease := ref()) is not None]

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
        try:
            yield from lease._extend(lease._ttl_ms)
        except LockError as error:
            if lease._gone:
                self.drop(lease)
                log.error("renewal stopped: %s", error)
                return
            # Trying goes on until the local deadline, when the lease counts as lost.
            lease._renew_at = lease._clock() + min(1.0, lease._ttl_ms / 10_000)
            log.warning("lock %r was not renewed, trying again: %s", lease.name, error)
        else:
            lease._renew_at = lease._deadline - lease._ttl_ms / 1000 * (2 / 3)
