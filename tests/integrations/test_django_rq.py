"""django-rq: its queues hide RQ's options, and may push a job later, or never."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.support.servers import Server

SETTINGS = """
import os, sys
import django
from django.conf import settings
settings.configure(
    INSTALLED_APPS=["django_rq"],
    RQ_QUEUES={"default": {"URL": os.environ["URL"]}},
    RQ={"COMMIT_MODE": os.environ["MODE"]},
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
)
django.setup()
import django_rq, lualock, rq
from django.db import transaction
from lualock.integrations.rq import enqueue, enqueue_in
from work import anything, plain, rebuild
queue = django_rq.get_queue("default")
def left():
    return [key for key in queue.connection.keys("lualock*") if queue.connection.pttl(key) > 6000]
"""
WORK = """
import os, lualock
from lualock.integrations.rq import locked
locks = lualock.connect(os.environ["URL"])
@locked
@locks.job(unique="queued")
def rebuild(shop_id): ...
@locked
@locks.job(unique="queued")
def anything(shop_id, **more): ...
@locked
@locks.job
def plain(shop_id): ...
"""


def run(server: Server, folder: Path, mode: str, program: str) -> None:
    """Run a program with Django, in a commit mode of django-rq."""
    (folder / "work.py").write_text(WORK)
    environment: dict[str, Any] = {"URL": server.tcp_url, "MODE": mode, "PYTHONPATH": str(folder)}
    with server.client() as client:
        client.flushall()
    command = [sys.executable, "-c", SETTINGS + textwrap.dedent(program)]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
    assert ended.returncode == 0, ended.stderr


def test_its_queues_take_the_options_of_rq(one_server: Server, tmp_path: Path) -> None:
    """RQ's options are RQ's, not arguments of the job, also for a job that takes any."""
    run(
        one_server,
        tmp_path,
        "auto",
        """
        for job in (rebuild, anything, plain):
            options = dict(retry=rq.Retry(max=3), result_ttl=60, at_front=True, job_timeout=5)
            pushed = enqueue(queue, job, 7, job_id=job.__name__, **options).result
            assert (pushed.id, pushed.result_ttl, pushed.timeout) == (job.__name__, 60, 5)
            assert (pushed.args, pushed.kwargs) == ((7,), {}) or pushed.kwargs == {}, pushed.kwargs
            assert pushed.retries_left == 3
        assert not enqueue(queue, rebuild, 7)
        """,
    )


@pytest.mark.parametrize("mode", ["request_finished", "on_db_commit", "auto"])
def test_a_push_that_has_not_happened(one_server: Server, tmp_path: Path, mode: str) -> None:
    """A job with a reservation is not enqueued where nothing says whether it is pushed."""
    run(
        one_server,
        tmp_path,
        mode,
        """
        mode = os.environ["MODE"]
        def tried():
            try:
                return bool(enqueue(queue, rebuild, 7))
            except lualock.InvalidArgument as error:
                assert "pushed later, or never" in str(error), error
                return "refused"
        with transaction.atomic():
            found = tried()
            transaction.set_rollback(mode != "auto")
        assert found == (True if mode == "auto" else "refused"), found
        assert mode == "auto" or not left(), left()
        if mode == "on_db_commit":
            assert tried() is True  # outside of a transaction it is pushed now
            queue.empty()
            queue.connection.flushall()
            with transaction.atomic():
                transaction.on_commit(lambda: enqueue(queue, rebuild, 7))
            assert len(queue) == 1
        assert enqueue(queue, plain, 7)  # it has no reservation
        """,
    )
