"""Define the common part of ``Lock`` and ``Locks`` of both APIs. No I/O."""

from __future__ import annotations

import inspect
import os
import struct
from binascii import b2a_base64
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar

from lualock import _protocol as protocol
from lualock._core import fork, handles, keys, options
from lualock._core.handles import Handle
from lualock._core.lock_options import LockOptions
from lualock._core.options import HolderInfo, Seconds
from lualock._core.supply import Supply
from lualock._core.with_statement import Block, Blocks, inside
from lualock._protocol import AcquireRequest, LeaseState, ServerClock, Steps, T, stop_request
from lualock.errors import InvalidArgument

if TYPE_CHECKING:
    from typing_extensions import Self

    from lualock._transport.endpoint import Endpoint


_URL_SAFE = bytes.maketrans(b"+/", b"-_")
_TOKENS = struct.Struct("22s2x" * 16)


def _make_tokens() -> list[bytes]:
    """Make tokens of 22 characters, each of six random bits."""
    text = b2a_base64(os.urandom(_TOKENS.size // 4 * 3), newline=False)
    return list(_TOKENS.unpack(text.translate(_URL_SAFE)))


_tokens = Supply(_make_tokens)


def new_token() -> bytes:
    """Return a token that no other request has, and note a fork."""
    if not fork.same[0]:
        fork.start_anew()
    try:
        return _tokens.spare.pop()
    except IndexError:
        return _tokens.more()


class Settings:
    """The settings of a ``Locks`` object for all its locks."""

    __slots__ = ("holder_info", "prefix", "ttl_ms")

    def __init__(
        self,
        prefix: str = keys.DEFAULT_PREFIX,
        ttl: Seconds = options.DEFAULT_TTL_S,
        holder: str | None = None,
    ) -> None:
        self.prefix = keys.prefix_bytes(prefix)
        self.ttl_ms = options.ttl_ms(ttl)
        self.holder_info = HolderInfo(options.holder_bytes(holder))


class Crowded(set[bytes]):
    """The keys of locks whose last acquisition had to wait.

    For these a try outside the queue probably fails. Without this hint, 32 processes at one lock
    lose a fifth of their rate. Because it is only a hint, any thread may write it last.
    """

    MAX = 1024

    def note(self, key: bytes, waited: bool) -> None:
        """Note whether an acquisition had to wait."""
        if not waited:
            self.discard(key)
            return
        if len(self) >= self.MAX:
            self.clear()
        self.add(key)


class LocksBase:
    """The common part of ``Locks`` of both APIs.

    :param asynchronous: of a subclass: whether it is for asyncio.
    """

    asynchronous: ClassVar[bool]
    _multi_lock: ClassVar[type[Any]]
    _kinds: ClassVar[dict[bool, type[LocksBase]]] = {}

    _endpoint: Endpoint
    _settings: Settings
    _blocks: Blocks
    _crowded: Crowded
    _keep: Any
    """The embedded server, which must live as long as this object."""

    def __init_subclass__(cls, *, asynchronous: bool) -> None:
        cls.asynchronous = asynchronous
        cls._kinds[asynchronous] = cls

    def _open(self, endpoint: Endpoint, keep: Any, settings: Settings) -> None:
        raise NotImplementedError

    @classmethod
    def _of(cls, endpoint: Endpoint, keep: Any, settings: Settings) -> Self:
        made = cls.__new__(cls)
        made._open(endpoint, keep, settings)
        return made

    @staticmethod
    def for_endpoint(
        endpoint: Endpoint, keep: Any, settings: Settings, *, asynchronous: bool
    ) -> LocksBase:
        """Open the locks of a server, for threads or for asyncio."""
        if asynchronous not in LocksBase._kinds:
            # The one import that points up: a program with one API does not load the other.
            import_module("lualock.aio" if asynchronous else "lualock._sync")
        return LocksBase._kinds[asynchronous]._of(endpoint, keep, settings)

    def counterpart(self) -> LocksBase:
        """Open the same locks for the other API. They need an embedded server of this object, so
        they must not outlive it."""
        made = not self.asynchronous
        return LocksBase.for_endpoint(self._endpoint, None, self._settings, asynchronous=made)

    @property
    def server(self) -> str:
        """The server's address and database."""
        return self._endpoint.server

    @property
    def prefix(self) -> bytes:
        """The beginning of every key."""
        return self._settings.prefix

    def lock_at(self, key: bytes, ttl: Seconds | None = None, *, metadata: str = "") -> Any:
        """Return the lock with this key; it may be derived from one with a name."""
        end = key.index(b"}") + 1
        made: Any = self
        named: LockBase = made.lock(keys.name_of(self.prefix, key[:end]))
        return named.derived(key[end:], ttl, metadata=metadata)

    def together(self, first: Any, *others: Any) -> Any:
        """Return several locks as one, which has the name and the options of the first."""
        return self._multi_lock((first, *others)) if others else first

    def _passed_on(self, handle: object) -> tuple[Handle, bytes]:
        """Decode a handle; return it and the name of its lock."""
        found = handles.read(handle)
        name = keys.name_of(self._settings.prefix, found.key)
        if keys.lock_key(self._settings.prefix, name) != found.key:
            raise InvalidArgument(handles.DAMAGED)
        return found, name

    def __repr__(self) -> str:
        prefix = self._settings.prefix.decode(errors="replace")
        return f"<{type(self).__module__}.Locks on {self.server}, prefix {prefix!r}>"

    def __reduce__(self) -> str:
        raise TypeError("a Locks object cannot be pickled: connect in the other process")


_DEFAULTS = LockOptions()


class LockBase:
    """A reusable object that names a lock: stateless, safe to share."""

    __slots__ = (
        *("_entered", "_holder_info", "_key", "_locks", "_name", "_options", "_queue"),
        "_ttl_ms",
    )

    _locks: Any

    def __init__(
        self, locks: Any, name: str | bytes, lock_options: LockOptions = _DEFAULTS
    ) -> None:
        settings: Settings | None = getattr(locks, "_settings", None)
        if settings is None:
            raise InvalidArgument(
                f"could not make a lock of {type(locks).__name__}: a lock belongs to the Locks of "
                "a server. Use lualock.connect(...).lock(name)"
            )
        on_lost = lock_options.on_lost
        if on_lost is not None and not locks.asynchronous and inspect.iscoroutinefunction(on_lost):
            raise InvalidArgument(
                "on_lost of a plain lock must be a plain function, not a coroutine function"
            )
        self._locks = locks
        self._name = name
        self._key = keys.lock_key(settings.prefix, name)
        self._queue = keys.waiters_key(self._key)
        self._options = lock_options
        self._ttl_ms = settings.ttl_ms if lock_options.ttl_ms is None else lock_options.ttl_ms
        if lock_options.max_hold_s is not None:
            cap_s = min(lock_options.max_hold_s, options.MAX_TTL_S)
            self._ttl_ms = min(self._ttl_ms, options.ttl_ms(cap_s))
        self._holder_info = settings.holder_info
        if lock_options.metadata_bytes:
            self._holder_info = HolderInfo(self._holder_info.holder, lock_options.metadata_bytes)
        self._entered: list[Block] = []  # its blocks that no statement owns

    @property
    def name(self) -> str:
        """The lock's name, printable and not too long."""
        return keys.display_name(self._name)

    @property
    def key(self) -> bytes:
        """The lock's key on the server."""
        return self._key

    @property
    def ttl(self) -> float:
        """Seconds that a lease lasts unless renewed."""
        return self._ttl_ms / 1000

    @property
    def locks(self) -> Any:
        """The ``Locks`` object that the lock belongs to."""
        return self._locks

    @property
    def renewed(self) -> bool:
        """Whether a lease is renewed until released."""
        return self._options.renewed

    def __reduce__(self) -> str:
        raise TypeError("a lock cannot be pickled or copied: make another one with the same name")

    def _request(self) -> AcquireRequest:
        token = new_token()
        lock_options = self._options
        return AcquireRequest(
            self._name,
            self._key,
            self._queue,
            token,
            self._ttl_ms,
            self._holder_info.text(),
            lock_options.priority_base,
            lock_options.waiters_limit,
            self._key in self._locks._crowded,
            fork.pid,
        )

    def _task(self) -> Any:
        """Return the task that a wait blocks; ``None``: the whole thread."""
        return None

    def _acquire(self, request: AcquireRequest, wait_s: float | None) -> Steps[LeaseState]:
        """Return the steps that acquire the lock, waiting up to ``wait_s`` seconds.

        :raises SelfDeadlock: the caller is inside a block of the lock, which then never ends.
        """
        if wait_s is None and (inside.get() or self._key in self._locks._blocks.listed):
            self._locks._blocks.refuse_own_wait(self._key, self._task())
        return protocol.acquire(request, self._locks._driver.server_clock, wait_s)

    def _request_release(self, expires_in: Seconds, server: ServerClock) -> Steps[bool]:
        expires_in_ms = options.ttl_ms(expires_in, "expires_in")
        return stop_request.request_release(self._request(), expires_in_ms, server)

    def _force_release(self, fence: int | None, server: ServerClock) -> Steps[bool]:
        lease_fence = None if fence is None else options.fence(fence)
        return protocol.force_release(self._request(), lease_fence, server)

    # What other rooms of the library build on a lock. In asyncio the results of `hold` and `run`
    # are awaited.

    @property
    def parts(self) -> tuple[Any, ...]:
        """The locks that this one consists of, in the order of their keys."""
        return (self,)

    def derived(
        self,
        suffix: bytes = b"",
        ttl: Seconds | None = None,
        *,
        metadata: str | None = None,
    ) -> Self:
        """Return another lock, whose key is this one's and a suffix.

        ``ttl`` is as for ``locks.lock``. ``metadata`` replaces this lock's, and shortens a holder
        that does not fit beside it.
        """
        made: Self = self._locks.lock(self._name, ttl)
        made._key = self._key + suffix
        made._queue = keys.waiters_key(made._key)
        info = self._holder_info
        made._holder_info = info if metadata is None else info.with_metadata(metadata)
        return made

    def with_metadata(self, metadata: str) -> Self:
        """Return this lock with other metadata, which shortens a holder that does not fit."""
        made = type(self).__new__(type(self))
        made._take_over(self)
        made._holder_info = self._holder_info.with_metadata(metadata)
        return made

    def _take_over(self, lock: LockBase) -> None:
        """Become the same lock as another one."""
        for name in LockBase.__slots__:
            setattr(self, name, getattr(lock, name))
        self._entered = []

    def request(self, token: bytes | None = None, ttl_s: float | None = None) -> AcquireRequest:
        """Return a request for the lock, with this token and this ttl instead of its own."""
        request = self._request()
        if token is not None:
            request.token = token
        if ttl_s is not None:
            request.ttl_ms = options.ttl_ms(min(ttl_s, options.MAX_TTL_S))
        return request

    @property
    def server_clock(self) -> ServerClock:
        """The server's clock, from which the steps of a protocol take their deadlines."""
        clock: ServerClock = self._locks._driver.server_clock
        return clock

    def run(self, steps: Steps[T]) -> Any:
        """Carry out the steps of a protocol, and return their result."""
        return self._locks._driver.run(steps)

    def hold(self, request: AcquireRequest, steps: Steps[LeaseState]) -> Any:
        """Carry out steps that acquire the lock for a request, and return the lease."""
        made: Any = self
        return made._hold(request, steps)

    def abandon_in_background(self, request: AcquireRequest) -> None:
        """Release what the token of a request may have, in the background until the server
        answers."""
        for part in request.parts:
            self._locks._driver.cleanup_in_background(protocol.abandon_request(part))

    def begin_block(self, lease: Any) -> Block:
        """Begin a block on the lock for code that got its lease by other means."""
        block = Block(self)
        self._locks._blocks.push(self._key, block, lease, self._task())
        return block

    def refuse_own_wait(self) -> None:
        """Refuse to wait for the lock without a limit.

        :raises SelfDeadlock: the caller is inside a block of the lock, which then never ends.
        """
        self._locks._blocks.refuse_own_wait(self._key, self._task())

    def holder_in(self, pid: int) -> bytes:
        """Return how the holder of a lease begins in a process of this machine; empty: unknown."""
        return options.process_holder(pid) if self._holder_info.holder is None else b""

    def __repr__(self) -> str:
        renewed = ", renewed" if self._options.renewed else ""
        return f"<{type(self).__name__} {self.name!r} ttl={self.ttl:g}s{renewed}>"
