"""The functions that a job is declared with get its default arguments too."""

from __future__ import annotations

from typing import Any

import pytest

import lualock
from lualock import jobs


def rebuild(shop_id: int, full: bool = False, *, region: str = "eu") -> None: ...


KEYS: dict[str, tuple[Any, str]] = {
    "all": (lambda shop_id, full, region: f"{shop_id} {full} {region}", "7 False eu"),
    "one": (lambda shop_id, region: f"{shop_id} {region}", "7 eu"),
    "its own default": (lambda shop_id, full=True, **_: f"{shop_id} {full}", "7 False"),
    "none by name": (lambda shop_id, *more, **_: f"{shop_id}", "7"),
}


@pytest.mark.parametrize("key", KEYS)
def test_a_key_gets_defaults(locks: lualock.Locks, key: str) -> None:
    """A call that leaves out a default has the lock of one that passes it."""
    function, name = KEYS[key]
    job: Any = locks.job(key=function)(rebuild)
    assert job.lock_for(7).name == job.lock_for(shop_id=7).name == name
    if key != "one":
        assert job.lock_for(7, False, region="eu").name == name


def test_a_key_without_a_parameter_for_it(locks: lualock.Locks) -> None:
    """A default for which a function has no parameter is left out."""
    job: Any = locks.job(key=lambda shop_id: f"{shop_id}")(rebuild)
    assert job.lock_for(7).name == "7"
    plain: Any = locks.job(key=str)(rebuild)  # a builtin without a signature
    assert "7" in plain.lock_for(7).name


def test_an_argument_that_was_passed_stays(locks: lualock.Locks) -> None:
    """What a call passes goes before a default, under the name or at the place it has."""
    job: Any = locks.job(key=lambda shop_id, full, region: f"{shop_id} {full} {region}")(rebuild)
    assert job.lock_for(shop_id=7, region="us").name == "7 False us"
    assert job.lock_for(7, True).name == "7 True eu"


def test_a_ttl_gets_defaults(locks: lualock.Locks) -> None:
    """So has a function that returns the ttl."""
    job: Any = locks.job(ttl=lambda shop_id, full, region: 20 if full else 10)(rebuild)
    assert (job.lock_for(7).ttl, job.lock_for(7, True).ttl) == (10, 20)


def test_callbacks_get_defaults(locks: lualock.Locks) -> None:
    """A callback gets the job's defaults by name, and its further parameter besides."""
    calls: list[Any] = []

    def skipped(shop_id: int, full: bool, holder: str | None = None) -> None:
        calls.append((shop_id, full, holder is not None))

    def short(shop_id: int, holder: str) -> None:
        calls.append((shop_id, ":" in holder))

    def refused(shop_id: int, region: str, job_id: str) -> None:
        calls.append((shop_id, region, job_id))

    for callback in (skipped, short):
        job: Any = locks.job(key="x", on_skipped=callback)(rebuild)
        with locks.lock("x"):
            job(7)
    unique: Any = locks.job(key="y", unique="queued", on_enqueue_failed=refused)(rebuild)
    jobs.adapter(unique).reserve([7], job_id="first")
    jobs.adapter(unique).reserve([7], job_id="second")
    assert calls == [(7, False, True), (7, True), (7, "eu", "first")]


def test_a_class_gets_defaults(locks: lualock.Locks) -> None:
    """The classmethods of a job as a class get the defaults of ``perform``."""
    calls: list[Any] = []
    of_test = locks

    class Rebuild(lualock.LockedJob):
        locks = of_test

        @classmethod
        def identifier(cls, shop_id: int, full: bool) -> str:
            return f"{shop_id} {full}"

        @classmethod
        def lock_timeout(cls, shop_id: int, full: bool) -> int:
            return 20 if full else 10

        @classmethod
        def lock_previous_key(cls, shop_id: int, full: bool) -> str:
            return f"previous {shop_id} {full}"

        @classmethod
        def lock_failed(cls, shop_id: int, full: bool) -> None:
            calls.append((shop_id, full))

        @classmethod
        def perform(cls, shop_id: int, full: bool = False) -> None: ...

    class Named(Rebuild):
        @classmethod
        def lock(cls, shop_id: int, full: bool) -> str:
            return f"named {shop_id} {full}"

    assert Rebuild.lock_for(7).name == Rebuild.lock_for(7, False).name
    assert (Rebuild.lock_for(7).ttl, Rebuild.lock_for(7, full=True).ttl) == (10, 20)
    assert Named.lock_for(7).name == "named 7 False"
    with locks.lock("previous 7 False"):
        Rebuild.run(7)
    assert calls == [(7, False)]
