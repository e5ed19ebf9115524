"""The ACL rule for a user that only takes locks: it is sufficient and minimal."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import redis

import lualock
from lualock import jobs
from lualock._transport.asyncio import subscriber as asyncio_subscriber
from lualock._transport.threads import subscriber
from lualock.fencing import fenced_set
from lualock.ops.acl import acl_rule
from lualock.scripts import every
from tests.jobs.test_jobs import as_job
from tests.project.test_docs import ROOT
from tests.support.delivery import Queue
from tests.support.servers import Server
from tests.support.world import World, few, settle

slow = pytest.mark.slow
COMMANDS = [word for word in acl_rule().split() if word.startswith("+")]
QUIET = {"+pubsub|numsub", "+ping", "+getrange", "+del", "+zrem"}
"""If one of these is missing, only the server's log shows it: a granted lease may end early, a
waiter that gave up keeps its place, and a stop request stays until it expires."""


class User:
    """A user of a server, and what the server refuses it."""

    def __init__(self, server: Server, client: Any) -> None:
        self.url = server.tcp_url.replace("redis://", "redis://locker:pw@")
        self._client = client

    def may(self, *rule: str) -> None:
        """Give the user exactly this rule, on a server without data and scripts."""
        self._client.flushall()
        self._client.script_flush()
        self._client.execute_command("ACL", "SETUSER", "locker", "reset", "on", ">pw", *rule)
        self._client.execute_command("ACL", "LOG", "RESET")

    def refused(self) -> set[str]:
        """Return the commands, keys and channels that the server has refused since then. (redis-py
        sends its name to the server, and ignores a refusal.)"""
        entries = self._client.execute_command("ACL", "LOG")
        found = {dict(zip(e[::2], e[1::2], strict=True))[b"object"].decode() for e in entries}
        return found - {"client", "client|setinfo"}


@pytest.fixture
def user(server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[User]:
    """Return a user; its connections for messages are checked quickly."""
    monkeypatch.setattr(subscriber, "PING_AFTER_S", 0.0)
    monkeypatch.setattr(asyncio_subscriber, "PING_AFTER_S", 0.0)
    with server.client() as client:
        yield User(server, client)
        client.execute_command("ACL", "DELUSER", "locker")


def _nothing() -> None:
    """Do nothing: the body of a job."""


class Everything:
    """Does all that can be done with locks and jobs."""

    def __init__(self, world: World, locks: Any, *, refused: bool = False) -> None:
        self.world, self.locks, self.refused = world, locks, refused
        self.tasks: list[asyncio.Task[Any]] = []

    async def do(self) -> lualock.LockError | None:
        """Do it until something fails; return how it ended."""
        try:
            await self.one()
            await self.several()
            await self.late()
            await self.full()
            await self.jobs()
            await self.dead()
        except lualock.LockError as error:
            return error
        finally:
            await asyncio.gather(*self.tasks, return_exceptions=True)
        return None

    async def waits(self, lock: Any, count: int = 1) -> asyncio.Task[Any]:
        """Start a waiter for a lock, and return when the lock has so many."""
        task = asyncio.ensure_future(self.world.beside(partial(lock.acquire, timeout=3)))
        self.tasks.append(task)
        await self.world.until(lambda: task.done() or self.world.waiters(lock) == count)
        if self.refused:
            # A first check may fail after it has a place: the error comes with the second check.
            await asyncio.wait({task}, timeout=0.05)
        if task.done():
            task.result()
        return task

    async def one(self) -> None:
        """Acquire, extend, inspect, pass on, release."""
        lock = self.locks.lock("one", ttl=5)
        lease = await settle(lock.acquire())
        await settle(lease.extend(5))
        await settle(lock.inspect())
        await settle(lock.request_release())
        await settle(lease.release_requested())
        adopted = await settle(self.locks.adopt(await settle(lease.handle())))
        await settle(adopted.release())
        await settle(lock.acquire())
        await settle(lock.force_release())

    async def several(self) -> None:
        """Wait until a timeout, and by priority until a hand-over."""
        lock = partial(self.locks.lock, "several", ttl=1)
        lease = await settle(lock().acquire())
        first = await self.waits(lock())
        second = await self.waits(lock(priority=5), 2)
        for task in (second, first):
            await settle(lease.release())
            lease = await task
        await settle(lease.release())

    async def late(self) -> None:
        """Give up in time."""
        lock = self.locks.lock("late", ttl=1)
        lease = await settle(lock.acquire())
        assert await settle(lock.try_acquire()) is None
        try:
            await settle(lock.acquire(timeout=0.1))  # a busy machine takes long to get a place
        except lualock.NotAcquired:
            await settle(lease.release())

    async def full(self) -> None:
        """Meet a full queue."""
        lock = self.locks.lock("full", ttl=1, max_waiters=1)
        lease = await settle(lock.acquire())
        task = await self.waits(lock)
        try:
            await settle(lock.acquire())
        except lualock.QueueFull:
            await settle(lease.release())
        await settle((await task).release())

    async def jobs(self) -> None:
        """Queue, refuse, run, stop and replace jobs."""
        begun: list[int] = []
        give_up = time.monotonic() + 3

        def plain(number: int) -> None:
            begun.append(number)
            while number == 1 and time.monotonic() < give_up:
                if jobs.current_lease().release_requested():
                    return
                time.sleep(0.005)

        async def coroutine(number: int) -> None:
            begun.append(number)
            while number == 1 and time.monotonic() < give_up:
                if await jobs.current_lease().release_requested():
                    return
                await asyncio.sleep(0.005)

        body: Any = coroutine if self.world.asynchronous else plain
        declare = self.locks.job(key="job", ttl=5, unique="both", policy=jobs.Replace(3))
        queue = Queue(self.world, declare(body))
        assert await queue.put(1)
        assert not await queue.put(1)
        runs = asyncio.ensure_future(queue.deliver(beside=True))
        self.tasks.append(runs)
        await self.world.until(lambda: begun or runs.done())
        if not begun:
            await runs
        await queue.attempt("b", None, 2, beside=True)
        await runs
        assert await queue.put(2)
        await settle(queue.verb("cancel")((2,), token=queue.pushed[0][1]))

    async def dead(self) -> None:
        """Release the lock of a dead worker."""
        queue = Queue(self.world, self.locks.job(key="dead")(as_job(self.world, _nothing)))
        lock = self.locks.lock("dead", ttl=5, metadata="job a")
        await settle(lock.acquire())
        assert await settle(queue.verb("died")(job_id="a"))


@slow
async def test_everything_may_be_done(world: World, user: User) -> None:
    """With that rule nothing is refused, even under a prefix that looks like a pattern."""
    for prefix in ("lualock", "my [locks]*"):
        user.may(*acl_rule(prefix).split())
        failed = await Everything(world, world.connect(user.url, prefix=prefix)).do()
        assert failed is None, failed
        await asyncio.sleep(0.3)  # the time in which clean-ups may be repeated
        assert user.refused() == set()


@few
async def test_every_command_is_used(world: World, user: User) -> None:
    """What these tests do uses each command of the rule; or they cannot show that it is needed."""
    user.may(*acl_rule().split())
    world.client.config_resetstat()
    assert await Everything(world, world.connect(user.url)).do() is None
    used = {name.removeprefix("cmdstat_") for name in world.client.info("commandstats")}
    used |= {name.partition("|")[0] for name in used}  # the older servers count no subcommands
    unused = {word for word in COMMANDS if not {word[1:], word[1:].partition("|")[0]} & used}
    assert unused == set(), "Everything has no step for them"


@pytest.mark.full
@few
async def test_every_command_is_needed(world: World, user: User) -> None:
    """Without any one of its commands something is refused."""
    for command in COMMANDS:
        user.may(*(word for word in acl_rule().split() if word != command))
        failed = await Everything(world, world.connect(user.url), refused=True).do()
        name = command[1:]
        assert user.refused() & {name, name.partition("|")[0]}, command
        assert isinstance(failed, lualock.AccessDenied) == (command not in QUIET), command


@slow
async def test_other_prefixes_are_forbidden(world: World, user: User) -> None:
    """The rule allows no other prefix, however similar."""
    user.may(*acl_rule("l*k").split())
    await settle(world.connect(user.url, prefix="l*k").lock("x").acquire())
    for other in ("l", "lk", "look", "l*k:x", "L*k"):
        with pytest.raises(lualock.AccessDenied, match="ACL"):
            await settle(world.connect(user.url, prefix=other).lock("x").acquire())


@pytest.mark.parametrize(
    "without",
    ["resetchannels", "&other:*", "&lualock:wake", "+publish", "&lualock:x*"],
)
async def test_a_right_that_messages_need(world: World, user: User, without: str) -> None:
    """A user whose messages would not reach a waiter is refused when it acquires, before it has
    anything."""
    words = acl_rule().split()
    if without == "+publish":
        words.remove(without)
    else:
        words[words.index("&lualock:wake:*")] = without
    user.may(*words)
    lock = world.connect(user.url).lock("x")
    for _ in range(2):
        with pytest.raises(lualock.AccessDenied, match=r"acl_rule\(prefix\)"):
            await settle(lock.acquire(timeout=5))
    assert world.client.keys("lualock*") == []
    user.may(*acl_rule().split())
    await settle((await settle(lock.acquire(timeout=5))).release())


@slow
@pytest.mark.parametrize(
    ("right", "option"), [("+select", "db=1"), ("+client|setname", "client_name=me")]
)
async def test_what_a_connection_may_need_besides(
    world: World, user: User, right: str, option: str
) -> None:
    """A database or a client name in the URL needs a right of its own."""
    url = f"{user.url}?{option}"
    user.may(*acl_rule().split())
    with pytest.raises(lualock.AccessDenied):
        await settle(world.connect(url).lock("x").acquire())
    user.may(*acl_rule().split(), right)
    await settle((await settle(world.connect(url).lock("x").acquire())).release())


@slow
def test_a_user_for_fenced_writes(server: Server, user: User) -> None:
    """The rule that the docs give for the user of the data is sufficient and minimal."""
    page = ROOT / "docs" / "howto" / "server-users.md"
    (quoted,) = re.findall(r"`(\+get [^`]*)`", page.read_text("utf-8"))
    for missing in ("", *quoted.split()):
        user.may("~stock:*", "~{stock:*", *(word for word in quoted.split() if word != missing))
        with redis.Redis.from_url(user.url) as client:
            if missing:
                with pytest.raises(redis.ResponseError):
                    fenced_set(client, "stock:7", "41", fence=7)
            else:
                fenced_set(client, "stock:7", "41", fence=7)


def test_every_call_of_the_scripts_is_read() -> None:
    """Each call of the scripts names its command literally, so that the rule contains it."""
    for script in every().values():
        calls = re.findall(rb"\bp?call\b", script.source)
        assert len(calls) == len(re.findall(rb"redis\.p?call\('[A-Z]+'[,)]", script.source))
