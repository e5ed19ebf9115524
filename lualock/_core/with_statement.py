"""Track ``with`` blocks: which lease each of them holds. No I/O.

An exception that comes from outside, such as a signal handler's, may be raised just when the
interpreter calls ``__exit__``, before its first line: then no code of this library runs. But a
``with`` statement looks up ``__exit__`` before it calls ``__enter__``. The look-up returns the
*guard*, an object for this statement alone, which only the interpreter's stack refers to. If the
guard is dropped before a call of it has ended, the lock is released.

* The guard is implemented in C (a ``partial``). A Python frame would stay in the traceback of the
  exception, and so live as long as the exception does.
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
import inspect
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterator
from contextvars import ContextVar, Token
from functools import partial
from threading import get_ident
from types import TracebackType
from typing import Any, TypeVar, cast

from lualock.errors import InvalidArgument, LockError, SelfDeadlock

F = TypeVar("F", bound=Callable[..., Any])


class Block:
    """One ``with`` block on its ``target``, a lock or a lease."""

    __slots__ = (
        *("__weakref__", "blocks", "entered", "guard", "key", "lease", "listed", "ref"),
        *("surrounding_task", "target", "task", "thread", "token"),
    )

    key: bytes
    thread: threading.Thread
    """The thread that began the block."""

    task: asyncio.Task[Any] | None
    """The task that began a block of the asyncio API, if any."""

    surrounding_task: asyncio.Task[Any] | None
    """The task that began a block of either API, if any. Only listed blocks have this attribute."""

    def __init__(self, target: Any) -> None:
        self.target = target
        self.lease: Any = None  # while the block goes on
        self.guard: weakref.ref[Any] | None = None  # ``None``: no statement owns the block
        self.blocks: Blocks | None = None  # of its server, once it has begun
        self.token: Token[_Chain] | None = None  # takes it out of its context
        self.listed = False  # whether ``blocks.listed`` has it
        self.ref: weakref.ref[Block] | None = None  # its entry there, if no statement owns it
        self.entered: list[Block] | None = None  # the list that keeps it, if no statement owns it

    def on_guard_dropped(self, _: object) -> None:
        """Release the lease, because the guard was dropped before the end of the block."""
        self.guard = None
        if _looked_up.get(get_ident()) is self:
            del _looked_up[get_ident()]
        if (lease := self.lease) is not None:
            self.close()
            lease._on_block_dropped()

    def close(self) -> None:
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


_looked_up: dict[int, Block] = {}  # by thread: the block whose ``__exit__`` was looked up last


def begin(target: Any) -> Block:
    """Return the block that begins now: the one looked up, if a statement begins it."""
    block = _looked_up.pop(get_ident(), None)
    if block is None or block.target is not target or block.guard is None or block.guard() is None:
        return Block(target)
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


class _Current(threading.local):
    """Keep the current thread, because ``threading.current_thread()`` takes twice the time: see
    :meth:`Connection.read <lualock._transport.threads.connection.Connection.read>`."""

    def __init__(self) -> None:
        self.thread = threading.current_thread()


_current = _Current()
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
        block.thread = _current.thread  # not its ident: idents are reused
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
            block.surrounding_task = task or asyncio.current_task()
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
        """Refuse a wait without a timeout inside a block that holds the lock: neither would end.

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
            if task:
                prevents_end = block.surrounding_task is task  # other tasks go on
            else:  # a block that outlived its task ends in another thread or task
                prevents_end = block.task is None or not block.task.done()
            if prevents_end:
                raise SelfDeadlock(
                    f"could not wait for lock {lease.name!r}: this {'task' if task else 'thread'} "
                    "is inside its with block or job, so it would wait for itself. Release it "
                    "first, wait with a timeout, or use another lock",
                    name=lease.name,
                )


def find_block(entered: list[Block], task: asyncio.Task[Any] | None = None) -> Block:
    """Return the block that a call of ``__exit__`` by name ends, of those on one lock object.

    :raises InvalidArgument: there is none, or several can be meant.
    """
    owner = task or threading.current_thread()
    open_blocks = [one for one in entered if one.lease is not None]
    mine = [block for block in open_blocks if (block.task or block.thread) is owner]
    if mine:
        return mine[-1]
    # Another thread or task began it. At most one of the leases is held, and its block goes on.
    ended = [block for block in open_blocks if not block.lease.held]
    if ended or len(open_blocks) == 1:
        return (ended or open_blocks)[0]
    raise InvalidArgument(
        "could not end a with block of this lock: it was not entered by this thread or task, or "
        "several blocks are open. Use the lease that acquire() returns"
    )


def end(
    block: Block,
    end_other: Callable[..., None] | None = None,
    kind: type[BaseException] | None = None,
    error: BaseException | None = None,
    trace: TracebackType | None = None,
) -> None:
    """Release the lease of the block. One function for a statement and for a call by name: a second
    frame costs 0.7 % of the client's instructions for a block.

    :param end_other: the target's method, called if the block has not begun, or ended before:
        the call then means another block.
    """
    lease = block.lease
    if lease is None:
        if end_other is not None:
            end_other(block.target, kind, error, trace)
        return
    try:
        lease._leave(error)
    except BaseException as failure:
        if isinstance(failure, LockError) or lease._state.released:
            block.close()  # a further call cannot release more
        raise
    block.close()


def _end_async(
    block: Block,
    end_other: Callable[..., Coroutine[Any, Any, None]],
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
) -> Coroutine[Any, Any, None]:
    if block.lease is None:
        return end_other(block.target, kind, error, trace)
    # From here on the coroutine is the guard.
    coroutine = end_async(block, error)
    block.guard = weakref.ref(coroutine, block.on_guard_dropped)
    return coroutine


async def end_async(block: Block, error: BaseException | None) -> None:
    """:func:`end`, of an ``async with`` block."""
    lease = block.lease
    try:
        await lease._leave(error)
    except BaseException as failure:
        if isinstance(failure, LockError) or lease._state.released:
            block.close()
        raise
    block.close()


class _BlockEnd:
    """The descriptor for ``__exit__`` or ``__aexit__`` in a class."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self._method = method
        self._end: Callable[..., Any] = end
        if inspect.iscoroutinefunction(method):
            self._end = _end_async

    def __get__(self, target: Any, _: type) -> Callable[..., Any]:
        if target is None:
            return self._method
        block = Block(target)
        guard = partial(self._end, block, self._method)
        block.guard = weakref.ref(guard, block.on_guard_dropped)
        _looked_up[get_ident()] = block
        return guard


def block_end(method: F) -> F:
    """Decorate the ``__exit__`` or ``__aexit__`` of a class whose ``__enter__`` calls
    :func:`begin`. The method itself runs only if no statement owns the block."""
    return cast(F, _BlockEnd(method))
