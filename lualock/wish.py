"""Layer 4, shared: the lock as a wish, and what a ``Locks`` knows. No I/O."""

from __future__ import annotations

import secrets

from lualock import keys, options
from lualock.errors import InvalidArgument
from lualock.protocol import Ask


class Settings:
    """What one ``Locks`` uses for all its locks."""

    __slots__ = ("holder", "prefix", "ttl_ms")

    def __init__(self, prefix: str, ttl: float, holder: str | None) -> None:
        self.prefix = keys.prefix_bytes(prefix)
        self.ttl_ms = options.ttl_ms(ttl)
        options.about_bytes(holder, "")
        self.holder = holder


class BaseLock:
    """A named thing that at most one holder may have: stateless, safe to share."""

    __slots__ = ("_holder", "_key", "_metadata", "_name", "_renew", "_ttl_ms")

    def __init__(
        self,
        settings: Settings,
        name: str | bytes,
        ttl: float | None,
        renew: bool | None,
        metadata: str,
    ) -> None:
        self._name = name
        self._key = keys.lock_key(settings.prefix, name)
        self._ttl_ms = settings.ttl_ms if ttl is None else options.ttl_ms(ttl)
        if renew is not None and not isinstance(renew, bool):
            raise InvalidArgument(f"renew must be True, False or None, not {renew!r}")
        # Who says how long gets just that long; who does not is held until released.
        self._renew = ttl is None if renew is None else renew
        self._holder = settings.holder
        self._metadata = metadata
        options.about_bytes(self._holder, metadata)

    @property
    def name(self) -> str:
        """The lock's name, fit to be shown."""
        return keys.display_name(self._name)

    @property
    def key(self) -> bytes:
        """The key on the server."""
        return self._key

    @property
    def ttl(self) -> float:
        """How long a lease lasts on the server unless renewed, in seconds."""
        return self._ttl_ms / 1000

    def _ask(self) -> Ask:
        # 128 random bits as 22 characters.
        token = secrets.token_urlsafe(16).encode()
        about = options.about_bytes(self._holder, self._metadata)
        return Ask(self._name, self._key, token, self._ttl_ms, about)

    def __repr__(self) -> str:
        renewed = ", renewed" if self._renew else ""
        return f"<{type(self).__name__} {self.name!r} ttl={self.ttl:g}s{renewed}>"
