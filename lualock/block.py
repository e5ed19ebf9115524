"""Layer 4, shared: ``with`` blocks, and which lease each of them holds. No I/O of its own.

An exception out of the blue, such as a signal handler's, may come just when the interpreter calls
``__exit__``, before its first line: then nothing of ours runs that could release anything. So what
a ``with`` statement finds as ``__exit__``, before it calls ``__enter__``, is an object made for it
alone, which only the interpreter's stack keeps. If that goes without having been called to its
end, the lock is given back. Rules that hold here:

* It is written in C (a ``partial``), for a frame of Python's would be in the exception's traceback,
  and so be kept, with whatever it refers to, for as long as somebody keeps the exception.
* It is noticed by a weak reference, which is dropped where the block ends as usual: what runs while
  an object is destroyed swallows whatever a signal handler raises there.

A lock is shared between threads and tasks. Where ``__exit__`` is called by name, or taken from the
class as ``ExitStack`` does, the block is found by the thread or task that began it; if none did (a
fixture, a thread pool), by what can be meant at all.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Coroutine
from functools import partial
from threading import get_ident
from typing import Any, TypeVar, cast

from lualock.errors import InvalidArgument, LockError

F = TypeVar("F", bound=Callable[..., Any])


class Block:
    """One ``with`` block on ``of``, a lock or a lease."""

    __slots__ = ("blocks", "guard", "lease", "of", "owner")

    def __init__(self, of: Any) -> None:
        self.of = of
        self.lease: Any = None  # from its beginning to its end
        self.owner: object = None  # the thread or task that began it
        self.guard: weakref.ref[Any] | None = None  # what must be called before it goes
        self.blocks: Blocks | None = None  # of a lock: those on it

    def gone(self, _: object) -> None:
        """What should have ended it is no more."""
        self.guard = None
        if _about_to.get(get_ident()) is self:
            del _about_to[get_ident()]
        if (lease := self.lease) is not None:
            self.done()
            lease._forsaken()

    def done(self) -> None:
        """It has ended."""
        self.lease = self.guard = None
        if self.blocks is not None:
            self.blocks.drop(self)


_about_to: dict[int, Block] = {}  # by thread: a statement looks for both methods, then begins


def begin(of: Any) -> Block:
    """The block that begins now: that of the statement which does so, if it is one."""
    block = _about_to.pop(get_ident(), None)
    if block is None or block.of is not of or block.guard is None or block.guard() is None:
        return Block(of)
    return block


class Blocks:
    """Those on one lock that have begun."""

    __slots__ = ("_begun", "_owner")

    def __init__(self, owner: Callable[[], object]) -> None:
        self._owner = owner  # which thread or task asks
        self._begun: list[Block] = []

    def push(self, block: Block, lease: Any) -> None:
        """It holds this lease from now on."""
        block.owner = self._owner()
        block.blocks = self
        block.lease = lease
        self._begun.append(block)

    def drop(self, block: Block) -> None:
        """It holds none any more."""
        try:
            self._begun.remove(block)
        except ValueError:
            return  # dropped before

    def last(self) -> Block:
        """The one that is to be ended, where that is not said.

        :raises InvalidArgument: there is none, or it cannot be told which.
        """
        owner, begun = self._owner(), [one for one in self._begun if one.lease is not None]
        mine = [block for block in begun if block.owner == owner]
        if mine:
            return mine[-1]
        # Of another thread or task. The lock is exclusive, so of several leases only one is held,
        # and whoever has that goes on having it.
        ended = [block for block in begun if not block.lease.held]
        if ended or len(begun) == 1:
            return (ended or begun)[0]
        raise InvalidArgument(
            "this lock was not entered, or it cannot be told which of its with blocks is to end: "
            "use the lease that acquire() returns"
        )


def _end(block: Block, method: Callable[..., None], *error: Any) -> None:
    if block.lease is None:  # by name, or a second time: another one is meant
        method(block.of, *error)
        return
    end(block, *error)


def end(block: Block, *error: Any) -> None:
    """Release what the block has."""
    lease = block.lease
    try:
        lease._leave(*error)
    except BaseException as broke:
        if isinstance(broke, LockError) or lease._grant.released:
            block.done()  # that is the last word on it
        raise
    block.done()


def _end_async(
    block: Block, method: Callable[..., Coroutine[Any, Any, None]], *error: Any
) -> Coroutine[Any, Any, None]:
    if block.lease is None:
        return method(block.of, *error)
    # From here on it is the coroutine that must come to its end.
    coroutine = end_async(block, *error)
    block.guard = weakref.ref(coroutine, block.gone)
    return coroutine


async def end_async(block: Block, *error: Any) -> None:
    """:func:`end`, of an ``async with`` block."""
    lease = block.lease
    try:
        await lease._leave(*error)
    except BaseException as broke:
        if isinstance(broke, LockError) or lease._grant.released:
            block.done()
        raise
    block.done()


class _BlockEnd:
    """What stands in a class as ``__exit__`` or ``__aexit__``."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self._method = method
        self._end = _end_async if asyncio.iscoroutinefunction(method) else _end

    def __get__(self, of: Any, _: type) -> Callable[..., Any]:
        if of is None:
            return self._method
        block = Block(of)
        statement = partial(self._end, block, self._method)
        block.guard = weakref.ref(statement, block.gone)
        _about_to[get_ident()] = block
        return statement


def block_end(method: F) -> F:
    """Decorates the ``__exit__`` or ``__aexit__`` of a lock or a lease, which begins with
    :func:`begin`. The method itself says what is done where no statement has the block."""
    return cast(F, _BlockEnd(method))
