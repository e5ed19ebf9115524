"""A run, or an enqueueing, that is interrupted or loses its server between any two of its actions:
it releases all that it has by then."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest

import lualock
from lualock import _protocol as protocol
from lualock import jobs
from lualock.jobs.acquire import Run
from lualock.jobs.enqueue import Entry
from lualock.jobs.run import execute

Make = Callable[[lualock.Locks], Any]


class Interruption(BaseException):
    """As KeyboardInterrupt, but only the tests raise it."""


def play(actions: Any, at: int, error: BaseException) -> bool:
    """Carry actions out, but let one of them raise; return whether that one was reached."""
    step, struck = 0, False
    try:
        action = next(actions)
        while True:
            step += 1
            if step == at:
                struck = True
                action = actions.throw(error)
                continue
            try:
                reply = action()
            except BaseException as own:
                action = actions.throw(own)
            else:
                action = actions.send(reply)
    except StopIteration:
        assert not struck or not isinstance(error, Interruption)
    except type(error):
        assert struck
    return struck


def _work() -> None:
    """A job's body."""


def _run(policy: Any = None, token: str | None = None, **options: Any) -> Make:
    def make(locks: lualock.Locks) -> Any:
        job = locks.job(key="two", previous_key="one", policy=policy, **options)(_work)
        work = jobs.adapter(job)
        if token is not None:
            work.reserve(job_id="a", token=token)
        delivery = jobs.Delivery("a", token, will_retry=lambda error: 5)
        return execute(Run(work.job, locks, (), {}, delivery))

    return make


def _enqueue(locks: lualock.Locks) -> Any:
    work = jobs.adapter(locks.job(key="two", previous_key="one", unique="both")(_work))
    return Entry(work.job, locks, (), {}).enqueue(lambda token: None, "a", "t" * 22, 0.0)


# How the actions are made, whether the lock is held, and how many keys are in use at the end when
# the first action fails, the second, and so on. The wait to coalesce leaves its reservation: it is
# the job's if it is delivered again, and otherwise ends with its lease.
SCENARIOS: dict[str, tuple[Make, bool, list[int]]] = {
    # start, the job, release
    "run": (_run(), False, [0, 0, 0]),
    # The same; its reservations are left, because it did not run, or failed and is tried again.
    "run that was queued": (_run(token="t" * 22, unique="both"), False, [2, 2, 0]),
    # start, wait, release both reservations
    "wait": (_run(jobs.Wait(0.1)), True, [0, 0, 0, 0]),
    # start, request twice, wait, withdraw twice, release both reservations
    "replace": (_run(jobs.Replace(0.1)), True, [0, 0, 0, 0, 1, 1, 0, 0]),
    # start, reserve both, wait, release both reservations
    "coalesce": (_run(jobs.Coalesce(0.1, then=None)), True, [0, 0, 0, 2, 2, 1]),
    # reserve both, push, confirm both
    "enqueue": (_enqueue, False, [0, 0, 0, 2, 2]),
}
# If it was the server that was away, these are released too: in the background, or by the next
# action.
GIVEN_UP_LATE = {"replace": [5], "coalesce": [5, 6]}


def struck(make: Make, busy: bool, url: str, client: Any, error: BaseException) -> Iterator[int]:
    """Interrupt one action after the other; yield what is left each time."""
    at = 0
    while True:
        at += 1
        client.flushall()
        with lualock.connect(url) as locks, lualock.connect(url) as others:
            lease = others.lock("two").acquire() if busy else None
            if not play(make(locks), at, error):
                return
            if lease is not None:
                lease.release()
            keys = client.keys()
            assert all(client.pttl(key) > 0 for key in keys)
            yield sum(client.get(key)[:1] not in b"RF" for key in keys)


@pytest.mark.parametrize("name", SCENARIOS)
@pytest.mark.parametrize("kind", [Interruption, lualock.LockUnavailable])
def test_every_action(name: str, kind: Any, one_server: Any, one_client: Any) -> None:
    """Whichever action fails, all that is not needed any more is released, and nothing else."""
    make, busy, left = SCENARIOS[name]
    late = GIVEN_UP_LATE.get(name, []) if kind is lualock.LockUnavailable else []
    left = [0 if at in late else count for at, count in enumerate(left, 1)]
    assert list(struck(make, busy, one_server.url, one_client, kind("struck"))) == left


def _in_use(client: Any) -> list[bytes]:
    return [key for key in client.keys("*") if client.get(key)[:1] not in b"RF"]


@pytest.mark.parametrize("when_unavailable", ["skip", "run"])
def test_a_job_without_a_server_keeps_no_reservation(
    when_unavailable: str, one_server: Any, one_client: Any
) -> None:
    """A queued job that finds the server unreachable is dropped, or runs without its lock, so it is
    not tried again."""
    one_client.flushall()
    with lualock.connect(one_server.url) as locks:
        job = locks.job(key="new", unique="both", when_unavailable=when_unavailable)(_work)
        work = jobs.adapter(job)
        work.reserve(job_id="a", token="t" * 22)
        delivery = jobs.Delivery("a", "t" * 22, will_retry=lambda error: 5)
        actions = execute(Run(work.job, locks, (), {}, delivery))
        assert play(actions, 1, lualock.LockUnavailable("struck"))
    assert _in_use(one_client) == []


