"""A process that enqueues: ``python -m tests.integrations.workers.producer SYSTEM``.

It reads an order a line, and answers a line. An order may be for many jobs, one after the other or
all together.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Order:
    """Call a function of the app, such as ``send``, once for each list of arguments."""

    job: str
    each: list[list[Any]]
    kwargs: dict[str, Any] = field(default_factory=dict)
    call: str = "send"
    together: bool = False


class Producer:
    """An app's functions, whichever kind they are."""

    def __init__(self, system: str) -> None:
        self._app: Any = importlib.import_module(f"tests.integrations.workers.apps.{system}")

    def carry_out(self, order: Order, loop: asyncio.AbstractEventLoop) -> list[Any]:
        if inspect.iscoroutinefunction(self._app.send):
            return loop.run_until_complete(self._tasks(order))
        if not order.together:
            return [self._one(order, args) for args in order.each]
        start = threading.Barrier(len(order.each))

        def one(args: list[Any]) -> Any:
            start.wait()
            return self._one(order, args)

        with ThreadPoolExecutor(len(order.each)) as threads:
            return list(threads.map(one, order.each))

    def _one(self, order: Order, args: list[Any]) -> Any:
        call = getattr(self._app, order.call)
        return (
            call(order.job, *args)
            if order.call == "remove"
            else call(order.job, args, order.kwargs)
        )

    async def _tasks(self, order: Order) -> list[Any]:
        if order.together:
            return await asyncio.gather(*(self._one(order, args) for args in order.each))
        return [await self._one(order, args) for args in order.each]


def main() -> None:
    producer = Producer(sys.argv[1])
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    for line in sys.stdin:
        answer = producer.carry_out(Order(**json.loads(line)), loop)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
