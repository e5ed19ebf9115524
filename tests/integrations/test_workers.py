"""Seven job systems, with real worker processes of each on a real server.

The fleet is started once. What takes long begins in all systems before one of them is checked, and
the workers to kill are killed first, so that their leases end while the other tests run.
"""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

import lualock
from lualock.jobs.verbs import reservation_key
from tests.integrations.workers.diary import Entry, overlaps
from tests.integrations.workers.fleet import SYSTEMS, Fleet
from tests.integrations.workers.producer import Order
from tests.support.servers import BINARIES, Server

JOBS = 200
PRODUCERS = 50
LEASE_S = 30.0
LATE_S = 10.0
"""How late a job may begin on a machine that has other things to do; systems look once a second."""
REMOVABLE = tuple(system for system in SYSTEMS if system != "taskiq")  # which has no such thing

every_system = pytest.mark.parametrize("system", SYSTEMS)


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


@pytest.fixture(scope="module")
def killed(fleet: Fleet) -> dict[str, float]:
    """When a worker of each system was killed in the middle of a job."""
    times = {}
    fleet.everywhere("mortal", 1)
    for system in SYSTEMS:
        fleet.until_count("mortal", system, 1, "start")
    for system in SYSTEMS:
        (run,) = fleet.diary.entries("mortal", system, "start")
        fleet.kill(system, run.pid)
        times[system] = time.monotonic()
    for system in SYSTEMS:
        fleet.start(system, workers=1, producers=0)
    for system in SYSTEMS:  # by now the server knows that a waiter there is dead
        fleet.send(system, "mortal", system, 2)
    return times


@every_system
def test_one_at_a_time(fleet: Fleet, killed: dict[str, float], system: str) -> None:
    """Of hundreds of jobs for one lock each runs alone, or its callback gets its arguments."""
    each: list[list[Any]] = []
    entries: list[Entry] = []
    while len({entry.pid for entry in entries}) < 2 and len(each) < 5 * JOBS:
        # An idle worker may look only after a second, when another one has run all jobs.
        more = [[system, number] for number in range(len(each), len(each) + JOBS)]
        fleet.send_each(system, Order("exclusive", more))
        each += more
        fleet.until_count("exclusive", system, len(each), "end", "failed")
        entries = fleet.diary.entries("exclusive", system)
    alone(entries)
    arguments = [entry.values for entry in entries if entry.event in ("end", "failed")]
    assert sorted(arguments) == sorted(each)
    assert len({entry.pid for entry in entries}) >= 2, "there was somebody to exclude"


def test_one_at_a_time_in_all_systems(fleet: Fleet) -> None:
    """The lock is the same whichever system a job comes from: a Celery job excludes RQ's and a
    plain caller."""
    each = [["all", number, 0.02] for number in range(20)]
    with fleet.lock("all", "exclusive"):
        for system in SYSTEMS:
            fleet.send(system, "exclusive", "all", -1)
        fleet.until(
            lambda: fleet.diary.count("exclusive", "all", "failed") == 7, "", "all callbacks"
        )
    for system in SYSTEMS:
        fleet.send_each(system, Order("exclusive", each))
    ends = 7 + len(each) * len(SYSTEMS)
    fleet.until(
        lambda: fleet.diary.count("exclusive", "all", "end", "failed") == ends, "", "all done"
    )
    entries = fleet.diary.entries("exclusive", "all")
    alone(entries)
    assert len({entry.pid for entry in entries if entry.event == "start"}) > len(SYSTEMS) / 2


@every_system
def test_a_job_that_outlives_its_lease(fleet: Fleet, system: str) -> None:
    """Its callback gets exactly the job's arguments."""
    fleet.everywhere("overdue", "shop 7", pages=3)
    assert exactly(fleet, "overdue", system, "expired")


@every_system
def test_a_job_that_finds_its_lock_held(fleet: Fleet, system: str) -> None:
    """Its callback gets exactly the job's arguments; so does that of a refused job, in its
    producer."""
    if "superfluous" not in fleet.begun:
        jobs = ("superfluous", "unwanted")
        held = [fleet.lock(each, job).acquire() for each in SYSTEMS for job in jobs]
        for job in jobs:
            fleet.everywhere(job, "shop 7", pages=3)
        for each in SYSTEMS:
            fleet.until_count("superfluous", each, 1, "failed")
        for lease in held:
            lease.release()
    assert exactly(fleet, "superfluous", system, "failed")
    assert exactly(fleet, "unwanted", system, "refused")
    assert not fleet.diary.count("superfluous", system, "start")
    assert not fleet.diary.count("unwanted", system, "start")


