"""Seven job systems, with real worker processes of each on a real server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import BINARIES, Server
from tests.workers.diary import overlaps
from tests.workers.fleet import SYSTEMS, Fleet
from tests.workers.producer import Order

JOBS = 200


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Workers and producers of all systems, side by side."""
    server = Server("jobs", next(iter(BINARIES.values())))
    fleet = Fleet(server, tmp_path_factory.mktemp("fleet"))
    try:
        for system in SYSTEMS:
            fleet.start(system)
        yield fleet
    finally:
        fleet.close()
        server.close()


@pytest.mark.parametrize("system", SYSTEMS)
def test_one_at_a_time(fleet: Fleet, system: str) -> None:
    """Of hundreds of jobs for one lock each runs alone or is told, with its arguments."""
    each = [[system, number] for number in range(JOBS)]
    fleet.send_each(system, Order("exclusive", each))
    fleet.until_count("exclusive", system, JOBS, "end", "failed")
    entries = fleet.diary.entries("exclusive", system)
    assert overlaps(entries) == []
    told = [entry.values for entry in entries if entry.event in ("end", "failed")]
    assert sorted(told) == sorted(each)


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_job_that_outlives_its_lease(fleet: Fleet, system: str) -> None:
    """Its callback is called with exactly the job's arguments."""
    fleet.send(system, "overdue", system, "shop 7", pages=3)
    fleet.until_count("overdue", system, 1, "expired")
    (told,) = fleet.diary.entries("overdue", system, "expired")
    args, kwargs = [system, "shop 7"], {"pages": 3}
    if system == "saq":  # its jobs have arguments by name only
        args, kwargs = [], {"where": system, "shop": "shop 7", "pages": 3}
    assert (told.args, told.kwargs) == (args, kwargs)
