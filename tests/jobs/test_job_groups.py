"""docs/jobs/groups.md: no member of a group or chain is refused, and a dropped one counts as
done."""

from __future__ import annotations

from typing import Any

import celery
import celery.contrib.testing.tasks  # the worker below finds its task there
import dramatiq
import pytest
from celery.contrib.testing.worker import start_worker
from dramatiq.brokers.stub import StubBroker
from dramatiq.results import Results
from dramatiq.results.backends import StubBackend
from huey import MemoryHuey, api

import lualock
from lualock import jobs
from lualock.integrations import celery as celery_integration
from lualock.integrations import dramatiq as dramatiq_integration
from lualock.integrations import huey as huey_integration


def decide(contention: jobs.Contention) -> Any:
    """Drop most jobs, and let one come back."""
    return jobs.Retry(0.1) if contention.args[0] == "late" else None


def shown(*args: Any) -> str:
    """Return the arguments: the body of the jobs here."""
    return f"shown {args}"


@pytest.mark.full
def test_celery(locks: lualock.Locks) -> None:
    """No member is refused, although another job has its reservation; a dropped member counts with
    the result None, and one that comes back later holds up what follows it."""
    app = celery.Celery("groups", task_cls=celery_integration.LockedTask, set_as_current=False)
    app.conf.update(broker_url="memory://", result_backend="cache+memory://")
    body = locks.job(key=lambda *args: f"show {args[-1]}", unique="queued", policy=decide)(shown)
    task: Any = app.task(body)
    assert jobs.adapter(body).reserve(("busy",), job_id="there already")
    locks.lock("show held").acquire()
    locks.lock("show late", ttl=1).acquire()

    def swap(self: Any) -> None:
        self.replace(task.si("busy"))

    swapped: Any = app.task(bind=True)(swap)
    group, chain, chord = celery.group, celery.chain, celery.chord
    with start_worker(app, pool="solo", perform_ping_check=False):
        names = "busy", "held", "late"
        groups = [group(task.si(f"with {name}"), task.si(name)).delay() for name in names]
        assert groups[0].get(timeout=20) == [shown("with busy"), shown("busy")]
        assert groups[1].get(timeout=20) == [shown("with held"), None]
        assert groups[2].get(timeout=20) == [shown("with late"), shown("late")]

        assert chain(task.si("busy"), task.si(2)).delay().get(timeout=20) == shown(2)
        middle = chain(task.si(3), task.si("busy"), task.si(4)).delay()
        assert middle.get(timeout=20) == shown(4)
        assert chain(task.si("held"), task.s(5)).delay().get(timeout=20) == shown(None, 5)
        locks.lock("show late", ttl=1).acquire()
        held_up = chain(task.si("late"), task.s(6)).delay()
        assert held_up.get(timeout=20) == shown(shown("late"), 6)

        busy = chord([task.si(7), task.si("busy")])(task.s(8))
        assert busy.get(timeout=20) == shown([shown(7), shown("busy")], 8)
        dropped = chord([task.si(9), task.si("held")])(task.s(10))
        assert dropped.get(timeout=20) == shown([shown(9), None], 10)
        assert swapped.delay().get(timeout=20) == shown("busy")
    app.close()


def test_dramatiq_groups_and_pipelines(locks: lualock.Locks) -> None:
    """Members are sent past the actors, so none is refused; a dropped one counts."""
    broker = StubBroker()
    results: Any = Results  # Dramatiq has types, but not for everything
    broker.add_middleware(results(backend=StubBackend()))
    body = locks.job(key=lambda *args: f"show {args[0]}", unique="queued", policy=decide)(shown)
    actor: Any = dramatiq.actor(
        actor_class=dramatiq_integration.LockedActor, broker=broker, store_results=True
    )(body)
    assert actor.enqueue("busy")
    assert not actor.enqueue("busy")
    locks.lock("show held").acquire()
    locks.lock("show late", ttl=1).acquire()
    groups: Any = dramatiq.group
    group = groups([actor.message("busy"), actor.message("held")], broker=broker)
    pipe: Any = dramatiq.pipeline([actor.message("held"), actor.message(1)], broker=broker)
    late: Any = dramatiq.pipeline([actor.message("late"), actor.message(2)], broker=broker)
    group.run()
    pipe.run()
    late.run()
    # One thread, because two messages are "busy": at the same time, one would be dropped.
    worker = dramatiq.Worker(broker, worker_timeout=100, worker_threads=1)
    worker.start()
    try:
        broker.join(actor.queue_name, timeout=60_000)  # raises the error of a message that failed
        assert list(group.get_results()) == ["shown ('busy',)", None]
        assert pipe.get_result() == "shown (1, None)"
        assert late.get_result() == f"shown {(2, shown('late'))}"
    finally:
        worker.stop()


def test_huey_pipelines(locks: lualock.Locks) -> None:
    """Members are sent past the tasks, so none is refused; the pipeline goes on after a dropped
    one."""
    huey = MemoryHuey("groups", immediate=False)
    huey.task_wrapper_class = huey_integration.LockedTask
    body = locks.job(key=lambda *args: f"show {args[0]}", unique="queued", policy=decide)(shown)
    task = huey.task()(body)
    assert task.enqueue("busy")
    locks.lock("show held").acquire()
    results = huey.enqueue(task.s("busy").then(task, 2))
    dropped = huey.enqueue(task.s("held").then(task, 3))
    while (one := huey.dequeue()) is not None:
        huey.execute(one)
    assert results.get() == ["shown ('busy',)", "shown (2, \"shown ('busy',)\")"]
    assert dropped.get() == [None, "shown (3,)"]

    task.enqueue("busy")
    members = [task.s("busy"), task.s("held")]
    chord = huey.enqueue(api.group(members).then(task, 4))
    while (one := huey.dequeue()) is not None:
        huey.execute(one)
    assert chord.get() == shown(4, ["shown ('busy',)", None])