@every_system
def test_a_server_that_is_away(fleet: Fleet, system: str) -> None:
    """A job runs without its lock, or does not run, as it declares."""
    fleet.everywhere("careless", "shop 7", pages=3)
    fleet.everywhere("cautious", "shop 7", pages=3)
    fleet.until_count("careless", system, 1, "end")
    assert [run.fence for run in fleet.diary.entries("careless", system, "start")] == [0]
    assert exactly(fleet, "cautious", system, "failed")
    assert not fleet.diary.count("cautious", system, "start")


@pytest.mark.full
@every_system
def test_a_deploy_that_changes_the_name(fleet: Fleet, system: str) -> None:
    """No two jobs of versions that are deployed together run at once, and all have their turn."""
    versions = ("before", "during", "after")
    rounds, each = 6, 2
    for first in range(0, rounds * each, each):
        for job in versions:
            order = Order(job, [[system, number] for number in range(first, first + each)])
            fleet.send_each(system, order)
    for job in versions:
        fleet.until_count(job, system, rounds * each, "end")
    runs = {job: fleet.diary.entries(job, system) for job in versions}
    for old, new in itertools.pairwise(versions):
        assert overlaps(runs[old] + runs[new]) == []


@pytest.mark.full
@every_system
def test_a_job_that_comes_back_later(fleet: Fleet, system: str) -> None:
    """All jobs run, one after the other, by the system's own way to try again."""
    numbers = range(3)
    fleet.send_each(system, Order("patient", [[system, number] for number in numbers]))
    fleet.until_count("patient", system, len(numbers), "end")
    entries = fleet.diary.entries("patient", system)
    alone(entries)
    assert sorted(entry.values[1] for entry in entries if entry.event == "end") == list(numbers)
    assert not [entry for entry in entries if entry.event == "failed"]


@pytest.mark.full
@every_system
def test_coming_back_is_not_an_attempt(fleet: Fleet, system: str) -> None:
    """A job that came back more often than it may be tried still has all its attempts."""
    if "stubborn" not in fleet.begun:
        held = [fleet.lock(each, "stubborn").acquire() for each in SYSTEMS]
        fleet.everywhere("stubborn")
        for each in SYSTEMS:
            fleet.until_count("stubborn", each, 3, "later")
        for lease in held:
            lease.release()
    fleet.until_count("stubborn", system, 1, "end")
    assert fleet.diary.count("stubborn", system, "start") == 2


@pytest.mark.full
@every_system
@pytest.mark.parametrize("job", ["holding", "freeing"])
def test_the_lock_between_two_attempts(fleet: Fleet, system: str, job: str) -> None:
    """A waiter gets the lock before the second attempt, or after it, as the job declares."""
    ended = fleet.behind(job)[system].result()
    assert ended == (1 if job == "holding" else 0)
    fleet.until_count(job, system, 1, "end")
    assert fleet.diary.count(job, system, "start") == 2


@pytest.mark.full
@every_system
def test_the_lock_after_the_last_attempt(fleet: Fleet, system: str) -> None:
    """The lock is kept if the job declares so, and then for as long as a queued job keeps its
    reservation."""
    fleet.everywhere("keeping")
    fleet.until_count("keeping", system, 1, "start")
    (run,) = fleet.diary.entries("keeping", system, "start")
    with fleet.free(system, "keeping"):
        assert time.monotonic() - run.at >= 2.0


@pytest.mark.full
@every_system
def test_a_kept_lock_when_no_attempt_is_left(fleet: Fleet, system: str) -> None:
    """The lock is free after the last attempt, and the first waiter gets it at once."""
    assert fleet.behind("hopeless")[system].result() == 0
    assert fleet.diary.count("hopeless", system, "start") == 2


