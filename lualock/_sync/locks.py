# Generated from lualock/aio/locks.py by `python tools/unasync.py`: edit that file.
"""Define ``Locks`` and ``connect`` of the threads API."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn

from lualock import _protocol as protocol
from lualock._core import options
from lualock._core.keys import DEFAULT_PREFIX
from lualock._core.lock import Crowded, LocksBase, Settings
from lualock._core.lock_options import lock_options
from lualock._core.options import Seconds
from lualock._core.with_statement import blocks_on
from lualock._sync.lease import Lease
from lualock._sync.lock import Lock
from lualock._sync.multi import MultiLock
from lualock._transport.endpoint import Endpoint
from lualock._transport.find_server import find_server
from lualock._transport.threads.driver import BlockingDriver
from lualock._transport.threads.renewer import ThreadRenewer

if TYPE_CHECKING:
    import redis
    import valkey

    from lualock.jobs import JobMaker


class Locks(LocksBase, asynchronous=False):
    """The locks of one server.

    Every time that a method takes is a number of seconds or a ``timedelta``.

    :param client: a ``redis.Redis`` or ``valkey.Valkey``. Only its connection
        settings are used.
    :param prefix: the beginning of every key. Locks exclude each other only under one prefix.
    :param ttl: seconds that a lease lasts unless renewed; the default for every lock.
    :param holder: how other processes see this one (default ``host:pid:thread``).
    :raises InvalidArgument: an argument is not valid.
    """

    _multi_lock = MultiLock

    def __init__(
        self,
        client: redis.Redis | valkey.Valkey,
        *,
        prefix: str = DEFAULT_PREFIX,
        ttl: Seconds = options.DEFAULT_TTL_S,
        holder: str | None = None,
    ) -> None:
        endpoint = Endpoint.of_client(client, asynchronous=False)
        self._open(endpoint, None, Settings(prefix, ttl, holder))

    def _open(self, endpoint: Endpoint, keep: Any, settings: Settings) -> None:
        self._endpoint = endpoint
        self._settings = settings
        self._keep = keep
        self._crowded = Crowded()
        self._driver = BlockingDriver(endpoint, settings.prefix)
        self._blocks = self._driver.blocks = blocks_on(endpoint.server)
        self._renewer = ThreadRenewer(self._driver)

    def lock(
        self,
        name: str | bytes,
        ttl: Seconds | None = None,
        *,
        renew: bool | None = None,
        metadata: str = "",
        priority: int = 0,
        max_waiters: int | None = None,
        max_hold: Seconds | None = None,
        hold_at_least: Seconds | None = None,
        on_lost: Callable[[Lease], object] | None = None,
        **unknown: NoReturn,
    ) -> Lock:
        """Return the lock with that name. Nothing is sent until it is acquired.

        :param name: any ``str`` or ``bytes`` of 1 to 1024 bytes; ``"a"`` and ``b"a"`` are the same.
        :param ttl: seconds that a lease lasts. With a ``ttl`` it is not renewed unless
            ``renew=True``. Without one it lasts 30 s and is renewed until released.
        :param metadata: free text for :meth:`Lock.inspect`, such as the purpose of the lock.
        :param priority: from -100 to 100; waiters with the highest priority are served first.
        :param max_waiters: how many callers may wait; a further one gets :class:`QueueFull`.
        :param max_hold: for how many seconds a lease is renewed at most, so that a holder that
            hangs does not keep the lock for ever. :meth:`Lease.extend` may go beyond it.
        :param hold_at_least: seconds from the acquisition for which the lock stays held, for no
            one, if it is released sooner. So of several hosts that begin a short task at almost
            the same time, only one carries it out. If the holder dies, the lease ends as usual.
        :param on_lost: called once, with the lease, when it is lost before its release: it expired
            by the local clock, or the server reported that it has ended. Not called if
            :meth:`Lease.release` reports the loss, nor for a lease that the program dropped.
            It is called in a thread of its own.
        :raises InvalidArgument: an argument is not valid.
        """
        if unknown:
            raise options.unknown_parameter("Locks.lock()", unknown)
        others = ttl, renew, metadata, priority, max_waiters, max_hold, hold_at_least
        return Lock(self, name, lock_options(on_lost, *others))

    @property
    def job(self) -> JobMaker:
        """Decorate a function so that only one run of it goes on at a time.

        Use it as ``@locks.job`` or ``@locks.job(ttl=..., key=..., on_skipped=...,
        on_expired=...)``, on plain functions and coroutine functions alike; see
        :class:`lualock.jobs.JobMaker`.
        """
        from lualock.jobs import JobMaker  # loaded on first use

        return JobMaker(self)

    def adopt(
        self,
        handle: str,
        *,
        renew: bool | None = None,
        metadata: str = "",
        max_hold: Seconds | None = None,
        on_lost: Callable[[Lease], object] | None = None,
    ) -> Lease:
        """Take over a lease that another process passed on with :meth:`Lease.handle`.

        The lease lasts its whole ttl from now on, under a new token and a greater fence: its
        previous holder can neither extend nor release it.

        :param renew: ``None``: renewed if it was before. A ``max_hold`` is not passed on; give it
            again.
        :raises LeaseLost: the lease has ended, or was released or adopted before.
        :raises InvalidArgument: the text is not a handle, or its lock has another prefix.

        The other parameters are those of :meth:`lock`.
        """
        found, name = self._passed_on(handle)
        lock = self.lock(
            name,
            found.ttl_ms / 1000,
            renew=found.renew if renew is None else renew,
            metadata=metadata,
            max_hold=max_hold,
            on_lost=on_lost,
        )
        request = lock._request()
        steps = protocol.adopt(request, found.token, self._driver.server_clock)
        return lock._hold(request, steps)

    def close(self) -> None:
        """Close the idle connections, and the embedded server if this object uses it.

        Leases that are still held are renewed as before.
        """
        try:
            self._driver.close()
        finally:
            keep, self._keep = self._keep, None
            if keep is not None:
                keep.close()

    def __enter__(self) -> Locks:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def connect(
    server: str | redis.Redis | valkey.Valkey | None = None,
    *,
    prefix: str = DEFAULT_PREFIX,
    ttl: Seconds = options.DEFAULT_TTL_S,
    holder: str | None = None,
) -> Locks:
    """Return the locks of a server. Nothing is sent yet.

    :param server: a URL (``redis://``, ``rediss://``, ``valkey://``, ``valkeys://``, ``unix://``);
        a client, which is a ``redis.Redis`` (Sentinel's too) or ``valkey.Valkey``;
        or ``"embedded://"``: a server shared by all processes of this user on this machine
        (``pip install 'lualock[embedded]'``). ``None``: the URL in ``$LUALOCK_URL``, else
        ``"embedded://"`` with a ``RuntimeWarning``. ``LUALOCK_EMBEDDED=0`` forbids that server.
    :raises InvalidArgument: an argument is not valid.
    :raises EmbeddedUnavailable: the embedded server is forbidden, or cannot run.

    The other parameters are those of :class:`Locks`. Use it as ``with connect() as locks``.
    """
    settings = Settings(prefix, ttl, holder)
    return Locks._of(*find_server(server, asynchronous=False), settings)
