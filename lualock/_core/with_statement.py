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

A process knows of all blocks on the locks of a server. So a wait without an end is refused where
the code that waits is inside a block itself. The run of a job counts as a block.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterator
from contextvars import ContextVar, Token
from functools import partial
from threading import get_ident
from typing import Any, TypeVar, cast

from lualock.errors import InvalidArgument, LockError, SelfDeadlock

F = TypeVar("F", bound=Callable[..., Any])


class Block:
    """One ``with`` block on ``of``, a lock or a lease."""

    __slots__ = (
        *("__weakref__", "blocks", "entered", "guard", "key", "lease", "listed", "of", "ref"),
        *("task", "thread", "token"),
    )

    key: bytes
    thread: threading.Thread
    """Which thread began it."""

    task: asyncio.Task[Any] | None
    """Which task did; ``None``: no task, or a block of the plain shell, which is its thread's."""

    def __init__(self, of: Any) -> None:
        self.of = of
        self.lease: Any = None  # from its beginning to its end
        self.guard: weakref.ref[Any] | None = None  # what must be called before it goes
        self.blocks: Blocks | None = None  # among which it is, once it has begun
        self.token: Token[_Chain] | None = None  # what takes it out of its context
        self.listed = False  # among its server's
        self.ref: weakref.ref[Block] | None = None  # if no statement has it
        self.entered: list[Block] | None = None  # the same: those of its lock object

    def gone(self, _: object) -> None:
        """What should have ended it is no more."""
        self.guard = None
        if _about_to.get(get_ident()) is self:
            del _about_to[get_ident()]
        if (lease := self.lease) is not None:
            self.done()
            lease._on_block_dropped()

    def done(self) -> None:
        """It has ended."""
        self.lease = self.guard = None
        if self.token is not None:
            try:  # noqa: SIM105 - a context manager would take as long as all else here
                inside.reset(self.token)
            except ValueError:
                pass  # it began in another context, which goes with what runs there
            self.token = None
        if self.blocks is not None:
            self.blocks.forget(self)
        if self.entered is not None:
            self.entered.remove(self)
            self.entered = None


_about_to: dict[int, Block] = {}  # by thread: a statement looks for both methods, then begins


def begin(of: Any) -> Block:
    """The block that begins now: that of the statement which does so, if it is one."""
    block = _about_to.pop(get_ident(), None)
    if block is None or block.of is not of or block.guard is None or block.guard() is None:
        return Block(of)
    return block


# One that no statement has is held weakly, as a weak reference: a lock that was entered by name and
# dropped is given up with what it has.
_Entry = Block | weakref.ref[Block]
_Chain = tuple[_Entry, Any] | tuple[()]

inside: ContextVar[_Chain] = ContextVar("lualock.inside", default=())
"""The blocks of threads that this context is inside of: the last one, and those before it. A
thread of a pool may have left one open to another call, which has a context of its own (FastAPI's
plain dependencies), and the next call there is not inside it."""


def _chain() -> Iterator[_Entry]:
    chain = inside.get()
    while chain:
        entry, chain = chain
        yield entry


_servers: dict[str, Blocks] = {}


def blocks_on(server: str) -> Blocks:
    """Those on the locks of a server, whichever ``Locks`` of this process they are of."""
    return _servers.setdefault(server, Blocks())


class Blocks:
    """Those on the locks of one server. Those in event loops are listed, by the key of their lock:
    a wait in another task, or of the loop's whole thread, must know of them."""

    __slots__ = ("listed",)

    def __init__(self) -> None:
        self.listed: dict[bytes, list[_Entry]] = {}

    def push(
        self,
        key: bytes,
        block: Block,
        lease: Any,
        task: asyncio.Task[Any] | None = None,
        entered: list[Block] | None = None,
    ) -> None:
        """It holds this lease from now on.

        :param entered: what keeps it if no statement does: those of its lock object.
        """
        block.thread = threading.current_thread()  # (idents are used again)
        block.task = task
        block.blocks, block.key = self, key
        block.lease = lease
        entry: _Entry = block
        if block.guard is None:
            entry = block.ref = weakref.ref(block)
            if entered is not None:
                block.entered = entered
                entered.append(block)
        if task is None:
            block.token = inside.set((entry, inside.get()))
        if task is not None or asyncio._get_running_loop() is not None:
            block.listed = True
            while True:
                here = self.listed.setdefault(key, [])
                here.append(entry)
                if self.listed.get(key) is here:
                    return
                here.remove(entry)  # another thread has just taken the empty list away

    def forget(self, block: Block) -> None:
        """It has ended."""
        if block.listed:
            block.listed = False
            self._unlist(block.key, block.ref or block)

    def _unlist(self, key: bytes, entry: _Entry) -> None:
        try:
            here = self.listed[key]
            here.remove(entry)
        except (KeyError, ValueError):
            return  # it was done before
        if not here and self.listed.pop(key, None) is not None and here:
            # Another thread has begun one in between.
            self.listed.setdefault(key, []).extend(here)

    def refuse_own_wait(self, key: bytes, task: asyncio.Task[Any] | None = None) -> None:
        """Refuse a wait without an end that keeps a block from ending which has the lock.

        :param task: what waits; ``None``: a whole thread, and with it all of its tasks.
        :raises SelfDeadlock: there is such a block.
        """
        thread = threading.current_thread()
        listed = tuple(self.listed.get(key, ()))
        for entry in listed if task else (*_chain(), *listed):
            block = entry if isinstance(entry, Block) else entry()
            if block is None:  # its lock object was dropped
                self._unlist(key, entry)
                continue
            if block.blocks is not self or block.key != key or block.thread is not thread:
                continue
            if (lease := block.lease) is None or not lease.held:
                continue
            # Other tasks go on while one waits. A block that outlived its task ends somewhere else.
            if block.task is task if task else block.task is None or not block.task.done():
                raise SelfDeadlock(
                    f"could not wait for lock {lease.name!r}: this {'task' if task else 'thread'} "
                    "is inside its with block or job, so it would wait for itself. Release it "
                    "first, wait with a timeout, or use another lock",
                    name=lease.name,
                )


def last(entered: list[Block], task: asyncio.Task[Any] | None = None) -> Block:
    """Which of a lock object's blocks is to be ended, where that is not said.

    :raises InvalidArgument: there is none, or it cannot be told which.
    """
    owner = task or threading.current_thread()
    begun = [one for one in entered if one.lease is not None]
    mine = [block for block in begun if (block.task or block.thread) is owner]
    if mine:
        return mine[-1]
    # Of another thread or task. The lock is exclusive, so of several leases only one is held, and
    # whoever has that goes on having it.
    ended = [block for block in begun if not block.lease.held]
    if ended or len(begun) == 1:
        return (ended or begun)[0]
    raise InvalidArgument(
        "could not end a with block of this lock: it was not entered by this thread or task, or "
        "several blocks are open. Use the lease that acquire() returns"
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
        if isinstance(broke, LockError) or lease._state.released:
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
        if isinstance(broke, LockError) or lease._state.released:
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
