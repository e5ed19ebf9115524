"""A plain job of a system that speaks asyncio, in a thread."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from typing import Any

from lualock.jobs.bound import JobAdapter
from lualock.jobs.terms import Delivery


async def run_in_thread(work: JobAdapter, args: Any, kwargs: Any, delivery: Delivery | None) -> Any:
    """Run it. Who is cancelled cannot end the thread, but a job that still waits for its lock there
    does not begin."""
    gone = threading.Event()
    if delivery is not None:
        delivery = replace(delivery, ended=gone.is_set)
    try:
        return await asyncio.to_thread(work.run, args, kwargs, delivery)
    except asyncio.CancelledError:
        gone.set()
        raise
