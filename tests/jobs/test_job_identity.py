"""What a job's name stands for, and the words by which users ask for it."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lualock
from lualock import jobs
from tests.support.servers import Server
from tests.support.world import World, settle

TASKS = """
import multiprocessing, sys, lualock
locks = lualock.connect(sys.argv[1] if len(sys.argv) > 1 else "redis://localhost")

@locks.job
def sync(): ...

class Nightly(lualock.LockedJob):
    locks = locks

    @classmethod
    def perform(cls): ...

def show():
    print(sync.lock_for().name, Nightly.lock_for().name, flush=True)

if __name__ == "__main__":
    show()
    for method in ("fork", "spawn", "forkserver"):
        process = multiprocessing.get_context(method).Process(target=show)
        process.start()
        process.join()
"""


@pytest.mark.parametrize("package", ["app", "app/inner", ""])
def test_one_function_has_one_name(package: str, tmp_path: Path) -> None:
    """A job has one name, whether its module is imported or runs as a program, also in the children
    of multiprocessing."""
    folder = tmp_path / package
    folder.mkdir(parents=True, exist_ok=True)
    for path in (tmp_path / "app", tmp_path / "app/inner"):
        if package and path.exists():
            (path / "__init__.py").write_text("")
    (folder / "tasks.py").write_text(TASKS)
    (folder / "__main__.py").write_text(TASKS)
    module = ".".join([*Path(package).parts, "tasks"])
    file = str(folder / "tasks.py")
    ways = [[file], ["-m", module], ["-c", f"import {module} as t; t.show()"]]
    assert _names(ways, tmp_path) == {f"job:v1:{module}.sync() job:v1:{module}.Nightly()"}
    if package:
        module = ".".join(Path(package).parts)
        ways = [["-m", module], ["-c", f"import {module}.__main__ as t; t.show()"]]
        ways += [[str(folder / "__main__.py")], [os.path.relpath(folder / "__main__.py", tmp_path)]]
        assert _names(ways, tmp_path) == {f"job:v1:{module}.sync() job:v1:{module}.Nightly()"}


def _names(ways: list[list[str]], folder: Path) -> set[str]:
    names = set()
    for way in ways:
        run = subprocess.run(
            [sys.executable, *way],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": f"{folder}:{Path.cwd()}"},
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert run.returncode == 0, run.stderr
        names |= set(run.stdout.splitlines())
    return names


class _Shop:
    def __init__(self, number: int) -> None:
        self.number = number

    def rebuild(self) -> int:
        return self.number

    @classmethod
    def close(cls) -> None: ...

    def __call__(self) -> int:
        return self.number


def _add(shop: int, number: int = 0) -> int:
    return shop + number


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: _Shop(1).rebuild, "bound method _Shop.rebuild"),
        (lambda: _Shop.close, "bound method _Shop.close"),
        (lambda: functools.update_wrapper(functools.partial(_add, 1), _add), "this partial"),
        (lambda: functools.update_wrapper(_Shop(1), _add), "this _Shop"),
        (lambda: functools.wraps(_Shop(1).rebuild)(lambda: 1), "bound method _Shop.rebuild"),
        (lambda: lambda: 1, "a lambda: it has no name"),
    ],
)
def test_a_name_that_others_have(make: Callable[[], Any], message: str) -> None:
    """What has the name of something else needs a ``key=``, and is refused without one."""
    locks = lualock.connect("redis://localhost")
    with pytest.raises(lualock.InvalidArgument, match=f"{message}.*, or pass key="):
        locks.job(make())
    named: Any = locks.job(key="named")(make())
    assert named.lock_for().name == "named"


async def test_whether_a_job_is_queued(api: World) -> None:
    """A function and a class answer whether a job with these arguments is queued."""
    locks = api.connect()

    async def coroutine(number: int = 1) -> None: ...

    def plain(number: int = 1) -> None: ...

    body = coroutine if api.asynchronous else plain
    function = locks.job(unique="queued")(body)
    named: dict[str, Any] = {"locks": locks, "loner": True, "perform": staticmethod(body)}
    kinds: list[Any] = [function, type("Rebuild", (lualock.LockedJob,), named)]
    for job in kinds:
        adapter = jobs.adapter(job)
        assert await settle(job.enqueued()) is False
        adapter.reserve((1,), job_id="a")
        assert await settle(job.enqueued()) is True
        assert await settle(job.enqueued(2)) is False
        assert await settle(job.locked()) is False


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("redis_lock_key", "lock"),
        ("redis_loner_lock_key", "lock"),
        ("lock_redis", "locks"),
        ("lock_workers", "lock"),
        ("acquire_lock", r"lock_for\(...\).acquire"),
        ("release_lock", r"lock_for\(...\).acquire"),
        ("lock_enqueue", "lock_unique"),
        ("lock_time", "lock_timeout"),
    ],
)
def test_a_setting_of_the_ancestor(name: str, right: str) -> None:
    """A setting that is called otherwise here is refused, with the right name."""
    with pytest.raises(lualock.InvalidArgument, match=rf"{name}.* Did you mean {right}\?"):
        type("Job", (lualock.LockedJob,), {name: None, "perform": staticmethod(_add)})


async def test_a_dropped_job_can_raise(api: World) -> None:
    """With ``jobs.Raise`` the caller gets the error that names the holder, and ``on_skipped`` is
    not called, also after a wait."""
    locks = api.connect(holder="tester")
    called: list[int] = []

    async def coroutine() -> str:
        return "ran"

    def plain() -> str:
        return "ran"

    for policy in (jobs.Raise(), jobs.Wait(0.05, then=jobs.Raise()), lambda _: jobs.Raise()):
        decorate = locks.job(key="x", policy=policy, on_skipped=lambda: called.append(1))
        job = decorate(coroutine if api.asynchronous else plain)
        lease = await settle(locks.lock("x").acquire(timeout=5))
        with pytest.raises(lualock.NotAcquired, match="tester"):
            await settle(job())
        await settle(lease.release())
        assert await settle(job()) == "ran"
    assert not called


def test_a_raised_refusal_releases_the_reservation(one_server: Server, one_client: Any) -> None:
    """A queued job that raises is not queued any more."""
    one_client.flushall()
    with lualock.connect(one_server.url) as locks:
        work = jobs.adapter(locks.job(key="x", unique="queued", policy=jobs.Raise())(_Shop.close))
        work.reserve(job_id="a", token="t" * 22)
        with locks.lock("x"), pytest.raises(lualock.NotAcquired):
            work.run((), {}, jobs.Delivery("a", "t" * 22))
        assert not work.reservation().locked()


def test_a_closure_needs_a_key(locks: lualock.Locks) -> None:
    """Functions that one factory makes share a name, so one that uses its variables needs a
    ``key=``."""

    def of_region(region: str, **options: Any) -> Any:
        def crawl(shop_id: int) -> str:
            return f"{region} {shop_id}"

        return locks.job(**options)(crawl)

    def traced_in_region(region: str) -> Any:
        def crawl(shop_id: int) -> str:
            return f"{region} {shop_id}"

        @functools.wraps(crawl)
        def traced(shop_id: int) -> str:
            return crawl(shop_id)

        return locks.job(traced)

    def class_of_region(region: str, identify: Any) -> None:
        class Crawl(lualock.LockedJob):
            identifier = None if identify is None else staticmethod(identify)

            @classmethod
            def perform(cls, shop_id: int) -> str:
                return f"{region} {shop_id}"

        class Named(lualock.LockedJob):
            @classmethod
            def lock(cls, shop_id: int) -> str:
                return f"{region} {shop_id}"

            @classmethod
            def perform(cls, shop_id: int) -> str:
                return f"{region} {shop_id}"

        class Same(lualock.LockedJob):
            @classmethod
            def perform(cls, shop_id: int) -> None:
                super().__init_subclass__()

    def without_variables() -> Any:
        def crawl(shop_id: int) -> int:
            return shop_id

        @functools.wraps(crawl)
        def traced(shop_id: int) -> int:
            return crawl(shop_id)

        return locks.job(crawl), locks.job(traced)

    for make, name in (
        (of_region, r"of_region\.<locals>\.crawl"),
        (traced_in_region, r"traced_in_region\.<locals>\.crawl"),
        (lambda region: class_of_region(region, None), r"class_of_region\.<locals>\.Crawl"),
    ):
        with pytest.raises(lualock.InvalidArgument, match=rf"{name}: .*\(region\).*Pass key="):
            make("eu")
    of_region("eu", key=lambda shop_id: ["eu", shop_id])
    class_of_region("eu", lambda shop_id: f"eu {shop_id}")
    without_variables()


def with_session(function: Any) -> Any:
    """Give a function a session of a database, as decorators of users do."""

    @functools.wraps(function)
    def inner(*args: Any, **kwargs: Any) -> Any:
        return function("session", *args, **kwargs)

    return inner


def with_named_session(function: Any) -> Any:
    """The same, and show which arguments are left."""

    @functools.wraps(function)
    def inner(shop_id: int) -> Any:
        return function("session", shop_id)

    return inner


def crawl_shop(session: str, shop_id: int) -> str:
    return f"{session} {shop_id}"


def test_a_decorator_that_gives_an_argument(locks: lualock.Locks) -> None:
    """It hides which arguments the job takes: ``key=`` is needed, and gets those of the call."""
    unnamed = locks.job(with_session(crawl_shop))
    with pytest.raises(TypeError, match=r"missing a required argument: 'shop_id'.*pass key="):
        unnamed(7)
    skipped: list[Any] = []
    named = locks.job(
        key=lambda shop_id: f"shop:{shop_id}", ttl=lambda shop_id: 60, on_skipped=skipped.append
    )(with_session(crawl_shop))
    assert named(7) == "session 7"
    with named.lock_for(7) as lease:
        assert named(7) is None
        assert 50 < lease.remaining() <= 60
    assert skipped == [7]
    constant = locks.job(key="crawl")(with_session(crawl_shop))
    assert constant(7) == constant(shop_id=7) == "session 7"
    with pytest.raises(TypeError):
        constant()


def test_a_decorator_that_shows_its_arguments(locks: lualock.Locks) -> None:
    """The arguments are those that the decorator takes, not those of the function in it."""
    job = locks.job(with_named_session(crawl_shop))
    assert job(7) == job(shop_id=7) == "session 7"
    assert job.lock_for(7).name == job.lock_for(shop_id=7).name
    assert job.lock_for(7).name.endswith("crawl_shop(7)")
    with pytest.raises(TypeError, match="too many"):
        job("session", 7)
