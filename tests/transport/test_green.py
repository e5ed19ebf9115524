"""Green threads of gevent and eventlet, in processes that they patch first."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import celery
import pytest

import lualock
from tests.integrations.workers.diary import Diary
from tests.integrations.workers.leash import Leash
from tests.support.servers import Server
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]

each_library = pytest.mark.parametrize("library", ["gevent", "eventlet"])


@pytest.mark.full
@each_library
def test_core_tests_under_green_threads(library: str) -> None:
    """The tests of waiting, loss and faults pass under green threads (``python -m
    tests.transport.green``)."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.transport.green", library, "-q", "--tb=short"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.fail(f"{done.stdout[-20_000:]}\n{done.stderr[-5_000:]}", pytrace=False)


@pytest.mark.full
@each_library
def test_a_celery_worker_with_a_pool_of_green_threads(
    library: str, one_server: Server, one_client: Any, tmp_path: Path
) -> None:
    """In one Celery worker a job that waits gives up in time, another one gets the lock, and a
    third is not delayed."""
    environment = os.environ | {
        "LUALOCK_URL": one_server.tcp_url,
        "LUALOCK_DIARY": str(tmp_path / "diary"),
        "PYTHONPATH": str(ROOT),
    }
    command = f"-m celery -A tests.transport.green.celery_app worker -P {library} -c 10"
    log = tmp_path / "worker.log"
    producer = celery.Celery(broker=one_server.tcp_url)
    diary = Diary(str(tmp_path / "diary"))

    def until(job: str, event: str, wait_s: float) -> float:
        """Wait for an event of a job; return its time."""
        try:
            wait_until(lambda: diary.count(job, "", event), wait_s=wait_s)
        except AssertionError:
            pytest.fail(f"{job} not {event} within {wait_s} s:\n{log.read_text()[-5_000:]}")
        return diary.entries(job, "", event)[0].at

    with Leash() as leash, lualock.connect(one_server.url) as locks, log.open("wb") as log_file:
        worker = subprocess.Popen(
            [sys.executable, *command.split()],
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log_file,
            stderr=log_file,
            start_new_session=True,
        )
        leash.add(worker)
        lock = locks.lock("held")
        queue = lock.key + b":waiters"
        with lock:
            producer.send_task("is_handed_it")
            producer.send_task("gives_up")
            wait_until(lambda: one_client.zcard(queue) == 2, wait_s=60, what="both wait")
            producer.send_task("free")
            ran, failed = until("free", "ran", 10), until("gives_up", "failed", 10)
            assert ran < failed
            assert not diary.count("is_handed_it", "", "ran")
        until("is_handed_it", "ran", 5)
    producer.close()
    diary.close()
