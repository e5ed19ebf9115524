"""Track ``with`` blocks: which lease each of them holds. No I/O.

An exception that comes from outside, such as a signal handler's, may be raised just when the
interpreter calls ``__exit__``, before its first line: then no code of this library runs. So a
``with`` statement gets as ``__exit__``, before it calls ``__enter__``, an object of its own, which
only the interpreter's stack refers to (the *guard*). If the guard is dropped before it was called
to its end, the lock is released.

* The guard is implemented in C (a ``partial``). A Python frame would stay in the traceback of the
  exception, and so be kept, with its objects, for as long as the exception is.
* A weak reference notices that the guard is dropped. It is removed when the block ends as usual,
  because Python swallows what a signal handler raises while an object is destroyed.
* A lock is shared between threads and tasks. If ``__exit__`` is called by name, or taken from the
  class as ``ExitStack`` does, the block is the one that this thread or task began; if there is none
  (a fixture, a thread pool), the only one that can be meant.
* A process knows all blocks on the locks of a server. So a wait without a timeout is refused if the
  caller is inside a block of that lock. The run of a job counts as a block.
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
        *("task", "thread", "token", "within"),
    )

    key: bytes
    thread: threading.Thread
    """The thread that began the block."""

    task: asyncio.Task[Any] | None
    """The task that began it; ``None``: no task, or a block of the API for threads."""

    within: asyncio.Task[Any] | None
    """The task that began it, also with the API for threads. Only a listed block has it."""

    def __init__(self, of: Any) -> None:
        self.of = of
        self.lease: Any = None  # while the block goes on
        self.guard: weakref.ref[Any] | None = None  # to the guard
        self.blocks: Blocks | None = None  # that contain it, once it has begun
        self.token: Token[_Chain] | None = None  # takes it out of its context
        self.listed = False  # whether its server's blocks list it
        self.ref: weakref.ref[Block] | None = None  # if no statement owns it
        self.entered: list[Block] | None = None  # then also: the blocks of its lock object

    def gone(self, _: object) -> None:
        """Release the lease, because the guard was dropped before the end of the block."""
        self.guard = None
        if _about_to.get(get_ident()) is self:
            del _about_to[get_ident()]
        if (lease := self.lease) is not None:
            self.done()
            lease._on_block_dropped()

    def done(self) -> None:
        """Note the end of the block."""
        self.lease = self.guard = None
        if self.token is not None:
            try:  # noqa: SIM105 - a context manager doubles the time
                inside.reset(self.token)
            except ValueError:
                pass  # it began in another context
            self.token = None
        if self.listed and self.blocks is not None:
            self.blocks.forget(self)
        if self.entered is not None:
            self.entered.remove(self)
            self.entered = None


_about_to: dict[int, Block] = {}  # by thread: a statement looks up both methods, then begins


def begin(of: Any) -> Block:
    """Return the block that begins now: the statement's, if a statement begins it."""
    block = _about_to.pop(get_ident(), None)
    if block is None or block.of is not of or block.guard is None or block.guard() is None:
        return Block(of)
    return block


# A block that no statement owns is referred to weakly: a lock that was entered by name and dropped
# is dropped with its block.
_Entry = Block | weakref.ref[Block]
_Chain = tuple[_Entry, Any] | tuple[()]

inside: ContextVar[_Chain] = ContextVar("lualock.inside", default=())
"""The blocks of threads that this context is inside, innermost first. It is a context variable,
because a thread of a pool may leave a block open to another call, which has a context of its own
(FastAPI's plain dependencies); the next call in that thread is not inside it."""


def _chain() -> Iterator[_Entry]:
    chain = inside.get()
    while chain:
        entry, chain = chain
        yield entry


_servers: dict[str, Blocks] = {}


def blocks_on(server: str) -> Blocks:
    """Return the blocks on the locks of a server, of all ``Locks`` objects of this process."""
    return _servers.setdefault(server, Blocks())


