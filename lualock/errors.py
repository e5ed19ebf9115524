"""Define every exception that lualock raises.

* ``LockError`` is the root: ``except LockError`` catches every error of the library, and no other.
* A message reads ``could not <verb> <object>: <cause> (<facts>). <what to do>``, and each class
  has texts of its own.
* Every exception can be pickled, because job systems and ``multiprocessing`` send exceptions
  between processes.
"""

from __future__ import annotations


class LockError(Exception):
    """Root of everything lualock raises.

    ``retryable`` is true if the same call may succeed later although the program changes nothing:
    another holder had the lock, or the server was unreachable.
    """

    retryable = False


class InvalidArgument(LockError, ValueError):
    """An argument is not valid. Raised before anything is sent to the server."""


class NotAcquired(LockError):
    """Another holder has the lock, and the time to wait for it is over.

    ``name`` is the lock's name. ``holder`` describes the holder: ``host:pid:thread`` unless it
    chose a description of its own; ``None`` if unknown. ``held_s`` is how long the holder has had
    the lock, and ``remaining_s`` how long its lease lasts unless renewed; both in seconds.
    ``ahead`` is the number of waiters that were ahead of this caller in the queue; ``None`` if
    this caller was not in the queue.
    """

    retryable = True

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
    """The lock has as many waiters as its ``max_waiters`` allows. ``ahead`` is their number."""


class SelfDeadlock(LockError):
    """A wait without a timeout was refused, because the caller itself holds the lock.

    The caller is inside a ``with`` block of the lock, or inside a job that holds it, so it cannot
    release the lock while it waits. Nothing was sent. ``name`` is the lock's name.
    """

    def __init__(self, message: str = "", *, name: str = "") -> None:
        super().__init__(message)
        self.name = name


class LeaseLost(LockError):
    """The lease had ended before it was extended, checked or released.

    ``name`` is the lock's name. ``holder`` describes the holder that has the lock now; ``None`` if
    the lock is free. ``given_up`` is true if the lease did not expire but was released or passed
    on.
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
    """A write was refused, because a greater fencing token than the writer's has been seen.

    ``fence`` is the writer's fencing token, ``seen`` the greatest one so far.
    """

    def __init__(self, message: str = "", *, fence: int = 0, seen: int = 0) -> None:
        super().__init__(message)
        self.fence = fence
        self.seen = seen


class LockUnavailable(LockError):
    """The server cannot be reached, or cannot carry out the request now.

    ``outcome_unknown`` is true if the request was sent and its reply was lost: the server may or
    may not have executed it.
    """

    retryable = True

    def __init__(self, message: str = "", *, outcome_unknown: bool = False) -> None:
        super().__init__(message)
        self.outcome_unknown = outcome_unknown


class AccessDenied(LockUnavailable):
    """The server refuses this user: the password is wrong or missing, or an ACL rule forbids it."""

    retryable = False


class EmbeddedUnavailable(LockUnavailable):
    """The embedded server cannot run, or must not.

    No server program was found, it did not start, or ``LUALOCK_EMBEDDED=0`` forbids it.
    """

    retryable = False


class KeyConflict(LockError):
    """The key of a lock or a fence holds a value that lualock did not write. It was not changed."""


class UnsupportedServer(LockError):
    """The server is older than Redis 6.2 or Valkey 7.2, or lacks a command that lualock needs."""