@pytest.mark.full
@every_system
def test_unique_among_many_producers(fleet: Fleet, system: str) -> None:
    """Of fifty producers that enqueue together one succeeds, and the others get its job's id."""
    each = [[system, number] for number in range(PRODUCERS)]
    with fleet.lock(system, "single"):  # so that it stays in the queue until all have tried
        outcomes = fleet.send_each(system, Order("single", each, together=True))
        fleet.until_count("single", system, 1, "later")  # and goes into it again
    (enqueued,) = [outcome for outcome in outcomes if outcome["state"] == "enqueued"]
    refused = [outcome for outcome in outcomes if outcome is not enqueued]
    assert refused == [{"state": "queued", "job_id": enqueued["job_id"]}] * (PRODUCERS - 1)
    fleet.until_count("single", system, 1, "end")
    entries = fleet.diary.entries("single", system)
    arguments = [entry.values for entry in entries if entry.event in ("end", "refused")]
    assert sorted(arguments) == sorted(each)


@pytest.mark.full
@every_system
def test_one_trailing_run(fleet: Fleet, system: str) -> None:
    """However many jobs come while one runs, one more runs after it."""
    fleet.send(system, "coalesced", system, 0)
    fleet.until_count("coalesced", system, 1, "start")
    fleet.send_each(system, Order("coalesced", [[system, number] for number in range(1, 11)]))
    fleet.until_count("coalesced", system, 9, "failed")
    fleet.diary.write("go", "coalesced", system)
    fleet.until_count("coalesced", system, 2, "end")
    assert fleet.diary.count("coalesced", system, "start") == 2
    alone(fleet.diary.entries("coalesced", system))


@pytest.mark.full
@every_system
def test_a_run_that_is_replaced(fleet: Fleet, system: str) -> None:
    """The running job gets a stop request, and the new one runs after it."""
    fleet.send(system, "replaced", system, 1)
    fleet.until_count("replaced", system, 1, "start")
    fleet.send(system, "replaced", system, 2)
    fleet.until_count("replaced", system, 2, "end")
    entries = fleet.diary.entries("replaced", system)
    assert [(entry.event, entry.values[1]) for entry in entries] == [
        ("start", 1),
        ("end", 1),
        ("start", 2),
        ("end", 2),
    ]


@pytest.mark.full
@pytest.mark.parametrize("system", REMOVABLE)
def test_a_job_that_is_removed(fleet: Fleet, system: str) -> None:
    """Another job can be enqueued then, and the removed one does not run."""
    (first,) = fleet.send_each(system, Order("removable", [[system, 1]], call="later"))
    assert first["state"] == "enqueued"
    # It keeps its reservation while it is not due, and for an hour.
    with fleet.server.client() as client:
        left_s = client.pttl(reservation_key(fleet.lock(system, "removable").key)) / 1000
    assert 3600 < left_s < 3610
    assert fleet.send(system, "removable", system, 2) == first | {"state": "queued"}
    fleet.send_each(system, Order("removable", [[first["job_id"], [system, 1]]], call="remove"))
    fleet.until(
        lambda: fleet.send(system, "removable", system, 2)["state"] == "enqueued",
        system,
        "the reservation of the removed job is free",
    )
    fleet.until_count("removable", system, 1, "end")
    assert [run.values for run in fleet.diary.entries("removable", system, "start")] == [
        [system, 2]
    ]


@pytest.mark.full
@every_system
def test_the_worker_is_killed(
    fleet: Fleet, killed: dict[str, float], system: str, record_property: Any
) -> None:
    """Another job gets its lock when the lease ends, and no earlier."""
    fleet.until(
        lambda: [run for run in fleet.diary.entries("mortal", system, "end") if run.values[1] == 2],
        system,
        "a job after the one that was killed",
    )
    runs = fleet.diary.entries("mortal", system, "start")
    recovered_s = runs[1].at - killed[system]
    record_property("recovered_s", round(recovered_s, 1))
    assert LEASE_S / 3 < recovered_s < LEASE_S + LATE_S


@pytest.mark.full
@pytest.mark.parametrize("system", ["dramatiq", "arq", "taskiq"])
def test_the_job_of_a_worker_that_was_killed(
    fleet: Fleet, killed: dict[str, float], system: str
) -> None:
    """If the system delivers the job again on its own, the job gets its lock again and ends."""
    fleet.until(
        lambda: [run for run in fleet.diary.entries("mortal", system, "end") if run.values[1] == 1],
        system,
        "the job that was killed",
    )
    assert killed[system]
    runs = fleet.diary.entries("mortal", system)
    assert sorted(run.values[1] for run in runs if run.event == "end") == [1, 2]
    alone([run for run in runs if run.at > killed[system]])


