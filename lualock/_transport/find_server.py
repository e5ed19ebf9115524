"""Layer 4, shared: from what a caller passes to ``connect()`` to an endpoint."""

from __future__ import annotations

import logging
import os
from typing import Any

from lualock._transport.endpoint import Endpoint
from lualock.errors import InvalidArgument

log = logging.getLogger("lualock")
_said = False


def find_server(server: object, *, asynchronous: bool) -> tuple[Endpoint, Any]:
    """The endpoint, and what must be kept (and closed at the end) as long as it is used.

    :raises InvalidArgument: ``server`` is no URL, no client, or a client of the other world.
    :raises EmbeddedUnavailable: nothing is configured and there is no server to embed.
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
    # The one way from the core to a leaf: opened only when nothing else is configured.
    from lualock import embedded

    global _said
    started = embedded.start()
    if not _said:
        _said = True
        # A warning, because it is easily overlooked: such locks end at this machine's border.
        log.warning(
            "no server is configured (no URL, no LUALOCK_URL): using an embedded one at %s, "
            "whose locks exclude only this user's processes on this machine",
            started.url,
        )
    return Endpoint.of_url(started.url), started
