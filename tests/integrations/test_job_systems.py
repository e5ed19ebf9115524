"""The integrations of the job systems, each in this process: all that needs no worker.

What an integration expects of the system's own retries is compared with what the system does.
"""

from __future__ import annotations

import asyncio
import functools
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from typing import Annotated, Any
from unittest.mock import Mock

import celery
import dramatiq
import huey
import pytest
import redis
import rq
import taskiq
from dramatiq.asyncio import get_event_loop_thread
from dramatiq.brokers.stub import StubBroker
from dramatiq.middleware import AsyncIO, Retries, TimeLimit, TimeLimitExceeded
from dramatiq.results import ResultMissing, Results
from dramatiq.results.backends import StubBackend
from hypothesis import given, settings
from hypothesis import strategies as st

import lualock
from lualock import jobs
from lualock._core.options import Seconds
from lualock.integrations import celery as celery_integration
from lualock.integrations import dramatiq as dramatiq_integration
from lualock.integrations import huey as huey_integration
from lualock.integrations import rq as rq_integration
from lualock.integrations import taskiq as taskiq_integration
from lualock.integrations.celery import retries as celery_retries
from tests.integrations.workers import apart
from tests.support.servers import Server
from tests.support.waiting import wait_until


class Trouble(Exception):
    """The exception that the jobs here raise."""


class Worse(Trouble):
    """An exception that their systems are configured not to retry."""


class Graph(lualock.LockedJob):
    """A job as a class; a test gives it its locks."""

    lock_unique = "queued"

    @classmethod
    def perform(cls, repo_id: int) -> str:
        return f"graph of {repo_id}"


@pytest.fixture(autouse=True)
def its_locks(locks: lualock.Locks, monkeypatch: pytest.MonkeyPatch) -> None:
    """The class's locks are the test's."""
    monkeypatch.setattr(Graph, "locks", locks)


def rebuild(shop_id: int) -> str:
    return f"rebuilt {shop_id}"


async def rebuild_async(shop_id: int) -> str:
    await asyncio.sleep(0)
    return f"rebuilt {shop_id}"


def trouble(shop_id: int) -> None:
    raise Trouble


BODIES = pytest.mark.parametrize("body", [rebuild, rebuild_async])


def refused(entry: Any, job_id: str) -> bool:
    """Return whether a job was not enqueued because that one is queued."""
    return isinstance(entry, jobs.Refused) and (entry.job_id, entry.state) == (job_id, "queued")


class Outer:
    """A job that calls another one, whose lock is held: it catches that error, and goes on."""

    def __init__(self, locks: lualock.Locks) -> None:
        self.errors: list[jobs.RetryLater] = []
        self.inner: Any = locks.job(key="inner", policy=jobs.Retry(60))(rebuild)
        self.busy = locks.lock("inner").acquire()

    def body(self) -> str:
        try:
            self.inner(7)
        except jobs.RetryLater as later:
            self.errors.append(later)
        return "done"

    async def body_async(self) -> str:
        try:
            await self.inner(7)
        except jobs.RetryLater as later:
            self.errors.append(later)
        return "done"


def test_tasks_have_the_adapter_of_their_job(locks: lualock.Locks) -> None:
    """``jobs.adapter`` finds the job of a task, an actor or a decorated function of any system."""
    job = locks.job(unique="queued")(rebuild)
    consumer = huey.MemoryHuey()
    consumer.task_wrapper_class = huey_integration.LockedTask
    with celery.Celery("test", broker="memory://", task_cls=celery_integration.LockedTask) as app:
        broker = StubBroker()
        made: list[Any] = [
            app.task(job),
            consumer.task()(job),
            dramatiq.actor(actor_class=dramatiq_integration.LockedActor, broker=broker)(job),
            rq_integration.locked(job),
        ]
        found = [jobs.adapter(task) for task in made]
    assert [adapter.lock([7]).key for adapter in found] == [job.lock_for(7).key] * 4


# RQ


@pytest.fixture
def queue(one_server: Server) -> Iterator[rq.Queue]:
    """A queue, whose worker runs in this process."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with redis.Redis(unix_socket_path=one_server.socket) as connection:
        yield rq.Queue(connection=connection)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def work_off(queue: rq.Queue) -> None:
    rq.SimpleWorker([queue], connection=queue.connection).work(burst=True)


def in_module(monkeypatch: pytest.MonkeyPatch, name: str, value: Any) -> Any:
    """Put a job where RQ finds it by its name."""
    if not isinstance(value, type):
        value.__qualname__ = name
    monkeypatch.setattr(sys.modules[__name__], name, value, raising=False)
    return value


@BODIES
def test_rq_runs_both_kinds(
    locks: lualock.Locks, queue: rq.Queue, monkeypatch: pytest.MonkeyPatch, body: Callable[..., Any]
) -> None:
    """RQ runs functions and coroutine functions, in a worker and called."""
    job = in_module(monkeypatch, "found_by_rq", rq_integration.locked(locks.job(body)))
    entry = rq_integration.enqueue(queue, job, 7)
    assert isinstance(entry, jobs.Enqueued)
    work_off(queue)
    assert entry.result.return_value() == "rebuilt 7"
    assert job(8) == "rebuilt 8"


def test_rq_runs_a_class(queue: rq.Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    """The class stays what it is, and RQ finds the locked function, not ``perform``."""
    assert rq_integration.locked(Graph) is Graph
    entry = rq_integration.enqueue(queue, Graph, 7)
    other = rq_integration.enqueue(queue, Graph, 7)
    assert isinstance(entry, jobs.Enqueued)
    assert refused(other, entry.job_id)
    assert entry.result.func_name.endswith(".Graph.delivered")
    work_off(queue)
    assert entry.result.return_value() == "graph of 7"


def test_rq_refuses_what_is_not_locked(locks: lualock.Locks, queue: rq.Queue) -> None:
    """A job that RQ would run without its integration is refused, and keeps no reservation."""

    class Heir(Graph):
        """A subclass of a locked class, but not locked itself."""

    rq_integration.locked(Graph)
    for job in (locks.job(unique="queued")(rebuild), Heir):
        with pytest.raises(
            lualock.InvalidArgument, match=r"with lualock\.integrations\.rq\.locked, above"
        ):
            rq_integration.enqueue(queue, job, 7)
        assert not jobs.adapter(job).reservation([7]).locked()
    assert not queue.jobs


@pytest.mark.parametrize("delay", [0, 60])
def test_rq_refuses_a_pipeline(
    locks: lualock.Locks, queue: rq.Queue, monkeypatch: pytest.MonkeyPatch, delay: int
) -> None:
    """A pipeline that is thrown away pushes nothing, so no reservation is confirmed for it."""
    job = rq_integration.locked(locks.job(unique="queued")(rebuild))
    in_module(monkeypatch, "found_by_rq", job)
    with queue.connection.pipeline() as pipe:
        with pytest.raises(lualock.InvalidArgument, match=r"could not enqueue job .* pipeline="):
            rq_integration.enqueue_in(queue, delay, job, 7, pipeline=pipe)
        assert not pipe.command_stack
    assert rq_integration.enqueue(queue, job, 7, pipeline=None)


def test_rq_pushes_in_a_pipeline_what_has_no_reservation(
    locks: lualock.Locks, queue: rq.Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job without ``unique=`` is pushed when its pipeline is executed."""
    job = in_module(monkeypatch, "found_by_rq", rq_integration.locked(locks.job(rebuild)))
    with queue.connection.pipeline() as pipe:
        entry = rq_integration.enqueue(queue, job, 7, pipeline=pipe)
        assert len(queue) == 0
        pipe.execute()
    assert isinstance(entry, jobs.Enqueued)
    assert queue.job_ids == [entry.job_id]


