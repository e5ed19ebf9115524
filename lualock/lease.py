"""Layer 4, shared: the lease, as far as it needs no I/O.

The two shells add the methods that talk to the server. Everything here is local: no round trip.
"""

from __future__ import annotations

from typing import Any

from lualock import fork, protocol
from lualock.errors import LeaseLost, LockError
from lualock.keys import display_name
from lualock.protocol import Ask, Clock, Grant, Steps


class BaseLease:
    """A held lock: its token, its fence and its deadline.

    Never made by hand: :meth:`Lock.acquire` returns one. A lease belongs to the process that
    acquired it; after a fork the child owns nothing.
    """

    __slots__ = (
        *("__weakref__", "_ask", "_clock", "_driver", "_grant", "_pid", "_renew_at"),
        *("_renewal", "_ttl_ms", "fence"),
    )

    fence: int
    """A number that grows with every acquisition of the lock. Send it along with whatever the
    lock protects, and let the receiver refuse a smaller one than it has seen."""

    def __init__(self, ask: Ask, grant: Grant, driver: Any, renewal: Any) -> None:
        self._ask = ask
        self._grant = grant
        self._ttl_ms = ask.ttl_ms
        self._clock: Clock = driver.clock
        self._driver = driver
        self._renewal = renewal
        self._pid = fork.pid
        self._renew_at = 0.0
        self.fence = grant.fence
        if renewal is not None:
            renewal.add(self)

    @property
    def name(self) -> str:
        """The lock's name, fit to be shown."""
        return display_name(self._ask.name)

    @property
    def token(self) -> str:
        """The secret that proves ownership: whoever has it can release the lock."""
        return self._ask.token.decode()

    def remaining(self) -> float:
        """Seconds until the lease ends unless it is renewed; 0.0 when it is over.

        Counted from before the request was sent, so it is never more than what the server says.
        """
        if self._grant.released or self._grant.lost or self._pid != fork.pid:
            return 0.0
        if self._grant.claim is not None:
            self._claimed()
        return max(0.0, self._grant.deadline - self._clock())

    @property
    def held(self) -> bool:
        """Whether the lock is ours, as far as can be known without asking the server."""
        return self.remaining() > 0

    @property
    def lost(self) -> bool:
        """Whether the lease ended without being released. True before the server expires it."""
        return not self._grant.released and not self.held

    def _claimed(self) -> bool:
        """Look at the reply to the claim: whether it has come now, and lets us keep the lease for
        its whole ttl. If it was lost, the lease lasts as long as is certain."""
        claim, grant = self._grant.claim, self._grant
        if claim is None:
            return False
        try:
            reply = claim.poll()
        except LockError:
            grant.claim = None
            return False
        if reply is None:
            return False
        grant.claim = None
        if reply == b"extended":
            grant.deadline = max(grant.deadline, grant.claimed_deadline)
            return True
        self._grant.lost = reply != b"already"
        return False

    def check(self) -> None:
        """Raise :class:`LeaseLost` unless :attr:`held`. Cheap: call it before each step of work."""
        if not self.held:
            raise self._no_longer("used")

    def _no_longer(self, verb: str) -> LeaseLost:
        if self._pid != fork.pid:
            why = f"belongs to process {self._pid}: a forked child owns nothing"
        elif self._grant.released:
            why = "was released before"
        else:
            why = "had ended before"
        return LeaseLost(
            f"the lease of lock {self.name!r} cannot be {verb}: it {why}", name=self.name
        )

    def _release(self) -> Steps[None] | None:
        """How to give it back; ``None``: that was done before."""
        if self._grant.released:
            return None
        if self._pid != fork.pid:
            raise self._no_longer("released")
        return protocol.release(self._ask, self._grant)

    def _extend(self, ttl_ms: int) -> Steps[None]:
        if self._grant.released or self._pid != fork.pid:
            raise self._no_longer("extended")
        try:
            deadline = yield from protocol.extend(self._ask, ttl_ms, self._clock)
        except LeaseLost:
            self._grant.lost = True
            raise
        self._grant.claim = None
        self._grant.deadline = deadline
        self._ttl_ms = ttl_ms

    def __reduce__(self) -> str:
        raise TypeError("a lease cannot be pickled: it belongs to the process that acquired it")

    def __repr__(self) -> str:
        state = "released" if self._grant.released else "held" if self.held else "lost"
        return f"<{type(self).__name__} {self.name!r} {state} fence={self.fence}>"


class Entered:
    """Which leases the ``with`` blocks on one lock object hold.

    A lock object is shared between threads and tasks, so each block must find its own lease at
    its end. Normally a block ends in the thread or task that began it; where one does not (a
    fixture, a thread pool), the lock is exclusive and so there is just one lease to be meant.
    """

    __slots__ = ("_blocks",)

    def __init__(self) -> None:
        self._blocks: list[tuple[object, Any]] = []

    def push(self, owner: object, lease: Any) -> None:
        self._blocks.append((owner, lease))

    def pop(self, owner: object) -> Any:
        at = -1  # the usual case, and the last resort
        if self._blocks[at][0] != owner:
            at = max((i for i, block in enumerate(self._blocks) if block[0] == owner), default=at)
        return self._blocks.pop(at)[1]
