"""Turn the argument of ``connect()`` into an endpoint."""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

from lualock._transport import url as urls
from lualock._transport.endpoint import Endpoint
from lualock.errors import EmbeddedUnavailable, InvalidArgument

_warned = False


def find_server(server: object, *, asynchronous: bool) -> tuple[Endpoint, Any]:
    """Return the endpoint, and an object to keep while it is used and to close at the end.

    :raises InvalidArgument: ``server`` is not a URL or a client, or a client for the other API.
    :raises EmbeddedUnavailable: the embedded server is forbidden, or cannot run.
    """
    configured = os.environ.get("LUALOCK_URL") if server is None else None
    chosen = configured or server
    if chosen is None:
        return _default()
    if not isinstance(chosen, str):
        return Endpoint.of_client(chosen, asynchronous=asynchronous), None
    if chosen == urls.EMBEDDED:
        return _embedded()
    try:
        return Endpoint.of_url(chosen, asynchronous=asynchronous), None
    except InvalidArgument as error:
        if configured:
            raise InvalidArgument(f"$LUALOCK_URL is {error}") from None
        raise


def _default() -> tuple[Endpoint, Any]:
    endpoint, started = _embedded()
    try:
        _warn_once()
    except BaseException:  # a filter or a hook raised it, so the caller gets no locks
        started.close()
        raise
    return endpoint, started


def _embedded() -> tuple[Endpoint, Any]:
    allowed = os.environ.get("LUALOCK_EMBEDDED", "")
    if allowed not in ("", "0", "1"):
        raise InvalidArgument(
            f"LUALOCK_EMBEDDED must be 0 (forbid the embedded server), 1 or empty, not {allowed!r}"
        )
    if allowed == "0":
        raise EmbeddedUnavailable(
            "could not use the embedded server: LUALOCK_EMBEDDED=0 forbids it. Set LUALOCK_URL or "
            "pass the URL of a running server, or set LUALOCK_EMBEDDED=1"
        )
    # An optional package: imported only where the embedded server is used.
    from lualock import embedded

    started = embedded.start()
    return Endpoint.of_url(started.url), started


def _warn_once() -> None:
    """Warn that the embedded server was not chosen: its locks exclude less than expected."""
    global _warned
    if not _warned:
        warnings.warn(
            "no server is configured, so lualock uses an embedded one, whose locks exclude only "
            "this user's processes on this machine. Set LUALOCK_URL, pass the URL of a server, or "
            f"pass {urls.EMBEDDED!r} if this is enough",
            RuntimeWarning,
            stacklevel=_callers_level(),
        )
        _warned = True


def _callers_level() -> int:
    """Return the ``stacklevel`` by which a warning names the line that called this library."""
    frame, level = sys._getframe(1), 1
    while str(frame.f_globals.get("__name__")).partition(".")[0] == "lualock" and frame.f_back:
        frame, level = frame.f_back, level + 1
    return level
