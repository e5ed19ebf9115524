"""Each kind of worker that a job system has: threads, greenlets, one at a time, as in processes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integrations.test_workers import alone
from tests.integrations.workers.fleet import APPS, Fleet
from tests.integrations.workers.producer import Order
from tests.support.servers import BINARIES, Server

pytestmark = pytest.mark.full

CELERY = f"-m celery -A {APPS}.celery worker --without-gossip --without-mingle -l INFO -P"
HUEY = f"-m huey.bin.huey_consumer {APPS}.huey.huey -w 4 -k"
KINDS = {
    "celery-prefork": f"{CELERY} prefork -c 4",
    "celery-gevent": f"{CELERY} gevent -c 8",
    "celery-eventlet": f"{CELERY} eventlet -c 8",
    "celery-threads": f"{CELERY} threads -c 8",
    "celery-solo": f"{CELERY} solo",
    "dramatiq-gevent": f"{Path(sys.executable).parent}/dramatiq-gevent {APPS}.dramatiq -p 1 -t 8",
    "huey-greenlet": f"-m {APPS}.huey_greenlets {APPS}.huey.huey -w 4 -k greenlet",
    "huey-thread": f"{HUEY} thread",
    "huey-process": f"{HUEY} process",
    "rq-Worker": f"-m {APPS}.rq Worker",
    "rq-SimpleWorker": f"-m {APPS}.rq SimpleWorker",
    "rq-SpawnWorker": f"-m {APPS}.rq SpawnWorker",
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Fleet, str]]:
    """Return two workers of one kind, and their system."""
    system = request.param.partition("-")[0]
    server = Server("jobs", next(iter(BINARIES.values())))
    fleet = Fleet(server, tmp_path)
    try:
        fleet.start(system, command=KINDS[request.param])
        yield fleet, system
    finally:
        fleet.close()
        server.close()


def test_every_policy(kind: tuple[Fleet, str]) -> None:
    """Jobs exclude each other, come back, wait, are replaced, coalesced and unique, and nothing is
    left."""
    fleet, system = kind
    each: list[list[Any]] = [[system, number] for number in range(40)]
    fleet.send_each(system, Order("exclusive", each))
    fleet.send_each(system, Order("patient", [[system, number] for number in range(2)]))
    fleet.send(system, "replaced", system, 1)
    fleet.until_count("replaced", system, 1, "start")
    fleet.send(system, "replaced", system, 2)
    fleet.send(system, "holding", system)
    fleet.until_count("replaced", system, 2, "end")
    fleet.until_count("exclusive", system, len(each), "end", "failed")
    fleet.until_count("patient", system, 2, "end")
    fleet.until_count("holding", system, 1, "end")
    for job in ("exclusive", "patient", "replaced"):
        alone(fleet.diary.entries(job, system))
    with fleet.lock(system, "single"):
        outcomes = fleet.send_each(system, Order("single", each[:4], together=True))
        fleet.until_count("single", system, 1, "later")
    assert [outcome["state"] for outcome in outcomes].count("enqueued") == 1
    fleet.until_count("single", system, 1, "end")
    fleet.send(system, "overdue", system, "shop 7", pages=3)
    fleet.until_count("overdue", system, 1, "expired")
    with fleet.server.client() as client:
        fleet.until(lambda: not client.keys("lualock:*"), system, "no key of lualock is left")
