"""The names of a queued job's locks travel with it, so that they are found again whatever its
arguments, or its function, have become."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import lualock
from lualock import jobs
from lualock.jobs.identity import encode_token, names_in, with_names
from tests.jobs.test_jobs import as_job
from tests.support.delivery import Queue
from tests.support.world import World, few, settle

LONG_MS = 6000
"""What lasts longer than a tombstone is not over."""


def left(world: World) -> list[bytes]:
    """Return the keys that something still has."""
    found: list[bytes] = world.client.keys("lualock*")
    return [key for key in found if world.client.pttl(key) > LONG_MS]


def queue_of(world: World, work: Callable[..., Any], **options: Any) -> Queue:
    """Return the queue of a job that is unique while it is queued."""
    made = {"unique": "queued"} | options
    return Queue(world, world.connect().job(**made)(as_job(world, work)))


def work(value: Any) -> str:
    """Do nothing."""
    return f"done {value}"


@pytest.mark.parametrize(
    ("given_value", "delivered"),
    [("7", 7), (7.0, 7), ({}, {"n": 1}), (b"x", "x"), ((1, 2), [1, 2, 3]), ("a", object())],
)
async def test_arguments_that_changed(world: World, given_value: Any, delivered: Any) -> None:
    """A run begins with other arguments than its producer gave: nothing of it stays."""
    queue = queue_of(world, work)
    await queue.put(given_value, job_id="a")
    job_id, token, _ = queue.pushed.pop()
    assert not await queue.put(given_value)
    assert await queue.attempt(job_id, token, delivered) == f"done {delivered}"
    assert left(world) == []
    assert await queue.put(given_value)


@few
@pytest.mark.parametrize("unique", ["queued", None])
async def test_a_job_that_changes_its_argument(world: World, unique: Any) -> None:
    """What is kept for its retries is found again, and is over with the last of them."""
    runs: list[dict[str, int]] = []

    def change(payload: dict[str, int]) -> str:
        payload["n"] = payload.get("n", 0) + 1
        runs.append(dict(payload))
        if len(runs) < 4:
            raise ZeroDivisionError
        return "done"

    queue = queue_of(world, change, unique=unique, keep_lock_on_retry=True)
    payload: dict[str, int] = {}
    await queue.put(payload, job_id="a")
    job_id, token, _ = queue.pushed.pop()
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            await queue.attempt(job_id, token, payload, will_retry=lambda _: 0.0)
        assert await settle(queue.work.lock(({},)).locked())
    assert await queue.attempt(job_id, token, payload) == "done"
    assert left(world) == []


@few
async def test_both_names_are_locked(world: World) -> None:
    """A run excludes those of the name that its arguments give now, and of the one that it was
    queued under."""
    seen: list[Any] = []

    def look(value: Any) -> None:
        with lualock.connect(world.server.url) as others:
            for one in ("7", 7):
                key = queue.work.lock((one,)).key
                seen.append(others.lock_at(key).locked())

    queue = queue_of(world, look)
    await queue.put("7", job_id="a")
    job_id, token, _ = queue.pushed.pop()
    await queue.attempt(job_id, token, 7, beside=True)
    assert seen == [True, True]
    assert left(world) == []


@few
async def test_a_function_that_was_renamed(world: World) -> None:
    """A job that was queued under the previous name runs, and leaves nothing there."""
    old = queue_of(world, work, key=lambda value: f"old {value}")
    new = queue_of(world, work, key=lambda value: f"new {value}")
    await old.put(7, job_id="a")
    job_id, token, args = old.pushed.pop()
    assert await new.attempt(job_id, token, *args) == "done 7"
    assert left(world) == []
    assert await old.put(7)


@few
@pytest.mark.parametrize("verb", ["cancel", "died"])
async def test_what_will_not_run(world: World, verb: str) -> None:
    """A cancelled job, and one whose process died, are found by what travelled with them."""
    queue = queue_of(world, work)
    await queue.put("7", job_id="a")
    _, token, _ = queue.pushed.pop()
    assert left(world)
    await settle(queue.verb(verb)((7,), job_id="a", token=token))
    assert left(world) == []


@few
async def test_a_push_that_fails(world: World) -> None:
    """The reservation of a job whose push changed its arguments is released."""
    queue = queue_of(world, work)
    payload: dict[str, int] = {}

    def push(token: str) -> None:
        payload["n"] = 1
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await settle(queue.verb("enqueue")(push, (payload,), job_id="a"))
    assert left(world) == []


@few
async def test_a_push_that_changes_the_arguments(world: World) -> None:
    """The reservation is confirmed where it was taken."""
    queue = queue_of(world, work)
    payload: dict[str, int] = {}

    def push(token: str) -> None:
        payload["n"] = 1

    await settle(queue.verb("enqueue")(push, (payload,), job_id="a"))
    (key,) = left(world)
    assert world.client.pttl(key) > 60_000


@few
async def test_both_names_of_a_deploy_travel(world: World) -> None:
    """A job that was queued under two names ends the reservations of both."""
    queue = queue_of(world, work, key=lambda value: f"new {value}", previous_key="old")
    await queue.put("7", job_id="a")
    job_id, token, _ = queue.pushed.pop()
    assert names_in(token) == (b"new 7", b"old")
    assert await queue.attempt(job_id, token, 8) == "done 8"
    assert left(world) == []


@few
async def test_a_message_without_names(world: World) -> None:
    """A token alone, or none, is for the locks that the arguments name."""
    queue = queue_of(world, work)
    await queue.put(7, job_id="a")
    job_id, token, args = queue.pushed.pop()
    assert await queue.attempt(job_id, token[:22], *args) == "done 7"
    assert await queue.attempt("b", None, *args) == "done 7"
    assert left(world) == []


@few
async def test_coalesced_jobs(world: World) -> None:
    """A job that waits reserves the locks that it was queued under."""
    queue = queue_of(world, work, policy=jobs.Coalesce(0.01, None))
    await queue.put("7", job_id="a")
    job_id, token, _ = queue.pushed.pop()
    lease = await settle(queue.work.lock((7,)).acquire())
    assert await queue.attempt(job_id, token, 7) is None
    await settle(lease.release())
    assert left(world) == []


@given(st.binary(min_size=22, max_size=22), st.lists(st.binary(min_size=1), max_size=3))
def test_any_name_travels(raw: bytes, names: list[bytes]) -> None:
    """Every name comes back, in a text that any header can carry."""
    token = bytes(b"abcdefgh-_012345"[byte % 16] for byte in raw)
    text = with_names(token, names)
    assert text.isascii()
    assert text.isprintable()
    assert " " not in text
    assert encode_token(text) == token
    assert names_in(text) == tuple(names)


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "t" * 21, "t" * 23, "t" * 22 + ".", "t" * 22 + "..a", "t" * 22 + ".a b", 7),
        *("t" * 22 + ".%2", "t" * 22 + ".é", "t" * 22 + ".a%2e", "t" * 22 + ".a\n"),
    ],
)
def test_what_is_no_token(text: Any) -> None:
    """A text that enqueueing did not make is refused."""
    with pytest.raises(lualock.InvalidArgument, match="not a job's token"):
        encode_token(text)


def test_names_that_are_not_asked_for() -> None:
    """A job that keeps nothing sends no token."""
    with lualock.connect("embedded://") as locks:
        entry = jobs.adapter(locks.job(work)).enqueue(lambda token: token, (7,), job_id="a")
        assert entry.result == ""
