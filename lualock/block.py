"""Layer 4, shared: the ``with`` blocks on a lock, and which lease each of them holds. No I/O.

A lock object is shared between threads and tasks, so each block must find its own lease at its end.
And an exception out of the blue, such as a signal handler's, may come just when the interpreter
calls ``__exit__``, before its first line: then nothing of ours runs that could release anything.
Both are answered by the same thing: what a ``with`` statement finds as ``__exit__``, and keeps
until its end, is a :class:`Block` of its own, which has the lease. Nothing else has it, so where
the statement goes without having ended the block, the lock is given back in the background.

``ExitStack`` takes ``__exit__`` from the class and calls it with the lock. Such a block is found by
the thread or task that began it; where it ends in another (a fixture, a thread pool), the lock is
exclusive and so there is just one lease to be meant.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from threading import get_ident
from typing import Any

from lualock.errors import LockError


class Block:
    """One ``with`` block. Called at its end, as ``__exit__`` is."""

    __slots__ = ("__weakref__", "_blocks", "lease")

    def __init__(self, blocks: Blocks) -> None:
        self._blocks = blocks
        self.lease: Any = None

    def __call__(self, *error: Any) -> Any:
        """Release the lease."""
        lease = self.lease or self._blocks.pop()
        try:
            lease.__exit__(*error)
        except LockError:
            self.lease = None  # that is the last word on it
            raise

    def __del__(self) -> None:
        if self.lease is not None:
            self.lease._forsaken()


class AsyncBlock(Block):
    """The same for ``async with``."""

    __slots__ = ()

    async def __call__(self, *error: Any) -> None:
        """Release the lease."""
        lease = self.lease or self._blocks.pop()
        try:
            await lease.__aexit__(*error)
        except LockError:
            self.lease = None
            raise


class Blocks:
    """The blocks on one lock that have begun, or are about to."""

    __slots__ = ("_about_to", "_others", "_owner")

    def __init__(self, owner: Callable[[], object]) -> None:
        self._owner = owner  # which thread or task asks
        self._about_to: dict[int, weakref.ref[Block]] = {}  # by thread
        self._others: list[tuple[object, Any]] = []  # leases that no block has

    def expect(self, kind: type[Block]) -> Block:
        """A ``with`` statement looks for both methods before it calls the first; no other task of
        its thread comes in between."""
        block = kind(self)
        self._about_to[get_ident()] = weakref.ref(block)
        return block

    def begin(self) -> Block | None:
        """The block that begins now, if its statement has one."""
        ref = self._about_to.pop(get_ident(), None)
        return None if ref is None else ref()

    def push(self, block: Block | None, lease: Any) -> None:
        """It holds this lease from now on."""
        if block is not None:
            block.lease = lease
        else:
            self._others.append((self._owner(), lease))

    def pop(self) -> Any:
        """The lease of the block that ends now, where no statement has it."""
        owner, at = self._owner(), -1  # the usual case, and the last resort
        if self._others[at][0] != owner:
            at = max((i for i, (o, _) in enumerate(self._others) if o == owner), default=at)
        return self._others.pop(at)[1]


class BlockEnd:
    """What stands as ``__exit__``, or ``__aexit__``, in the class of a lock."""

    def __init__(self, kind: type[Block]) -> None:
        self._kind = kind

    def __get__(self, lock: Any, owner: type) -> Callable[..., Any]:
        if lock is not None:
            return lock._blocks.expect(self._kind)  # type: ignore[no-any-return]  # of any lock
        return lambda lock, *error: self._kind(lock._blocks)(*error)
