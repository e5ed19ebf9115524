"""Layer 0: every exception lualock raises, in one tree.

``LockError`` is the root, so ``except LockError`` catches whatever the library says and nothing
else. Each class says what happened; each message says what to do about it. All of them survive
pickling, because job systems and ``multiprocessing`` send exceptions between processes.
"""

from __future__ import annotations


class LockError(Exception):
    """Root of everything lualock raises."""


class InvalidArgument(LockError, ValueError):
    """An argument cannot be used. Raised before anything is sent to the server."""


class NotAcquired(LockError):
    """Somebody else has the lock, and the time given to wait for it is over.

    ``name`` is the lock's name. ``holder`` describes who has it (``host:pid:thread`` unless the
    holder chose its own description), ``held_s`` for how long it has had it, and ``remaining_s``
    how long its lease lasts unless it is renewed; both in seconds. ``holder`` is ``None`` when
    that is not known. ``ahead`` is how many were before us in the queue, ``None`` if we had no
    place in it.
    """

    def __init__(
        self,
        message: str = "",
        *,
        name: str = "",
        holder: str | None = None,
        held_s: float | None = None,
        remaining_s: float | None = None,
        ahead: int | None = None,
    ) -> None:
        super().__init__(message)
        self.name = name
        self.holder = holder
        self.held_s = held_s
        self.remaining_s = remaining_s
        self.ahead = ahead


class QueueFull(NotAcquired):
    """As many wait for the lock already as its ``max_waiters`` allows. ``ahead`` says how many."""


class SelfDeadlock(LockError):
    """A wait without an end was refused, because its caller itself is inside the lock.

    The caller is inside a ``with`` block of the lock, or inside a job that holds it, so it cannot
    release the lock while it waits. Nothing was sent. ``name`` is the lock's name.
    """

    def __init__(self, message: str = "", *, name: str = "") -> None:
        super().__init__(message)
        self.name = name


class LeaseLost(LockError):
    """A lease was no longer ours when it was extended, checked or released.

    ``name`` is the lock's name. ``holder`` describes who has it now; ``None`` when nobody has.
    ``given_up`` is true where the lease did not end by itself: it was released, or passed on.
    """

    def __init__(
        self,
        message: str = "",
        *,
        name: str = "",
        holder: str | None = None,
        given_up: bool = False,
    ) -> None:
        super().__init__(message)
        self.name = name
        self.holder = holder
        self.given_up = given_up


class StaleFence(LockError):
    """Something was refused because a greater fence than the writer's has been seen.

    ``fence`` is the writer's, ``seen`` the greatest one.
    """

    def __init__(self, message: str = "", *, fence: int = 0, seen: int = 0) -> None:
        super().__init__(message)
        self.fence = fence
        self.seen = seen


class LockUnavailable(LockError):
    """The server cannot be reached, or refuses to work at this time.

    ``outcome_unknown`` is true when the request was sent and its reply never came, so that the
    server may or may not have carried it out.
    """

    _lasts = False  # whether it is of no use to try again

    def __init__(self, message: str = "", *, outcome_unknown: bool = False) -> None:
        super().__init__(message)
        self.outcome_unknown = outcome_unknown


class AccessDenied(LockUnavailable):
    """The server refuses this user: wrong or missing password, or a rule of its ACL."""

    _lasts = True


class EmbeddedUnavailable(LockUnavailable):
    """No server binary was found for the embedded server, or it would not start."""


class KeyConflict(LockError):
    """A lock's key, or a fence's, holds something that lualock did not write. It was left as it
    is."""


class UnsupportedServer(LockError):
    """The server is older than Redis 6.2 or Valkey 7.2, or lacks what lualock needs."""
