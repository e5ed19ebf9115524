"""Provide :func:`fenced_set` for ``redis.asyncio`` clients."""

from __future__ import annotations

from typing import Any

from lualock._core.options import Seconds
from lualock.fencing import SOURCE, check_client, judge, request


async def fenced_set(
    client: Any, key: str | bytes, value: str | bytes, *, fence: int, ttl: Seconds | None = None
) -> None:
    """See :func:`lualock.fencing.fenced_set`."""
    check_client(client, asynchronous=True)
    keys, args = request(key, value, fence, ttl)
    judge(await client.register_script(SOURCE)(keys=keys, args=args), key, fence)
