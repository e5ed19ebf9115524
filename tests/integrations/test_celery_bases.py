"""What Celery tasks have from the Task class of their app, when ``LockedTask`` is their base."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import celery
import pytest
from celery.worker.request import Request

import lualock
from lualock import jobs
from lualock.integrations.celery import LockedTask
from lualock.integrations.celery.request import LockedRequest
from tests.support.servers import Server

SETTINGS = """
SECRET_KEY = "x"
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
"""

PROGRAM = """
import sys
import celery, lualock
from lualock.integrations.celery import LockedTask

locks, ran, how = lualock.connect(sys.argv[1]), [], sys.argv[2]
app = celery.Celery("x", **({"task_cls": LockedTask} if how == "task_cls" else {}))
app.conf.task_always_eager = True

@app.task(**({"base": LockedTask} if how == "base" else {}))
@locks.job(unique="queued")
def rebuild(shop_id):
    ran.append(shop_id)

@app.task(**({"base": LockedTask} if how == "base" else {}))
def plain(shop_id):
    ran.append(shop_id)

import django
django.setup()
from django.db import transaction

with transaction.atomic():
    rebuild.delay_on_commit(7)
    rebuild.apply_async_on_commit((8,))
    plain.delay_on_commit(9)
    assert not ran
assert ran == [7, 8, 9], ran
"""


@pytest.mark.parametrize("how", ["base", "task_cls"])
def test_tasks_under_django(one_server: Server, tmp_path: Path, how: str) -> None:
    """A task has ``delay_on_commit`` under Django, which sends it when the transaction is
    committed."""
    (tmp_path / "conf.py").write_text(SETTINGS)
    path = os.pathsep.join([str(tmp_path), str(Path(lualock.__file__).parents[1])])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, one_server.url, how],
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "conf", "PYTHONPATH": path},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def named(shop_id: int) -> int:
    return shop_id


class OwnRequest(Request):  # type: ignore[misc]  # Celery has no types
    """A request class of the user's own."""


class OwnTask(celery.Task):  # type: ignore[misc]
    """A task class of the user's own, for all tasks of an app."""

    abstract = True
    priority = 3
    Request = OwnRequest

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        return super().apply_async(args, kwargs, **{"shadow": "own", **options})

    def shop(self) -> str:
        return "own"


class OwnLockedTask(LockedTask):
    """A locked task class of the user's own, for all tasks of an app."""

    abstract = True
    Request = OwnRequest

    def shop(self) -> str:
        return "own locked"


class OtherLockedTask(LockedTask):
    """A locked task class of the user's own, for some tasks."""

    abstract = True

    def shop(self) -> str:
        own: Any = super()
        return f"other {own.shop()}"


@pytest.fixture(params=[OwnTask, f"{__name__}:OwnTask", OwnLockedTask])
def app(request: pytest.FixtureRequest) -> Iterator[celery.Celery]:
    """An app with a Task class of its own."""
    app = celery.Celery("bases", task_cls=request.param, set_as_current=False)
    app.conf.task_always_eager = True
    yield app
    app.close()


@pytest.mark.parametrize("base", [LockedTask, OtherLockedTask])
def test_a_task_has_what_its_app_declares(
    locks: lualock.Locks, app: celery.Celery, base: Any
) -> None:
    """A task with ``base=LockedTask`` derives from its app's own Task class too, after that."""
    job: Any = locks.job(key="x", unique="queued")(named)
    task = app.task(base=base, shared=False, name="task")(job)
    own = "own locked" if issubclass(app.Task, LockedTask) else "own"
    assert task.shop() == (f"other {own}" if base is OtherLockedTask else own)
    assert isinstance(task._get_current_object(), app.Task)
    assert task.delay(7).get() == 7
    assert not jobs.adapter(job).reservation([7]).locked()


def test_a_task_has_the_options_of_its_app(locks: lualock.Locks) -> None:
    """The attributes and methods of the app's own Task class are those of the task."""
    app = celery.Celery("bases", task_cls=OwnTask, set_as_current=False)
    sent: list[Any] = []

    def send(*args: Any, shadow: str, **options: Any) -> Any:
        sent.append(shadow)
        return app.AsyncResult("1")

    app.send_task = send
    task = app.task(base=LockedTask, shared=False)(locks.job(unique="queued")(named))
    assert task.priority == 3
    assert task.delay(7).refused is None
    assert task.delay(7).refused is not None
    assert sent == ["own"]
    app.close()


def test_a_task_has_the_request_class_of_its_app(locks: lualock.Locks, app: celery.Celery) -> None:
    """A request class of the user's own is kept beside that which frees the locks of the dead."""
    task = app.task(base=LockedTask, shared=False)(locks.job(named))
    assert issubclass(task.Request, LockedRequest)
    assert issubclass(task.Request, OwnRequest)
