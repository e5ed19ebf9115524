"""What a first program gets wrong: the error says the right word."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any

import pytest

import lualock
from lualock import aio
from lualock.errors import InvalidArgument

URL = "redis://localhost:1"  # nothing is sent


@pytest.fixture
def locks() -> lualock.Locks:
    """Locks of a server that is not there."""
    return lualock.connect(URL)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"timeout": 10}, "how long a lease lasts is ttl=, how long to wait is acquire(timeout="),
        ({"blocking_timeout": 10}, "how long to wait is acquire(timeout="),
        ({"expire": 10}, "how long a lease lasts is ttl="),
        ({"auto_renewal": True}, "it is renew="),
        ({"sleep": 0.1}, "waiters do not poll"),
        ({"colour": "red"}, "has no parameter 'colour'"),
    ],
)
def test_words_of_other_libraries(locks: Any, wrong: Any, words: str) -> None:
    """A parameter of redis-py or of another lock library is refused with its name here."""
    for make in (locks.lock, aio.connect(URL).lock):
        with pytest.raises(TypeError) as refused:
            make("x", **wrong)
        assert words in str(refused.value)


async def test_a_try_without_waiting(locks: Any) -> None:
    """``acquire(False)``, as for locks of ``threading``, is refused with the word that is meant."""
    with pytest.raises(InvalidArgument, match=r"not bool. To try once.*try_acquire\(\)"):
        locks.lock("x").acquire(False)
    both: Any = locks.lock("x"), aio.connect(URL).lock("x")
    for lock in both:
        with pytest.raises(TypeError, match=r"no parameter 'blocking': try_acquire\(\) does not"):
            await lock.acquire(blocking=False)
    with pytest.raises(InvalidArgument, match=r"try_acquire\(\)"):
        await aio.connect(URL).lock("x").acquire(timeout=False)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (60, r"Write locks.job\(ttl=60\)"),
        (1.5, r"Write locks.job\(ttl=1.5\)"),
        (timedelta(minutes=1), r"Write locks.job\(ttl=datetime.timedelta\(seconds=60\)\)"),
        ("report", r"Write locks.job\(key='report'\)"),
    ],
)
def test_a_job_with_an_option_without_its_name(locks: Any, value: Any, words: str) -> None:
    """The error for ``locks.job(60)`` says which option that is."""
    with pytest.raises(InvalidArgument, match=words):
        locks.job(value)


def test_words_of_an_earlier_decorator(locks: Any) -> None:
    """A job's ttl is no timeout."""
    with pytest.raises(TypeError, match=r"locks.job has no parameter 'timeout'.*ttl="):
        locks.job(timeout=60)
    with pytest.raises(TypeError, match="it is on_skipped="):
        locks.job(on_failed=print)


def _job(shop: int, month: str = "may", *, full: bool = False) -> None:
    """A job's body."""


@pytest.mark.parametrize(
    ("option", "function"),
    [
        ("on_skipped", lambda: None),
        ("on_skipped", lambda shop, month, full, more: None),
        ("on_skipped", lambda shop, *, holder, why: None),
        ("on_expired", lambda shop, month, *, holder: None),
        ("on_enqueue_failed", lambda *, job_id: None),
        ("key", lambda: "name"),
        ("previous_key", lambda branch, *, year: "name"),
        ("ttl", lambda: 60),
    ],
)
def test_a_function_that_no_call_of_the_job_fits(locks: Any, option: str, function: Any) -> None:
    """It is refused when the job is declared, not when the lock is held for the first time."""
    with pytest.raises(InvalidArgument, match=f"_job: {option} gets exactly the job's arguments"):
        locks.job(**{option: function})(_job)


@pytest.mark.parametrize(
    ("option", "function"),
    [
        ("on_skipped", lambda shop: None),
        ("on_skipped", lambda shop, month="may", full=False, holder=None: None),
        ("on_skipped", lambda *args, holder, **kwargs: None),
        ("on_skipped", lambda shop, month, *, full: None),  # if all calls have all arguments
        ("on_skipped", print),
        ("on_enqueue_failed", lambda shop, job_id: None),
        ("key", lambda shop, **others: "name"),
        ("ttl", lambda shop, *others: 60),
    ],
)
def test_a_function_that_some_call_fits(locks: Any, option: str, function: Any) -> None:
    """What a caller may pass is not known, so any function that fits one call is taken."""
    locks.job(**{option: function})(_job)


def test_a_job_whose_arguments_are_not_known(locks: lualock.Locks) -> None:
    """Nothing is refused where a job takes any arguments, or a framework may fill one."""

    @locks.job(on_skipped=lambda shop: None)
    def any_arguments(*args: int) -> None: ...

    @locks.job(on_skipped=lambda: None)
    def filled(shop: Annotated[int, "a dependency"]) -> None: ...


def test_a_policy_without_a_parameter(locks: Any) -> None:
    """A policy gets the contention, which the error says."""
    with pytest.raises(InvalidArgument, match="must have one parameter"):
        locks.job(policy=lambda: None)(_job)
