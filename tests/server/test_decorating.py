"""A lock as a decorator: every call of the function is inside a ``with`` block of the lock."""

from __future__ import annotations

import asyncio
import inspect
import io
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager, nullcontext
from functools import partial
from typing import Any

import pytest

import lualock
from lualock import aio
from tests.jobs.test_jobs import as_job
from tests.support.delivery import held
from tests.support.world import World, entered, settle


def decorated(world: World, work: Callable[..., Any], **options: Any) -> tuple[Any, Any]:
    """Return a function under a new lock, and the lock."""
    lock = world.connect().lock("x", **options)
    return lock(as_job(world, work)), lock


async def test_a_call_holds_the_lock(world: World) -> None:
    """The lock is held during a call, and free after it; arguments and result pass through."""

    def work(number: int, *, factor: int) -> int:
        assert held(world, lock.key)
        return number * factor

    call, lock = decorated(world, work)
    assert not held(world, lock.key)
    for number in (2, 3):
        assert await settle(call(number, factor=7)) == number * 7
        assert not held(world, lock.key)


async def test_the_function_keeps_its_metadata(api: World) -> None:
    """Name, documentation, signature and kind are those of the function."""

    def work(number: int) -> int:
        """Work."""
        return number

    body = as_job(api, work)
    body.__doc__, body.mark = work.__doc__, 1  # type: ignore[attr-defined]
    call: Any = api.connect().lock("x")(body)
    assert (call.__name__, call.__qualname__) == (work.__name__, work.__qualname__)
    assert (call.__doc__, call.mark, call.__wrapped__) == ("Work.", 1, body)
    assert inspect.signature(call) == inspect.signature(work)
    assert inspect.iscoroutinefunction(call) == api.asynchronous


async def test_an_error_frees_the_lock(api: World) -> None:
    """The function's own error comes out, and the lock is free."""

    def work() -> None:
        raise KeyError("own")

    call, lock = decorated(api, work)
    with pytest.raises(KeyError, match="own"):
        await settle(call())
    assert not held(api, lock.key)


async def test_a_call_waits_for_its_turn(api: World) -> None:
    """A call waits while another holder has the lock."""
    call, lock = decorated(api, lambda: 7)
    lease = await settle(lock.acquire())
    waiting = asyncio.ensure_future(api.beside(call))
    await api.until_waiters(lock, 1)
    await settle(lease.release())
    assert await waiting == 7


async def test_calls_in_parallel(api: World) -> None:
    """Calls in many threads or tasks run one after the other, each exactly once."""
    inside: list[int] = []
    done: list[int] = []

    def enter(number: int) -> None:
        inside.append(number)
        assert len(inside) == 1
        done.append(inside.pop())

    call, _ = decorated(api, enter)
    await asyncio.gather(*(api.beside(partial(call, number)) for number in range(20)))
    assert sorted(done) == list(range(20))


async def test_a_call_inside_itself(api: World) -> None:
    """A call inside a call, or inside a block, of the lock is a deadlock with itself: refused."""

    async def work_async(again: bool) -> str:
        return await call(False) if again else "done"

    def work(again: bool) -> str:
        result: str = call(False) if again else "done"
        return result

    lock = api.connect().lock("x", ttl=2)
    call = lock(work_async if api.asynchronous else work)
    with pytest.raises(lualock.SelfDeadlock):
        await settle(call(True))
    async with entered(lock):
        with pytest.raises(lualock.SelfDeadlock):
            await settle(call(False))
    assert await settle(call(False)) == "done"


async def test_a_lease_that_ends_during_a_call(api: World) -> None:
    """The call raises ``LeaseLost``; if the function raises, that is a note of its error."""

    def work(fail: bool) -> None:
        api.client.delete(lock.key)
        if fail:
            raise KeyError("own")

    call, lock = decorated(api, work)
    with pytest.raises(lualock.LeaseLost):
        await settle(call(False))
    with pytest.raises(KeyError) as caught:
        await settle(call(True))
    if hasattr(caught.value, "__notes__"):
        assert "ended by force, before it was released" in str(caught.value.__notes__)


async def test_a_cancelled_call(one_server: Any) -> None:
    """With ``cancel_on_lost`` the function is cancelled when the lease is lost."""
    async with aio.connect(one_server.url) as locks:

        @locks.lock("x", ttl=0.1, cancel_on_lost=True)
        async def endless() -> None:
            await asyncio.Event().wait()

        with pytest.raises(lualock.LeaseLost, match="its body was cancelled"):
            await endless()


