"""The demo: it works, and its checks can fail."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from demo.checks import problems
from demo.events import Event, EventLog, read_all
from demo.graph import network, repositories

LEASE_S = 1.5


@pytest.mark.full
def test_the_demo_shows_what_happened() -> None:
    """In a whole run every check is ok, and the exit status is 0."""
    done = subprocess.run(
        [sys.executable, "-m", "demo"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAILED" not in done.stdout
    assert done.stdout.count("  ok  ") == 8
    for events in ("is refused ada/looms", "learns that its lease", "kills worker-", "after the"):
        assert events in done.stdout


def test_the_graph() -> None:
    """Forks and common contributors connect repositories; an unrelated one is alone."""
    assert network(1) == ["ada/looms", "grace/looms"]
    assert network(9) == ["barbara/paths", "edsger/paths", "leslie/clocks", "nancy/clocks"]
    assert len(repositories()) == 12


def test_an_event_that_is_being_written(tmp_path: Path) -> None:
    """A line whose writer is not done is left for the next reading."""
    event = EventLog(tmp_path, "worker-1").write("started", 1, 1)
    with (tmp_path / "worker-1.jsonl").open("a") as file:
        file.write('{"at": 2.0, "process": "wor')
    assert read_all(tmp_path) == [event]


def story() -> list[Event]:
    """Return the events of a made-up correct run."""
    events = [
        (0.0, "the demo", "pushed", 1, 1, ""),
        (0.0, "the demo", "pushed", 1, 2, ""),
        (0.1, "a", "started", 1, 1, ""),
        (0.2, "b", "refused", 1, 2, "a"),
        (0.4, "a", "finished", 1, 1, ""),
        (1.0, "the demo", "pushed", 7, 3, ""),
        (1.0, "a", "started", 7, 3, ""),
        (2.5, "the demo", "pushed", 7, 4, ""),
        (2.6, "b", "started", 7, 4, ""),
        (2.8, "b", "finished", 7, 4, ""),
        (4.0, "a", "finished", 7, 3, ""),
        (4.1, "a", "expired", 7, 3, ""),
        (5.0, "the demo", "pushed", 9, 5, ""),
        (5.0, "a", "started", 9, 5, ""),
        (5.1, "the demo", "killed", 9, 5, "a"),
        (6.5, "the demo", "freed", 9, 5, ""),
        (6.5, "the demo", "pushed", 9, 6, ""),
        (6.6, "b", "started", 9, 6, ""),
        (6.8, "b", "finished", 9, 6, ""),
    ]
    return [Event(*event) for event in events]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Return the correct results of that run."""
    for repo_id in (1, 7, 9):
        (tmp_path / f"{repo_id}.json").write_text(json.dumps(network(repo_id)))
    return tmp_path


def wrong(events: list[Event], results: Path) -> str:
    """Return the failed checks."""
    return " / ".join(chain(*problems(events, LEASE_S, results).values()))


def test_a_good_run_passes(results: Path) -> None:
    """A correct run passes all checks."""
    assert wrong(story(), results) == ""


def _doctored(what: str, job: int, changes: dict[str, Any]) -> list[Event]:
    made = [
        dataclasses.replace(e, **changes) if (e.what, e.job) == (what, job) else e for e in story()
    ]
    return sorted(made, key=lambda event: event.at)


@pytest.mark.parametrize(
    ("what", "job", "changes", "output"),
    [
        ("finished", 1, {"what": "nothing"}, "job 1 was neither run nor refused"),
        ("refused", 2, {"what": "started"}, "a and b both worked on repository 1"),
        ("refused", 2, {"holder": "b"}, "refused by b, which did not have the lock"),
        ("refused", 2, {"at": 3.0}, "refused by a, which did not have the lock"),
        ("expired", 3, {"what": "nothing"}, "took repository 7 from a, which got no callback"),
        ("expired", 3, {"what": "nothing"}, "without an expiry callback"),
        ("finished", 3, {"at": 1.5}, "got an expiry callback after 0.50 s"),
        ("started", 4, {"at": 1.5}, "a and b both worked on repository 7"),
        ("freed", 5, {"at": 5.2}, "free before its lease ended"),
        ("freed", 5, {"at": 9.0}, "held beyond its lease"),
        ("freed", 5, {"what": "nothing"}, "was not run again"),
        ("started", 6, {"at": 5.2}, "free before its lease ended"),
        ("killed", 5, {"what": "nothing"}, "no job was killed"),
        ("pushed", 1, {"what": "nothing"}, "job 1 was never pushed"),
    ],
)
def test_a_doctored_run_fails(
    results: Path, what: str, job: int, changes: dict[str, Any], output: str
) -> None:
    """Each check finds its own fault."""
    assert output in wrong(_doctored(what, job, changes), results)


def test_a_wrong_result_fails(results: Path) -> None:
    """A wrong or missing graph is found."""
    (results / "7.json").write_text("[]")
    (results / "9.json").unlink()
    output = wrong(story(), results)
    assert "repository 7 is missing or wrong" in output
    assert "repository 9 is missing or wrong" in output