def test_an_interruption_after_a_replacement_keeps_no_lock(
    one_server: Any, one_client: Any
) -> None:
    """A job that is interrupted when it has replaced another has released the lock and withdrawn
    its stop request."""
    one_client.flushall()
    with lualock.connect(one_server.url) as locks, lualock.connect(one_server.url) as others:
        work = jobs.adapter(locks.job(key="new", policy=jobs.Replace(10))(_work))
        others.lock("new", ttl=0.1).acquire()
        actions = execute(Run(work.job, locks, (), {}, None))
        assert play(actions, 4, Interruption())  # try, request, wait, withdraw
    assert b"lualock:{new}" not in _in_use(one_client)  # (its stop request is withdrawn)


def test_an_interruption_on_the_way_back_keeps_no_reservation(
    one_server: Any, one_client: Any
) -> None:
    """A reservation that should be kept for the next delivery is released if the job system does
    not learn of that."""
    one_client.flushall()
    with lualock.connect(one_server.url) as locks, lualock.connect(one_server.url) as others:
        job = locks.job(key="new", unique="queued", policy=jobs.Retry(5))(_work)
        work = jobs.adapter(job)
        work.reserve(job_id="a", token="t" * 22)
        with others.lock("new"):
            actions = execute(Run(work.job, locks, (), {}, jobs.Delivery("a", "t" * 22)))
            assert play(actions, 2, Interruption())  # start, keep the reservation
    assert _in_use(one_client) == []


@pytest.mark.parametrize(
    ("error", "options"),
    [
        (Interruption(), {}),
        (lualock.LockUnavailable("struck"), {"when_unavailable": "skip"}),
        (lualock.LockUnavailable("struck"), {"when_unavailable": "run"}),
    ],
)
def test_a_job_that_is_not_tried_again_keeps_no_lock(
    error: BaseException, options: dict[str, Any], one_server: Any, one_client: Any
) -> None:
    """The last attempt kept the lock for this one, which does not take it over."""
    one_client.flushall()
    times = []

    def work() -> None:
        times.append(1)
        if len(times) == 1:
            raise ValueError

    with lualock.connect(one_server.url) as locks:
        job = jobs.adapter(locks.job(key="new", keep_lock_on_retry=True, **options)(work)).job
        retried = jobs.Delivery(
            "a", "t" * 22, will_retry=lambda error: 5 if isinstance(error, ValueError) else None
        )
        with pytest.raises(ValueError):  # noqa: PT011 - it is the job's own
            play(execute(Run(job, locks, (), {}, retried)), 0, error)
        assert _in_use(one_client) == [b"lualock:{new}"]
        assert play(execute(Run(job, locks, (), {}, retried)), 1, error)
    assert _in_use(one_client) == []


def test_a_job_dropped_at_the_first_of_two_locks_keeps_no_reservation(
    one_server: Any, one_client: Any
) -> None:
    """A queued job has a reservation beside each of its locks, and releases also those that it did
    not reach."""
    one_client.flushall()
    with lualock.connect(one_server.url) as locks, lualock.connect(one_server.url) as others:
        lease = others.lock("one").acquire()
        assert not play(_run(token="t" * 22, unique="queued")(locks), 0, Interruption())
        lease.release()
    assert _in_use(one_client) == []


def test_an_interruption_while_the_lock_is_kept_for_a_retry(
    one_server: Any, one_client: Any
) -> None:
    """The run is over, so a lease that was not passed on is released here or nowhere."""
    one_client.flushall()
    with lualock.connect(one_server.url) as locks:
        lease = locks.lock("new").acquire()
        request = locks.lock("new").request()

        server = locks.lock("new").server_clock

        def interrupted() -> protocol.Steps[None]:
            steps = protocol.keep_for(lease._request, [request], server)
            next(steps)  # and so it is never sent
            step = steps.throw(Interruption())
            while True:
                step = steps.send((yield step))

        with pytest.raises(Interruption):
            locks.lock("new").run(interrupted())
    assert _in_use(one_client) == []


def test_a_reservation_for_a_retry_is_made_before_it_is_extended(
    one_server: Any, one_client: Any
) -> None:
    """A late copy of a reservation may arrive when the retry has run, so it does not last for as
    long as a queue may be."""
    one_client.flushall()

    def fails() -> None:
        raise ValueError

    with lualock.connect(one_server.url) as locks:
        work = jobs.adapter(locks.job(key="new", unique="both")(fails))
        delivery = jobs.Delivery("a", "t" * 22, will_retry=lambda error: 5)
        for at, most_s in (
            (4, jobs.RESERVE_S),
            (5, 3605),
        ):  # start, the job, reserve, keep, release
            with suppress(ValueError):
                play(execute(Run(work.job, locks, (), {}, delivery)), at, Interruption())
            left_s = one_client.pttl("lualock:{new}:reservation") / 1000
            assert most_s - 5 < left_s <= most_s
            one_client.flushall()


@pytest.mark.parametrize("options", [{"unique": "both"}, {"keep_lock_on_retry": True}])
def test_an_interruption_when_all_is_kept_for_a_retry_keeps_nothing(
    options: dict[str, Any], one_server: Any, one_client: Any
) -> None:
    """The system tries a job again after its own error, but not after an interruption."""

    def fails() -> None:
        raise ValueError

    with lualock.connect(one_server.url) as locks:
        work = jobs.adapter(locks.job(key="new", **options)(fails))
        delivery = jobs.Delivery(
            "a", "t" * 22, will_retry=lambda error: 5 if isinstance(error, ValueError) else None
        )
        for at in range(1, 6):  # start, the job, reserve, keep, release; or adopt
            one_client.flushall()
            actions = execute(Run(work.job, locks, (), {}, delivery))
            try:
                play(actions, at, Interruption())
            except ValueError:  # there are no more
                break
            assert _in_use(one_client) == []
