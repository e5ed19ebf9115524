"""What a server's user must be allowed: README's rule, and what is said to one who may less."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import lualock
from lualock import jobs
from tests.servers import Server
from tests.world import World, settle

ROOT = Path(__file__).parents[1]
RULE = re.search(
    r"ACL SETUSER app (on >password .*?)\n```", (ROOT / "README.md").read_text(), re.DOTALL
)
assert RULE is not None
WORDS = RULE[1].split()
DRIVEN = {"eval", "evalsha", "ping", "subscribe", "time"}
"""What the drivers send."""


@pytest.fixture
def as_user(server: Server) -> Iterator[Callable[..., str]]:
    """Make a user with these rights; returns the URL for it."""
    with server.client() as client:

        def make(*words: str) -> str:
            client.execute_command("ACL", "SETUSER", "app", "reset", *words)
            return server.tcp_url.replace("redis://", "redis://app:password@")

        yield make
        client.execute_command("ACL", "DELUSER", "app")


def test_the_rule_names_what_is_used_and_no_more() -> None:
    """The commands of all scripts, and those of the drivers."""
    sources = "".join(path.read_text() for path in (ROOT / "lualock").rglob("*.lua"))
    called = {name.lower() for name in re.findall(r"redis\.p?call\(\s*'(\w+)'", sources)}
    assert {word[1:] for word in WORDS if word.startswith("+")} == called | DRIVEN


async def test_the_rule_is_enough(world: World, as_user: Callable[..., str]) -> None:
    """Locks: waited for, in turn and without, looked at, extended, asked for and passed on."""
    locks = world.connect(as_user(*WORDS))
    for fair in (True, False):
        lock = locks.lock("x", fair=fair, ttl=30)
        lease = await settle(lock.acquire())
        turn = asyncio.ensure_future(world.beside(lock.acquire))
        await world.until_waiters(lock, 1)
        with pytest.raises(lualock.NotAcquired):
            await settle(lock.acquire(timeout=0.05))
        assert await settle(lock.request_release())
        assert await settle(lease.release_requested())
        await settle(lease.extend(20))
        await settle(lease.release())
        adopted = await settle(locks.adopt((await turn).handle()))
        await settle(adopted.release())
        assert not (await settle(lock.inspect())).held


def test_the_rule_is_enough_for_jobs(server: Server, as_user: Callable[..., str]) -> None:
    """Jobs: put into a queue, refused, run, held for a retry, and given up."""
    attempts: list[Any] = []

    with lualock.connect(as_user(*WORDS)) as locks:

        @locks.job(unique="both", on_retry="hold", policy=jobs.Coalesce(wait=0))
        def work(number: int) -> str:
            attempts.append(number)
            if len(attempts) == 1:
                raise OSError("gone")
            return "done"

        job = jobs.bound(work)
        entry = job.enqueue(lambda token: None, [1], job_id="a")
        assert isinstance(entry, jobs.Enqueued)
        assert not job.enqueue(lambda token: None, [1], job_id="b")
        delivery = jobs.Delivery("a", entry.token, will_retry=lambda error: 0.0)
        with pytest.raises(OSError, match="gone"):
            job.run([1], {}, delivery)
        assert job.run([1], {}, delivery) == "done"
        other = job.enqueue(lambda token: None, [2], job_id="c")
        assert isinstance(other, jobs.Enqueued)
        job.cancel([2], {}, token=other.token)
        assert not job.place([2]).locked()


@pytest.mark.parametrize("missing", ["+get", "+evalsha", "~lualock:*"])
async def test_a_right_is_missing(world: World, as_user: Callable[..., str], missing: str) -> None:
    """It is said to be one, also where it is a script that may not use a command."""
    url = as_user(*(word for word in WORDS if word != missing))
    with pytest.raises(lualock.AccessDenied, match="ACL rules"):
        await settle(world.connect(url).lock("x").acquire(timeout=5))
