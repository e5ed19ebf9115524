"""The benchmark: it runs, it counts right, and its targets can be missed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import (
    contention,
    coroutines,
    promptness,
    races,
    renewals,
    report,
    uncontended,
    waiters,
    wake_ups,
)
from bench.__main__ import SCENARIOS, main
from bench.races import Hold, double_holders
from tests.servers import Server


@pytest.mark.parametrize(
    ("holds", "found"),
    [
        ([], 0),
        ([Hold("a", 0, 1), Hold("b", 1, 2)], 0),
        ([Hold("a", 0, 1), Hold("b", 0.9, 2)], 1),
        ([Hold("a", 0, 1), Hold("a", 0.9, 2)], 0),
        ([Hold("b", 0.9, 2), Hold("a", 0, 1)], 1),
        ([Hold("a", 0, 9), Hold("b", 1, 2), Hold("c", 3, 4)], 2),
        ([Hold("a", 0, 9), Hold("b", 1, 1)], 1),
        ([Hold("a", 0, 0), Hold("b", 0, 1)], 0),
    ],
)
def test_double_holders(holds: list[Hold], found: int) -> None:
    """A hold that begins while another worker is inside counts once."""
    assert double_holders(holds) == found


def test_what_the_workers_wrote(tmp_path: Path) -> None:
    """Nobody is inside beyond what it may believe, nor after it was killed."""
    (tmp_path / "1.log").write_text("in 1.0 3.0\nout 2.0 0\nin 4.0 5.0\nout 6.0 0\nin 7.0 8.0\n")
    (tmp_path / "2.log").write_text("in 1.0 inf\nout 2.5 1\n")
    (tmp_path / "3.log").write_text("")
    assert sorted(races.read(tmp_path), key=lambda h: (h.worker, h.start)) == [
        Hold("1", 1.0, 2.0),
        Hold("1", 4.0, 5.0),
        Hold("1", 7.0, 7.0),
        Hold("2", 1.0, 2.5, taken=True),
    ]


def test_the_races_find_the_known_faults(one_server: Server) -> None:
    """A rival without an owner check is caught; lualock in the same race is not."""
    rows = [races.race(one_server.url, kind, "expiry", 1.0) for kind in ("SetNxPx", "Lualock")]
    assert rows[0].double_holders > 0
    assert rows[0].taken_from_holder > 0
    assert rows[1].acquisitions > 0
    assert rows[1].double_holders == rows[1].taken_from_holder == rows[1].stuck == 0
    stuck = races.race(one_server.url, "SetNx", "crash", 1.5)
    assert stuck.stuck == (1 if stuck.crashes else 0)


def _table(times_ping: float, times_redis_py: float, times_setnx: float) -> uncontended.Table:
    times = {
        uncontended.PING: times_ping,
        "redis-py Lock": times_redis_py,
        "SETNX + DEL": times_setnx,
    }
    rows = [uncontended.Row(name, 1, 1, 1, 1, ratio) for name, ratio in times.items()]
    return uncontended.Table("TCP", uncontended.ONE_CORE, rows)


def test_targets_can_be_missed() -> None:
    """What is met or missed is computed from the run."""

    def met(*times: float) -> list[bool]:
        return [m for _, _, m in uncontended.targets([_table(*times)])]

    assert met(0.81, 1.61, 1.01) == [True, True, True]
    assert met(0.79, 1.59, 0.99) == [False, False, False]
    good = races.Row("lualock", "expiry", 10, 0, 0, 0, 0)
    bad = races.Row("lualock", "crash", 0, 1, 2, 1, 0)
    assert [m for _, _, m in races.targets([good])] == [True] * 4
    assert [m for _, _, m in races.targets([good, bad])] == [False] * 4

    def contended(redis_lock: float, redis_py: float, most: float, spread: float) -> list[bool]:
        rows = [
            contention.Row("lualock", 2, 100, 1, 0.5, 1, 1),
            contention.Row("lualock", 32, 100, spread, 1, 1, most),
            contention.Row("python-redis-lock", 32, 1, 1, 0, 1 / redis_lock, 1),
            contention.Row("redis-py Lock", 32, 1, 1, 0, 1 / redis_py, 1),
        ]
        return [m for _, _, m in contention.targets(rows)]

    assert contended(2.6, 16, 0.81, 1.1) == [True] * 5
    assert contended(2.4, 14, 0.79, 1.3) == [False] * 4 + [True]
    ten, many = waiters.Row(10, 0.01, 200, 99, 1), waiters.Row(10_000, 0.09, 200, 99, 1.49)
    assert [m for _, _, m in waiters.targets([ten, many])] == [True, True]
    slow = waiters.Row(10_000, 0.11, 200, 99, 1.51)
    assert [m for _, _, m in waiters.targets([ten, slow])] == [False, False]

    def tasks(one: float, thousand: float) -> list[bool]:
        rows = [
            coroutines.Row("redis-py asyncio Lock", n, 1, t)
            for n, t in ((1, one), (1000, thousand))
        ]
        return [m for _, _, m in coroutines.targets(rows)]

    assert tasks(1.0, 7.1) == [True, True]
    assert tasks(0.9, 6.9) == [False, False]

    def prompt(turn_ms: float, timeout_ms: float) -> list[bool]:
        rows = [
            promptness.Row("", turn_ms, turn_ms, promptness.TURN_MAX_MS),
            promptness.Row("", timeout_ms, timeout_ms, promptness.TIMEOUT_MAX_MS),
        ]
        return [m for _, _, m in promptness.targets(rows)]

    assert prompt(99, 49) == [True, True]
    assert prompt(101, -51) == [False, False]

    def kept(core: float, lost: int) -> list[bool]:
        return [m for _, _, m in renewals.targets([renewals.Row("", 9, 1, core, 1, 1, lost)])]

    assert kept(0.09, 0) == [True, True]
    assert kept(0.11, 1) == [False, False]
    judged = uncontended.targets([_table(0.79, 1.59, 0.99)])
    assert report.as_markdown({}, {}, judged).count("**missed**") == 3


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole command runs, prints a table a scenario, and keeps JSON and Markdown."""
    monkeypatch.setattr(uncontended, "QUICK_ROUNDS", 2)
    monkeypatch.setattr(uncontended, "PAIRS", 20)
    monkeypatch.setattr(contention, "PROCESSES", (2, 3))
    monkeypatch.setattr(contention, "TURNS", dict.fromkeys(contention.TURNS, 30))
    monkeypatch.setattr(wake_ups, "SHAPES", ((2, 2),))
    monkeypatch.setattr(wake_ups, "HOPS", 40)
    monkeypatch.setattr(promptness, "DEAD", 2)
    monkeypatch.setattr(promptness, "TIMEOUT_S", 0.05)
    monkeypatch.setattr(waiters, "QUICK_WAITERS", (2, 5))
    monkeypatch.setattr(waiters, "QUICK_IDLE_S", 0.1)
    monkeypatch.setattr(waiters, "SERVED", 10)
    monkeypatch.setattr(coroutines, "PAIRS", dict.fromkeys(coroutines.PAIRS, 20))
    monkeypatch.setattr(renewals, "QUICK_LEASES", 20)
    monkeypatch.setattr(renewals, "QUICK_TTL_S", 0.6)
    monkeypatch.setattr(races, "QUICK_RUN_S", 0.2)
    monkeypatch.setattr(races, "RIVALS", {"Lualock": races.RIVALS["Lualock"]})
    assert main(["--quick", "--out", str(tmp_path)]) == 0
    kept = json.loads((tmp_path / "report.json").read_text())
    assert set(kept["results"]) == set(SCENARIOS)
    assert len(kept["targets"]) == 7 + 5 + 2 + 2 + 2 + 2
    printed = capsys.readouterr().out
    assert printed == (tmp_path / "report.md").read_text() + "\n"
    assert "redis-py Lock" in printed