@pytest.mark.full
@pytest.mark.parametrize("system", ["rq", "celery"])
def test_a_death_that_is_seen(fleet: Fleet, system: str) -> None:
    """RQ and Celery have a main process, which sees the death and frees the lock at once."""
    fleet.send(system, "struck", system)
    fleet.until_count("struck", system, 1, "start")
    (run,) = fleet.diary.entries("struck", system, "start")
    os.kill(run.pid, signal.SIGKILL)
    since = time.monotonic()
    with fleet.free(system, "struck"):
        assert time.monotonic() - since < LEASE_S / 2
    if system == "rq":  # tries again what was killed; Celery has acknowledged it before it began
        fleet.until_count("struck", system, 1, "end")


@pytest.mark.full
@pytest.mark.parametrize("job", ["limited", "terminated"])
def test_celery_kills_it_itself(fleet: Fleet, job: str) -> None:
    """After a hard time limit or a revocation the lock is free once the process is dead."""
    sent = fleet.send("celery", job, "celery")
    fleet.until_count(job, "celery", 1, "start")
    since = time.monotonic()
    if job == "terminated":
        order = Order(job, [[sent["job_id"], ["celery"]]], call="remove")
        fleet.send_each("celery", order)
    with fleet.free("celery", job):
        assert time.monotonic() - since < LEASE_S / 2


@pytest.mark.full
def test_celery_puts_back_what_was_killed(fleet: Fleet) -> None:
    """The job finds its lock free, and need not wait for the end of the dead process's lease."""
    fleet.send("celery", "requeued", "celery")
    fleet.until_count("requeued", "celery", 1, "start")
    (run,) = fleet.diary.entries("requeued", "celery", "start")
    os.kill(run.pid, signal.SIGKILL)
    fleet.until_count("requeued", "celery", 1, "end")
    again = fleet.diary.entries("requeued", "celery", "start")[1]
    assert again.at - run.at < LEASE_S / 2


@pytest.mark.full
def test_celery_ends_what_waits_for_its_lock(fleet: Fleet) -> None:
    """The reservation of a job that waited is free; its token is that of the worker's request."""
    with fleet.lock("celery", "waiting"):
        sent = fleet.send("celery", "waiting", "celery")
        fleet.until(lambda: fleet.lock("celery", "waiting").inspect().waiters, "celery", "it waits")
        assert fleet.send("celery", "waiting", "celery") == sent | {"state": "queued"}
        fleet.send_each("celery", Order("waiting", [[sent["job_id"], ["celery"]]], call="remove"))
        fleet.until(
            lambda: fleet.send("celery", "waiting", "celery")["state"] == "enqueued",
            "celery",
            "the reservation of the ended job is free",
        )
    fleet.until_count("waiting", "celery", 1, "start")


@pytest.mark.full
def test_celery_signals_alone_free_no_lock(fleet: Fleet) -> None:
    """A task that goes on after a signal keeps its lock."""
    sent = fleet.send("celery", "lingering", "celery")
    fleet.until_count("lingering", "celery", 1, "start")
    order = Order("lingering", [[sent["job_id"], ["celery"]]], call="remove")
    fleet.send_each("celery", order)
    fleet.until_count("lingering", "celery", 1, "asked")
    with pytest.raises(lualock.NotAcquired):
        fleet.lock("celery", "lingering").acquire(timeout=1)
    fleet.diary.write("go", "lingering", "celery")
    with fleet.free("celery", "lingering"):
        assert fleet.diary.count("lingering", "celery", "end") == 1


@pytest.mark.full
def test_no_key_is_left(fleet: Fleet) -> None:
    """When all has ended, no key of lualock is on the server."""
    with fleet.server.client() as client:
        fleet.until(lambda: not client.keys("lualock:*"), "", "no key of lualock is left")


def exactly(fleet: Fleet, job: str, system: str, event: str) -> bool:
    """Check that a callback was called once, with the arguments that the job was enqueued with."""
    fleet.until_count(job, system, 1, event)
    (entry,) = fleet.diary.entries(job, system, event)
    if system == "saq":  # its jobs have arguments by name only
        named = {"where": system, "shop": "shop 7", "pages": 3}
        return (entry.args, entry.kwargs) == ([], named)
    return (entry.args, entry.kwargs) == ([system, "shop 7"], {"pages": 3})


def alone(entries: list[Entry]) -> None:
    """Check that no run began while another had not ended, and that each had a greater fence."""
    assert overlaps(entries) == []
    fences = [entry.fence for entry in entries if entry.event == "start"]
    assert fences == sorted(set(fences))