async def test_methods(api: World) -> None:
    """Methods of each kind can be decorated, and get their instance or class."""
    lock = api.connect().lock("x")

    def nothing() -> str:
        return "nothing"

    class Shop:
        method = lock(as_job(api, me))
        of_class: Any = classmethod(lock(as_job(api, me)))
        static = staticmethod(lock(as_job(api, nothing)))

    shop = Shop()
    assert await settle(shop.method()) is shop
    assert await settle(Shop.of_class()) is Shop
    assert await settle(shop.static()) == "nothing"


def me(self: Any) -> Any:
    """A method that returns its instance or class."""
    return self


def rows() -> Iterator[int]:
    """A generator function."""
    yield 1


async def rows_async() -> AsyncIterator[int]:
    """An asynchronous generator function."""
    yield 1


async def coroutine() -> None:
    """A coroutine function."""


def plain() -> None:
    """A plain function."""


class CalledLikeACoroutine:
    """An object that is called like a coroutine function."""

    async def __call__(self) -> None: ...


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (5, "this int: a lock decorates functions"),
        (CalledLikeACoroutine, "CalledLikeACoroutine: a lock decorates functions"),
        (staticmethod(plain), "plain: @staticmethod goes above the lock"),
        (classmethod(me), "me: @classmethod goes above the lock"),
        (rows, "rows: .* Use a with statement inside it"),
        (partial(rows), "this partial: it is a generator function"),
        (rows_async, "rows_async: it is a generator function"),
    ],
)
def test_what_cannot_be_decorated(api: World, function: Any, message: str) -> None:
    """What is not a function whose call does its work is refused, and nothing is sent."""
    lock = api.connect().lock("x")
    with pytest.raises(lualock.InvalidArgument, match=f"^could not decorate {message}"):
        lock(function)


def test_functions_of_the_other_api(api: World) -> None:
    """A lock for threads refuses coroutine functions, and one of asyncio plain functions."""
    lock = api.connect().lock("x")
    coroutines = [coroutine, partial(coroutine), CalledLikeACoroutine()]
    plains = [plain, partial(plain), print]
    message = "lock of lualock.connect" if api.asynchronous else "lock of lualock.aio.connect"
    for refused in plains if api.asynchronous else coroutines:
        with pytest.raises(lualock.InvalidArgument, match=message):
            lock(refused)
    for accepted in coroutines if api.asynchronous else plains:
        assert lock(accepted)


def endless_rows() -> Iterator[int]:
    """A generator that refuses to be closed."""
    while True:
        try:
            yield 1
        except GeneratorExit:
            yield 2


def begun() -> Any:
    """Return a generator that refuses to be closed and has begun."""
    generator = endless_rows()
    next(generator)
    return generator


UNFINISHED: list[Callable[[], Any]] = [
    *(rows, coroutine, rows_async, begun, Future),
    *(contextmanager(rows), asynccontextmanager(rows_async)),
    *(lambda: map(str, [1]), lambda: filter(None, [1])),
]


def in_job(world: World, work: Callable[..., Any]) -> tuple[Any, Any]:
    """Return a function as a job, and its lock."""
    job = world.connect().job(as_job(world, work))
    return job, job.lock_for()


@pytest.mark.parametrize("make", UNFINISHED)
@pytest.mark.parametrize("under", [decorated, in_job])
async def test_a_result_that_is_not_done(
    api: World, under: Callable[..., tuple[Any, Any]], make: Callable[[], Any]
) -> None:
    """A function that only returns work to be done would leave that work without the lock."""

    def work() -> Any:
        return make()

    call, lock = under(api, work)
    # A plain job says of a coroutine how to enqueue it.
    message = "would run without the lock|nothing here awaits it"
    with pytest.raises(lualock.InvalidArgument, match=message):
        await settle(call())
    assert not held(api, lock.key)


def test_a_generator_that_runs(locks: lualock.Locks) -> None:
    """A generator that is returned while it runs cannot be closed, and is refused alike."""
    lock = locks.lock("x")

    @lock
    def work() -> Any:
        return running

    def calls() -> Iterator[None]:
        with pytest.raises(lualock.InvalidArgument, match="would run without the lock"):
            work()
        yield

    running = calls()
    next(running)
    assert not lock.locked()


@pytest.mark.parametrize("under", [decorated, in_job])
async def test_a_result_that_is_a_context_manager(
    api: World, under: Callable[..., tuple[Any, Any]]
) -> None:
    """A file, a lease, or another object that is no work to be done is a result."""
    lease = await settle(api.connect().lock("other").acquire())
    results = [io.StringIO(), lease, nullcontext(), iter([1])]

    def work() -> Any:
        return results[0]

    call, _ = under(api, work)
    while results:
        assert await settle(call()) is results.pop(0)
    await settle(lease.release())
