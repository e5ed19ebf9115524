"""Define the common part of several locks as one, and of the lease on them. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lualock._core.lease import LeaseBase
from lualock._core.lock import LockBase, new_token
from lualock._core.options import Seconds
from lualock._protocol import AcquireRequest, LeaseState, MultiRequest, Steps, multi
from lualock.errors import InvalidArgument

if TYPE_CHECKING:
    from typing_extensions import Self


class MultiLeaseBase(LeaseBase):
    """A lease on several locks: one token, one fence, one end."""

    __slots__ = ()

    def handle(self) -> str:
        """Refuse to pass the lease on.

        :raises InvalidArgument: always: a handle names one lock.
        """
        raise InvalidArgument(
            f"could not pass on the lease on {self.name!r}: it is on several locks, and a handle "
            "names one. Release it, and let the other process acquire the locks"
        )

    def _release_now(self) -> Steps[None]:
        return multi.release(self._request, self._state)


class MultiLockBase(LockBase):
    """Several locks of one server, acquired all or none.

    :param locks: at least two; it has the name and the options of the first.
    :raises InvalidArgument: one is among them twice, or they are of several ``Locks`` objects.
    """

    __slots__ = ("_all", "_parts")

    def __init__(self, locks: Sequence[LockBase]) -> None:
        names = [lock.name for lock in locks]
        if len({lock.key for lock in locks}) < len(locks):
            raise InvalidArgument(
                f"could not make one lock of {names}: a lock is among them twice, and would wait "
                "for itself. Name each one once"
            )
        if any(lock.locks is not locks[0].locks for lock in locks):
            raise InvalidArgument(
                f"could not make one lock of {names}: they are of several Locks objects. Make all "
                "of them with one"
            )
        self._take_over(locks[0])
        self._all = tuple(locks)
        self._parts = tuple(sorted(locks, key=lambda lock: lock.key))

    @property
    def parts(self) -> tuple[Any, ...]:
        """The locks that this one consists of, in the order of their keys."""
        return self._parts

    def derived(
        self,
        suffix: bytes = b"",
        ttl: Seconds | None = None,
        *,
        metadata: str | None = None,
    ) -> Self:
        """Return the locks that are derived from these, as one."""
        return type(self)([lock.derived(suffix, ttl, metadata=metadata) for lock in self._all])

    def with_metadata(self, metadata: str) -> Self:
        """Return these locks with other metadata, as one."""
        return type(self)([lock.with_metadata(metadata) for lock in self._all])

    def request(self, token: bytes | None = None, ttl_s: float | None = None) -> MultiRequest:
        """Return a request for the locks, with this token and this ttl instead of their own."""
        requests = [lock.request(None, ttl_s) for lock in self._all]
        return MultiRequest(requests, new_token, token)

    def refuse_own_wait(self) -> None:
        """Refuse to wait for the locks without a limit.

        :raises SelfDeadlock: the caller is inside a block of one, which then never ends.
        """
        for lock in self._all:
            lock.refuse_own_wait()

    def _request(self) -> MultiRequest:
        return self.request()

    def _acquire(self, request: AcquireRequest, wait_s: float | None) -> Steps[LeaseState]:
        assert isinstance(request, MultiRequest)
        if wait_s is None:
            self.refuse_own_wait()
        return multi.acquire(request, self.server_clock, wait_s)