class Blocks:
    """The blocks on the locks of one server.

    Blocks in event loops are listed by the key of their lock: a wait in another task, or one that
    blocks the loop's thread, must know them.
    """

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
        """Note that the block holds this lease from now on.

        :param entered: the list that keeps the block if no statement does.
        """
        block.thread = threading.current_thread()  # not its ident: idents are reused
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
            block.within = task or asyncio.current_task()
            while True:
                here = self.listed.setdefault(key, [])
                here.append(entry)
                if self.listed.get(key) is here:
                    return
                here.remove(entry)  # another thread has just removed the empty list

    def forget(self, block: Block) -> None:
        """Remove a listed block that has ended."""
        block.listed = False
        self._unlist(block.key, block.ref or block)

    def _unlist(self, key: bytes, entry: _Entry) -> None:
        try:
            here = self.listed[key]
            here.remove(entry)
        except (KeyError, ValueError):
            return  # removed before
        if not here and self.listed.pop(key, None) is not None and here:
            # Another thread has begun a block in between.
            self.listed.setdefault(key, []).extend(here)

    def refuse_own_wait(self, key: bytes, task: asyncio.Task[Any] | None = None) -> None:
        """Refuse a wait without a timeout that prevents the end of a block that holds the lock.

        :param task: the task that waits; ``None``: a whole thread, with all of its tasks.
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
            # Other tasks go on while one waits. A block that outlived its task ends elsewhere.
            if block.within is task if task else block.task is None or not block.task.done():
                raise SelfDeadlock(
                    f"could not wait for lock {lease.name!r}: this {'task' if task else 'thread'} "
                    "is inside its with block or job, so it would wait for itself. Release it "
                    "first, wait with a timeout, or use another lock",
                    name=lease.name,
                )


def last(entered: list[Block], task: asyncio.Task[Any] | None = None) -> Block:
    """Return the block of a lock object that ends now, if the call does not name it.

    :raises InvalidArgument: there is none, or several can be meant.
    """
    owner = task or threading.current_thread()
    open_blocks = [one for one in entered if one.lease is not None]
    mine = [block for block in open_blocks if (block.task or block.thread) is owner]
    if mine:
        return mine[-1]
    # Begun by another thread or task. The lock is exclusive, so at most one of the leases is held,
    # and that block goes on.
    ended = [block for block in open_blocks if not block.lease.held]
    if ended or len(open_blocks) == 1:
        return (ended or open_blocks)[0]
    raise InvalidArgument(
        "could not end a with block of this lock: it was not entered by this thread or task, or "
        "several blocks are open. Use the lease that acquire() returns"
    )


def end(block: Block, *error: Any) -> None:
    """Release the lease of the block."""
    lease = block.lease
    if lease is None:  # called by name, or a second time: another block is meant
        type(block.of).__exit__(block.of, *error)
        return
    try:
        lease._leave(*error)
    except BaseException as failure:
        if isinstance(failure, LockError) or lease._state.released:
            block.done()  # a further call cannot release more
        raise
    block.done()


def _end_async(block: Block, *error: Any) -> Coroutine[Any, Any, None]:
    if block.lease is None:
        method: Callable[..., Coroutine[Any, Any, None]] = type(block.of).__aexit__
        return method(block.of, *error)
    # From here on the coroutine is the guard.
    coroutine = end_async(block, *error)
    block.guard = weakref.ref(coroutine, block.gone)
    return coroutine


async def end_async(block: Block, *error: Any) -> None:
    """:func:`end`, of an ``async with`` block."""
    lease = block.lease
    try:
        await lease._leave(*error)
    except BaseException as failure:
        if isinstance(failure, LockError) or lease._state.released:
            block.done()
        raise
    block.done()


class _BlockEnd:
    """The descriptor for ``__exit__`` or ``__aexit__`` in a class."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self._method = method
        self._end: Callable[..., Any] = end
        if asyncio.iscoroutinefunction(method):
            self._end = _end_async

    def __get__(self, of: Any, _: type) -> Callable[..., Any]:
        if of is None:
            return self._method
        block = Block(of)
        statement = partial(self._end, block)
        block.guard = weakref.ref(statement, block.gone)
        _about_to[get_ident()] = block
        return statement


def block_end(method: F) -> F:
    """Decorate the ``__exit__`` or ``__aexit__`` of a lock or a lease, which begins with
    :func:`begin`. The method itself runs only if no statement owns the block."""
    return cast(F, _BlockEnd(method))
