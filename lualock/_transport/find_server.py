"""Turn the argument of ``connect()`` into an endpoint."""

from __future__ import annotations

import logging
import os
from typing import Any

from lualock._transport.endpoint import Endpoint
from lualock.errors import InvalidArgument

log = logging.getLogger("lualock")
_warned = False


def find_server(server: object, *, asynchronous: bool) -> tuple[Endpoint, Any]:
    """Return the endpoint, and an object to keep while it is used and to close at the end.

    :raises InvalidArgument: ``server`` is not a URL or a client, or a client for the other API.
    :raises EmbeddedUnavailable: nothing is configured, and there is no server to embed.
    """
    if server is None and (url := os.environ.get("LUALOCK_URL")):
        try:
            return Endpoint.of_url(url, asynchronous=asynchronous), None
        except InvalidArgument as error:
            raise InvalidArgument(f"$LUALOCK_URL is {error}") from None
    if isinstance(server, str):
        return Endpoint.of_url(server, asynchronous=asynchronous), None
    if server is not None:
        return Endpoint.of_client(server, asynchronous=asynchronous), None
    # An optional package: imported only if nothing else is configured.
    from lualock import embedded

    global _warned
    started = embedded.start()
    if not _warned:
        _warned = True
        # A warning, because it is easily overlooked that such locks exclude only this machine.
        log.warning(
            "no server is configured (no URL, no LUALOCK_URL): using an embedded one at %s, "
            "whose locks exclude only this user's processes on this machine",
            started.url,
        )
    return Endpoint.of_url(started.url), started
