"""Run a plain job of an asyncio job system in a thread."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from lualock._core.event import Event
from lualock.jobs import Delivery, JobAdapter


async def run_in_thread(
    adapter: JobAdapter, args: Any, kwargs: Any, delivery: Delivery | None
) -> Any:
    """Run a plain job in a thread.

    Cancelling this task cannot end the thread, but a job that still waits for its lock there does
    not begin.
    """
    cancelled = Event()
    if delivery is not None:
        delivery = replace(delivery, ended=cancelled.is_set)
    try:
        return await asyncio.to_thread(adapter.run, args, kwargs, delivery)
    except asyncio.CancelledError:
        cancelled.set()
        raise
