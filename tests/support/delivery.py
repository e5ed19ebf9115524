"""A job system in a few lines, for tests of what all integrations share: its queue is a list."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from lualock.jobs import Delivery, adapter
from tests.support.world import World, settle

_ids = count(1)


@dataclass
class Queue:
    """The queue of one job: what was pushed is (job id, token, args)."""

    world: World
    job: Any
    pushed: list[tuple[str, str, tuple[Any, ...]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.work = adapter(self.job)

    def verb(self, name: str) -> Callable[..., Any]:
        """Return a verb of enqueueing, as this world's API has it."""
        found: Callable[..., Any] = getattr(
            self.work, f"{name}_async" if self.world.asynchronous else name
        )
        return found

    async def put(self, *args: Any, job_id: str | None = None, **more: Any) -> Any:
        """Enqueue a job with these arguments."""
        name = job_id or f"put-{next(_ids)}"

        def push(token: str) -> str:
            self.pushed.append((name, token, args))
            return f"pushed {name}"

        return await settle(self.verb("enqueue")(push, args, job_id=name, **more))

    async def deliver(self, *, beside: bool = False, **more: Any) -> Any:
        """Run the first job of the queue."""
        job_id, token, args = self.pushed.pop(0)
        return await self.attempt(job_id, token, *args, beside=beside, **more)

    async def attempt(
        self, job_id: str, token: str | None, *args: Any, beside: bool = False, **more: Any
    ) -> Any:
        """Run a job."""
        delivery = Delivery(job_id, token or None, **more)
        if beside:
            return await self.world.beside(lambda: self.work.run(args, {}, delivery))
        return await settle(self.work.run(args, {}, delivery))


def reservation_of(lock: Any) -> bytes:
    """Return the key of the reservation that belongs to a lock."""
    key: bytes = lock.key + b":reservation"
    return key


def held(world: World, key: bytes) -> bool:
    """Return whether a lock's key is held, as the server has it."""
    record = world.client.get(key)
    return record is not None and record[:1] in b"HW"


def watched(queue: Queue) -> list[Any]:
    """Return the leases that are renewed for a queue's jobs."""
    locks: Any = queue.work._locks_for(queue.work.asynchronous)
    renewer = locks._renewers.current() if queue.world.asynchronous else locks._renewer
    found: list[Any] = renewer.leases()
    return found