def test_rq_counts_what_the_job_returns(
    locks: lualock.Locks, queue: rq.Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that may retry once by its result does so, however often it came back before."""
    ran: list[int] = []
    came: list[int] = []
    busy = locks.lock("x").acquire()

    def later(contention: jobs.Contention) -> jobs.Retry:
        came.append(1)
        if len(came) == 3:
            busy.release()
        return jobs.Retry(0)

    def body() -> rq.Retry:
        ran.append(1)
        return rq.Retry(max=1)

    job = rq_integration.locked(locks.job(key="x", policy=later)(body))
    rq_integration.enqueue(queue, in_module(monkeypatch, "found_by_rq", job))
    work_off(queue)
    assert (len(came), len(ran)) == (3, 2)


def test_rq_keeps_the_lock_for_a_returned_retry(
    locks: lualock.Locks, queue: rq.Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Retry as a result is a retry too, and the last one is not."""
    held: list[bool] = []

    def body() -> rq.Retry:
        return rq.Retry(max=1)

    job = rq_integration.locked(locks.job(key="x", keep_lock_on_retry=True)(body))
    rq_integration.enqueue(queue, in_module(monkeypatch, "found_by_rq", job))
    worker = rq.SimpleWorker([queue], connection=queue.connection)
    for _ in range(2):
        worker.work(burst=True, max_jobs=1)
        held.append(locks.lock("x").locked())
    assert held == [True, False]


def test_rq_frees_what_a_removed_job_keeps(
    locks: lualock.Locks, queue: rq.Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Removing a job also frees the lock of a job without ``unique=`` that waits for its retry."""
    job = rq_integration.locked(
        locks.job(key="x", keep_lock_on_retry=True)(lambda: rq.Retry(max=1, interval=60))
    )
    entry = rq_integration.enqueue(queue, in_module(monkeypatch, "found_by_rq", job))
    assert isinstance(entry, jobs.Enqueued)
    work_off(queue)
    assert locks.lock("x").locked()
    rq_integration.removed(entry.result)
    assert not locks.lock("x").locked()


def test_rq_one_job_calls_another(
    locks: lualock.Locks, queue: rq.Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The inner job is not a delivery."""
    outer = Outer(locks)
    outer.inner = rq_integration.locked(outer.inner)
    job = rq_integration.locked(locks.job(key="outer")(lambda: outer.body()))
    entry = rq_integration.enqueue(queue, in_module(monkeypatch, "found_by_rq", job))
    assert isinstance(entry, jobs.Enqueued)
    work_off(queue)
    assert entry.result.return_value() == "done"
    assert len(outer.errors) == 1


def test_rq_a_loner(queue: rq.Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loner is refused while it runs or waits for its retry; neither the retry nor a later job
    is."""
    entries: list[Any] = []
    refused_ids: list[str] = []

    def perform(cls: Any, repo_id: int) -> str:
        entries.append(rq_integration.enqueue(queue, cls, repo_id))
        if len(entries) == 1:
            raise Trouble
        return f"graph of {repo_id}"

    def failed(cls: Any, repo_id: int, *, job_id: str) -> None:
        refused_ids.append(job_id)

    members = {
        "perform": classmethod(perform),
        "loner_enqueue_failed": classmethod(failed),
        "loner": True,
        "lock_unique": None,
        "__module__": __name__,
    }
    made = type("Loner", (Graph,), members)
    made.__qualname__ = "Loner"
    loner = in_module(monkeypatch, "Loner", rq_integration.locked(made))
    entry = rq_integration.enqueue(queue, loner, 7, retry=rq.Retry(max=1))
    assert isinstance(entry, jobs.Enqueued)
    worker = rq.SimpleWorker([queue], connection=queue.connection)
    worker.work(burst=True, max_jobs=2)  # the first run and its retry
    assert entry.result.return_value() == "graph of 7"
    assert [(one.job_id, one.state) for one in entries] == [(entry.job_id, "running")] * 2
    assert refused_ids == [entry.job_id] * 2
    assert rq_integration.enqueue(queue, loner, 7)


@pytest.mark.parametrize("delay", [600, timedelta(minutes=10)])
def test_rq_enqueues_for_later(
    locks: lualock.Locks, queue: rq.Queue, monkeypatch: pytest.MonkeyPatch, delay: Any
) -> None:
    """The delay of a job is a number of seconds or a timedelta."""
    declared = rq_integration.locked(locks.job(unique="queued")(rebuild))
    job = in_module(monkeypatch, "scheduled", declared)
    entry = rq_integration.enqueue_in(queue, delay, job, 7)
    assert queue.scheduled_job_registry.get_job_ids() == [entry.job_id]


@pytest.mark.parametrize("body", [rebuild, trouble])
def test_rq_without_a_worker(
    locks: lualock.Locks, queue: rq.Queue, monkeypatch: pytest.MonkeyPatch, body: Callable[..., Any]
) -> None:
    """A queue with ``is_async=False`` tries no job again, so nothing is kept for a retry."""
    here = rq.Queue(connection=queue.connection, is_async=False)
    rules: Any = {"unique": "queued", "policy": jobs.Retry(60), "keep_lock_on_retry": True}
    job = in_module(
        monkeypatch, "found_by_rq", rq_integration.locked(locks.job(key="x", **rules)(body))
    )
    with locks.lock("x"):
        held = rq_integration.enqueue(here, job, 7, retry=rq.Retry(max=3))
    free = rq_integration.enqueue(here, job, 7, retry=rq.Retry(max=3))
    assert isinstance(held, jobs.Enqueued)
    assert isinstance(free, jobs.Enqueued)
    assert held.result.get_status() == "failed"
    assert free.result.get_status() == ("finished" if body is rebuild else "failed")
    assert not locks.lock("x").locked()
    assert not jobs.adapter(job).reservation([7]).locked()


def itself(locks: lualock.Locks) -> tuple[Any, list[jobs.RetryLater]]:
    """Make a job that calls itself with other arguments, whose lock is held."""
    errors: list[jobs.RetryLater] = []
    locks.lock("again False").acquire()

    def again(outer: bool) -> str:
        if outer:
            try:
                job.called(False)
            except jobs.RetryLater as later:
                errors.append(later)
        return "done"

    job: Any = locks.job(key=lambda outer: f"again {outer}", policy=jobs.Retry(60))(again)
    return job, errors


def test_rq_a_job_calls_itself(
    locks: lualock.Locks, queue: rq.Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The inner run is not a delivery; after it, the next delivery is one."""
    job, errors = itself(locks)
    job.called = in_module(monkeypatch, "found_by_rq", rq_integration.locked(job))
    entries: list[Any] = [rq_integration.enqueue(queue, job.called, True) for _ in range(2)]
    work_off(queue)
    assert [entry.result.return_value() for entry in entries] == ["done", "done"]
    assert [later.job_id for later in errors] == [None, None]


# Celery


@pytest.fixture
def app() -> Iterator[celery.Celery]:
    """An app that runs its tasks where they are sent from."""
    app = celery.Celery("tests", task_cls=celery_integration.LockedTask, set_as_current=False)
    app.conf.update(task_always_eager=True, task_eager_propagates=True, broker_url="memory://")
    app.task = functools.partial(app.task, shared=False)  # other apps of this process have none
    yield app
    app.close()


@BODIES
def test_celery_runs_both_kinds(
    locks: lualock.Locks, app: celery.Celery, body: Callable[..., Any]
) -> None:
    """Celery runs functions and coroutine functions, sent and called."""
    task = app.task(locks.job(body))
    result = task.delay(7)
    assert (result.get(), result.refused) == ("rebuilt 7", None)
    assert task(8) == "rebuilt 8"


def test_celery_runs_a_class(app: celery.Celery, locks: lualock.Locks) -> None:
    """A refused task of a class has the result of the queued one."""
    task = app.task(jobs.as_function(Graph))
    assert task.delay(7).get() == "graph of 7"
    assert jobs.adapter(Graph).reserve([7], job_id="the first")
    result = task.delay(7)
    assert result.id == "the first"
    assert refused(result.refused, "the first")


@pytest.mark.parametrize("canvas", [celery.group, celery.chain])
def test_celery_never_leaves_a_canvas_waiting(
    app: celery.Celery, locks: lualock.Locks, canvas: Any
) -> None:
    """All members of a group or a chain are sent, because a refused one would never have a
    result."""
    job: Any = locks.job(unique="queued")(rebuild)
    task = app.task(job)
    assert jobs.adapter(job).reserve([7], job_id="the first")
    with delivered(task, 1) as sent:
        canvas(task.si(7), task.si(7)).apply_async()
        for message in list(sent):  # as a worker does after it
            for rest in message.body[2]["chain"] or ():
                task.app.signature(rest).apply_async(chain=[])
    assert len(sent) == 2


def test_celery_leaves_other_tasks_alone(app: celery.Celery) -> None:
    """The task class serves all tasks of an app, also those without a lock."""
    assert app.task(rebuild).delay(7).get() == "rebuilt 7"


def test_celery_does_not_bind(app: celery.Celery, locks: lualock.Locks) -> None:
    """A bound task is refused, because the task would be one of the arguments."""
    with pytest.raises(lualock.InvalidArgument, match="bind=True"):
        app.task(bind=True)(locks.job(rebuild)).delay(7)


def test_celery_one_task_calls_another(app: celery.Celery, locks: lualock.Locks) -> None:
    """The inner task is not a delivery, whichever way it is called."""
    outer = Outer(locks)
    inner = app.task(outer.inner)

    def body() -> str:
        return outer.body()

    task = app.task(name="outer")(locks.job(key="outer")(body))
    for outer.inner in (inner, inner.run):
        assert task.apply_async().get() == "done"
        assert outer.body() == "done"
    assert len(outer.errors) == 4


def test_celery_a_task_calls_itself(app: celery.Celery, locks: lualock.Locks) -> None:
    """The inner run is not a delivery, whichever way it is called."""
    job, errors = itself(locks)
    task = app.task(job)
    for job.called in (task, task.run):
        assert task.delay(True).get() == "done"
    assert [later.job_id for later in errors] == [None, None]


def test_celery_eager(app: celery.Celery, locks: lualock.Locks) -> None:
    """An eager task is not delivered again, so nothing is kept for that; Celery's own retries run
    at once."""
    rules: Any = {"unique": "queued", "policy": jobs.Retry(60), "keep_lock_on_retry": True}
    ran: list[int] = []

    def body(shop_id: int) -> str:
        ran.append(shop_id)
        if len(ran) < 3:
            raise Trouble
        return "done"

    job: Any = locks.job(key="x", **rules)(body)
    task = app.task(autoretry_for=(Trouble,), default_retry_delay=0)(job)
    app.conf.task_eager_propagates = False
    with locks.lock("x"):
        assert task.delay(7).state == task.apply((7,)).state == "FAILURE"
    assert task.delay(7).get() == "done"
    assert len(ran) == 3
    assert not locks.lock("x").locked()
    assert not jobs.adapter(job).reservation([7]).locked()


@contextmanager
def delivered(task: Any, *args: Any, headers: dict[str, str] | None = None) -> Iterator[list[Any]]:
    """Run the body as a worker runs a task; collect what is sent instead of sending it."""
    sent: list[Any] = []
    task.app.conf.task_always_eager = False
    task.app.amqp.send_task_message = lambda _, name, message, **options: sent.append(message)
    task.push_request(
        id="mine", args=args, kwargs={}, headers=headers, is_eager=False, called_directly=False
    )
    celery._state._task_stack.push(task)
    try:
        yield sent
    finally:
        celery._state._task_stack.pop()
        task.pop_request()


@pytest.mark.parametrize("headers", [{"lualock": ""}, None])
def test_celery_sends_again_while_another_runs(
    app: celery.Celery, locks: lualock.Locks, headers: dict[str, str] | None
) -> None:
    """A task that comes back is not a new one, which ``unique="running"`` would refuse; nor is one
    that code without lualock sent."""
    task = app.task(locks.job(key="x", unique="running", policy=jobs.Retry(60))(rebuild))
    with locks.lock("x"):
        with delivered(task, 7, headers=headers) as sent, pytest.raises(celery.exceptions.Retry):
            task.run(7)
        assert task.delay(7).refused.state == "running"
    assert [message.headers["id"] for message in sent] == ["mine"]


def test_celery_cannot_send_again(app: celery.Celery, locks: lualock.Locks) -> None:
    """A task that should come back, and cannot be sent, leaves nothing behind."""
    job: Any = locks.job(key="x", unique="queued", policy=jobs.Retry(60))(rebuild)
    task = app.task(job)
    entry = jobs.adapter(job).reserve([7], job_id="mine")
    assert isinstance(entry, jobs.Reserved)

    def broken(*_: Any, **__: Any) -> None:
        raise Trouble

    with locks.lock("x"), delivered(task, 7, headers={"lualock": entry.token}):
        task.app.amqp.send_task_message = broken
        with pytest.raises(Trouble):
            task.run(7)
    assert not jobs.adapter(job).reservation([7]).locked()


def test_celery_retries_with_other_arguments(app: celery.Celery, locks: lualock.Locks) -> None:
    """The retry has another lock then, and the first lock is not kept."""

    def body(shop_id: int, other: int) -> None:
        raise celery.current_task.retry(args=[other, other])

    job: Any = locks.job(key=lambda shop_id, other: f"{shop_id}", keep_lock_on_retry=True)(body)
    task = app.task(max_retries=3)(job)
    for other, kept in ((7, True), (8, False)):
        with delivered(task, 7, other) as sent, pytest.raises(celery.exceptions.Retry):
            task.run(7, other)
        assert locks.lock("7").locked() == kept
        assert [message.headers["id"] for message in sent] == ["mine"]


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize(
    "error",
    [
        *(celery.exceptions.Ignore(), celery.exceptions.Reject(requeue=True)),
        *(celery.exceptions.Reject(requeue=False), Trouble()),
    ],
)
def test_celery_has_other_ways_to_end(
    app: celery.Celery, locks: lualock.Locks, error: Exception, late: bool
) -> None:
    """Ignore and Reject are not failures and are not tried again, but for a task that goes back
    into its queue."""

    def body(shop_id: int) -> None:
        raise error

    requeue = getattr(error, "requeue", None)
    for option in ("keep_lock_on_retry", "keep_lock_on_failure"):
        keep: Any = {option: True}
        job: Any = locks.job(key=option, **keep)(body)
        task = app.task(name=option, autoretry_for=(celery.exceptions.Ignore,), acks_late=late)(job)
        with delivered(task, 7), pytest.raises(type(error)):
            task.run(7)
        failed = isinstance(error, Trouble) or requeue is False
        expected = (requeue is True and late) if option == "keep_lock_on_retry" else failed
        assert locks.lock(option).locked() == expected


@pytest.mark.parametrize("form", ["naive", "text"])
def test_celery_times(app: celery.Celery, form: str) -> None:
    """Workers take a naive time as UTC, whatever the app's time zone; a text is a time too."""
    app.conf.timezone = "Asia/Tokyo"
    eta: Any = datetime.now(timezone.utc) + timedelta(hours=1)
    eta = eta.replace(tzinfo=None) if form == "naive" else eta.isoformat()
    assert celery_retries.delay_s({"eta": eta}) == pytest.approx(3600, abs=60)


NOW = datetime.now(timezone.utc)


@pytest.mark.parametrize(
    ("options", "done", "error", "expected"),
    [
        ({}, 0, Trouble(), None),
        ({"autoretry_for": (Trouble,)}, 0, Trouble(), 180),
        ({"autoretry_for": (Trouble,), "default_retry_delay": 5}, 2, Trouble(), 5),
        ({"autoretry_for": (Trouble,)}, 3, Trouble(), None),
        ({"autoretry_for": (Trouble,), "max_retries": None}, 99, Trouble(), 180),
        ({"autoretry_for": (Trouble,), "dont_autoretry_for": (Worse,)}, 0, Worse(), None),
        ({"autoretry_for": (Trouble,), "retry_kwargs": {"max_retries": 1}}, 1, Trouble(), None),
        ({"autoretry_for": (Trouble,), "retry_kwargs": {"countdown": 7}}, 0, Trouble(), 7),
        ({"autoretry_for": (Trouble,), "retry_backoff": 2}, 0, Trouble(), 600),
        ({}, 0, celery.exceptions.Retry(when=9), 9),
        ({}, 9, celery.exceptions.Retry(when=NOW - timedelta(hours=1)), 0),
    ],
)
def test_celery_retries(
    locks: lualock.Locks,
    app: celery.Celery,
    options: dict[str, Any],
    done: int,
    error: Exception,
    expected: float | None,
) -> None:
    """The integration expects a retry when Celery makes one, by its own rules."""
    task = app.task(**options)(locks.job(rebuild))
    task.push_request(retries=done)
    assert celery_retries.retry_s(task, error) == expected


# Dramatiq


@BODIES
def test_dramatiq_runs_both_kinds(locks: lualock.Locks, body: Callable[..., Any]) -> None:
    """Dramatiq runs functions and coroutine functions, in a worker and called."""
    done: list[int] = []
    broker = StubBroker()
    job = locks.job(on_skipped=done.append)(body)
    actor: Any = dramatiq.actor(actor_class=dramatiq_integration.LockedActor, broker=broker)(job)
    assert actor(8) == "rebuilt 8"
    with job_held(job, 7):
        actor.send(7)
        work_off_dramatiq(broker, actor)
    assert done == [7]


def test_dramatiq_an_actor_calls_itself(locks: lualock.Locks) -> None:
    """The inner run is not a delivery."""
    broker = StubBroker()
    job, errors = itself(locks)
    job.called = dramatiq.actor(actor_class=dramatiq_integration.LockedActor, broker=broker)(job)
    job.called.send(True)
    work_off_dramatiq(broker, job.called)
    assert [later.job_id for later in errors] == [None]


class Closing(dramatiq.Middleware):
    """Closes Dramatiq's loop at a worker's end as ``asyncio.run`` does, which Dramatiq does not."""

    def before_worker_shutdown(self, broker: Any, worker: Any) -> None:
        thread = get_event_loop_thread()
        assert thread is not None
        thread.run_coroutine(thread.loop.shutdown_asyncgens())


def test_dramatiq_has_one_loop(locks: lualock.Locks) -> None:
    """With the middleware AsyncIO the coroutines of a process run in one loop, and can share its
    objects."""
    loops: list[Any] = []

    async def body(number: int) -> None:
        loops.append(asyncio.get_running_loop())

    broker = StubBroker()
    broker.add_middleware(AsyncIO())
    broker.add_middleware(Closing())
    job = locks.job(key="loop")(body)
    actor: Any = dramatiq.actor(actor_class=dramatiq_integration.LockedActor, broker=broker)(job)
    for number in range(2):
        actor.send(number)
    work_off_dramatiq(broker, actor)
    assert len(loops) == 2
    assert loops[0] is loops[1]


def test_dramatiq_does_not_wait_for_itself(locks: lualock.Locks) -> None:
    """A coroutine in that loop that calls another actor gets an error, and the loop runs on: it
    would wait for itself."""
    numbers: list[Any] = []

    async def inner(number: int) -> None:
        """Another job."""

    async def outer(number: int) -> None:
        with pytest.raises(RuntimeError, match="the same event loop"):
            called(number)
        numbers.append(number)

    broker = StubBroker()
    broker.add_middleware(AsyncIO())
    broker.add_middleware(Closing())
    called, actor = (
        dramatiq.actor(actor_class=dramatiq_integration.LockedActor, broker=broker)(
            locks.job(key=job.__name__)(job)
        )
        for job in (inner, outer)
    )
    for number in range(2):
        actor.send(number)
    work_off_dramatiq(broker, actor)
    assert numbers == [0, 1]


def test_dramatiq_ends_a_coroutine_for_good(locks: lualock.Locks) -> None:
    """A coroutine that takes too long and is not tried again keeps no lock, although it saw only a
    cancellation."""
    ran: list[int] = []

    async def body(number: int) -> None:
        ran.append(number)
        await asyncio.sleep(30)

    broker = StubBroker(middleware=[], fail_fast_default=False)
    limits = [TimeLimit(time_limit=300, interval=20), Retries()]
    for middleware in (AsyncIO(), Closing(), *limits):
        broker.add_middleware(middleware)
    broker.emit_after("process_boot")
    job: Any = locks.job(key="x", keep_lock_on_retry=True)(body)
    actor: Any = dramatiq.actor(
        actor_class=dramatiq_integration.LockedActor,
        broker=broker,
        retry_when=lambda _, error: not isinstance(error, TimeLimitExceeded),
    )(job)
    actor.send(7)
    work_off_dramatiq(broker, actor)
    assert ran == [7]
    assert not locks.lock("x").locked()


def test_dramatiq_cannot_send_again(locks: lualock.Locks, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message that should come back, and cannot be sent, leaves nothing behind."""
    broker = StubBroker(fail_fast_default=False)
    job: Any = locks.job(key="x", unique="queued", policy=jobs.Retry(60))(rebuild)
    actor: Any = dramatiq.actor(
        actor_class=dramatiq_integration.LockedActor, broker=broker, max_retries=0
    )(job)
    actor.send(7)

    def broken(*_: Any, **__: Any) -> None:
        raise Trouble

    with locks.lock("x"):
        monkeypatch.setattr(broker, "enqueue", broken)
        work_off_dramatiq(broker, actor)
    assert not jobs.adapter(job).reservation([7]).locked()


@pytest.mark.parametrize("judge", [{"throws": Exception}, {"retry_when": lambda *_: False}, {}])
def test_dramatiq_comes_back_whatever_it_throws(locks: lualock.Locks, judge: Any) -> None:
    """A message that comes back is not a dead letter, whatever ``throws`` of its actor says, and
    without Retries."""
    broker = StubBroker() if judge else StubBroker(middleware=[])
    busy = locks.lock("x").acquire()
    ran: list[int] = []

    def later(contention: jobs.Contention) -> jobs.Retry:
        busy.release()
        return jobs.Retry(0)

    job: Any = locks.job(key="x", unique="queued", policy=later)(ran.append)
    actor: Any = dramatiq.actor(
        actor_class=dramatiq_integration.LockedActor, broker=broker, actor_name="judge", **judge
    )(job)
    actor.send(7)
    work_off_dramatiq(broker, actor)
    assert ran == [7]


@pytest.mark.parametrize("judge", [{}, {"retry_when": lambda *_: False}])
def test_dramatiq_results(locks: lualock.Locks, judge: Any) -> None:
    """A message that comes back has no result until it has run; a dropped one has that of
    ``on_skipped``."""
    backend = StubBackend()
    broker = StubBroker()
    results: Any = Results
    broker.add_middleware(results(backend=backend, store_results=True))
    busy = locks.lock("later").acquire()
    came: list[str] = []

    def later(contention: jobs.Contention) -> jobs.Retry:
        came.append("later")
        if len(came) == 3:
            busy.release()
        return jobs.Retry(0.01)

    def perform(shop_id: int) -> str:
        with pytest.raises(ResultMissing):
            message.get_result(backend=backend)
        came.append("ran")
        return rebuild(shop_id)

    job: Any = locks.job(key="later", policy=later)(perform)
    actor: Any = dramatiq.actor(
        actor_class=dramatiq_integration.LockedActor, broker=broker, **judge
    )(job)
    message = actor.send(7)
    work_off_dramatiq(broker, actor)
    assert came == ["later", "later", "later", "ran"]
    assert message.get_result(backend=backend) == "rebuilt 7"

    job = locks.job(key="never", on_skipped=lambda shop_id: "refused")(rebuild)
    actor = dramatiq.actor(
        actor_class=dramatiq_integration.LockedActor, broker=broker, actor_name="never", **judge
    )(job)
    with locks.lock("never"):
        message = actor.send(7)
        work_off_dramatiq(broker, actor)
    assert message.get_result(backend=backend) == "refused"


def work_off_dramatiq(broker: Any, actor: Any) -> None:
    worker = dramatiq.Worker(broker, worker_timeout=10, worker_threads=1)
    worker.start()
    broker.join(actor.queue_name)
    worker.join()
    worker.stop()


def job_held(job: Any, *args: Any) -> Any:
    """Hold the lock of a job of either kind in a thread."""
    lock = job.lock_for(*args)
    return lualock.Locks._of(lock._locks._endpoint, None, lock._locks._settings).lock(lock._name)


def test_dramatiq_refuses(locks: lualock.Locks) -> None:
    """A refused message has the id of the conflicting one, and is not sent."""
    broker = StubBroker()
    job: Any = locks.job(unique="queued")(rebuild)
    actor: Any = dramatiq.actor(actor_class=dramatiq_integration.LockedActor, broker=broker)(job)
    first = actor.send(7)
    assert refused(actor.enqueue(7), first.message_id)
    assert actor.send(7).message_id == first.message_id
    assert broker.queues[actor.queue_name].qsize() == 1
    assert first.options["lualock"], "it is the message that was sent"


def test_dramatiq_delays(locks: lualock.Locks) -> None:
    """A delayed message has its reservation for longer, whichever way the delay is given."""
    broker = StubBroker()
    job: Any = locks.job(unique="queued")(rebuild)
    actor: Any = dramatiq.actor(actor_class=dramatiq_integration.LockedActor, broker=broker)(job)
    for number, delay in enumerate((timedelta(hours=1), 3_600_000)):
        actor.send_with_options(args=(number,), delay=delay)
        reservation: Any = jobs.adapter(job).reservation([number])
        left_s = reservation.inspect().remaining_s
        assert left_s == pytest.approx(7200, abs=60)


def test_dramatiq_keeps_the_reservation_of_a_returning_message(locks: lualock.Locks) -> None:
    """A message that comes back keeps its reservation, also if a broker has several locked
    actors."""
    broker = StubBroker()
    kept: list[Any] = []
    busy = locks.lock("x").acquire()

    def later(contention: jobs.Contention) -> jobs.Retry:
        kept.append(jobs.adapter(job).reservation([7]).locked())
        if len(kept) == 3:
            busy.release()
        return jobs.Retry(0.01)

    job: Any = locks.job(key="x", unique="queued", policy=later)(rebuild)
    actors: list[Any] = [
        dramatiq.actor(
            actor_class=dramatiq_integration.LockedActor, broker=broker, actor_name=name
        )(job)
        for name in ("first", "second")
    ]
    actors[0].send(7)
    work_off_dramatiq(broker, actors[0])
    assert kept == [True, True, True]


class Sent:
    """A broker for the middleware: it records with which delay a message was sent again."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor
        self.delays_ms: list[int] = []

    def get_actor(self, name: str) -> Any:
        return self.actor

    def enqueue(self, message: Any, delay: int) -> None:
        self.delays_ms.append(delay)


class Failing:
    """A message that its middleware may give up."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.actor_name, self.message_id, self.options = "rebuild", "id", options
        self.failed = False

    def fail(self) -> None:
        self.failed = True


@settings(deadline=None, max_examples=200)
@given(
    done=st.integers(0, 40),
    declared=st.fixed_dictionaries(
        {},
        optional={
            "max_retries": st.none() | st.integers(0, 40),
            "min_backoff": st.integers(1, 100_000),
            "max_backoff": st.integers(1, 10_000_000),
            "throws": st.just(Worse),
        },
    ),
    again=st.none() | st.integers(0, 3),
    error=st.sampled_from([Trouble(), Worse(), dramatiq.Retry(delay=500), dramatiq.Retry()]),
)
def test_dramatiq_retries(
    done: int, declared: dict[str, Any], again: int | None, error: Exception
) -> None:
    """The middleware retries when the integration expects it, and no later."""
    if again is not None:
        declared = declared | {"retry_when": lambda retries, _: retries % 4 != again}

    class Actor:
        options = declared

    middleware: Any = Retries()
    broker = Sent(Actor())
    message = Failing({"retries": done})
    expected_s = dramatiq_integration._retry_delay_s(middleware, declared | message.options, error)
    middleware.after_process_message(broker, message, exception=error)
    assert bool(broker.delays_ms) == (expected_s is not None)
    assert all(delay_ms / 1000 <= (expected_s or 0) for delay_ms in broker.delays_ms)


# Huey


@BODIES
def test_huey_runs_both_kinds(locks: lualock.Locks, body: Callable[..., Any]) -> None:
    """Huey runs functions and coroutine functions, in a consumer and called."""
    consumer = huey.MemoryHuey(immediate=True)
    consumer.task_wrapper_class = huey_integration.LockedTask
    task = consumer.task()(locks.job(body))
    assert task(7).get() == "rebuilt 7"
    assert task.call_local(8) == "rebuilt 8"


def test_huey_refuses(locks: lualock.Locks) -> None:
    """A refused call returns the result of the queued task; a class works too."""
    consumer = huey.MemoryHuey()
    consumer.task_wrapper_class = huey_integration.LockedTask
    task = consumer.task()(jobs.as_function(Graph))
    first = task(7)
    assert refused(task.enqueue(7), first.id)
    assert task(7).id == first.id
    assert task.schedule((8,), delay=60).id != first.id
    assert task.schedule(60, kwargs={"repo_id": 9})
    assert task.schedule(timedelta(seconds=60), kwargs={"repo_id": 10})
    assert task.schedule((11,), eta=datetime.now() + timedelta(hours=1))
    assert len(consumer) == 5
    with pytest.raises(ValueError, match="eta"):
        task.schedule(args=None)
    with pytest.raises(lualock.InvalidArgument, match="context=True"):
        consumer.task(context=True)(locks.job(rebuild))


def test_huey_without_results(locks: lualock.Locks) -> None:
    """Without results a call returns None, whether it was refused or not."""
    consumer = huey.MemoryHuey(results=False)
    consumer.task_wrapper_class = huey_integration.LockedTask
    job: Any = locks.job(unique="queued")(rebuild)
    task = consumer.task()(job)
    assert (task(7), task(7)) == (None, None)
    assert len(consumer) == 1


def test_huey_runs_classes(locks: lualock.Locks) -> None:
    """Each class runs under its own name, whichever way that is given."""
    consumer = huey.MemoryHuey(immediate=True)
    consumer.task_wrapper_class = huey_integration.LockedTask

    class Other(Graph):
        pass

    tasks = [consumer.task()(Graph), consumer.task()(jobs.as_function(Other))]
    assert [task(7).get() for task in tasks] == ["graph of 7", "graph of 7"]
    assert [task.task_class.__name__ for task in tasks] == ["Graph", "Other"]


def test_huey_makes_a_task_of_a_task(locks: lualock.Locks) -> None:
    """As with Huey's own tasks, a task can also be a periodic one, under the same lock."""
    consumer = huey.MemoryHuey()
    consumer.task_wrapper_class = huey_integration.LockedTask
    job: Any = locks.job(key="x", policy=jobs.Retry(60))(rebuild)
    task = consumer.task()(job)
    hourly = consumer.periodic_task(huey.crontab(minute=0), name="hourly")(task)
    with locks.lock("x"):
        consumer.execute(hourly.s(7))
    assert [waiting.name for waiting in consumer.scheduled()] == ["hourly"]


def test_huey_leaves_other_tasks_alone() -> None:
    """The task class serves all tasks, also those without a lock."""
    consumer = huey.MemoryHuey(immediate=True)
    consumer.task_wrapper_class = huey_integration.LockedTask
    assert consumer.task()(rebuild)(7).get() == "rebuilt 7"


@pytest.mark.parametrize(
    ("retries", "error", "expected"),
    [
        (0, Trouble(), None),
        (1, Trouble(), 30),
        (0, huey.exceptions.RetryTask(), 30),
        (0, huey.exceptions.RetryTask(delay=0), 0),
        (0, huey.exceptions.RetryTask(delay=timedelta(minutes=1)), timedelta(minutes=1)),
        (0, huey.exceptions.RetryTask(eta=NOW - timedelta(hours=1)), 0),
        (0, huey.CancelExecution(retry=True), 30),
        (1, huey.CancelExecution(), 30),
        (1, huey.CancelExecution(retry=False), None),
        (0, huey.exceptions.RateLimitExceeded("calls", 7), 30),
        (0, huey.exceptions.RateLimitExceeded("calls", 7, retry=False), None),
    ],
)
def test_huey_retries(retries: int, error: Exception, expected: Seconds | None) -> None:
    """The integration expects a retry when Huey makes one, by its own rules."""
    task = huey.api.Task(retries=retries, retry_delay=30)
    assert huey_integration._retry_s(task, error) == expected


@pytest.mark.parametrize("delay", [60, timedelta(minutes=1)], ids=["number", "timedelta"])
def test_huey_keeps_the_lock(locks: lualock.Locks, delay: Any) -> None:
    """A job that asks Huey for a retry keeps its lock until then."""
    consumer = huey.MemoryHuey()
    consumer.task_wrapper_class = huey_integration.LockedTask

    def body() -> None:
        raise huey.exceptions.RetryTask(delay=delay)

    job: Any = locks.job(key="x", unique="queued", keep_lock_on_retry=True)(body)
    consumer.task()(job)()
    consumer.execute(consumer.dequeue())
    assert consumer.scheduled_count() == 1
    assert locks.lock("x").locked()


def test_huey_times_of_users() -> None:
    """The time of a ``RetryTask`` is read in its time zone."""
    eta = datetime.now(timezone(timedelta(hours=9))) + timedelta(hours=1)
    delay_s = huey_integration._retry_s(huey.api.Task(), huey.exceptions.RetryTask(eta=eta))
    assert delay_s == pytest.approx(3600, abs=60)


def test_huey_is_interrupted() -> None:
    """Neither an interruption nor a task's own cancellation is a failure."""
    for error, failed in ((Trouble(), True), (KeyboardInterrupt(), False)):
        assert huey_integration._failed(error) == failed


def test_huey_cancels(locks: lualock.Locks) -> None:
    """A task that a hook cancels releases its reservation; one that cancels itself has not failed,
    and keeps its lock if Huey tries it again."""
    consumer = huey.MemoryHuey()
    consumer.task_wrapper_class = huey_integration.LockedTask
    error: Exception = huey.CancelExecution(retry=True)

    def body(shop_id: int) -> None:
        raise error

    rules: Any = {"unique": "queued", "keep_lock_on_retry": True, "keep_lock_on_failure": True}
    job: Any = locks.job(key="x", **rules)(body)
    task = consumer.task(retry_delay=60)(job)

    def run() -> None:
        task(7)
        consumer.execute(consumer.dequeue())

    run()
    assert locks.lock("x").locked()
    jobs.adapter(job).cancel([7], job_id=consumer.scheduled()[0].id)
    error = huey.CancelExecution()
    run()
    assert not locks.lock("x").locked()

    def never(task: Any) -> None:
        raise huey.CancelExecution

    consumer.pre_execute()(never)
    run()
    assert not jobs.adapter(job).reservation([7]).locked()


def test_huey_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """A consumer with ``utc=False`` has local times."""
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        eta = datetime.now() + timedelta(hours=1)
        assert huey_integration._delay_s(eta, utc=False) == pytest.approx(3600, abs=60)
    finally:
        monkeypatch.undo()
        time.tzset()


# taskiq


@BODIES
async def test_taskiq_runs_both_kinds(locks: lualock.Locks, body: Callable[..., Any]) -> None:
    """taskiq runs functions and coroutine functions, in a worker and called; an enqueued task is
    unique."""
    broker = taskiq.InMemoryBroker(await_inplace=True)
    await broker.startup()
    job = locks.job(unique="queued")(body)
    task = taskiq_integration.locked(broker)(job)
    entry = await taskiq_integration.enqueue(task, 7)
    assert isinstance(entry, jobs.Enqueued)
    assert (await entry.result.wait_result()).return_value == "rebuilt 7"
    assert await task(8) == "rebuilt 8"

    assert await jobs.adapter(job).reserve_async([7], job_id="the first")
    other = await taskiq_integration.enqueue(task.kicker().with_labels(why="test"), 7)
    assert refused(other, "the first")
    third = await taskiq_integration.enqueue(task.kicker().with_task_id("mine"), 8)
    assert isinstance(third, jobs.Enqueued)
    assert third.job_id == third.result.task_id == "mine"
    await broker.shutdown()


async def test_taskiq_refuses_what_is_not_locked(locks: lualock.Locks) -> None:
    """A task of the broker's own ``task`` is refused, and keeps no reservation."""
    broker = taskiq.InMemoryBroker()
    job = locks.job(unique="queued")(rebuild)
    with pytest.raises(
        lualock.InvalidArgument, match=r"with lualock\.integrations\.taskiq\.locked, above"
    ):
        await taskiq_integration.enqueue(broker.task(job), 7)
    assert not jobs.adapter(job).reservation([7]).locked()


async def test_taskiq_comes_back_with_its_id(locks: lualock.Locks) -> None:
    """A waiter for the result of a task that came back gets it; the task comes back once, also if a
    broker has several locked tasks."""
    broker = taskiq.InMemoryBroker(await_inplace=True)
    await broker.startup()
    busy = locks.lock("x").acquire()
    ran: list[int] = []
    taskiq_integration.locked(broker, "other")(locks.job(rebuild))

    def body(shop_id: int) -> str:
        ran.append(shop_id)
        return rebuild(shop_id)

    def later(contention: jobs.Contention) -> jobs.Retry:
        busy.release()
        return jobs.Retry(0)

    task = taskiq_integration.locked(broker)(locks.job(key="x", policy=later)(body))
    entry = await taskiq_integration.enqueue(task, 7)
    assert isinstance(entry, jobs.Enqueued)
    assert (await entry.result.wait_result(timeout=10)).return_value == "rebuilt 7"
    assert ran == [7]
    await broker.shutdown()


async def test_taskiq_waits_outside_of_the_task(locks: lualock.Locks) -> None:
    """A task's ``timeout`` limits its run, not the time until it comes back."""
    broker = taskiq.InMemoryBroker(await_inplace=True)
    await broker.startup()
    busy = locks.lock("x").acquire()

    def later(contention: jobs.Contention) -> jobs.Retry:
        busy.release()
        return jobs.Retry(0.3)

    task = taskiq_integration.locked(broker, timeout=0.2)(
        locks.job(key="x", policy=later)(rebuild_async)
    )
    entry = await taskiq_integration.enqueue(task, 7)
    assert isinstance(entry, jobs.Enqueued)
    assert (await entry.result.wait_result(timeout=10)).return_value == "rebuilt 7"
    await broker.shutdown()


class Source(taskiq.ScheduleSource):
    """A schedule source, in which tasks wait for their next delivery."""

    def __init__(self) -> None:
        self.made: list[taskiq.ScheduledTask] = []

    async def get_schedules(self) -> list[taskiq.ScheduledTask]:
        return self.made

    async def add_schedule(self, schedule: taskiq.ScheduledTask) -> None:
        self.made.append(schedule)


async def test_taskiq_waits_in_a_schedule(locks: lualock.Locks) -> None:
    """With a schedule source a task waits there under its own id; a task that just fails does not
    come back."""
    broker, source = taskiq.InMemoryBroker(await_inplace=True), Source()
    await broker.startup()
    job: Any = locks.job(key="x", unique="queued", policy=jobs.Retry(60))(trouble)
    task = taskiq_integration.locked(broker, schedule_source=source)(job)
    with locks.lock("x"):
        entry = await taskiq_integration.enqueue(task, 7)
    assert isinstance(entry, jobs.Enqueued)
    (waiting,) = source.made
    assert (waiting.task_id, waiting.labels["lualock"]) == (entry.job_id, entry.token)
    assert waiting.time is not None
    left = waiting.time - datetime.now(timezone.utc)
    assert left.total_seconds() == pytest.approx(60, abs=10)
    jobs.adapter(job).cancel([7], token=entry.token)

    failing = await taskiq_integration.enqueue(task, 7)
    assert isinstance(failing, jobs.Enqueued)
    assert isinstance((await failing.result.wait_result(timeout=10)).error, Trouble)
    assert len(source.made) == 1
    await broker.shutdown()


async def test_taskiq_one_task_calls_another(locks: lualock.Locks) -> None:
    """The inner task is not a delivery, also if the outer one has no lock."""
    broker = taskiq.InMemoryBroker(await_inplace=True)
    await broker.startup()
    outer = Outer(locks)
    outer.inner = taskiq_integration.locked(broker, "inner")(outer.inner)

    async def body() -> str:
        return await outer.body_async()

    for task in (
        taskiq_integration.locked(broker, "outer")(locks.job(key="outer")(body)),
        broker.task("plain")(body),
    ):
        sent = await task.kiq()
        assert (await sent.wait_result(timeout=10)).return_value == "done"
    assert [later.job_id for later in outer.errors] == [None, None]
    await broker.shutdown()


async def test_taskiq_a_task_calls_itself(locks: lualock.Locks) -> None:
    """The inner run is not a delivery."""
    broker = taskiq.InMemoryBroker(await_inplace=True)
    await broker.startup()
    errors: list[jobs.RetryLater] = []
    locks.lock("again False").acquire()

    async def again(outer: bool) -> str:
        if outer:
            try:
                await task(False)
            except jobs.RetryLater as later:
                errors.append(later)
        return "done"

    job = locks.job(key=lambda outer: f"again {outer}", policy=jobs.Retry(0))(again)
    task = taskiq_integration.locked(broker, "again")(job)
    entry = await taskiq_integration.enqueue(task, True)
    assert isinstance(entry, jobs.Enqueued)
    assert (await entry.result.wait_result(timeout=10)).return_value == "done"
    assert [later.job_id for later in errors] == [None]
    await broker.shutdown()


SESSION: Any = taskiq.TaskiqDepends(lambda: "a session")


async def test_taskiq_passes_dependencies(locks: lualock.Locks) -> None:
    """A dependency is not an argument of the job: its lock's name, its producers and its callbacks
    do not have it; the body does, also after it called other jobs."""
    broker = taskiq.InMemoryBroker(await_inplace=True)
    await broker.startup()
    refused: list[Any] = []

    async def look(shop: int, session: Any = SESSION) -> Any:
        return shop, session

    async def outer(
        shop: int,
        context: Annotated[taskiq.Context, taskiq.TaskiqDepends()],
        session: Annotated[Any, SESSION],
    ) -> Any:
        return *await inner(shop, session="another"), session, context.message.task_id

    def plain(shop: int, session: Annotated[Any, SESSION]) -> Any:
        return shop, session

    inner = taskiq_integration.locked(broker, "inner")(locks.job(unique="queued")(look))
    job: Any = locks.job(key=lambda shop: f"outer {shop}", unique="queued")(outer)
    task = taskiq_integration.locked(broker, "outer")(job)
    plain_job: Any = locks.job(on_skipped=refused.append)(plain)
    sync = taskiq_integration.locked(broker, "plain")(plain_job)

    async def result(task: Any) -> Any:
        entry = await taskiq_integration.enqueue(task, 7)
        assert isinstance(entry, jobs.Enqueued)
        answer = await entry.result.wait_result(timeout=10)
        answer.raise_for_error()
        return entry.job_id, answer.return_value

    assert (await result(inner))[1] == (7, "a session")
    job_id, value = await result(task)
    assert value == (7, "another", "a session", job_id)
    assert (await result(sync))[1] == (7, "a session")
    with job_held(plain_job, 7):
        assert (await result(sync))[1] is None
    assert refused == [7]

    class Depending(Graph):
        @classmethod
        def perform(cls, repo_id: int, session: Any = SESSION) -> str:
            return f"graph of {repo_id} with {session}"

    with pytest.raises(lualock.InvalidArgument, match="Make it a function"):
        await taskiq_integration.enqueue(taskiq_integration.locked(broker)(Depending), 7)
    await broker.shutdown()


async def test_taskiq_runs_a_class() -> None:
    """A class runs under its own name."""
    broker = taskiq.InMemoryBroker(await_inplace=True)
    await broker.startup()
    task = taskiq_integration.locked(broker)(Graph)
    assert task.task_name.endswith(":Graph")
    entry = await taskiq_integration.enqueue(task, 7)
    assert isinstance(entry, jobs.Enqueued)
    assert (await entry.result.wait_result()).return_value == "graph of 7"
    await broker.shutdown()


MIDDLEWARES: list[Any] = [
    lambda: taskiq.SimpleRetryMiddleware(default_retry_count=3),
    lambda: taskiq.SmartRetryMiddleware(default_retry_count=3, default_delay=2),
    lambda: taskiq.SmartRetryMiddleware(use_jitter=True, use_delay_exponent=True),
    lambda: taskiq.SmartRetryMiddleware(default_retry_label=True, types_of_exceptions=[Worse]),
]


@pytest.mark.parametrize("make", MIDDLEWARES)
@pytest.mark.parametrize("labels", [{}, {"retry_on_error": True}, {"retry_on_error": "False"}])
@pytest.mark.parametrize("done", [0, 1, 2, 5])
@pytest.mark.parametrize("error", [Trouble(), Worse(), taskiq.exceptions.NoResultError()])
@pytest.mark.parametrize("own", [{}, {"types_of_exceptions": [Worse]}])
async def test_taskiq_retries(
    make: Any, labels: dict[str, Any], done: int, error: Exception, own: dict[str, Any]
) -> None:
    """The middleware retries when the integration expects it, and no later."""
    sent: list[Any] = []

    class Broker(taskiq.InMemoryBroker):
        async def kick(self, message: Any) -> None:
            sent.append(message)

    broker = Broker().with_middlewares(make())
    broker.task("rebuild", **own)(rebuild)
    message = taskiq.TaskiqMessage(
        task_id="id", task_name="rebuild", labels=labels | {"_retries": done}, args=[7], kwargs={}
    )
    expected_s = taskiq_integration._retry_s(broker, message, error)
    result: Any = taskiq.TaskiqResult(is_err=True, return_value=None, execution_time=0, error=error)
    middleware: Any = broker.middlewares[0]
    await middleware.on_error(message, result, error)
    assert bool(sent) == (expected_s is not None)
    if sent and expected_s is not None:
        resent = broker.formatter.loads(sent[0].message)
        resent.parse_labels()
        assert float(resent.labels.get("delay", 0)) <= expected_s


# All of them


def audited(job: Any) -> Any:
    """A user's own decorator."""

    @functools.wraps(job)
    def call(*args: Any, **kwargs: Any) -> Any:
        return job(*args, **kwargs)

    return call


@pytest.mark.parametrize("system", ["rq", "celery", "dramatiq", "taskiq"])
def test_nothing_is_left_out(locks: lualock.Locks, app: celery.Celery, system: str) -> None:
    """An integration runs the job's body, so a decorator above the job, which it would never call,
    is refused."""
    ways: dict[str, Callable[[Any], Any]] = {
        "rq": rq_integration.locked,
        "celery": lambda job: app.task(job).run,
        "dramatiq": dramatiq.actor(
            actor_class=dramatiq_integration.LockedActor, broker=StubBroker()
        ),
        "taskiq": taskiq_integration.locked(taskiq.InMemoryBroker()),
    }
    job = locks.job(key="x")(rebuild)
    with pytest.raises(lualock.InvalidArgument, match="never be called"):
        ways[system](audited(job))
    ways[system](job)


def nested(locks: lualock.Locks) -> tuple[Any, list[int]]:
    """Make a job that lets out the error of another job, which it calls."""
    runs: list[int] = []
    inner: Any = locks.job(key="inner", policy=jobs.Retry(0.0))(rebuild)
    locks.lock("inner").acquire()

    def outer(shop_id: int) -> None:
        runs.append(shop_id)
        if len(runs) < 9:
            inner(shop_id)

    return locks.job(key="outer", unique="queued")(outer), runs


def test_rq_comes_back_for_itself_alone(
    locks: lualock.Locks, queue: rq.Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the lock of a job that it calls is held, that is an error of the calling job."""
    job, runs = nested(locks)
    entry: Any = rq_integration.enqueue(
        queue, in_module(monkeypatch, "found_by_rq", rq_integration.locked(job)), 7
    )
    work_off(queue)
    assert runs == [7]
    assert entry.result.get_status() == "failed"
    assert not jobs.adapter(job).reservation([7]).locked()


def test_huey_comes_back_for_itself_alone(locks: lualock.Locks) -> None:
    """The RetryLater of a job that it calls counts as one of its attempts."""
    consumer = huey.MemoryHuey()
    consumer.task_wrapper_class = huey_integration.LockedTask
    job, runs = nested(locks)
    consumer.task(retries=1)(job)(7)
    while (task := consumer.dequeue()) is not None:
        consumer.execute(task)
    assert runs == [7, 7]
    assert not jobs.adapter(job).reservation([7]).locked()


def test_huey_ends_what_is_interrupted(locks: lualock.Locks) -> None:
    """An interrupted task is not tried again, however many retries are left, so nothing is kept for
    that."""
    consumer = huey.MemoryHuey()
    consumer.task_wrapper_class = huey_integration.LockedTask

    def body(shop_id: int) -> None:
        raise KeyboardInterrupt

    for keep in (False, True):
        job: Any = locks.job(key="x", unique="queued", keep_lock_on_retry=keep)(body)
        task = consumer.task(retries=3, name=f"keeps it: {keep}")(job)
        task(7)
        consumer.execute(consumer.dequeue())
        assert not consumer.pending()
        assert not locks.lock("x").locked()
        assert not jobs.adapter(job).reservation([7]).locked()


def test_huey_runs_what_has_an_argument_called_task(locks: lualock.Locks) -> None:
    """A job may have an argument with the name by which Huey passes its task."""
    consumer = huey.MemoryHuey(immediate=True)
    consumer.task_wrapper_class = huey_integration.LockedTask

    def body(task: int) -> int:
        return task

    job = consumer.task()(locks.job(key="x", unique="queued")(body))
    assert [job(7).get(), job(task=7).get(), job.call_local(task=7)] == [7, 7, 7]
    assert not jobs.adapter(job.func).reservation([7]).locked()


def test_celery_frees_what_never_began(locks: lualock.Locks, app: celery.Celery) -> None:
    """A task whose own ``before_start`` raises releases its reservation."""

    class Task(celery_integration.LockedTask):
        abstract = True

        def before_start(self, *args: Any) -> None:
            raise Trouble

    app.conf.task_eager_propagates = False
    job: Any = locks.job(key="x", unique="queued")(rebuild)
    assert app.task(base=Task)(job).delay(7).state == "FAILURE"
    assert not jobs.adapter(job).reservation([7]).locked()


def test_celery_headers_that_are_handed_on(locks: lualock.Locks, app: celery.Celery) -> None:
    """The headers of another task do not make a new task a resent one."""
    job: Any = locks.job(key="x", unique="queued")(rebuild)
    task = app.task(job)
    jobs.adapter(job).reserve([7], job_id="first")
    result = task.apply_async((7,), headers={"lualock": "A" * 22, "trace": "1"})
    assert result.refused.job_id == "first"


@pytest.mark.parametrize("policy", [jobs.Wait(5), jobs.Wait(0.4, then=jobs.Retry(60))])
async def test_taskiq_does_not_begin_what_it_has_given_up(
    locks: lualock.Locks, policy: Any
) -> None:
    """A plain job that waits for its lock in a thread, which cannot be cancelled, does not begin
    afterwards."""
    broker = taskiq.InMemoryBroker(await_inplace=True)
    runs: list[int] = []

    def body(shop_id: int) -> None:
        runs.append(shop_id)

    job: Any = locks.job(key="x", unique="queued", policy=policy)(body)
    task = taskiq_integration.locked(broker, timeout=0.2)(job)
    with locks.lock("x"):
        entry: Any = await taskiq_integration.enqueue(task, 7)
        assert (await entry.result.wait_result()).is_err
        await asyncio.sleep(0.4)
    await asyncio.sleep(0.2)
    assert not runs
    assert not locks.lock("x").locked()
    assert not jobs.adapter(job).reservation([7]).locked()


async def test_taskiq_cannot_send_again(locks: lualock.Locks) -> None:
    """A task that should come back, and cannot be sent, keeps no reservation."""

    class Away(taskiq.InMemoryBroker):
        kicks = 0

        async def kick(self, message: taskiq.BrokerMessage) -> None:
            self.kicks += 1
            if self.kicks == 2:
                raise Trouble
            await super().kick(message)

    broker = Away()
    job: Any = locks.job(key="x", unique="queued", policy=jobs.Retry(0.0))(rebuild_async)
    with locks.lock("x"):
        await taskiq_integration.enqueue(taskiq_integration.locked(broker)(job), 7)
        with pytest.raises(taskiq.exceptions.SendTaskError):
            await broker.wait_all()
    assert broker.kicks == 2
    reservation: Any = jobs.adapter(job).reservation([7])
    assert not await reservation.locked()


async def test_taskiq_has_no_names_of_its_own(locks: lualock.Locks) -> None:
    """An argument of a job may have any name that the integration uses."""
    broker = taskiq.InMemoryBroker(await_inplace=True)

    async def body(task: int) -> int:
        return task

    job = taskiq_integration.locked(broker)(locks.job(key="x", unique="queued")(body))
    entry: Any = await taskiq_integration.enqueue(job, task=7)
    assert (await entry.result.wait_result()).return_value == 7


def no_session() -> None:
    """A dependency that cannot be made."""
    raise Trouble


async def test_taskiq_frees_what_never_began(locks: lualock.Locks) -> None:
    """A task whose dependency could not be made releases its reservation."""
    broker = taskiq.InMemoryBroker(await_inplace=True)

    async def body(shop_id: int, db: Annotated[Any, taskiq.TaskiqDepends(no_session)]) -> None: ...

    task = taskiq_integration.locked(broker)(locks.job(key="x", unique="queued")(body))
    entry: Any = await taskiq_integration.enqueue(task, 7)
    assert (await entry.result.wait_result()).is_err
    assert isinstance(await taskiq_integration.enqueue(task, 7), jobs.Enqueued)


# arq and SAQ, which have a folder of their own


@pytest.mark.full
@pytest.mark.parametrize(
    "case",
    [
        *(
            "arq_class",
            "arq_same_id",
            "arq_same_id_together",
            "arq_same_id_begun",
            "arq_plain_function",
        ),
        *("arq_one_job_calls_another", "arq_last_try", "arq_interrupted"),
        *("arq_tries_nothing_again", "arq_locks_away", "arq_away"),
        *("saq_class", "saq_same_key", "saq_own_delay", "saq_one_job_calls_another"),
        *("saq_comes_back_without_retries", "saq_interrupted"),
    ],
)
def test_apart(one_server: Server, case: str) -> None:
    """Each case of :mod:`tests.integrations.workers.apart_cases` holds."""
    done = subprocess.run(
        [apart.python(), "-m", "tests.integrations.workers.apart_cases", case, one_server.tcp_url],
        cwd=apart.ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


# What travels with a job


def put_in(changed: dict[str, int]) -> None:
    """Change the argument, as careless code does."""
    changed["n"] = changed.get("n", 0) + 1
    if changed["n"] < 3:
        raise Trouble


def nothing_left(client: Any) -> bool:
    """Return whether no lock or reservation lasts longer than a tombstone."""
    return all(client.pttl(key) < 6000 for key in client.keys("lualock*"))


@pytest.fixture
def counter(locks: lualock.Locks, one_client: Any) -> Iterator[Any]:
    """Return a job that changes its argument, and is tried three times; nothing of it is left."""
    one_client.flushall()
    job = locks.job(unique="queued", keep_lock_on_retry=True)(put_in)
    yield job
    assert nothing_left(one_client), one_client.keys("lualock*")


def test_huey_carries_names(counter: Any) -> None:
    """A task of Huey ends what it was queued under, and its job does not see the token."""
    consumer = huey.MemoryHuey(immediate=False)
    consumer.task_wrapper_class = huey_integration.LockedTask
    task = consumer.task(retries=3)(counter)
    assert task.enqueue({})
    for _ in range(3):
        consumer.execute(consumer.dequeue())


def test_huey_drops_what_carries_names(counter: Any) -> None:
    """A revoked task of Huey is found although its arguments have changed."""
    consumer = huey.MemoryHuey(immediate=False)
    consumer.task_wrapper_class = huey_integration.LockedTask
    task = consumer.task()(counter)
    payload: dict[str, int] = {}
    entry = task.enqueue(payload)
    entry.result.revoke()
    message = consumer.dequeue()
    message.args[0]["n"] = 7
    consumer.execute(message)


def test_dramatiq_carries_names(counter: Any) -> None:
    """A message of Dramatiq ends what it was queued under."""
    broker = StubBroker()
    options: Any = {"max_retries": 3, "min_backoff": 1, "max_backoff": 2}
    actor: Any = dramatiq.actor(
        actor_class=dramatiq_integration.LockedActor, broker=broker, **options
    )(counter)
    actor.send({})
    work_off_dramatiq(broker, actor)


def test_dramatiq_forgets_an_unknown_actor(locks: lualock.Locks, one_client: Any) -> None:
    """A message of an actor that was renamed is thrown away, with what it holds."""
    one_client.flushall()
    broker = StubBroker()
    make = dramatiq.actor(actor_class=dramatiq_integration.LockedActor, broker=broker)
    actor: Any = make(locks.job(key="x", unique="queued")(rebuild))
    actor.send(7)
    assert not nothing_left(one_client)
    broker.actors["renamed"] = broker.actors.pop(actor.actor_name)
    with pytest.raises(dramatiq.errors.ActorNotFound):
        work_off_dramatiq(broker, actor)
    wait_until(lambda: nothing_left(one_client))


def test_celery_forgets_an_unknown_task(
    app: celery.Celery, locks: lualock.Locks, one_client: Any
) -> None:
    """A task whose function was renamed is thrown away, with what it holds."""
    one_client.flushall()
    task = app.task(locks.job(key="x", unique="queued")(rebuild))
    entry: Any = jobs.adapter(task).reserve([7], job_id="mine")
    jobs.adapter(task).confirm([7], token=entry.token)
    assert not nothing_left(one_client)
    message = Mock(headers={"lualock": entry.token})
    sender = Mock(app=app)
    celery.signals.task_unknown.send(
        sender=sender, message=message, exc=None, name="gone", id="mine"
    )
    assert nothing_left(one_client)


def test_celery_carries_names(app: celery.Celery, counter: Any) -> None:
    """A retried task ends what it was queued under."""
    task = app.task(counter, autoretry_for=(Trouble,), default_retry_delay=0)
    payload: dict[str, int] = {}
    entry: Any = jobs.adapter(task).reserve([payload], job_id="mine")
    token = entry.token
    jobs.adapter(task).confirm([payload], token=token)
    for _ in range(2):
        with (
            delivered(task, payload, headers={"lualock": token}) as sent,
            pytest.raises(celery.exceptions.Retry),
        ):
            task.run(payload)
        assert len(sent) == 1
    with delivered(task, payload, headers={"lualock": token}):
        task.run(payload)


async def test_taskiq_carries_names(counter: Any) -> None:
    """A task of taskiq, which parses arguments, ends what it was queued under."""
    broker = taskiq.InMemoryBroker(await_inplace=True)
    await broker.startup()
    task = taskiq_integration.locked(broker)(counter)
    result = await (await taskiq_integration.enqueue(task, {"n": "7"})).result.wait_result()
    assert not result.is_err
    await broker.shutdown()


@BODIES
def test_huey_calls_a_decorator_above_the_job(
    locks: lualock.Locks, one_client: Any, body: Callable[..., Any]
) -> None:
    """A decorator above the job, such as ``db_task`` of djhuey has, is called, and the job in it is
    the one that was queued."""
    one_client.flushall()
    consumer = huey.MemoryHuey(immediate=False)
    consumer.task_wrapper_class = huey_integration.LockedTask
    seen: list[Any] = []

    def close_db(function: Any) -> Any:
        @functools.wraps(function)
        def inner(*args: Any, **kwargs: Any) -> Any:
            seen.append(args)
            return function(*args, **kwargs)

        return inner

    task = consumer.task()(close_db(locks.job(key="x", unique="queued")(body)))
    entry = task.enqueue(7)
    assert refused(task.enqueue(7), entry.job_id)
    assert consumer.execute(consumer.dequeue()) == "rebuilt 7"
    assert seen == [(7,)]
    assert nothing_left(one_client)


def test_huey_retries_through_a_decorator(locks: lualock.Locks, one_client: Any) -> None:
    """A refused delivery comes back, and a job that calls itself is another one."""
    one_client.flushall()
    consumer = huey.MemoryHuey(immediate=False)
    consumer.task_wrapper_class = huey_integration.LockedTask
    job: Any = locks.job(key="x", unique="queued", policy=jobs.Retry(0))(rebuild)
    task = consumer.task(name="audited")(audited(job))
    task.enqueue(7)
    with locks.lock("x"):
        consumer.execute(consumer.dequeue())
    assert not task.enqueue(7), "it comes back"
    (again,) = consumer.scheduled()
    assert consumer.execute(again) == "rebuilt 7"
    assert task.enqueue(7)


def test_huey_enqueues_what_was_made_before(locks: lualock.Locks, one_client: Any) -> None:
    """Code that enqueues by ``task.huey``, as ``on_commit_task`` of djhuey does, is refused too."""
    one_client.flushall()
    consumer = huey.MemoryHuey(immediate=False)
    consumer.task_wrapper_class = huey_integration.LockedTask
    task = consumer.task()(locks.job(key="x", unique="queued")(rebuild))
    for _ in range(2):
        task.huey.enqueue(task.s(7))
    assert len(consumer) == 1
    other = consumer.task(name="another")(rebuild)
    task.huey.enqueue(other.s(7))
    assert len(consumer) == 2
    assert task.huey.name == consumer.name


@pytest.mark.parametrize("retries", [0, 1])
@pytest.mark.parametrize("fails", [True, False])
@pytest.mark.parametrize("unique", ["queued", "both"])
def test_huey_a_decorator_that_does_not_call_the_job(
    locks: lualock.Locks, one_client: Any, unique: str, fails: bool, retries: int
) -> None:
    """The reservation ends with the task, unless Huey tries it again."""
    one_client.flushall()
    consumer = huey.MemoryHuey(immediate=False)
    consumer.task_wrapper_class = huey_integration.LockedTask

    def needs_database(function: Any) -> Any:
        @functools.wraps(function)
        def inner(*args: Any, **kwargs: Any) -> Any:
            if fails:
                raise Trouble

        return inner

    task = consumer.task(retries=retries)(
        needs_database(locks.job(key="x", unique=unique)(rebuild))
    )
    task.enqueue(7)
    consumer.execute(consumer.dequeue())
    assert bool(task.enqueue(7)) == (not fails or not retries)
    while len(consumer):
        consumer.execute(consumer.dequeue())
    assert nothing_left(one_client)
